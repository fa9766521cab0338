"""A lead that ends in the middle of a round ends its acts too; so does a group that changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from autoscaler.domain.decision import Outcome
from autoscaler.domain.fleet_view import ScalingGroup
from autoscaler.domain.tiers import Tier
from autoscaler.leadership import Role
from autoscaler.testing.world import MemoryReplica, MemoryWorld

GOLD = Tier.GOLD


def role_of(replica: MemoryReplica) -> Role:
    return replica.leadership.role


async def test_one_cut_off_that_hears_of_another_leader_while_it_asks_the_cloud_sets_no_size() -> (
    None
):
    world = MemoryWorld(gold=2)
    replica = world.replica("a")
    await world.pass_time(10, replica)
    world.database.is_reachable = False
    await replica.leadership.renew()
    assert role_of(replica) is Role.CUT_OFF
    world.ask(gold=40_000)
    describe, looks = world.cloud.describe, iter(range(10))

    async def while_the_database_comes_back() -> Mapping[Tier, ScalingGroup]:
        groups = await describe()
        if next(looks) == 1:  # the look just before the size is set
            world.database.is_reachable = True
            world.database.lease = ("b", 2, world.now() + 60)
            await replica.leadership.renew()
        return groups

    world.cloud.describe = while_the_database_comes_back  # type: ignore[method-assign,assignment]  # the moment matters
    world.refresh()
    await replica.loop.tick()
    assert role_of(replica) is Role.FOLLOWER
    assert world.cloud.groups[GOLD].desired == 2
    decided = replica.picture.reports[GOLD].record
    assert decided.decision.desired > 2
    assert decided.outcome is Outcome.FAILED


async def test_a_server_the_cloud_took_back_meanwhile_is_not_counted_as_draining() -> None:
    world = MemoryWorld(gold=3)
    replica = world.replica("a", policy={"minimum": 3})
    await world.pass_time(10, replica)
    doomed = world.cloud.instance_ids(GOLD)[0]
    world.interruptions[doomed] = world.now() + 20
    describe, looks = world.cloud.describe, iter(range(10))

    async def while_the_cloud_takes_it_back() -> Mapping[Tier, ScalingGroup]:
        if next(looks) == 1:  # the look just before the size is set
            world.cloud.groups[GOLD] = replace(
                world.cloud.groups[GOLD],
                instances=tuple(
                    replace(i, instance_id=f"{doomed}-successor") if i.instance_id == doomed else i
                    for i in world.cloud.groups[GOLD].instances
                ),
            )
        return await describe()

    world.cloud.describe = while_the_cloud_takes_it_back  # type: ignore[method-assign,assignment]  # the moment matters
    await world.tick(replica)
    assert replica.picture.reports[GOLD].record.outcome is Outcome.FAILED
    assert world.cloud.groups[GOLD].desired == 3
