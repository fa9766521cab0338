"""Drains that somebody else began, that nobody saw to, or of servers nobody has heard of."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from autoscaler.adapters.fleet_feed import WatchedFleet
from autoscaler.domain.fleet_view import FleetView
from autoscaler.domain.tiers import Tier
from autoscaler.testing.world import MemoryWorld
from gaming.gpu_metrics.v1 import gpu_metrics_pb2
from servicekit.testing import FakeClock

GOLD = Tier.GOLD
JITTER = random.Random(1)  # noqa: S311  # not a secret
POLICY = {"minimum": 1, "stabilization_seconds": 30.0, "drain_deadline_seconds": 60.0}


@pytest.fixture
def world() -> MemoryWorld:
    world = MemoryWorld(gold=2)
    for instance_id in world.cloud.instance_ids(GOLD):
        world.routers.running[f"server-{instance_id}"] = 1
        world.running_requests[instance_id] = 1
    return world


async def begin_a_drain(world: MemoryWorld, name: str = "a") -> str:
    replica = world.replica(name, policy=POLICY)
    await world.pass_time(45, replica)
    await replica.leadership.release()
    (draining,) = world.database.drains
    return draining


async def test_a_drain_that_nobody_saw_to_has_its_whole_window_again(world: MemoryWorld) -> None:
    draining = await begin_a_drain(world)
    await world.clock.advance(600)
    successor = world.replica("b", policy=POLICY)
    await world.pass_time(50, successor)
    assert draining in world.cloud.instance_ids(GOLD), "routers have given it streams meanwhile"
    await world.pass_time(20, successor)
    assert draining not in world.cloud.instance_ids(GOLD)


async def test_a_window_written_by_another_clock_is_kept_on_ones_own(world: MemoryWorld) -> None:
    draining = await begin_a_drain(world)
    drain = world.database.drains[draining]
    an_hour_behind = replace(
        drain, start_time=drain.start_time - 3600, deadline=drain.deadline - 3600
    )
    world.database.drains[draining] = an_hour_behind
    successor = world.replica("b", policy=POLICY)
    await world.pass_time(50, successor)
    assert draining in world.cloud.instance_ids(GOLD)


async def test_a_host_the_collector_does_not_know_is_not_taken_for_empty(
    world: MemoryWorld,
) -> None:
    replica = world.replica("a", policy=POLICY)
    await world.pass_time(30, replica)
    unknown = world.cloud.instance_ids(GOLD)[0]
    restarted = FleetView(
        hosts={i: h for i, h in world.fleet.current.hosts.items() if i != unknown},
        tiers=world.fleet.current.tiers,
        age_seconds=0.5,
    )
    world.fleet.current = restarted
    await world.clock.advance(5)
    await replica.leadership.renew()
    await replica.loop.tick()
    assert set(world.database.drains) == {unknown}
    assert unknown in world.cloud.instance_ids(GOLD)
    await world.pass_time(20, replica)
    assert f"server-{unknown}" in world.routers.draining, "it was asked once it was known again"
    assert unknown in world.cloud.instance_ids(GOLD)


async def test_a_drain_written_again_after_its_end_is_struck_off(world: MemoryWorld) -> None:
    replica = world.replica("a", policy=POLICY)
    await world.pass_time(45, replica)
    (draining,) = world.database.drains
    late = world.database.drains[draining]
    world.routers.running = {}
    world.running_requests = {}
    await world.pass_time(10, replica)
    assert world.database.drains == {}
    world.database.drains[draining] = late
    await world.pass_time(5, replica)
    assert world.database.drains == {}


class NoCollector:
    """A channel to nobody: a test hands the messages over itself."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def test_an_interruption_is_told_on_ones_own_clock() -> None:
    clock = FakeClock()
    feed = WatchedFleet(NoCollector(), clock=clock, jitter=JITTER)  # type: ignore[arg-type]  # as it says
    collectors_now = clock.now() + timedelta(hours=1)
    message = gpu_metrics_pb2.WatchFleetResponse(resume_token="1")
    message.send_time.FromDatetime(collectors_now)
    host = message.snapshot.hosts.add()
    host.host.host_id = "i-1"
    host.host.interruption_time.FromDatetime(collectors_now + timedelta(seconds=90))
    feed.take(message)
    told = feed.view().hosts["i-1"].interruption_time
    assert told == pytest.approx(clock.now().timestamp() + 90)
