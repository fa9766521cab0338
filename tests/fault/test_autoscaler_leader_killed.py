"""Two replicas as processes of their own; the leader is killed without warning."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from replica_world import GOLD, SUCCEEDED_WITHIN_SECONDS, ReplicaWorld, until, until_leader

from autoscaler.domain.tiers import Tier
from autoscaler.testing.outside import Asked
from gaming.autoscaler.v1 import autoscaler_pb2 as pb


@pytest.fixture
async def world(postgres_database: str) -> AsyncIterator[ReplicaWorld]:
    async with AsyncExitStack() as stack:
        world = ReplicaWorld(stack, postgres_database)
        await world.start()
        yield world


async def test_the_other_replica_leads_within_the_lease_and_ends_what_was_begun(
    world: ReplicaWorld,
) -> None:
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=5, running_requests=25)
    await until(lambda: len(world.collector.hosts) == 2)
    first = await world.spawn("first")
    await until_leader(first, "first")
    second = await world.spawn("second")
    await until_leader(second, "first")

    for host in world.collector.hosts:
        world.router.running[f"server-{host}"] = 1
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=1, running_requests=2)
    await until(lambda: world.router.draining)
    assert world.desired() == 2

    await first.kill()
    took = await until_leader(second, "second")
    assert took < SUCCEEDED_WITHIN_SECONDS
    world.router.running.clear()
    await until(lambda: world.desired() == 1)  # the drain the first one began

    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=20, running_requests=100)
    await until(lambda: world.desired() >= 5)
    decisions = await second.stub.ListDecisions(pb.ListDecisionsRequest(tier=GOLD))
    deciders = {d.decided_by for d in decisions.decisions}
    assert deciders == {"first", "second"}


async def test_a_leader_that_ends_in_order_gives_the_lead_away_at_once(world: ReplicaWorld) -> None:
    world.environ["AUTOSCALER_LEASE_SECONDS"] = "30"
    first = await world.spawn("first")
    await until_leader(first, "first")
    second = await world.spawn("second")
    await until_leader(second, "first")
    first.process.send_signal(signal.SIGTERM)
    await until_leader(second, "second", timeout_seconds=25.0)
    assert await first.process.wait() == 0
