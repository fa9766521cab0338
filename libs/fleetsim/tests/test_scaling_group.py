"""Auto Scaling groups over the simulated cloud."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetsim.cloud import Cloud
from fleetsim.cloud_state import CloudSettings, InstanceState
from fleetsim.errors import ScalingGroupError
from fleetsim.instance_types import Market
from fleetsim.scaling_group import GROUP_TAG, ScalingGroups
from fleetsim.scaling_group_state import (
    ActivityStatus,
    GroupSettings,
    HookKind,
    LifecycleHook,
    LifecycleState,
    TerminationPolicy,
)
from fleetsim.zone_stock import PoolStock

ZONES = ("us-east-1a", "us-east-1b", "us-east-1c")


def make_groups(seed: int = 1, **cloud_settings: Any) -> ScalingGroups:
    rng = np.random.default_rng(seed)
    cloud = Cloud(rng=rng, settings=CloudSettings(**cloud_settings))
    return ScalingGroups(cloud, rng=rng.spawn(1)[0])


def gold(**changes: Any) -> GroupSettings:
    fields: dict[str, Any] = {
        "name": "gold",
        "instance_types": ("g5.xlarge",),
        "zones": ZONES,
        "min_size": 0,
        "max_size": 10,
    }
    return GroupSettings(**{**fields, **changes})


def in_service(groups: ScalingGroups, name: str = "gold") -> list[str]:
    return [
        i.instance_id
        for i in groups.group(name).instances
        if i.lifecycle_state is LifecycleState.IN_SERVICE
    ]


def test_a_group_launches_to_its_desired_capacity_balanced_over_zones() -> None:
    groups = make_groups()
    groups.create(0.0, gold(), desired_capacity=6)
    assert len(groups.group("gold").instances) == 6
    assert in_service(groups) == []
    groups.advance(300.0)
    assert len(in_service(groups)) == 6
    zones = Counter(i.zone for i in groups.group("gold").instances)
    assert set(zones.values()) == {2}
    instance = groups.cloud.instance(in_service(groups)[0])
    assert instance.tags[GROUP_TAG] == "gold"
    activity = groups.activities("gold")[0]
    assert activity.status is ActivityStatus.SUCCESSFUL
    assert "from 0 to 6" in activity.cause


@pytest.mark.parametrize(
    ("desired", "words"), [(11, "above max value 10"), (1, "below min value 2")]
)
def test_a_size_outside_min_and_max_is_refused_as_aws_refuses_it(desired: int, words: str) -> None:
    groups = make_groups()
    groups.create(0.0, gold(min_size=2))
    with pytest.raises(ScalingGroupError, match=words) as refused:
        groups.set_desired_capacity(1.0, "gold", desired)
    assert refused.value.code == "ValidationError"
    assert groups.group("gold").desired_capacity == 2


def test_moving_the_minimum_moves_the_desired_capacity_along() -> None:
    groups = make_groups()
    groups.create(0.0, gold(), desired_capacity=3)
    assert groups.update(1.0, "gold", min_size=5).desired_capacity == 5
    assert groups.update(2.0, "gold", min_size=0, max_size=4).desired_capacity == 4
    with pytest.raises(ScalingGroupError, match="must be between"):
        groups.update(3.0, "gold", desired_capacity=9)


def test_scale_in_takes_the_oldest_of_the_fullest_zone_and_spares_protected_members() -> None:
    groups = make_groups()
    groups.create(0.0, gold(), desired_capacity=3)
    groups.advance(300.0)
    groups.set_desired_capacity(301.0, "gold", 4)
    groups.advance(600.0)
    oldest = in_service(groups)[0]
    groups.set_instance_protection(600.0, "gold", [oldest], protected=True)
    groups.set_desired_capacity(601.0, "gold", 1)
    groups.advance(1200.0)
    assert in_service(groups) == [oldest]
    groups.set_desired_capacity(1201.0, "gold", 0)
    groups.advance(1800.0)
    assert in_service(groups) == [oldest], "protected members outlive even a desired size of 0"


def test_newest_instance_policy_takes_the_newest() -> None:
    groups = make_groups()
    settings_ = gold(zones=("us-east-1a",), termination_policy=TerminationPolicy.NEWEST_INSTANCE)
    groups.create(0.0, settings_, desired_capacity=1)
    groups.advance(300.0)
    first = in_service(groups)
    groups.set_desired_capacity(300.0, "gold", 2)
    groups.advance(600.0)
    groups.set_desired_capacity(600.0, "gold", 1)
    groups.advance(900.0)
    assert in_service(groups) == first


def test_terminating_one_member_with_decrement_lowers_desired_and_launches_nothing() -> None:
    groups = make_groups()
    groups.create(0.0, gold(), desired_capacity=3)
    groups.advance(300.0)
    victim = in_service(groups)[1]
    activity = groups.terminate_instance(301.0, victim, decrement_desired_capacity=True)
    again = groups.terminate_instance(302.0, victim, decrement_desired_capacity=True)
    assert again.activity_id == activity.activity_id
    groups.advance(900.0)
    assert groups.group("gold").desired_capacity == 2
    assert victim not in in_service(groups)
    assert len(in_service(groups)) == 2


def test_terminating_one_member_without_decrement_replaces_it() -> None:
    groups = make_groups()
    groups.create(0.0, gold(), desired_capacity=2)
    groups.advance(300.0)
    victim = in_service(groups)[0]
    groups.terminate_instance(301.0, victim, decrement_desired_capacity=False)
    groups.advance(900.0)
    assert len(in_service(groups)) == 2
    assert victim not in in_service(groups)


def test_a_decrement_below_the_minimum_is_refused() -> None:
    groups = make_groups()
    groups.create(0.0, gold(min_size=1))
    groups.advance(300.0)
    with pytest.raises(ScalingGroupError, match="desiredSize equals minSize"):
        groups.terminate_instance(301.0, in_service(groups)[0], decrement_desired_capacity=True)
    with pytest.raises(ScalingGroupError, match="No managed instance found"):
        groups.terminate_instance(301.0, "i-unknown", decrement_desired_capacity=True)


def test_a_mixed_policy_keeps_the_on_demand_base_and_share() -> None:
    groups = make_groups()
    mixed = gold(on_demand_base_capacity=2, on_demand_percentage_above_base=25)
    groups.create(0.0, mixed, desired_capacity=7)
    markets = Counter(i.market for i in groups.cloud.instances())
    assert markets == {Market.ON_DEMAND: 2 + 2, Market.SPOT: 3}


def test_spot_shortage_fails_with_an_activity_and_is_retried_never_bought_on_demand() -> None:
    stock = {("g5.xlarge", zone): PoolStock(spot_in_stock_at_start=False) for zone in ZONES}
    groups = make_groups(stock=stock)
    spot_only = gold(on_demand_percentage_above_base=0)
    groups.create(0.0, spot_only, desired_capacity=2)
    groups.advance(120.0)
    failed = groups.activities("gold")[0]
    assert failed.status is ActivityStatus.FAILED
    assert "no Spot capacity available" in failed.status_message
    assert groups.cloud.instances() == []
    assert 3 <= len(groups.activities("gold")) <= 6, "retried, with growing pauses"
    groups.cloud.set_spot_stock(121.0, "g5.xlarge", "us-east-1c", in_stock=True)
    groups.advance(1000.0)
    assert len(in_service(groups)) == 2
    assert {i.zone for i in groups.group("gold").instances} == {"us-east-1c"}


def test_an_interrupted_member_is_replaced_in_a_zone_that_has_stock() -> None:
    groups = make_groups()
    groups.create(0.0, gold(on_demand_percentage_above_base=0), desired_capacity=3)
    groups.advance(300.0)
    groups.cloud.set_spot_stock(301.0, "g5.xlarge", "us-east-1a", in_stock=False)
    groups.advance(420.0)
    assert len(in_service(groups)) == 3, "members serve during their two minutes"
    groups.advance(900.0)
    assert len(in_service(groups)) == 3
    assert "us-east-1a" not in {i.zone for i in groups.group("gold").instances}


def test_capacity_rebalance_replaces_a_member_at_risk_before_it_goes() -> None:
    groups = make_groups(rebalance_lead_seconds=600.0)
    settings_ = gold(on_demand_percentage_above_base=0, capacity_rebalance=True)
    groups.create(0.0, settings_, desired_capacity=2)
    groups.advance(300.0)
    at_risk = in_service(groups)[0]
    groups.cloud.interrupt(300.0, [at_risk], rebalance_first=True)
    groups.advance(301.0)
    assert len(groups.group("gold").instances) == 3
    for now in range(302, 880, 10):
        groups.advance(float(now))
        assert len(in_service(groups)) >= 2
    assert at_risk not in in_service(groups)
    assert len(in_service(groups)) == 2


def test_an_instance_terminated_behind_the_groups_back_is_replaced() -> None:
    groups = make_groups()
    groups.create(0.0, gold(), desired_capacity=1)
    groups.advance(300.0)
    victim = in_service(groups)[0]
    groups.cloud.terminate(301.0, [victim])
    groups.advance(900.0)
    assert len(in_service(groups)) == 1
    assert victim not in in_service(groups)


def test_an_unhealthy_member_is_replaced() -> None:
    groups = make_groups()
    groups.create(0.0, gold(), desired_capacity=1)
    groups.advance(300.0)
    victim = in_service(groups)[0]
    groups.set_instance_health(301.0, victim, is_healthy=False)
    groups.advance(900.0)
    assert victim not in in_service(groups)
    assert len(in_service(groups)) == 1


def test_a_terminating_hook_holds_a_member_until_completed() -> None:
    groups = make_groups()
    groups.create(0.0, gold(), desired_capacity=1)
    groups.put_lifecycle_hook(0.0, "gold", LifecycleHook("drain", HookKind.TERMINATING, 900.0))
    groups.advance(300.0)
    member = in_service(groups)[0]
    groups.set_desired_capacity(301.0, "gold", 0)
    groups.advance(1000.0)
    state = groups.group("gold").instances[0].lifecycle_state
    assert state is LifecycleState.TERMINATING_WAIT
    assert groups.cloud.instance(member).state is InstanceState.RUNNING
    groups.complete_lifecycle_action(1001.0, member)
    groups.advance(1400.0)
    assert groups.group("gold").instances == ()


def test_a_launching_hook_that_times_out_abandons_the_instance() -> None:
    groups = make_groups()
    groups.create(0.0, gold())
    groups.put_lifecycle_hook(0.0, "gold", LifecycleHook("bake", HookKind.LAUNCHING, 60.0))
    groups.set_desired_capacity(0.0, "gold", 1)
    groups.advance(30.0 * 60)
    assert in_service(groups) == []
    assert len(groups.activities("gold")) > 4


def test_suspended_launch_launches_nothing_until_resumed() -> None:
    groups = make_groups()
    groups.create(0.0, gold())
    groups.suspend(0.0, "gold", "Launch")
    groups.set_desired_capacity(1.0, "gold", 3)
    groups.advance(300.0)
    assert groups.group("gold").instances == ()
    groups.resume(301.0, "gold")
    assert len(groups.group("gold").instances) == 3


def test_honoured_cooldown_refuses_a_second_change() -> None:
    groups = make_groups()
    groups.create(0.0, gold())
    groups.set_desired_capacity(10.0, "gold", 1)
    with pytest.raises(ScalingGroupError) as refused:
        groups.set_desired_capacity(100.0, "gold", 2, honor_cooldown=True)
    assert refused.value.code == "ScalingActivityInProgress"
    groups.set_desired_capacity(100.0, "gold", 2)


def test_delete_needs_force_while_members_are_left() -> None:
    groups = make_groups()
    groups.create(0.0, gold(), desired_capacity=2)
    with pytest.raises(ScalingGroupError) as refused:
        groups.delete(1.0, "gold")
    assert refused.value.code == "ResourceInUse"
    groups.delete(2.0, "gold", force=True)
    groups.advance(600.0)
    assert groups.groups() == []
    with pytest.raises(ScalingGroupError, match="not found"):
        groups.group("gold")


def test_next_event_time_is_none_when_everything_has_settled() -> None:
    groups = make_groups(terminated_visible_seconds=10.0)
    groups.create(0.0, gold(), desired_capacity=2)
    now = 0.0
    for _ in range(100):
        upcoming = groups.next_event_time()
        if upcoming is None:
            break
        assert upcoming >= now
        now = upcoming
        groups.advance(now)
    assert groups.next_event_time() is None
    assert len(in_service(groups)) == 2


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.5, 400.0), st.integers(0, 10)), min_size=1, max_size=12),
    st.integers(0, 5),
    st.integers(0, 100),
)
def test_any_sequence_of_sizes_ends_at_the_last_one(
    steps: list[tuple[float, int]], base: int, percentage: int
) -> None:
    groups = make_groups()
    mixed = gold(on_demand_base_capacity=base, on_demand_percentage_above_base=percentage)
    groups.create(0.0, mixed)
    now = 0.0
    for pause, desired in steps:
        now += pause
        groups.set_desired_capacity(now, "gold", desired)
        alive = [i for i in groups.cloud.instances() if i.is_alive]
        assert len(alive) == desired
    groups.advance(now + 1000.0)
    assert len(in_service(groups)) == steps[-1][1]
