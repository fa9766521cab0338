"""The control loop on in-memory outside systems."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from autoscaler.domain.decision import DecisionRule, Outcome
from autoscaler.domain.observation import Players
from autoscaler.domain.overrides import Override, OverrideKind
from autoscaler.domain.policy import BudgetPolicy
from autoscaler.domain.tiers import Tier
from autoscaler.leadership import Role
from autoscaler.ports import CloudError
from autoscaler.testing.world import MemoryWorld

GOLD = Tier.GOLD


@pytest.fixture
def world() -> MemoryWorld:
    return MemoryWorld(gold=2)


def changes(world: MemoryWorld, tier: Tier = GOLD) -> Any:
    return [r for r in world.decisions(tier) if r.is_change]


async def test_demand_sets_an_absolute_size_and_is_journalled_with_its_outcome(
    world: MemoryWorld,
) -> None:
    replica = world.replica()
    world.ask(gold=40_000)
    await world.tick(replica)
    assert world.cloud.groups[GOLD].desired == 6
    (record,) = changes(world)
    assert record.outcome is Outcome.APPLIED
    assert record.decision.rule is DecisionRule.SCALE_OUT_DEMAND
    assert record.decided_by == "a"
    assert record.lease_epoch == 1
    assert len(record.counterfactuals) >= 3


async def test_each_tier_starts_from_zero(world: MemoryWorld) -> None:
    replica = world.replica()
    world.ask(gold=1_000, silver=500, bronze=500)
    await world.tick(replica)
    assert world.cloud.groups[Tier.SILVER].desired == 1
    assert world.cloud.groups[Tier.BRONZE].desired == 1
    assert changes(world, Tier.BRONZE)[0].decision.rule is DecisionRule.START_FROM_ZERO


async def test_scale_in_drains_through_the_routers_before_it_terminates(world: MemoryWorld) -> None:
    replica = world.replica(policy={"minimum": 1, "stabilization_seconds": 60.0})
    first, second = world.cloud.instance_ids(GOLD)
    world.running_requests[first] = 3
    world.routers.running[f"server-{second}"] = 2
    world.ask(gold=1_000)
    await world.pass_time(90, replica)
    assert f"server-{second}" in world.routers.draining  # the one with less to do
    assert world.cloud.groups[GOLD].desired == 2
    assert second in world.database.drains
    world.routers.running[f"server-{second}"] = 0
    await world.tick(replica)
    assert world.cloud.instance_ids(GOLD) == [first]
    assert world.cloud.groups[GOLD].desired == 1
    assert world.database.drains == {}
    assert ("set_desired", GOLD, 1) not in world.cloud.calls  # never below what lives


async def test_a_drain_that_never_ends_is_cut_at_its_deadline(world: MemoryWorld) -> None:
    replica = world.replica(
        policy={"minimum": 1, "stabilization_seconds": 30.0, "drain_deadline_seconds": 60.0}
    )
    for instance_id in world.cloud.instance_ids(GOLD):
        world.routers.running[f"server-{instance_id}"] = 1
    await world.pass_time(60, replica)
    assert len(world.cloud.instance_ids(GOLD)) == 2
    await world.pass_time(60, replica)
    assert len(world.cloud.instance_ids(GOLD)) == 1


async def test_a_router_that_does_not_answer_holds_the_drain(world: MemoryWorld) -> None:
    replica = world.replica(policy={"minimum": 1, "stabilization_seconds": 30.0})
    for instance_id in world.cloud.instance_ids(GOLD):
        world.routers.running[f"server-{instance_id}"] = None
    await world.pass_time(60, replica)
    assert len(world.cloud.instance_ids(GOLD)) == 2
    assert len(world.database.drains) == 1


async def test_growth_takes_a_drain_back(world: MemoryWorld) -> None:
    replica = world.replica(policy={"minimum": 1, "stabilization_seconds": 30.0})
    for instance_id in world.cloud.instance_ids(GOLD):
        world.routers.running[f"server-{instance_id}"] = 1
    await world.pass_time(45, replica)
    (draining,) = world.database.drains
    world.ask(gold=12_000)
    await world.tick(replica)
    assert world.database.drains == {}
    assert world.routers.resumed == [f"server-{draining}"]
    assert [call for call in world.cloud.calls if call[1] is GOLD] == []


async def test_the_next_leader_goes_on_with_the_drains(world: MemoryWorld) -> None:
    first = world.replica("a", policy={"minimum": 1, "stabilization_seconds": 30.0})
    for instance_id in world.cloud.instance_ids(GOLD):
        world.routers.running[f"server-{instance_id}"] = 1
    await world.pass_time(45, first)
    (draining,) = world.database.drains
    world.routers.running = {}
    second = world.replica("b")
    await world.pass_time(20, second)  # the first one is gone; its lease runs out
    assert second.leadership.role is Role.LEADER
    assert second.leadership.epoch == 2
    assert draining not in world.cloud.instance_ids(GOLD)


async def test_only_one_of_two_replicas_decides_and_both_know_the_tiers(world: MemoryWorld) -> None:
    leader, follower = world.replica("a"), world.replica("b")
    world.ask(gold=40_000)
    await world.pass_time(10, leader, follower)
    assert (leader.leadership.role, follower.leadership.role) == (Role.LEADER, Role.FOLLOWER)
    assert {r.decided_by for r in world.decisions(GOLD)} == {"a"}
    assert follower.picture.reports == leader.picture.reports
    assert follower.picture.usd_per_hour == pytest.approx(6 * 1.006)


async def test_two_leaders_for_a_moment_do_no_harm(world: MemoryWorld) -> None:
    """Both act on the same view: absolute sizes and ids make the second act a repeat."""
    one, other = world.replica("a"), world.replica("b")
    world.ask(gold=40_000)
    await world.tick(one)
    world.database.lease = None  # as if the database had been restored from a copy
    await world.tick(other)
    await one.loop.tick()  # still believes in its lease
    assert world.cloud.groups[GOLD].desired == 6
    assert len(world.cloud.instance_ids(GOLD)) == 6


async def test_a_leader_whose_lease_ran_out_asks_again_before_it_acts(world: MemoryWorld) -> None:
    replica = world.replica()
    await world.tick(replica)
    await world.clock.advance(15.0)  # frozen for the length of its lease
    world.ask(gold=40_000)
    world.refresh()
    await replica.loop.tick()
    assert replica.leadership.role is Role.LAPSED
    assert world.cloud.groups[GOLD].desired == 2
    await world.tick(replica)
    assert world.cloud.groups[GOLD].desired == 6


async def test_a_size_that_changed_since_it_was_read_is_not_overwritten(
    world: MemoryWorld,
) -> None:
    replica = world.replica()
    looks: list[str] = []

    def another_leader_acts(operation: str) -> None:
        looks.append(operation)
        if looks == ["DescribeAutoScalingGroups"] * 2:
            world.cloud.groups[GOLD] = replace(world.cloud.groups[GOLD], desired=9)

    world.cloud.on_call = another_leader_acts
    world.ask(gold=40_000)
    await world.tick(replica)
    assert world.cloud.groups[GOLD].desired == 9
    assert changes(world)[0].outcome is Outcome.FAILED


async def test_servers_beyond_the_groups_size_are_counted_and_the_size_put_right(
    world: MemoryWorld,
) -> None:
    """A late call of a former leader shrank the size; scale-in protection kept the servers."""
    replica = world.replica()
    world.cloud.groups[GOLD] = replace(world.cloud.groups[GOLD], desired=1)
    world.ask(gold=10_000)
    await world.tick(replica)
    assert world.cloud.groups[GOLD].desired == 2
    assert len(world.cloud.instance_ids(GOLD)) == 2


async def test_with_the_database_away_the_leader_adds_and_never_takes_away(
    world: MemoryWorld,
) -> None:
    replica = world.replica(policy={"minimum": 1, "stabilization_seconds": 30.0})
    await world.tick(replica)
    world.database.is_reachable = False
    await world.pass_time(120, replica)
    assert replica.leadership.role is Role.CUT_OFF
    assert world.cloud.groups[GOLD].desired == 2
    world.ask(gold=40_000)
    await world.tick(replica)
    assert world.cloud.groups[GOLD].desired == 6
    assert replica.loop.journal.waiting_decisions > 0
    before = list(world.database.decisions)
    world.database.is_reachable = True
    await world.tick(replica)
    assert replica.loop.journal.waiting_decisions == 0
    written = [r for r in world.decisions(GOLD) if r.decision_id not in before]
    rules = [r.decision.rule for r in written]
    assert DecisionRule.HOLD_DATABASE_AWAY in rules
    assert rules.index(DecisionRule.SCALE_OUT_DEMAND) > rules.index(DecisionRule.HOLD_DATABASE_AWAY)


async def test_a_replica_that_never_led_does_nothing_while_the_database_is_away(
    world: MemoryWorld,
) -> None:
    world.database.is_reachable = False
    replica = world.replica()
    world.ask(gold=40_000)
    await world.pass_time(30, replica)
    assert replica.leadership.role is Role.FOLLOWER
    assert world.cloud.calls == []


async def test_a_drain_that_cannot_be_written_down_does_not_begin(world: MemoryWorld) -> None:
    replica = world.replica(policy={"minimum": 1})
    pin = Override(
        kind=OverrideKind.PIN, desired=1, expire_time=world.now() + 600, reason="x", set_by="ops"
    )
    world.database.overrides[GOLD] = pin
    await replica.leadership.renew()
    world.refresh()

    def lose_the_database(operation: str) -> None:
        world.database.is_reachable = False

    world.cloud.on_call = lose_the_database
    await replica.loop.tick()
    assert replica.loop.drains.instance_ids == frozenset()
    assert world.routers.draining == set()
    world.cloud.on_call = None
    world.database.is_reachable = True
    await world.tick(replica)
    failed = [r for r in changes(world) if r.outcome is Outcome.FAILED]
    assert "no drain was begun" in failed[0].outcome_message


async def test_intents_a_dead_leader_left_are_closed_by_the_next(world: MemoryWorld) -> None:
    leader = world.replica("a")
    world.ask(gold=40_000)
    await leader.leadership.renew()
    world.refresh()

    def die(operation: str) -> None:
        if operation == "SetDesiredCapacity":
            raise asyncio.CancelledError

    world.cloud.on_call = die
    with pytest.raises(asyncio.CancelledError):
        await leader.loop.tick()
    world.cloud.on_call = None
    second = world.replica("b")
    await world.clock.advance(16)
    await world.tick(second)
    lost = next(r for r in world.decisions(GOLD) if r.decided_by == "a")
    assert lost.outcome is Outcome.FAILED
    assert "stopped before" in lost.outcome_message


async def test_a_cloud_that_refuses_is_journalled_once_and_tried_every_round(
    world: MemoryWorld,
) -> None:
    replica = world.replica()
    tries = 0

    def refuse(operation: str) -> None:
        nonlocal tries
        if operation == "SetDesiredCapacity":
            tries += 1
            raise CloudError("SetDesiredCapacity was refused: ResourceContention: busy")

    world.cloud.on_call = refuse
    world.database.overrides[GOLD] = Override(
        kind=OverrideKind.PIN, desired=6, expire_time=world.now() + 600, reason="x", set_by="ops"
    )
    await world.pass_time(40, replica)
    assert tries == 8
    failed = [r for r in changes(world) if r.outcome is Outcome.FAILED]
    assert len(failed) == 1
    assert "ResourceContention" in failed[0].outcome_message
    world.cloud.on_call = None
    await world.pass_time(5, replica)
    assert changes(world)[-1].outcome is Outcome.APPLIED


async def test_a_dry_run_decides_and_touches_nothing(world: MemoryWorld) -> None:
    replica = world.replica(dry_run=True)
    world.ask(gold=40_000)
    await world.pass_time(30, replica)
    assert world.cloud.calls == []
    (record,) = changes(world)
    assert record.outcome is Outcome.DRY_RUN
    assert record.decision.desired == 6


async def test_steady_tiers_are_journalled_once_a_minute(world: MemoryWorld) -> None:
    replica = world.replica(policy={"minimum": 2})
    world.ask(gold=12_000)
    await world.pass_time(600, replica)
    assert 10 <= len(world.decisions(GOLD)) <= 12


async def test_an_override_of_any_replica_reaches_the_leader(world: MemoryWorld) -> None:
    leader = world.replica("a")
    await world.tick(leader)
    stores = world.database.stores()
    pin = Override(
        kind=OverrideKind.PIN, desired=5, expire_time=world.now() + 60, reason="boss", set_by="ops"
    )
    await stores.overrides.set_override(
        GOLD, pin, "6f2d3f0c-6f9a-4c36-9f0e-3f2a6f2d3f0c", world.now()
    )
    await world.tick(leader)
    assert world.cloud.groups[GOLD].desired == 5
    assert changes(world)[-1].decision.rule is DecisionRule.OVERRIDE


async def test_the_budget_of_the_players_online_stops_growth(world: MemoryWorld) -> None:
    budget = BudgetPolicy(usd_per_player_month=8.0, floor_servers={GOLD: 3})
    replica = world.replica(budget=budget)
    world.database.players = Players(online=450, count_time=world.now())  # $4.93 an hour
    world.ask(gold=200_000)
    await world.tick(replica)
    assert world.cloud.groups[GOLD].desired == 4
    world.database.players = Players(online=10, count_time=world.now())
    await world.tick(replica)
    assert world.cloud.groups[GOLD].desired == 4
    assert replica.picture.reports[GOLD].record.decision.rule is DecisionRule.AT_BUDGET


async def test_a_silent_cloud_holds_everything_and_loses_nothing(world: MemoryWorld) -> None:
    replica = world.replica(policy={"minimum": 1, "stabilization_seconds": 30.0})
    await world.tick(replica)
    world.cloud.is_reachable = False
    await world.pass_time(200, replica)
    rule = replica.picture.reports[GOLD].record.decision.rule
    assert rule is DecisionRule.HOLD_STALE_INPUT
    world.cloud.is_reachable = True
    await world.tick(replica)
    assert len(world.cloud.instance_ids(GOLD)) == 2


async def test_decision_ids_ascend_also_within_a_millisecond(world: MemoryWorld) -> None:
    replica = world.replica()
    world.ask(gold=40_000, silver=40_000, bronze=40_000)
    await world.tick(replica)
    await world.tick(replica)
    ids = [r.decision_id for r in world.database.decisions.values()]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


async def test_an_interrupted_server_is_given_back_before_the_cloud_takes_it(
    world: MemoryWorld,
) -> None:
    replica = world.replica()
    world.ask(gold=12_000)
    second = world.cloud.instance_ids(GOLD)[1]
    await world.tick(replica)
    world.interruptions[second] = world.now() + 120
    await world.tick(replica)
    assert world.cloud.groups[GOLD].desired == 3
    await world.pass_time(15, replica)
    assert second not in world.cloud.instance_ids(GOLD)
    assert world.cloud.groups[GOLD].desired == 2
    assert len(world.cloud.instance_ids(GOLD)) == 2


async def test_a_round_that_is_not_written_can_be_explained_all_the_same(
    world: MemoryWorld,
) -> None:
    leader, follower = world.replica("a"), world.replica("b")
    world.ask(gold=12_000)
    await world.pass_time(20, leader, follower)
    last = leader.picture.reports[GOLD].record
    assert last.decision_id not in world.database.decisions
    for replica in (leader, follower):
        known = replica.feed.recent(last.decision_id)
        assert known is not None
        assert known.counterfactuals
