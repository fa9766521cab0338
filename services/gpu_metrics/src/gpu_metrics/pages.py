"""Pages of model servers, ordered by server id."""

from collections.abc import Iterable
from dataclasses import dataclass

from gpu_metrics.domain.host_state import HostState
from gpu_metrics.domain.readings import ModelServerReading, Tier
from servicekit.paging import Page, decode_page_token, encode_page_token

__all__ = ["PlacedServer", "page_of_servers"]


@dataclass(frozen=True, slots=True)
class PlacedServer:
    """A model server and the host it runs on."""

    server: ModelServerReading
    state: HostState

    @property
    def key(self) -> tuple[str, str]:
        """Return what the listing is ordered by; two hosts may claim one server id."""
        return self.server.server_id, self.state.host.host_id


def page_of_servers(
    hosts: Iterable[HostState], *, tier: Tier | None, page_size: int, page_token: str
) -> Page[PlacedServer]:
    """Return the page after `page_token` of the servers of a tier, or of all with None.

    Servers that come or go between two pages are or are not on them; none is shown twice. Raises
    `InvalidPageToken`.
    """
    scope = ("servers", tier.name if tier else "")
    position = decode_page_token(page_token, scope, (str, str)) or ("", "")
    after = (str(position[0]), str(position[1]))
    later = sorted(
        (
            placed
            for state in hosts
            for server in state.report.servers
            if (tier is None or server.tier is tier)
            and (placed := PlacedServer(server, state)).key > after
        ),
        key=lambda placed: placed.key,
    )
    page = tuple(later[:page_size])
    more = len(later) > page_size
    return Page(page, encode_page_token(scope, page[-1].key) if more else "")
