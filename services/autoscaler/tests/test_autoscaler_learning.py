"""What the control law learns: capacity, request size, residence, trend, start-up."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.domain.estimates import Estimates, moved, observe
from autoscaler.domain.latency import Histogram
from autoscaler.domain.requirement import require
from autoscaler.domain.snapshot import FleetLoad
from autoscaler.testing.builders import START, build_demand, build_policy, build_tier_snapshot


def learn(
    snapshot: Any, seconds: float = 3_000.0, policy: Any = None, estimates: Any = None
) -> Any:
    policy = policy or build_policy()
    estimates = estimates or Estimates()
    now = START
    while now < START + seconds:
        now += 5
        estimates = observe(estimates, snapshot, policy, now)
    return estimates


def loaded(requests_per_server: int, latency_ms: float, servers: int = 4) -> Any:
    """A fleet whose observations all lie at one latency."""
    bounds = tuple(n / 1000 for n in range(1, 41))
    index = next(i for i, b in enumerate(bounds) if b >= latency_ms / 1000)
    counts = [0] * 41
    counts[index] = 10_000
    fleet = FleetLoad(
        running_requests=requests_per_server * servers,
        waiting_requests=0,
        reporting_servers=servers,
        latency=Histogram(bounds, tuple(counts)),
    )
    return build_tier_snapshot(servers, fleet=fleet)


def test_capacity_rises_when_latency_leaves_room() -> None:
    # 8,400 tokens a server at 12 ms, between 9 idle and 16 allowed: 19,600 would meet the target
    estimates = learn(loaded(14, 12.0))
    assert estimates.capacity(build_policy()) == pytest.approx(19_600, rel=0.05)


def test_capacity_falls_when_latency_is_over_its_target() -> None:
    # 9,600 tokens a server at 20 ms: the target was met at 6,100
    estimates = learn(loaded(16, 20.0))
    assert estimates.capacity(build_policy()) == pytest.approx(6_100, rel=0.05)


@pytest.mark.parametrize(("requests", "latency"), [(40, 9.0), (100, 39.0)])
def test_capacity_stays_within_its_bounds(requests: Any, latency: Any) -> None:
    capacity = learn(loaded(requests, latency), 30_000).capacity(build_policy())
    assert 5_000 <= capacity <= 20_000


def test_idle_servers_and_few_observations_teach_nothing() -> None:
    assert learn(loaded(1, 30.0)).capacity(build_policy()) == 10_000
    few = loaded(20, 30.0)
    few = replace(few, fleet=replace(few.fleet, latency=Histogram((0.01, 0.03), (0, 5, 0))))
    assert learn(few).capacity(build_policy()) == 10_000


def test_stale_readings_teach_nothing() -> None:
    stale = replace(
        loaded(16, 20.0),
        fleet_age_seconds=60.0,
        demand_age_seconds=60.0,
        demand=build_demand(50_000),
    )
    estimates = learn(stale)
    assert estimates.capacity_tokens is None
    assert estimates.tokens is None
    assert estimates.arrivals is None


def test_residence_follows_from_what_runs_and_what_completes() -> None:
    demand = build_demand(6_000, running_requests=20, completed_per_second=4.0)
    estimates = learn(build_tier_snapshot(4, demand=demand))
    assert estimates.residence_seconds(build_policy()) == pytest.approx(5.0)


def test_a_stuck_tier_does_not_make_residence_endless() -> None:
    demand = build_demand(6_000, running_requests=500, completed_per_second=0.001)
    estimates = learn(build_tier_snapshot(4, demand=demand))
    assert estimates.residence_seconds(build_policy()) == 12.0


def test_request_size_follows_the_routers() -> None:
    demand = build_demand(6_000, arrivals_per_second=4.0, arrived_tokens_per_second=4_000.0)
    estimates = learn(build_tier_snapshot(4, demand=demand))
    assert estimates.request_tokens(build_policy()) == pytest.approx(1_000, rel=0.01)


def test_more_players_are_expected_to_ask_for_more() -> None:
    policy = build_policy()
    settled = build_tier_snapshot(2, 9_000, players_online=100, players_age_seconds=1.0)
    estimates = learn(settled, 300)
    more = replace(settled, players_online=160)
    need = require(estimates, more, policy, START + 300, panic_until=0.0)
    assert need.forecast_basis == "players online"
    assert need.arrivals_forecast == pytest.approx(need.arrivals_now * 1.6, rel=0.01)
    stale = replace(more, players_age_seconds=1_000.0)
    assert require(estimates, stale, policy, START + 300, panic_until=0.0).forecast_basis == "trend"


def test_chance_is_not_taken_for_a_trend() -> None:
    policy = build_policy()
    estimates = learn(build_tier_snapshot(2, 9_000), 600)
    need = require(estimates, build_tier_snapshot(2, 9_000), policy, START, panic_until=0.0)
    assert need.arrivals_forecast == pytest.approx(need.arrivals_now)


@settings(max_examples=50, deadline=None)
@given(
    previous=st.none() | st.floats(0, 1e6),
    sample=st.floats(0, 1e6),
    elapsed=st.floats(0, 1e4),
)
def test_an_average_lies_between_what_it_was_and_the_sample(
    previous: Any, sample: Any, elapsed: Any
) -> None:
    after = moved(previous, sample, elapsed, 30.0)
    start = sample if previous is None else previous
    assert min(start, sample) - 1e-6 <= after <= max(start, sample) + 1e-6


@settings(max_examples=50, deadline=None)
@given(pace=st.sampled_from([1.0, 5.0, 30.0]))
def test_the_pace_of_looking_changes_nothing(pace: Any) -> None:
    value, now = 0.0, 0.0
    while now < 60.0:
        now += pace
        value = moved(value, 100.0, pace, 30.0)
    assert value == pytest.approx(100 * (1 - 2.718281828 ** (-2)), rel=1e-6)
