import pytest

from gpu_metrics.domain.fleet import FleetPolicy, FleetView
from gpu_metrics.domain.fleet_filter import EVERYTHING, FleetFilter
from gpu_metrics.domain.host_state import HostState
from gpu_metrics.domain.readings import Tier
from gpu_metrics.pages import page_of_servers
from gpu_metrics.resume_token import ResumeToken, UnknownResumeToken
from servicekit.paging import InvalidPageToken

from .builders import NOON, make_report, make_server


def make_hosts(count: int) -> tuple[HostState, ...]:
    view = FleetView(FleetPolicy())
    for number in range(count):
        tier = Tier.GOLD if number % 2 else Tier.SILVER
        server = make_server(f"server-{number:02d}", tier)
        view.apply(make_report(f"i-{count - number}", 1, server), 0.0, NOON)
    return view.hosts(0.0)


def all_pages(hosts: tuple[HostState, ...], tier: Tier | None, size: int) -> list[str]:
    names: list[str] = []
    token = ""
    while True:
        page = page_of_servers(hosts, tier=tier, page_size=size, page_token=token)
        assert len(page.items) <= size
        names += [placed.server.server_id for placed in page.items]
        token = page.next_page_token
        if not token:
            return names


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_all_pages_together_are_the_fleet_in_order(size: int) -> None:
    assert all_pages(make_hosts(7), None, size) == [f"server-{n:02d}" for n in range(7)]


def test_pages_of_a_tier_hold_its_servers_alone() -> None:
    names = all_pages(make_hosts(7), Tier.GOLD, 2)
    assert names == ["server-01", "server-03", "server-05"]


def test_an_empty_fleet_has_one_empty_page() -> None:
    page = page_of_servers((), tier=None, page_size=5, page_token="")
    assert page.items == ()
    assert page.next_page_token == ""


def test_two_hosts_that_claim_one_server_id_are_both_listed() -> None:
    view = FleetView(FleetPolicy())
    for host_id in ("i-1", "i-2"):
        view.apply(make_report(host_id, 1, make_server("same")), 0.0, NOON)
    assert all_pages(view.hosts(0.0), None, 1) == ["same", "same"]


@pytest.mark.parametrize("token", ["x", "!!!", "AAAA", "MAo=", "\u00e9"])
def test_a_token_that_was_never_given_out_is_refused(token: str) -> None:
    with pytest.raises(InvalidPageToken):
        page_of_servers(make_hosts(3), tier=None, page_size=1, page_token=token)


def test_a_token_of_another_listing_is_refused() -> None:
    hosts = make_hosts(3)
    token = page_of_servers(hosts, tier=None, page_size=1, page_token="").next_page_token
    with pytest.raises(InvalidPageToken):
        page_of_servers(hosts, tier=Tier.GOLD, page_size=1, page_token=token)


def test_a_resume_token_comes_back_as_it_was_given() -> None:
    wanted = FleetFilter(tiers=frozenset({Tier.SILVER, Tier.GOLD}), models=frozenset({"a.b", "c"}))
    token = ResumeToken("run-1", 42, wanted)
    assert ResumeToken.resume(token.encode(), epoch="run-1", wanted=wanted) == token


@pytest.mark.parametrize("text", ["run-2.42.0", "run-1.42.1", "run-1.x.0", "run-1.42", "1.2.3.4"])
def test_a_resume_token_of_another_run_or_filter_is_refused(text: str) -> None:
    with pytest.raises(UnknownResumeToken):
        ResumeToken.resume(text, epoch="run-1", wanted=EVERYTHING)


@pytest.mark.parametrize(
    "other",
    [
        FleetFilter(host_ids=frozenset({"b"})),
        FleetFilter(server_ids=frozenset({"a"})),
        FleetFilter(models=frozenset({"a"})),
        FleetFilter(gpu_uuids=frozenset({"a"})),
        FleetFilter(host_ids=frozenset({"a"}), tiers=frozenset({Tier.GOLD})),
        EVERYTHING,
    ],
)
def test_a_resume_token_is_of_one_filter_alone(other: FleetFilter) -> None:
    token = ResumeToken("run-1", 42, FleetFilter(host_ids=frozenset({"a"})))
    with pytest.raises(UnknownResumeToken):
        ResumeToken.resume(token.encode(), epoch="run-1", wanted=other)
