"""A machine's clock is set an hour forward or back while services work on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
import replica_world
from faked_clock import HOUR_SECONDS, FakedClock
from replica_world import LEASE_SECONDS, ReplicaWorld, until_leader
from service_processes import router_process

from ai_router.testing.scripted_model_server import Script, serve_script
from autoscaler.domain.tiers import Tier
from autoscaler.testing.outside import Asked
from gaming.ai_router.v1 import ai_router_pb2 as pb
from gaming.ai_router.v1 import ai_router_pb2_grpc as rpc
from gaming.common.v1 import tier_pb2
from servicekit.channels import open_channel
from servicekit.testing import failure_of

INTERVAL_SECONDS = 0.2
LONGEST_INTERVAL_SECONDS = 5.0
"""On a busy machine an interval ends late; an hour is another matter."""
DEADLINE_SECONDS = 3.0
LATE_SECONDS = 5.0
"""As above."""
SPEC = pb.GenerationSpec(
    tier=tier_pb2.TIER_GOLD,
    messages=[pb.ChatMessage(role=pb.CHAT_ROLE_USER, content="What time is it?")],
    max_output_tokens=8,
)


@pytest.mark.parametrize(
    "step_seconds", [HOUR_SECONDS, pytest.param(-HOUR_SECONDS, marks=pytest.mark.endurance)]
)
async def test_a_routers_demand_and_deadlines_do_not_follow_its_wall_clock(
    tmp_path: Path, step_seconds: int, record_property: Callable[[str, object], None]
) -> None:
    clock, loop = FakedClock(tmp_path / "clock"), asyncio.get_running_loop()
    async with (
        serve_script(Script(hold_before=1)) as models,
        router_process(
            tmp_path / "router.log",
            AI_ROUTER_STATIC_SERVERS=f"gold:lamp@{models.url}",
            AI_ROUTER_DEMAND_INTERVAL_SECONDS=str(INTERVAL_SECONDS),
            **clock.environ,
        ) as router,
        open_channel(router.address) as channel,
    ):
        stub = rpc.AiRouterServiceStub(channel)
        intervals = aiter(stub.WatchDemand(pb.WatchDemandRequest()))
        await anext(intervals)
        begun = loop.time()
        call = stub.GenerateOnce(pb.GenerateOnceRequest(spec=SPEC), timeout=DEADLINE_SECONDS)
        failing = asyncio.ensure_future(failure_of(call))
        await asyncio.wait_for(models.held.wait(), 30)
        clock.set_off_by(step_seconds)
        seen = [await anext(intervals) for _ in range(5)]
        failure = await failing
        took = loop.time() - begun
        async with asyncio.timeout(30):
            await models.idle.wait()  # the work stops with the call
        later = await failure_of(
            stub.GenerateOnce(pb.GenerateOnceRequest(spec=SPEC), timeout=DEADLINE_SECONDS)
        )
    lengths = [
        (each.end_time.ToNanoseconds() - each.start_time.ToNanoseconds()) / 1e9 for each in seen
    ]
    record_property("interval lengths, s", [round(length, 2) for length in lengths])
    record_property("call with 3 s to live took, s", round(took, 2))
    off_by = (seen[-1].end_time.ToDatetime(UTC) - datetime.now(UTC)).total_seconds()
    assert abs(off_by - step_seconds) < 60, "the router's wall clock was set"
    assert all(0 < length < LONGEST_INTERVAL_SECONDS for length in lengths)
    assert failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert took < DEADLINE_SECONDS + LATE_SECONDS
    assert later.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.fixture
async def world(postgres_database: str) -> AsyncIterator[ReplicaWorld]:
    async with AsyncExitStack() as stack:
        world = ReplicaWorld(stack, postgres_database)
        await world.start()
        yield world


async def until(condition: Callable[[], object]) -> None:
    """Waits for as long as a very busy machine may take."""
    await replica_world.until(condition, timeout_seconds=60.0)


async def heard(world: ReplicaWorld) -> None:
    """Returns when the leader has decided some times on what the router is asked now."""
    told = world.router.messages
    await until(lambda: world.router.messages >= told + 40)


@pytest.mark.endurance
async def test_a_drain_and_the_lead_keep_their_time_when_the_leaders_clock_is_set(
    world: ReplicaWorld, tmp_path: Path
) -> None:
    clock = FakedClock(tmp_path / "clock")
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=5, running_requests=25)
    await until(lambda: len(world.collector.hosts) == 2)
    world.environ |= clock.environ
    leader = await world.spawn("leader")
    await until_leader(leader, "leader", timeout_seconds=60.0)
    for host in world.collector.hosts:
        world.router.running[f"server-{host}"] = 1
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=1, running_requests=2)
    await until(lambda: world.router.draining)

    for step_seconds in (HOUR_SECONDS, -HOUR_SECONDS):
        clock.set_off_by(step_seconds)
        await asyncio.sleep(LEASE_SECONDS)  # for as long as a lead lasts unless it is renewed
        # The drain's window is minutes long, and a player is still being answered.
        assert world.hosts.terminated == []
        assert await leader.leader() == "leader"
    # The work ends, and so does the drain: the clock does not hold it up either.
    world.router.running.clear()
    await until(lambda: len(world.hosts.terminated) == 1)
    journal = await world.connect()
    assert await journal.fetchval("SELECT epoch FROM autoscaler.leases") == 1


@pytest.mark.endurance
@pytest.mark.parametrize("step_seconds", [HOUR_SECONDS, -HOUR_SECONDS])
async def test_the_pause_before_a_scale_in_is_not_cut_short_by_the_wall_clock(
    world: ReplicaWorld, tmp_path: Path, step_seconds: int
) -> None:
    clock = FakedClock(tmp_path / "clock")
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=5, running_requests=25)
    await until(lambda: len(world.collector.hosts) == 2)
    world.environ |= clock.environ | {"AUTOSCALER_STABILIZATION_SECONDS": "60"}
    leader = await world.spawn("leader")
    await until_leader(leader, "leader", timeout_seconds=60.0)
    await heard(world)
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=1, running_requests=2)
    await heard(world)
    clock.set_off_by(step_seconds)
    await heard(world)
    assert not world.router.draining
    # What must not wait does not: more players get more servers at once.
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=20, running_requests=100)
    await until(lambda: world.desired() > 2)
