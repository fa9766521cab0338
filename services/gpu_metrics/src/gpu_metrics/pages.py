"""Pages of model servers, ordered by server id, and of GPUs, ordered by host and index."""

from collections.abc import Iterable
from dataclasses import dataclass

from gpu_metrics.domain.aggregate import attribute_gpus
from gpu_metrics.domain.host_state import HostState
from gpu_metrics.domain.readings import GpuReading, ModelServerReading, Tier
from servicekit.paging import Page, decode_page_token, encode_page_token

__all__ = ["PlacedGpu", "PlacedServer", "page_of_gpus", "page_of_servers"]


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
class PlacedGpu:
    """A GPU and the host it is in."""

    gpu: GpuReading
    state: HostState

    @property
    def key(self) -> tuple[str, int, str]:
        """Return what the listing is ordered by."""
        return self.state.host.host_id, self.gpu.index, self.gpu.gpu_uuid

    def servers(self) -> tuple[ModelServerReading, ...]:
        """Return the model servers that run on it; the only one of a host runs on all its GPUs."""
        servers = self.state.report.servers
        if len(servers) == 1 and not servers[0].gpu_uuids:
            return tuple(servers)
        return tuple(server for server in servers if self.gpu.gpu_uuid in server.gpu_uuids)


def page_of_gpus(
    hosts: Iterable[HostState], *, tier: Tier | None, host_id: str, page_size: int, page_token: str
) -> Page[PlacedGpu]:
    """Return the page after `page_token` of the GPUs of a tier and a host; None and "" mean all.

    GPUs that come or go between two pages are or are not on them; none is shown twice. Raises
    `InvalidPageToken`.
    """
    scope = ("gpus", tier.name if tier else "", host_id)
    position = decode_page_token(page_token, scope, (str, int, str)) or ("", -1, "")
    after = (str(position[0]), int(position[1]), str(position[2]))
    later: list[PlacedGpu] = []
    # Hosts are converted only as far as the page reaches.
    for state in sorted(hosts, key=lambda state: state.host.host_id):
        if len(later) > page_size:
            break
        if state.host.host_id < after[0] or (host_id and state.host.host_id != host_id):
            continue
        gpus = state.report.gpus if tier is None else attribute_gpus(state.report).get(tier, ())
        later += sorted(
            (placed for gpu in gpus if (placed := PlacedGpu(gpu, state)).key > after),
            key=lambda placed: placed.key,
        )
    page = tuple(later[:page_size])
    more = len(later) > page_size
    return Page(page, encode_page_token(scope, page[-1].key) if more else "")


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
