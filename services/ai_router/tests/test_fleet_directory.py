"""Which servers may be used, by the feed's word and by the router's own experience."""

from __future__ import annotations

from typing import Any

import pytest

from ai_router.domain.circuit_breaker import BreakerPolicy
from ai_router.domain.errors import UnknownServer
from ai_router.domain.fleet import Readiness
from ai_router.domain.fleet_directory import FleetDirectory, ServerState
from ai_router.domain.tiers import Tier
from ai_router.testing.builders import directory, report, view


def state(fleet: FleetDirectory, server_id: str, now: float, tier: Tier = Tier.GOLD) -> ServerState:
    return next(
        status.state for status in fleet.statuses(tier, now) if status.report.server_id == server_id
    )


def usable(fleet: FleetDirectory, now: float, tier: Tier = Tier.GOLD) -> bool:
    fleet.refresh(now)
    return fleet.pool(tier).choose(1) is not None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ServerState.READY),
        ({"readiness": Readiness.STARTING}, ServerState.UNAVAILABLE),
        ({"readiness": Readiness.UNHEALTHY}, ServerState.UNAVAILABLE),
        ({"stale": True, "heard_at": 50.0}, ServerState.READY),
        ({"stale": True, "heard_at": -100.0}, ServerState.UNAVAILABLE),
        ({"interruption_at": 100.0}, ServerState.DRAINING),
        ({"interruption_at": 200.0}, ServerState.READY),
    ],
)
def test_the_feed_decides_whether_a_server_takes_requests(
    changes: dict[str, Any], expected: ServerState
) -> None:
    fleet = directory(stale_use_seconds=120.0, interruption_margin_seconds=60.0)
    fleet.apply(view(report("a", **changes)), 60.0)
    assert state(fleet, "a", 60.0) is expected
    assert usable(fleet, 60.0) is (expected is ServerState.READY)


def test_an_announced_interruption_takes_effect_in_time_without_a_word_from_the_feed() -> None:
    fleet = directory(interruption_margin_seconds=60.0)
    fleet.apply(view(report("a", interruption_at=120.0)), 0.0)
    assert usable(fleet, 59.9)
    assert not usable(fleet, 60.0)


def test_a_silent_feed_takes_no_server_away() -> None:
    fleet = directory()
    fleet.apply(view(report("a")), 0.0)
    assert usable(fleet, 100_000.0)
    assert fleet.feed_age_seconds(100_000.0) == 100_000.0


def test_load_of_others_is_believed_only_while_the_feed_is_fresh() -> None:
    fleet = directory(feed_trust_seconds=10.0)
    fleet.apply(view(report("a", running_requests=10, kv_cache_used_tokens=1000)), 0.0)
    assert fleet.pool(Tier.GOLD).choose(1) is None
    assert usable(fleet, 11.0)
    fleet.confirm(12.0)
    fleet.refresh(12.0)


def test_own_requests_in_a_reading_are_not_taken_for_those_of_others() -> None:
    fleet = directory()
    fleet.apply(view(report("a", heard_at=0.0)), 0.0)
    for _ in range(4):
        fleet.assign("a", Tier.GOLD, 100)
    # All four ended, but the reading was taken while they ran.
    for _ in range(4):
        fleet.release("a", Tier.GOLD, 100)
    fleet.apply(view(report("a", heard_at=1.0, running_requests=4, kv_cache_used_tokens=400)), 1.0)
    assert fleet.pool(Tier.GOLD).eligible_load_tokens == 0
    # The next reading may have been taken before the last one arrived; the one after may not.
    for second, expected in ((2.0, 0), (3.0, 400)):
        reading = report("a", heard_at=second, running_requests=4, kv_cache_used_tokens=400)
        fleet.apply(view(reading), second)
        assert fleet.pool(Tier.GOLD).eligible_load_tokens == expected


def test_failures_break_a_server_and_a_probe_mends_it() -> None:
    fleet = directory(breaker=BreakerPolicy(failures_to_open=2, first_pause_seconds=1.0))
    fleet.apply(view(report("a")), 0.0)
    fleet.record_failure("a", 1.0)
    assert usable(fleet, 1.0)
    fleet.record_failure("a", 1.0)
    assert state(fleet, "a", 1.5) is ServerState.BROKEN
    assert not usable(fleet, 1.9)
    assert usable(fleet, 2.0)
    fleet.assign("a", Tier.GOLD, 10)
    assert not usable(fleet, 2.0), "one probe at a time"
    fleet.release("a", Tier.GOLD, 10)
    fleet.record_success("a", 2.0, 2.5)
    fleet.assign("a", Tier.GOLD, 10)
    assert usable(fleet, 2.5)


def test_a_server_at_a_new_address_starts_with_a_clean_record() -> None:
    fleet = directory()
    fleet.apply(view(report("a")), 0.0)
    fleet.record_failure("a", 0.0, unreachable=True)
    fleet.apply(view(report("a", endpoint_url="http://elsewhere")), 0.1)
    assert usable(fleet, 0.1)


def test_a_drain_ends_with_its_lease_or_by_resume() -> None:
    fleet = directory()
    fleet.apply(view(report("a"), report("b")), 0.0)
    fleet.assign("a", Tier.GOLD, 5)
    assert fleet.drain("a", 10.0, 0.0) == 1
    fleet.release("a", Tier.GOLD, 5)
    assert fleet.drain("a", 10.0, 5.0) == 0
    fleet.drain("b", 10.0, 5.0)
    assert state(fleet, "a", 14.9) is ServerState.DRAINING
    assert not usable(fleet, 14.9)
    assert usable(fleet, 15.0)
    fleet.drain("a", 10.0, 15.0)
    assert fleet.resume("a", 15.0) is ServerState.READY


def test_a_drain_survives_the_next_view() -> None:
    fleet = directory()
    fleet.apply(view(report("a")), 0.0)
    fleet.drain("a", 60.0, 0.0)
    fleet.apply(view(report("a", heard_at=1.0)), 1.0)
    assert not usable(fleet, 1.0)


def test_unknown_servers_cannot_be_drained() -> None:
    with pytest.raises(UnknownServer):
        directory().drain("nobody", 1.0, 0.0)
    with pytest.raises(UnknownServer):
        directory().resume("nobody", 0.0)


def test_a_server_that_changes_its_tier_serves_only_the_new_one() -> None:
    fleet = directory()
    fleet.apply(view(report("a")), 0.0)
    fleet.apply(view(report("a", Tier.SILVER)), 1.0)
    assert not usable(fleet, 1.0, Tier.GOLD)
    assert usable(fleet, 1.0, Tier.SILVER)


def test_a_servers_capacity_is_never_more_than_its_cache_holds() -> None:
    fleet = directory()
    fleet.apply(view(report("a", kv_cache_capacity_tokens=300), report("b")), 0.0)
    capacities = [status.capacity_tokens for status in fleet.statuses(Tier.GOLD, 0.0)]
    assert capacities == [300, 1000]


def test_models_outlive_the_tiers_last_server() -> None:
    fleet = directory()
    fleet.apply(view(report("a")), 0.0)
    fleet.apply(view(), 1.0)
    assert fleet.models(Tier.GOLD) == {"gold-model"}
    assert fleet.models(Tier.SILVER) == frozenset()
