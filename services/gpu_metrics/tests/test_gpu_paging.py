import pytest

from gpu_metrics.domain.fleet import FleetPolicy, FleetView
from gpu_metrics.domain.host_state import HostState
from gpu_metrics.domain.readings import GpuReading, Tier
from gpu_metrics.pages import PlacedGpu, page_of_gpus
from servicekit.paging import InvalidPageToken

from .builders import NOON, make_report, make_server


def make_gpus(host_id: str, count: int) -> tuple[GpuReading, ...]:
    # Listed by index, whatever the order of the report.
    return tuple(GpuReading(gpu_uuid=f"GPU-{host_id}-{i}", index=i) for i in reversed(range(count)))


def make_hosts() -> tuple[HostState, ...]:
    view = FleetView(FleetPolicy())
    for number in range(3):
        host_id = f"i-{number}"
        server = make_server(f"s-{number}", Tier.GOLD if number else Tier.SILVER)
        view.apply(make_report(host_id, 1, server, gpus=make_gpus(host_id, 12)), 0.0, NOON)
    return view.hosts(0.0)


def all_pages(
    hosts: tuple[HostState, ...], size: int, *, tier: Tier | None = None, host_id: str = ""
) -> list[PlacedGpu]:
    listed: list[PlacedGpu] = []
    token = ""
    while True:
        page = page_of_gpus(hosts, tier=tier, host_id=host_id, page_size=size, page_token=token)
        assert len(page.items) <= size
        listed += page.items
        token = page.next_page_token
        if not token:
            return listed


@pytest.mark.parametrize("size", [1, 5, 12, 100])
def test_all_pages_together_are_the_gpus_by_host_and_index(size: int) -> None:
    listed = [placed.gpu.gpu_uuid for placed in all_pages(make_hosts(), size)]
    assert listed == [f"GPU-i-{host}-{index}" for host in range(3) for index in range(12)]


def test_pages_of_a_host_hold_its_gpus_alone() -> None:
    listed = all_pages(make_hosts(), 5, host_id="i-1")
    assert {placed.state.host.host_id for placed in listed} == {"i-1"}
    assert len(listed) == 12


def test_pages_of_a_tier_hold_the_gpus_of_its_servers_alone() -> None:
    listed = all_pages(make_hosts(), 5, tier=Tier.SILVER)
    assert {placed.state.host.host_id for placed in listed} == {"i-0"}


def test_a_gpu_is_listed_with_the_servers_that_name_it() -> None:
    view = FleetView(FleetPolicy())
    servers = (
        make_server("a", gpu_uuids=("GPU-i-0-0",)),
        make_server("b", gpu_uuids=("GPU-i-0-1",)),
    )
    view.apply(make_report("i-0", 1, *servers, gpus=make_gpus("i-0", 3)), 0.0, NOON)
    named = [
        [server.server_id for server in placed.servers()]
        for placed in all_pages(view.hosts(0.0), 10)
    ]
    assert named == [["a"], ["b"], []]


def test_a_token_of_another_listing_is_refused() -> None:
    hosts = make_hosts()
    token = page_of_gpus(hosts, tier=None, host_id="", page_size=1, page_token="").next_page_token
    with pytest.raises(InvalidPageToken):
        page_of_gpus(hosts, tier=Tier.GOLD, host_id="", page_size=1, page_token=token)
