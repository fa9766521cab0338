"""Pages of model servers, ordered by server id."""

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass

from gpu_metrics.domain.host_state import HostState
from gpu_metrics.domain.readings import ModelServerReading, Tier
from servicekit.errors import FieldViolation, InvalidRequest

__all__ = ["InvalidPageToken", "PlacedServer", "ServerPage", "page_of_servers"]


class InvalidPageToken(InvalidRequest):
    """The page token was not given out for this listing."""

    reason = "INVALID_PAGE_TOKEN"


@dataclass(frozen=True, slots=True)
class PlacedServer:
    """A model server and the host it runs on."""

    server: ModelServerReading
    state: HostState

    @property
    def key(self) -> tuple[str, str]:
        """Return what the listing is ordered by; two hosts may claim one server id."""
        return self.server.server_id, self.state.host.host_id


@dataclass(frozen=True, slots=True)
class ServerPage:
    """Some servers, and the token of the page after them; empty at the end."""

    servers: tuple[PlacedServer, ...]
    next_page_token: str


def page_of_servers(
    hosts: Iterable[HostState], *, tier: Tier | None, page_size: int, page_token: str
) -> ServerPage:
    """Return the page after `page_token` of the servers of a tier, or of all with None.

    Servers that come or go between two pages are or are not on them; none is shown twice. Raises
    `InvalidPageToken`.
    """
    after = _decode(page_token, tier) if page_token else ("", "")
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
    return ServerPage(page, _encode(page[-1].key, tier) if more else "")


def _encode(key: tuple[str, str], tier: Tier | None) -> str:
    text = "\n".join((str(tier.value if tier else 0), *key))
    return base64.urlsafe_b64encode(text.encode()).decode()


def _decode(token: str, tier: Tier | None) -> tuple[str, str]:
    try:
        parts = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode().split("\n")
    except (binascii.Error, UnicodeError, ValueError):
        parts = []
    if len(parts) != 3 or parts[0] != str(tier.value if tier else 0):
        message = "must be a token that this listing, with the same tier, gave out"
        raise InvalidPageToken(
            f"page_token {message}", field_violations=[FieldViolation("page_token", message)]
        )
    return parts[1], parts[2]
