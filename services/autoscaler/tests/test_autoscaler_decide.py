"""Each rule of the control law, one situation at a time."""

from dataclasses import replace
from typing import Any

import pytest

from autoscaler.domain.control_state import ControlState
from autoscaler.domain.decide import decide
from autoscaler.domain.decision import Decision, DecisionRule
from autoscaler.domain.overrides import Override, OverrideKind
from autoscaler.domain.policy import TierPolicy
from autoscaler.domain.snapshot import FleetLoad, InstancePhase, TierSnapshot
from autoscaler.testing.builders import (
    START,
    build_demand,
    build_instance,
    build_policy,
    build_tier_snapshot,
)

SETTLED = ControlState(fresh_since=START - 3600)


def repeat(
    snapshot: TierSnapshot,
    policy: TierPolicy,
    seconds: float,
    state: ControlState | None = None,
    start: float = START,
) -> tuple[Decision, ControlState]:
    """Decide every five seconds on the same snapshot; the group obeys nobody."""
    state = state or ControlState()
    now = start
    decision, state = decide(snapshot, state, policy, now)
    while now < start + seconds:
        now += 5
        decision, state = decide(snapshot, state, policy, now)
    return decision, state


def test_a_tier_that_carries_its_demand_stays() -> None:
    decision, _ = decide(build_tier_snapshot(2, 12_000), SETTLED, build_policy(), START)
    assert (decision.rule, decision.desired) == (DecisionRule.STEADY, 2)
    assert decision.plan.is_empty


def test_demand_over_capacity_asks_for_as_many_servers_as_it_takes() -> None:
    decision, _ = decide(build_tier_snapshot(2, 40_000), SETTLED, build_policy(), START)
    # 40,000 tokens / (10,000 x 70 %) = 5.7
    assert (decision.rule, decision.desired) == (DecisionRule.SCALE_OUT_DEMAND, 6)
    assert decision.plan.group_desired == 6


def test_queued_work_counts_as_demand() -> None:
    demand = build_demand(6_000, queued_requests=30, queued_tokens=18_000)
    decision, _ = decide(build_tier_snapshot(1, demand=demand), SETTLED, build_policy(), START)
    assert decision.desired == 4


def test_load_only_the_servers_show_counts_as_demand() -> None:
    fleet = FleetLoad(running_requests=40, waiting_requests=10, reporting_servers=1, latency=None)
    decision, _ = decide(build_tier_snapshot(1, fleet=fleet), SETTLED, build_policy(), START)
    assert decision.desired == 5  # 50 requests x 600 tokens


def test_servers_that_are_on_their_way_are_not_asked_for_again() -> None:
    pending = tuple(
        build_instance(n, phase=InstancePhase.PENDING, launch_time=START, server_ids=())
        for n in range(1, 4)
    )
    snapshot = build_tier_snapshot(
        group_desired=6, instances=(build_instance(0), *pending), demand=build_demand(40_000)
    )
    decision, _ = decide(snapshot, SETTLED, build_policy(), START)
    assert decision.desired == 6
    assert decision.plan.is_empty
    assert decision.inputs.pending_servers == 5


@pytest.mark.parametrize(
    "demand",
    [
        build_demand(0, queued_requests=1, queued_tokens=600),
        build_demand(0, shed_per_second=0.2),
        build_demand(0, arrivals_per_second=0.05, arrived_tokens_per_second=30),
    ],
    ids=["queued", "shed", "arriving"],
)
def test_a_tier_at_zero_starts_when_somebody_wants_it(demand: Any) -> None:
    decision, _ = decide(build_tier_snapshot(0, demand=demand), SETTLED, build_policy(), START)
    assert (decision.rule, decision.desired) == (DecisionRule.START_FROM_ZERO, 1)


def test_a_tier_at_zero_stays_there_while_nobody_wants_it() -> None:
    decision, _ = repeat(build_tier_snapshot(0), build_policy(), 120)
    assert (decision.rule, decision.desired) == (DecisionRule.STEADY, 0)


def test_lower_demand_must_last_for_the_whole_window() -> None:
    policy = build_policy()
    _, state = repeat(build_tier_snapshot(6, 40_000), policy, 600)
    calm = build_tier_snapshot(6, 10_000)
    held, state = repeat(calm, policy, 200, state, START + 605)
    assert (held.rule, held.desired) == (DecisionRule.HOLD_STABILISATION, 6)
    lowered = []
    for step in range(80):
        decision, state = decide(calm, state, policy, START + 810 + 5 * step)
        lowered.append(decision)
    first = next(d for d in lowered if d.rule is DecisionRule.SCALE_IN_DEMAND)
    assert first.desired == 5  # a step is at most 30 %, at least one
    assert len(first.plan.drain_instance_ids) == 1
    assert first.plan.group_desired is None


def test_a_new_leader_watches_for_a_whole_window_before_it_takes_anything_away() -> None:
    decision, _ = repeat(build_tier_snapshot(6, 1_000), build_policy(), 295)
    assert decision.rule is DecisionRule.HOLD_STABILISATION
    assert "watched for 295 of 300 s" in decision.steps[-1].detail


@pytest.mark.parametrize(
    "ages",
    [
        {"fleet_age_seconds": 60.0},
        {"demand_age_seconds": None},
        {"group_age_seconds": 300.0},
    ],
)
def test_stale_inputs_take_nothing_away_however_long_they_last(ages: Any) -> None:
    decision, _ = repeat(build_tier_snapshot(6, 1_000, **ages), build_policy(), 1_000, SETTLED)
    assert (decision.rule, decision.desired) == (DecisionRule.HOLD_STALE_INPUT, 6)


def test_after_a_gap_in_the_inputs_the_window_begins_anew() -> None:
    policy = build_policy()
    _, state = repeat(build_tier_snapshot(6, 1_000), policy, 200)
    _, state = decide(
        build_tier_snapshot(6, 1_000, fleet_age_seconds=60), state, policy, START + 205
    )
    decision, _ = repeat(build_tier_snapshot(6, 1_000), policy, 200, state, START + 210)
    assert decision.rule is DecisionRule.HOLD_STABILISATION


def test_while_the_database_is_away_nothing_is_taken_away_and_growth_goes_on() -> None:
    policy = build_policy()
    decision, state = repeat(
        build_tier_snapshot(6, 1_000, database_reachable=False), policy, 1_000, SETTLED
    )
    assert (decision.rule, decision.desired) == (DecisionRule.HOLD_DATABASE_AWAY, 6)
    grown, _ = decide(
        build_tier_snapshot(6, 80_000, database_reachable=False), state, policy, START + 1_005
    )
    assert (grown.rule, grown.desired) == (DecisionRule.SCALE_OUT_DEMAND, 12)


def test_an_idle_tier_goes_to_zero_after_its_idle_time() -> None:
    policy = build_policy()
    decision, state = repeat(build_tier_snapshot(1), policy, 895)
    assert decision.desired == 1
    decision, _ = decide(build_tier_snapshot(1), state, policy, START + 901)
    assert (decision.rule, decision.desired) == (DecisionRule.SCALE_IN_DEMAND, 0)


def test_a_minimum_keeps_an_idle_tier_warm() -> None:
    decision, _ = repeat(build_tier_snapshot(1), build_policy(minimum=1), 2_000)
    assert (decision.rule, decision.desired) == (DecisionRule.AT_MINIMUM, 1)


def test_the_maximum_stops_growth_and_says_so() -> None:
    decision, _ = decide(build_tier_snapshot(4, 90_000), SETTLED, build_policy(maximum=4), START)
    assert (decision.rule, decision.desired) == (DecisionRule.AT_MAXIMUM, 4)
    assert decision.plan.is_empty


def test_the_groups_own_maximum_is_never_exceeded() -> None:
    decision, _ = decide(
        build_tier_snapshot(2, 90_000, group_maximum=3), SETTLED, build_policy(), START
    )
    assert decision.plan.group_desired == 3


def test_the_budget_stops_growth_but_takes_nothing_away() -> None:
    snapshot = build_tier_snapshot(
        4, 90_000, players_online=500, players_age_seconds=1.0, affordable_servers=3
    )
    decision, _ = decide(snapshot, SETTLED, build_policy(), START)
    assert (decision.rule, decision.desired) == (DecisionRule.AT_BUDGET, 4)


def test_the_budget_lets_a_tier_grow_as_far_as_it_reaches() -> None:
    snapshot = build_tier_snapshot(
        4, 90_000, players_online=500, players_age_seconds=1.0, affordable_servers=6
    )
    decision, _ = decide(snapshot, SETTLED, build_policy(), START)
    assert (decision.rule, decision.desired) == (DecisionRule.SCALE_OUT_DEMAND, 6)


def test_an_interrupted_server_is_replaced_before_it_goes() -> None:
    policy = build_policy()
    going = build_instance(1, interruption_time=START + 110)
    snapshot = build_tier_snapshot(2, 12_000, instances=(build_instance(0), going))
    ahead, state = decide(snapshot, SETTLED, policy, START)
    assert (ahead.rule, ahead.desired) == (DecisionRule.REPLACE_INTERRUPTED, 3)
    assert ahead.plan.drain_instance_ids == ()
    replaced = replace(
        snapshot, group_desired=3, instances=(*snapshot.instances, build_instance(2))
    )
    drained, _ = decide(replaced, state, policy, START + 30)
    assert (drained.rule, drained.desired) == (DecisionRule.REPLACE_INTERRUPTED, 2)
    assert drained.plan.drain_instance_ids == ("i-0001",)
    assert drained.plan.group_desired is None


def test_an_interrupted_server_is_drained_in_time_even_without_a_replacement() -> None:
    snapshot = build_tier_snapshot(
        1, 5_000, instances=(build_instance(0, interruption_time=START + 40),), group_desired=2
    )
    decision, _ = decide(snapshot, SETTLED, build_policy(), START)
    assert decision.plan.drain_instance_ids == ("i-0000",)
    assert decision.desired == 1


def test_a_server_that_never_became_ready_is_replaced() -> None:
    stuck = build_instance(1, phase=InstancePhase.PENDING, launch_time=START - 300, server_ids=())
    snapshot = build_tier_snapshot(2, 12_000, instances=(build_instance(0), stuck))
    decision, _ = decide(snapshot, SETTLED, build_policy(), START)
    assert decision.desired == 3


def test_a_silent_server_is_replaced_after_its_grace() -> None:
    silent = build_instance(1, phase=InstancePhase.UNRESPONSIVE, phase_age_seconds=30.0)
    snapshot = build_tier_snapshot(2, 12_000, instances=(build_instance(0), silent))
    decision, state = decide(snapshot, SETTLED, build_policy(), START)
    assert decision.desired == 2
    longer = replace(silent, phase_age_seconds=90.0)
    decision, _ = decide(
        replace(snapshot, instances=(build_instance(0), longer)), state, build_policy(), START + 60
    )
    assert decision.desired == 3


def test_growth_takes_drains_back_before_it_buys() -> None:
    draining = tuple(build_instance(n, is_draining=True) for n in (2, 3))
    snapshot = build_tier_snapshot(
        4, 40_000, instances=(build_instance(0), build_instance(1), *draining)
    )
    decision, _ = decide(snapshot, SETTLED, build_policy(), START)
    assert (decision.previous_desired, decision.desired) == (2, 6)
    assert set(decision.plan.resume_instance_ids) == {"i-0002", "i-0003"}
    assert decision.plan.group_desired == 6


def hold(kind: OverrideKind, **values: Any) -> Override:
    return Override(
        kind=kind, expire_time=START + 3600, reason="boss fight", set_by="ops", **values
    )


def test_a_pin_sets_exactly_its_size_also_downwards() -> None:
    pinned = build_tier_snapshot(6, 40_000, override=hold(OverrideKind.PIN, desired=2))
    decision, _ = decide(pinned, SETTLED, build_policy(), START)
    assert (decision.rule, decision.desired) == (DecisionRule.OVERRIDE, 2)
    assert len(decision.plan.drain_instance_ids) == 4


def test_a_pin_takes_nothing_away_while_the_database_is_away() -> None:
    pinned = build_tier_snapshot(
        6, 40_000, override=hold(OverrideKind.PIN, desired=2), database_reachable=False
    )
    decision, _ = decide(pinned, SETTLED, build_policy(), START)
    assert (decision.rule, decision.desired) == (DecisionRule.HOLD_DATABASE_AWAY, 6)


def test_a_freeze_keeps_the_size_whatever_is_asked() -> None:
    frozen = build_tier_snapshot(2, 40_000, override=hold(OverrideKind.FREEZE))
    decision, _ = decide(frozen, SETTLED, build_policy(), START)
    assert (decision.rule, decision.desired) == (DecisionRule.OVERRIDE, 2)
    assert decision.plan.is_empty


def test_bounds_replace_the_configured_ones() -> None:
    bounded = build_tier_snapshot(2, 40_000, override=hold(OverrideKind.BOUNDS, maximum=3))
    decision, _ = decide(bounded, SETTLED, build_policy(), START)
    assert decision.desired == 3
    raised = build_tier_snapshot(0, override=hold(OverrideKind.BOUNDS, minimum=2))
    decision, _ = decide(raised, SETTLED, build_policy(), START)
    assert (decision.rule, decision.desired) == (DecisionRule.OVERRIDE, 2)


def test_an_expired_override_is_no_override() -> None:
    expired = replace(hold(OverrideKind.PIN, desired=9), expire_time=START - 1)
    decision, _ = decide(
        build_tier_snapshot(2, 12_000, override=expired), SETTLED, build_policy(), START
    )
    assert decision.rule is DecisionRule.STEADY


def test_capacity_the_cloud_never_delivered_is_cancelled_without_taking_a_server() -> None:
    snapshot = build_tier_snapshot(2, 1_000, group_desired=5)
    pinned = replace(snapshot, override=hold(OverrideKind.PIN, desired=2))
    decision, _ = decide(pinned, SETTLED, build_policy(), START)
    assert decision.plan.group_desired == 2
    assert decision.plan.drain_instance_ids == ()


def test_explanations_carry_the_arithmetic_in_order() -> None:
    decision, _ = decide(build_tier_snapshot(2, 42_000), SETTLED, build_policy(), START)
    titles = [step.title for step in decision.steps]
    assert titles == [
        "tokens in flight",
        "arrivals expected",
        "capacity per server",
        "demand over capacity",
        "scale out",
    ]
    assert "42,000 / 7,000 = 6, so 6 servers" in decision.steps[3].detail
    assert decision.summary.startswith("Gold 2 → 6: ")


def test_growing_demand_is_met_ahead_by_the_time_a_server_takes_to_start() -> None:
    policy = build_policy()
    state = SETTLED
    desired_with, desired_without = [], []
    other = SETTLED
    for step in range(40):
        snapshot = build_tier_snapshot(20, 10_000 + 1_000 * step)
        decision, state = decide(snapshot, state, policy, START + 5 * step)
        desired_with.append(int(decision.steps[3].desired_after))
        decision, other = decide(snapshot, other, policy, START + 5 * step, use_forecast=False)
        desired_without.append(int(decision.steps[3].desired_after))
    assert desired_with[-1] > desired_without[-1]
