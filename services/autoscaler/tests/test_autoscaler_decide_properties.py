"""What holds for every input of the control law."""

import itertools
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.domain.control_state import ControlState
from autoscaler.domain.decide import decide
from autoscaler.domain.explain import counterfactuals
from autoscaler.domain.overrides import Override, OverrideKind
from autoscaler.domain.snapshot import InstancePhase, TierSnapshot
from autoscaler.testing.builders import (
    START,
    build_demand,
    build_instance,
    build_policy,
    build_tier_snapshot,
)

# A busy machine is no reason to fail, so no example has a deadline.
QUICK = settings(max_examples=50, deadline=None)
RARELY = settings(max_examples=12, deadline=None)

SETTLED = ControlState(fresh_since=START - 3600)


@st.composite
def instances(draw: Any, maximum: Any = 12) -> Any:
    count = draw(st.integers(0, maximum))
    return tuple(
        build_instance(
            number,
            phase=draw(st.sampled_from(InstancePhase)),
            phase_age_seconds=draw(st.sampled_from([1.0, 100.0])),
            launch_time=START - draw(st.sampled_from([10.0, 1_000.0])),
            load_requests=draw(st.integers(0, 30)),
            is_draining=draw(st.booleans()),
            interruption_time=draw(st.sampled_from([None, None, START + 20, START + 110])),
        )
        for number in range(count)
    )


@st.composite
def snapshots(draw: Any) -> TierSnapshot:
    members = draw(instances())
    unlaunched = draw(st.integers(0, 3))
    age = st.sampled_from([None, 1.0, 14.0, 90.0])
    override = draw(
        st.sampled_from(
            [
                None,
                Override(kind=OverrideKind.PIN, desired=3, **hold),
                Override(kind=OverrideKind.FREEZE, **hold),
                Override(kind=OverrideKind.BOUNDS, minimum=2, maximum=5, **hold),
            ]
        )
    )
    return build_tier_snapshot(
        instances=members,
        group_desired=len(members) + unlaunched,
        group_maximum=draw(st.integers(len(members) + unlaunched, 40)),
        demand=draw(st.none() | st.builds(build_demand, st.integers(0, 200_000))),
        demand_age_seconds=draw(age),
        fleet_age_seconds=draw(age),
        players_online=draw(st.none() | st.integers(0, 10_000)),
        players_age_seconds=1.0,
        affordable_servers=draw(st.none() | st.integers(0, 20)),
        database_reachable=draw(st.booleans()),
        override=override,
    )


hold: dict[str, Any] = {"expire_time": START + 60, "reason": "test", "set_by": "ops"}


@QUICK
@given(snapshot=snapshots(), maximum=st.integers(0, 30))
def test_more_is_never_asked_for_than_is_allowed(snapshot: TierSnapshot, maximum: Any) -> None:
    policy = build_policy(minimum=0, maximum=maximum)
    decision, _ = decide(snapshot, SETTLED, policy, START)
    assert decision.desired >= 0
    if decision.desired > decision.previous_desired:
        assert decision.desired <= snapshot.group_maximum
        if snapshot.override is None:
            assert decision.desired <= maximum
    if decision.plan.group_desired is not None:
        assert decision.plan.group_desired <= snapshot.group_maximum


@QUICK
@given(snapshot=snapshots())
def test_stale_inputs_never_lower_a_tier(snapshot: TierSnapshot) -> None:
    stale = replace(snapshot, demand_age_seconds=1_000.0, override=None)
    decision, _ = decide(stale, SETTLED, build_policy(), START)
    assert decision.desired >= decision.previous_desired
    assert decision.plan.drain_instance_ids == ()


@QUICK
@given(snapshot=snapshots())
def test_without_the_database_nothing_is_ever_taken_away(snapshot: TierSnapshot) -> None:
    away = replace(snapshot, database_reachable=False)
    decision, _ = decide(away, SETTLED, build_policy(), START)
    assert decision.desired >= decision.previous_desired
    assert decision.plan.drain_instance_ids == ()


@QUICK
@given(snapshot=snapshots())
def test_the_group_is_never_set_below_its_live_instances(snapshot: TierSnapshot) -> None:
    decision, _ = decide(snapshot, SETTLED, build_policy(), START)
    if decision.plan.group_desired is not None:
        assert decision.plan.group_desired >= min(len(snapshot.instances), snapshot.group_desired)


@QUICK
@given(snapshot=snapshots())
def test_only_servers_that_stay_are_drained_and_only_draining_ones_resumed(
    snapshot: TierSnapshot,
) -> None:
    decision, _ = decide(snapshot, SETTLED, build_policy(), START)
    staying = {i.instance_id for i in snapshot.staying}
    draining = {i.instance_id for i in snapshot.draining}
    assert set(decision.plan.drain_instance_ids) <= staying
    assert set(decision.plan.resume_instance_ids) <= draining
    assert len(set(decision.plan.drain_instance_ids)) == len(decision.plan.drain_instance_ids)


@QUICK
@given(snapshot=snapshots())
def test_ready_servers_never_fall_below_what_remains_asked_for(snapshot: TierSnapshot) -> None:
    calm = replace(
        snapshot,
        instances=tuple(replace(i, interruption_time=None) for i in snapshot.instances),
    )
    decision, _ = decide(calm, SETTLED, build_policy(), START)
    gone = set(decision.plan.drain_instance_ids)
    left = sum(1 for i in calm.ready if i.instance_id not in gone)
    assert left >= min(len(calm.ready), decision.desired)


@QUICK
@given(
    low=st.integers(0, 150_000),
    more=st.integers(0, 150_000),
    servers=st.integers(0, 20),
    history=st.lists(st.integers(0, 100_000), max_size=8),
)
def test_more_demand_never_asks_for_fewer_servers(
    low: Any, more: Any, servers: Any, history: Any
) -> None:
    policy = build_policy()
    state = SETTLED
    now = START
    for tokens in history:
        now += 5
        _, state = decide(build_tier_snapshot(servers, tokens), state, policy, now)
    less, _ = decide(build_tier_snapshot(servers, low), state, policy, now + 5)
    greater, _ = decide(build_tier_snapshot(servers, low + more), state, policy, now + 5)
    assert greater.desired >= less.desired


@QUICK
@given(tokens=st.integers(0, 300_000), pending=st.integers(0, 30), ready=st.integers(0, 10))
def test_pending_servers_count_once(tokens: Any, pending: Any, ready: Any) -> None:
    """Asking again while servers start changes nothing: the answer depends on the demand."""
    waiting = tuple(
        build_instance(100 + n, phase=InstancePhase.PENDING, launch_time=START, server_ids=())
        for n in range(pending)
    )
    there = tuple(build_instance(n) for n in range(ready))
    some = build_tier_snapshot(
        instances=(*there, *waiting), group_desired=ready + pending, demand=build_demand(tokens)
    )
    watching = ControlState()  # too short for taking anything away
    decision, _ = decide(some, watching, build_policy(maximum=1_000), START)
    need = decision.steps[3].desired_after
    assert decision.desired == min(max(ready + pending, need), some.group_maximum)


@RARELY
@given(tokens=st.integers(0, 120_000), servers=st.integers(0, 20))
def test_constant_load_comes_to_rest_and_stays_there(tokens: Any, servers: Any) -> None:
    policy = build_policy()
    state = ControlState()
    size, sizes, now = servers, [], START
    for _ in range(600):
        now += 5
        decision, state = decide(build_tier_snapshot(size, tokens), state, policy, now)
        size = decision.desired
        sizes.append(size)
    assert len(set(sizes[-240:])) == 1
    changes = [b - a for a, b in itertools.pairwise(sizes) if a != b]
    ups_after_downs = [c for before, c in itertools.pairwise(changes) if before < 0 < c]
    assert ups_after_downs == []


@QUICK
@given(snapshot=snapshots())
def test_the_same_input_gives_the_same_decision(snapshot: TierSnapshot) -> None:
    policy = build_policy()
    assert decide(snapshot, SETTLED, policy, START) == decide(snapshot, SETTLED, policy, START)


@QUICK
@given(snapshot=snapshots())
def test_every_decision_can_be_explained(snapshot: TierSnapshot) -> None:
    policy = build_policy()
    decision, _ = decide(snapshot, SETTLED, policy, START)
    assert len(decision.steps) >= 4
    assert all(step.title and step.detail for step in decision.steps)
    assert decision.summary.endswith(".")
    answers = counterfactuals(decision, snapshot, SETTLED, policy, START)
    assert len(answers) >= 3
    assert all(answer.desired >= 0 for answer in answers)
