"""Two replicas as processes of their own; the leader is killed without warning."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from autoscaler.domain.tiers import Tier
from autoscaler.testing.outside import Asked, ScriptedCollector, ScriptedRouter
from autoscaler.testing.running import quick_environment
from fleetsim.cloud_state import Instance
from gaming.autoscaler.v1 import autoscaler_pb2 as pb
from gaming.autoscaler.v1 import autoscaler_pb2_grpc
from gaming.common.v1 import tier_pb2
from localsuite.aws.account import seed_account
from localsuite.aws.region import Region
from localsuite.aws.server import LocalAwsServer
from localsuite.aws.tiers import TierCapacity, group_name
from localsuite.ports import choose_ports
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.server import RpcServer, ServerSettings
from servicekit.settings import load_settings

LEASE_SECONDS = 2.0
GOLD = tier_pb2.TIER_GOLD


@dataclass
class Hosts:
    """A host that runs has a ready model server at once."""

    collector: ScriptedCollector

    def on_instance_running(self, instance: Instance) -> None:
        self.collector.hosts[instance.instance_id] = Tier(instance.tags["gamekeeper:tier"])

    def on_interruption_notice(self, instance: Instance, at: float) -> None:
        self.collector.interruptions[instance.instance_id] = at

    def on_instance_terminated(self, instance: Instance) -> None:
        self.collector.hosts.pop(instance.instance_id, None)


@dataclass
class Process:
    """A replica in a process of its own."""

    process: asyncio.subprocess.Process
    stub: autoscaler_pb2_grpc.AutoscalerServiceAsyncStub

    async def status(self) -> pb.GetStatusResponse:
        return await self.stub.GetStatus(pb.GetStatusRequest(), timeout=30, wait_for_ready=True)

    async def leader(self) -> str:
        return (await self.status()).leader_id


class World:
    def __init__(self, stack: AsyncExitStack, database_url: str) -> None:
        self._stack = stack
        self.collector, self.router = ScriptedCollector(), ScriptedRouter()
        self.region = Region(seed=5, time_compression=200.0, hosts=Hosts(self.collector))
        self.environ = quick_environment(
            AUTOSCALER_DATABASE_URL=database_url,
            AUTOSCALER_LEASE_SECONDS=str(LEASE_SECONDS),
            AUTOSCALER_STABILIZATION_SECONDS="1",
        )

    async def start(self) -> None:
        aws = LocalAwsServer(self.region)
        aws.start()
        self._stack.callback(aws.stop)
        tiers = (TierCapacity("gold", ("g5.xlarge",), 0, 20, 2),)
        await asyncio.to_thread(seed_account, aws.endpoint, tiers)
        addresses = []
        for registration in (self.collector.registration, self.router.registration):
            server = RpcServer(
                [registration], load_settings(ServerSettings, {}), clock=SystemClock()
            )
            await server.start()
            self._stack.push_async_callback(server.stop, 0)
            addresses.append(server.address)
        self.environ |= {
            "AWS_ENDPOINT_URL": aws.endpoint,
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AUTOSCALER_COLLECTOR": addresses[0],
            "AUTOSCALER_ROUTERS": addresses[1],
        }

    async def spawn(self, name: str) -> Process:
        address = f"127.0.0.1:{choose_ports(0).autoscaler}"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "autoscaler"),
            env={
                "PATH": os.environ["PATH"],
                **self.environ,
                "AUTOSCALER_REPLICA_ID": name,
                "GAMEKEEPER_LISTEN_ADDRESS": address,
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        self._stack.push_async_callback(end, process)
        channel = await self._stack.enter_async_context(open_channel(address))
        return Process(process, autoscaler_pb2_grpc.AutoscalerServiceStub(channel))

    def desired(self) -> int:
        size: int = self.region.groups.group(group_name("gold")).desired_capacity
        return size


async def end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


@pytest.fixture
async def world(postgres_database: str) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        world = World(stack, postgres_database)
        await world.start()
        yield world


async def until_leader(replica: Process, name: str, timeout_seconds: float = 30.0) -> float:
    """Wait until a replica sees `name` lead; return how long that took."""
    started = asyncio.get_running_loop().time()
    async with asyncio.timeout(timeout_seconds):
        while await replica.leader() != name:  # noqa: ASYNC110 - another process acts
            await asyncio.sleep(0.05)
    return asyncio.get_running_loop().time() - started


async def until_desired(world: World, least: int, most: int) -> None:
    async with asyncio.timeout(30):
        while not least <= world.desired() <= most:  # noqa: ASYNC110 - another process acts
            await asyncio.sleep(0.05)


async def test_the_other_replica_leads_within_the_lease_and_ends_what_was_begun(
    world: World,
) -> None:
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=5, running_requests=25)
    async with asyncio.timeout(20):
        while len(world.collector.hosts) < 2:  # noqa: ASYNC110 - the cloud acts
            await asyncio.sleep(0.05)
    first = await world.spawn("first")
    await until_leader(first, "first")
    second = await world.spawn("second")
    await until_leader(second, "first")

    for host in world.collector.hosts:
        world.router.running[f"server-{host}"] = 1
    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=1, running_requests=2)
    async with asyncio.timeout(30):
        while not world.router.draining:  # noqa: ASYNC110 - another process acts
            await asyncio.sleep(0.05)
    assert world.desired() == 2

    first.process.send_signal(signal.SIGKILL)
    await first.process.wait()
    took = await until_leader(second, "second")
    assert took < LEASE_SECONDS + 3.0  # renewals, and a busy machine
    world.router.running.clear()
    await until_desired(world, 1, 1)  # the drain the first one began

    world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=20, running_requests=100)
    await until_desired(world, 5, 20)
    decisions = await second.stub.ListDecisions(pb.ListDecisionsRequest(tier=GOLD))
    deciders = {d.decided_by for d in decisions.decisions}
    assert deciders == {"first", "second"}


async def test_a_leader_that_ends_in_order_gives_the_lead_away_at_once(world: World) -> None:
    world.environ["AUTOSCALER_LEASE_SECONDS"] = "30"
    first = await world.spawn("first")
    await until_leader(first, "first")
    second = await world.spawn("second")
    await until_leader(second, "first")
    first.process.send_signal(signal.SIGTERM)
    await until_leader(second, "second", timeout_seconds=15.0)
    assert await first.process.wait() == 0
