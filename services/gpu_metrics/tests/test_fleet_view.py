import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_metrics.domain.fleet import (
    ApplyOutcome,
    FleetFull,
    FleetPolicy,
    FleetView,
    RevisionTooOld,
)
from gpu_metrics.domain.fleet_filter import FleetFilter
from gpu_metrics.domain.host_state import Freshness, HostState
from gpu_metrics.domain.readings import HostReport, Tier

from .builders import NOON, make_report, make_server


def apply(view: FleetView, report: HostReport, now: float = 0.0) -> ApplyOutcome:
    return view.apply(report, now, NOON).outcome


def ids(hosts: tuple[HostState, ...]) -> list[str]:
    return [state.host.host_id for state in hosts]


@pytest.fixture
def view() -> FleetView:
    return FleetView(FleetPolicy(stale_after_seconds=5.0, expire_after_seconds=60.0))


def test_reports_are_acknowledged_once_they_are_in_the_view(view: FleetView) -> None:
    acknowledgement = view.apply(make_report("i-1", 1), 0.0, NOON)
    assert (acknowledgement.boot_id, acknowledgement.sequence) == ("boot-1", 1)
    assert acknowledgement.outcome is ApplyOutcome.JOINED
    assert apply(view, make_report("i-1", 2), 1.0) is ApplyOutcome.UPDATED
    assert ids(view.hosts(1.0)) == ["i-1"]


def test_an_old_or_repeated_report_is_acknowledged_and_changes_nothing(view: FleetView) -> None:
    apply(view, make_report("i-1", 5, make_server(running_requests=5)))
    before = view.hosts(0.0)
    for sequence, outcome in ((5, ApplyOutcome.IGNORED_OLD), (4, ApplyOutcome.OUT_OF_ORDER)):
        acknowledgement = view.apply(
            make_report("i-1", sequence, make_server(running_requests=99)), 0.0, NOON
        )
        assert acknowledgement.outcome is outcome
        assert acknowledgement.sequence == 5
    assert view.hosts(0.0) == before


def test_a_new_agent_run_starts_its_sequence_again(view: FleetView) -> None:
    apply(view, make_report("i-1", 500, boot_id="old"))
    outcome = apply(view, make_report("i-1", 1, boot_id="new"))
    assert outcome is ApplyOutcome.AGENT_RESTARTED


def test_a_late_report_of_a_superseded_run_is_ignored(view: FleetView) -> None:
    apply(view, make_report("i-1", 500, boot_id="old"))
    apply(view, make_report("i-1", 1, boot_id="new"))
    acknowledgement = view.apply(make_report("i-1", 501, boot_id="old"), 0.0, NOON)
    assert acknowledgement.outcome is ApplyOutcome.IGNORED_SUPERSEDED
    assert acknowledgement.boot_id == "new"


def test_a_silent_host_turns_stale_and_then_expires(view: FleetView) -> None:
    apply(view, make_report("i-1", 1), 100.0)
    assert view.hosts(104.9)[0].freshness is Freshness.FRESH
    assert view.hosts(105.0)[0].freshness is Freshness.STALE
    assert view.hosts(159.9)[0].freshness is Freshness.STALE
    assert view.hosts(160.0) == ()


def test_a_stale_host_that_reports_again_is_fresh(view: FleetView) -> None:
    apply(view, make_report("i-1", 1), 0.0)
    assert view.hosts(10.0)[0].freshness is Freshness.STALE
    apply(view, make_report("i-1", 2), 11.0)
    assert view.hosts(11.0)[0].freshness is Freshness.FRESH
    assert view.hosts(16.0)[0].freshness is Freshness.STALE


def test_a_host_that_joins_while_another_is_long_stale_turns_stale_in_time(
    view: FleetView,
) -> None:
    apply(view, make_report("i-1", 1), 0.0)
    view.advance(5.0)
    apply(view, make_report("i-2", 1), 6.0)
    assert view.advance(11.0) == (("i-2",), ())


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 20.0), min_size=1, max_size=20), st.floats(0.0, 100.0))
def test_freshness_depends_on_time_alone_and_not_on_when_the_view_was_looked_at(
    looks: list[float], silence: float
) -> None:
    policy = FleetPolicy(stale_after_seconds=5.0, expire_after_seconds=60.0)
    watched, untouched = FleetView(policy), FleetView(policy)
    for view in (watched, untouched):
        apply(view, make_report("i-1", 1), 0.0)
    now = 0.0
    for pause in looks:
        now = min(now + pause, silence)
        watched.advance(now)
    seen = [state.freshness for state in watched.hosts(silence)]
    assert seen == [state.freshness for state in untouched.hosts(silence)]
    assert seen == ([] if silence >= 60 else [Freshness.STALE if silence >= 5 else Freshness.FRESH])


def test_a_leaving_host_is_gone_at_once_and_a_late_report_does_not_bring_it_back(
    view: FleetView,
) -> None:
    apply(view, make_report("i-1", 1))
    assert apply(view, make_report("i-1", 3, leaving=True)) is ApplyOutcome.LEFT
    assert view.hosts(0.0) == ()
    assert apply(view, make_report("i-1", 2)) is ApplyOutcome.IGNORED_OLD
    assert view.hosts(0.0) == ()
    assert apply(view, make_report("i-1", 1, boot_id="boot-2")) is ApplyOutcome.JOINED


def test_a_leaving_report_of_an_unknown_host_adds_nothing(view: FleetView) -> None:
    assert apply(view, make_report("i-1", 1, leaving=True)) is ApplyOutcome.LEFT
    assert view.hosts(0.0) == ()
    assert view.revision == 0


def test_the_view_refuses_more_hosts_than_it_may_hold_and_keeps_those_it_has() -> None:
    view = FleetView(FleetPolicy(maximum_hosts=1))
    apply(view, make_report("i-1", 1))
    with pytest.raises(FleetFull):
        apply(view, make_report("i-2", 1))
    assert apply(view, make_report("i-1", 2)) is ApplyOutcome.UPDATED


@settings(deadline=None)
@given(st.permutations([("i-1", 1), ("i-1", 2), ("i-1", 3), ("i-2", 1), ("i-2", 2), ("i-3", 1)]))
def test_reports_in_any_order_lead_to_the_same_view(order: list[tuple[str, int]]) -> None:
    view = FleetView(FleetPolicy())
    for host_id, sequence in order:
        server = make_server(f"of-{host_id}", running_requests=sequence)
        apply(view, make_report(host_id, sequence, server))
    assert [(s.host.host_id, s.report.sequence) for s in view.hosts(0.0)] == [
        ("i-1", 3),
        ("i-2", 2),
        ("i-3", 1),
    ]
    assert view.aggregates(0.0)[0].running_requests == 6


def test_a_reader_gets_only_what_changed_after_its_revision(view: FleetView) -> None:
    apply(view, make_report("i-1", 1))
    apply(view, make_report("i-2", 1))
    revision = view.revision
    assert view.changes_since(revision, 0.0).empty
    apply(view, make_report("i-2", 2))
    changes = view.changes_since(revision, 0.0)
    assert ids(changes.changed) == ["i-2"]
    assert changes.removed_host_ids == ()


def test_a_slow_reader_gets_each_changed_host_once_with_its_latest_state(view: FleetView) -> None:
    apply(view, make_report("i-1", 1))
    revision = view.revision
    for sequence in range(2, 500):
        apply(view, make_report("i-1", sequence, make_server(running_requests=sequence)))
    changes = view.changes_since(revision, 0.0)
    assert [state.report.sequence for state in changes.changed] == [499]


def test_turning_stale_and_expiring_are_changes(view: FleetView) -> None:
    apply(view, make_report("i-1", 1), 0.0)
    revision = view.revision
    changes = view.changes_since(revision, 6.0)
    assert [state.freshness for state in changes.changed] == [Freshness.STALE]
    changes = view.changes_since(changes.revision, 60.0)
    assert changes.removed_host_ids == ("i-1",)


def test_a_host_that_left_and_came_back_is_changed_and_not_removed(view: FleetView) -> None:
    apply(view, make_report("i-1", 1))
    revision = view.revision
    apply(view, make_report("i-1", 2, leaving=True))
    apply(view, make_report("i-1", 1, boot_id="boot-2"))
    changes = view.changes_since(revision, 0.0)
    assert ids(changes.changed) == ["i-1"]
    assert changes.removed_host_ids == ()


def test_a_reader_of_one_tier_sees_its_hosts_alone(view: FleetView) -> None:
    silver = FleetFilter(tiers=frozenset({Tier.SILVER}))
    apply(view, make_report("i-1", 1, make_server("g", Tier.GOLD)))
    apply(view, make_report("i-2", 1, make_server("s", Tier.SILVER)))
    assert ids(view.hosts(0.0, silver)) == ["i-2"]
    revision = view.revision
    apply(view, make_report("i-1", 2, make_server("g", Tier.GOLD)))
    assert view.changes_since(revision, 0.0, silver).empty
    apply(view, make_report("i-1", 3, leaving=True))
    assert view.changes_since(revision, 0.0, silver).empty


def test_a_host_that_changes_its_tier_is_removed_for_readers_of_the_old_one(
    view: FleetView,
) -> None:
    apply(view, make_report("i-1", 1, make_server("s", Tier.SILVER)))
    revision = view.revision
    apply(view, make_report("i-1", 2, make_server("g", Tier.GOLD)))
    silver = view.changes_since(revision, 0.0, FleetFilter(tiers=frozenset({Tier.SILVER})))
    gold = view.changes_since(revision, 0.0, FleetFilter(tiers=frozenset({Tier.GOLD})))
    assert (ids(silver.changed), silver.removed_host_ids) == ([], ("i-1",))
    assert (ids(gold.changed), gold.removed_host_ids) == (["i-1"], ())


def test_a_reader_from_before_the_remembered_removals_is_told_to_start_again() -> None:
    view = FleetView(FleetPolicy(removals_remembered=3))
    apply(view, make_report("i-0", 1))
    revision = view.revision
    for number in range(5):
        apply(view, make_report(f"i-{number}", 1, boot_id=f"b{number}"))
        apply(view, make_report(f"i-{number}", 2, boot_id=f"b{number}", leaving=True))
    with pytest.raises(RevisionTooOld):
        view.changes_since(revision, 0.0)
    with pytest.raises(RevisionTooOld):
        view.changes_since(view.revision + 1, 0.0)
