"""Readers of the fleet view that want some hosts only, at first and as hosts change."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_metrics.domain.fleet import FleetPolicy, FleetView
from gpu_metrics.domain.fleet_filter import EVERYTHING, FleetFilter
from gpu_metrics.domain.host_state import HostState
from gpu_metrics.domain.readings import GpuReading, HostReport, Tier

from .builders import NOON, make_report, make_server

FILTERS = {
    "host": FleetFilter(host_ids=frozenset({"i-1", "i-9"})),
    "server": FleetFilter(server_ids=frozenset({"server-1"})),
    "model": FleetFilter(models=frozenset({"model-1"})),
    "gpu": FleetFilter(gpu_uuids=frozenset({"GPU-1"})),
    "tier and model": FleetFilter(tiers=frozenset({Tier.GOLD}), models=frozenset({"model-1"})),
}


def report_of(
    host_id: str, sequence: int, *numbers: int, tier: Tier = Tier.GOLD, leaving: bool = False
) -> HostReport:
    """A host with a server, its model and a GPU of each of the numbers."""
    servers = [make_server(f"server-{each}", tier, model=f"model-{each}") for each in numbers]
    gpus = tuple(
        GpuReading(gpu_uuid=f"GPU-{each}", index=place) for place, each in enumerate(numbers)
    )
    return make_report(
        host_id, sequence, *servers, gpus=gpus, boot_id=f"boot-{sequence}", leaving=leaving
    )


def ids(states: tuple[HostState, ...]) -> list[str]:
    return [state.host.host_id for state in states]


@pytest.fixture
def view() -> FleetView:
    return FleetView(FleetPolicy())


@pytest.mark.parametrize("wanted", FILTERS.values(), ids=FILTERS)
def test_a_reader_sees_whole_hosts_that_have_what_it_names(
    view: FleetView, wanted: FleetFilter
) -> None:
    view.apply(report_of("i-1", 1, 1, 2), 0.0, NOON)
    view.apply(report_of("i-2", 1, 3), 0.0, NOON)
    (state,) = view.hosts(0.0, wanted)
    assert ids((state,)) == ["i-1"]
    assert (len(state.report.servers), len(state.report.gpus)) == (2, 2)
    assert ids(view.changes_since(0, 0.0, wanted).changed) == ["i-1"]


def test_each_kind_that_is_named_must_be_there(view: FleetView) -> None:
    view.apply(report_of("i-1", 1, 1), 0.0, NOON)
    assert ids(view.hosts(0.0, EVERYTHING)) == ["i-1"]
    no_such_gpu = FleetFilter(models=frozenset({"model-1"}), gpu_uuids=frozenset({"GPU-9"}))
    assert view.hosts(0.0, no_such_gpu) == ()


@pytest.mark.parametrize("wanted", FILTERS.values(), ids=FILTERS)
def test_what_happens_on_other_hosts_is_no_change(view: FleetView, wanted: FleetFilter) -> None:
    view.apply(report_of("i-2", 1, 3), 0.0, NOON)
    revision = view.revision
    view.apply(report_of("i-2", 2, 3), 0.0, NOON)
    assert not view.changes_since(revision, 0.0).empty
    assert view.changes_since(revision, 0.0, wanted).empty


@pytest.mark.parametrize("kind", ["server", "model", "gpu", "tier and model"])
def test_a_host_that_loses_what_is_named_is_removed_once(view: FleetView, kind: str) -> None:
    view.apply(report_of("i-1", 1, 1, 2), 0.0, NOON)
    revision = view.revision
    view.apply(report_of("i-1", 2, 2), 0.0, NOON)
    changes = view.changes_since(revision, 0.0, FILTERS[kind])
    assert (changes.changed, changes.removed_host_ids) == ((), ("i-1",))
    view.apply(report_of("i-1", 3, 2), 0.0, NOON)
    assert view.changes_since(changes.revision, 0.0, FILTERS[kind]).empty


host_events = st.lists(
    st.tuples(
        st.sampled_from(["i-1", "i-2", "i-3"]),
        st.sampled_from(["report", "leave", "wait"]),
        st.sampled_from([Tier.GOLD, Tier.SILVER]),
        st.sets(st.integers(1, 3), min_size=1),
    ),
    max_size=40,
)
filters = st.builds(
    FleetFilter,
    tiers=st.sampled_from([frozenset(), frozenset({Tier.GOLD})]),
    host_ids=st.sampled_from([frozenset(), frozenset({"i-1", "i-2"})]),
    server_ids=st.sampled_from([frozenset(), frozenset({"server-1"})]),
    models=st.sampled_from([frozenset(), frozenset({"model-1", "model-2"})]),
    gpu_uuids=st.sampled_from([frozenset(), frozenset({"GPU-2"})]),
)


@settings(deadline=None)
@given(host_events, st.sets(st.integers(0, 40)), filters)
def test_a_reader_that_follows_changes_has_what_a_snapshot_shows(
    events: list[tuple[str, str, Tier, set[int]]], read_at: set[int], wanted: FleetFilter
) -> None:
    view = FleetView(FleetPolicy(stale_after_seconds=5.0, expire_after_seconds=12.0))
    mirror: dict[str, HostState] = {}
    revision, now = 0, 0.0
    for step, (host_id, action, tier, numbers) in enumerate(events):
        if action == "wait":
            now += 4.0
        else:
            leaving = action == "leave"
            report = report_of(host_id, step + 1, *sorted(numbers), tier=tier, leaving=leaving)
            view.apply(report, now, NOON)
        if step in read_at or step == len(events) - 1:
            changes = view.changes_since(revision, now, wanted)
            revision = changes.revision
            for removed in changes.removed_host_ids:
                mirror.pop(removed, None)
            mirror.update({state.host.host_id: state for state in changes.changed})
    assert tuple(mirror[host_id] for host_id in sorted(mirror)) == view.hosts(now, wanted)
