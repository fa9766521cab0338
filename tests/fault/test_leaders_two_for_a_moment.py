"""Two leaders for a moment: one slept through its lease, and wakes in the middle of what it did.

AWS checks no fencing token. So a leader asks how long it still leads before it acts, looks again
at what it is about to change, and lets no act outlast its lease. The local AWS holds a call, the
leader is frozen while it waits, and wakes with the answer of a moment that is long gone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from replica_world import (
    SUCCEEDED_WITHIN_SECONDS,
    ReplicaProcess,
    ReplicaWorld,
    until,
    until_leader,
)

from autoscaler.domain.tiers import Tier
from autoscaler.testing.outside import Asked

NEWS = 20
"""Messages of the router after which a replica has seen what it asks for."""


@pytest.fixture
async def world(postgres_database: str) -> AsyncIterator[ReplicaWorld]:
    async with AsyncExitStack() as stack:
        world = ReplicaWorld(stack, postgres_database)
        # A replica that wakes must not give its call up for its length alone.
        world.environ["AUTOSCALER_CLOUD_TIMEOUT_SECONDS"] = "100"
        # Unless a test says otherwise nothing is taken away, so that whatever ends is a mistake.
        world.environ["AUTOSCALER_STABILIZATION_SECONDS"] = "600"
        await world.start()
        await until(lambda: len(world.collector.hosts) == 2)
        yield world


async def heard(world: ReplicaWorld) -> None:
    """Wait until every replica that listens has heard what the router is asked."""
    told = world.router.messages
    await until(lambda: world.router.messages >= told + 2 * NEWS)


async def until_followed(replica: ReplicaProcess, world: ReplicaWorld) -> None:
    """Wait until a replica follows "second" and has had the time for rounds of its own."""
    await until_leader(replica, "second")
    await heard(world)


async def test_a_leader_that_slept_through_its_lease_does_not_undo_what_the_next_one_did(
    world: ReplicaWorld,
) -> None:
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=5, running_requests=25)
    first = await world.spawn("first")
    await until_leader(first, "first")
    second = await world.spawn("second")
    await until_leader(second, "first")
    journal = await world.connect()

    world.faults.add({"operation": "DescribeAutoScalingGroups", "hold": True})
    await until(world.faults.held)
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=10, running_requests=60)
    await heard(world)  # it will decide to grow
    first.freeze()
    world.faults.clear()  # the answer, two servers, waits for it
    await until_leader(second, "second")
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=20, running_requests=150)
    await until(lambda: world.desired() >= 8)
    await until(lambda: len(world.collector.hosts) == world.desired())
    await heard(world)
    grown, sizes = world.desired(), list(world.sizes_set)

    first.thaw()
    await until_followed(first, world)
    assert world.sizes_set == sizes
    assert world.desired() == grown
    assert world.hosts.terminated == []
    outcomes = await journal.fetch(
        "SELECT outcome FROM autoscaler.decisions"
        " WHERE decided_by = 'first' AND is_change AND previous_desired = 2"
    )
    assert {row["outcome"] for row in outcomes} <= {"FAILED"}


@pytest.mark.endurance
async def test_a_leader_that_slept_through_its_lease_ends_no_server_that_was_taken_back(
    world: ReplicaWorld,
) -> None:
    world.environ["AUTOSCALER_STABILIZATION_SECONDS"] = "1"
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=5, running_requests=25)
    first = await world.spawn("first")
    await until_leader(first, "first")
    second = await world.spawn("second")
    await until_leader(second, "first")

    # The first one drains a server, sees it idle, and looks whether it is still there.
    world.faults.add({"operation": "DescribeAutoScalingInstances", "hold": True})
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=1, running_requests=2)
    await until(world.faults.held)
    first.freeze()
    world.faults.clear()  # it is, says the answer that waits for it
    (drained,) = world.router.draining
    # Meanwhile players come back, and the second one takes the server back for them.
    world.router.running[drained] = 1
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=20, running_requests=100)
    took = await until_leader(second, "second")
    await until(lambda: drained in world.router.resumed)

    first.thaw()
    await until_followed(first, world)
    assert world.hosts.terminated == []
    assert took < SUCCEEDED_WITHIN_SECONDS


@pytest.mark.endurance
async def test_a_leader_killed_between_intent_and_call_is_succeeded_without_a_double_launch(
    world: ReplicaWorld,
) -> None:
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=5, running_requests=25)
    first = await world.spawn("first")
    await until_leader(first, "first")
    journal = await world.connect()

    # The intent is written; the call never takes place.
    world.faults.add(
        {"operation": "SetDesiredCapacity", "error_code": "InternalFailure", "hold": True}
    )
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=10, running_requests=60)
    await until(world.faults.held)
    await first.kill()
    world.faults.clear()
    assert world.sizes_set == []
    intents = await journal.fetch(
        "SELECT decision_id FROM autoscaler.decisions WHERE outcome IS NULL"
    )
    assert len(intents) == 1

    second = await world.spawn("second")
    await until_leader(second, "second")
    await until(lambda: world.sizes_set)
    await until(lambda: len(world.collector.hosts) == world.desired())
    await heard(world)
    assert len(world.hosts.launched) == world.desired()
    assert world.hosts.terminated == []
    closed = await journal.fetchval(
        "SELECT outcome FROM autoscaler.decisions WHERE decision_id = $1",
        intents[0]["decision_id"],
    )
    assert closed == "FAILED"


@pytest.mark.endurance
async def test_a_call_of_a_dead_leader_that_arrives_late_ends_no_server(
    world: ReplicaWorld,
) -> None:
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=5, running_requests=25)
    first = await world.spawn("first")
    await until_leader(first, "first")
    world.faults.add({"operation": "SetDesiredCapacity", "hold": True})
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=10, running_requests=60)
    await until(world.faults.held)
    await first.kill()

    second = await world.spawn("second")
    await until_leader(second, "second")
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=20, running_requests=150)
    await until(lambda: world.desired() >= 8)
    await until(lambda: len(world.collector.hosts) == world.desired())
    await heard(world)
    grown = world.desired()
    sizes = len(world.sizes_set)

    world.faults.clear()  # now AWS gets the dead leader's size, which is smaller
    await until(lambda: len(world.sizes_set) > sizes)
    assert world.sizes_set[sizes] < grown
    await until(lambda: world.desired() == grown)
    assert world.hosts.terminated == []
    assert len(world.hosts.launched) == grown


@pytest.mark.endurance
async def test_a_drain_survives_a_leader_killed_while_it_ends_the_server(
    world: ReplicaWorld,
) -> None:
    world.environ["AUTOSCALER_STABILIZATION_SECONDS"] = "1"
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=5, running_requests=25)
    first = await world.spawn("first")
    await until_leader(first, "first")
    world.faults.add({"operation": "TerminateInstanceInAutoScalingGroup", "hold": True})
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=1, running_requests=2)
    await until(world.faults.held)
    await first.kill()
    (drained,) = world.router.draining

    # This one would not begin a drain for a long time; it ends the one that was begun.
    world.environ["AUTOSCALER_STABILIZATION_SECONDS"] = "600"
    second = await world.spawn("second")
    await until_leader(second, "second")
    await until(lambda: world.hosts.terminated)
    world.faults.clear()  # the dead leader's call arrives too, and finds it done
    await heard(world)
    assert [f"server-{host}" for host in world.hosts.terminated] == [drained]
    assert world.desired() == 1
    journal = await world.connect()
    assert await journal.fetchval("SELECT count(*) FROM autoscaler.drains") == 0
