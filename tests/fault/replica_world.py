"""Autoscaler replicas as processes, with everything outside them under the control of a test."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import asyncpg

from autoscaler.domain.tiers import Tier
from autoscaler.testing.outside import ScriptedCollector, ScriptedRouter
from autoscaler.testing.running import quick_environment
from fleetsim.cloud_state import Instance
from gaming.autoscaler.v1 import autoscaler_pb2 as pb
from gaming.autoscaler.v1 import autoscaler_pb2_grpc
from gaming.common.v1 import tier_pb2
from localsuite.aws.account import seed_account
from localsuite.aws.faults import FaultInjector
from localsuite.aws.region import Region
from localsuite.aws.server import LocalAwsServer
from localsuite.aws.tiers import TierCapacity, group_name
from localsuite.ports import free_ports
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.server import RpcServer, ServerSettings
from servicekit.settings import load_settings

__all__ = [
    "GOLD",
    "LEASE_SECONDS",
    "SUCCEEDED_WITHIN_SECONDS",
    "ReplicaProcess",
    "ReplicaWorld",
    "until",
    "until_leader",
]

LEASE_SECONDS = 2.0
SUCCEEDED_WITHIN_SECONDS = LEASE_SECONDS + 8.0
"""The lease, the pause between two looks at it, and what a busy machine adds to both."""
GOLD = tier_pb2.TIER_GOLD


@dataclass
class Hosts:
    """A host that runs has a ready model server at once."""

    collector: ScriptedCollector
    launched: list[str] = field(default_factory=list)
    terminated: list[str] = field(default_factory=list)

    def on_instance_running(self, instance: Instance) -> None:
        self.launched.append(instance.instance_id)
        self.collector.hosts[instance.instance_id] = Tier(instance.tags["gamekeeper:tier"])

    def on_interruption_notice(self, instance: Instance, at: float) -> None:
        self.collector.interruptions[instance.instance_id] = at

    def on_instance_terminated(self, instance: Instance) -> None:
        self.terminated.append(instance.instance_id)
        self.collector.hosts.pop(instance.instance_id, None)


@dataclass
class ReplicaProcess:
    """A replica in a process of its own."""

    process: asyncio.subprocess.Process
    address: str
    stub: autoscaler_pb2_grpc.AutoscalerServiceAsyncStub

    async def status(self) -> pb.GetStatusResponse:
        return await self.stub.GetStatus(pb.GetStatusRequest(), timeout=80, wait_for_ready=True)

    async def leader(self) -> str:
        return (await self.status()).leader_id

    def freeze(self) -> None:
        """Stops it between two instructions; what it asked for may be answered meanwhile."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets it go on."""
        self.process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        """Ends it without a chance to say so."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


class ReplicaWorld:
    """A local AWS, a router and a collector that say what the test wants, and the replicas."""

    def __init__(self, stack: AsyncExitStack, database_url: str) -> None:
        self._stack = stack
        self.database_url = database_url
        self.collector = ScriptedCollector()  # type: ignore[abstract]  # what nobody calls answers UNIMPLEMENTED
        self.router = ScriptedRouter()
        self.hosts = Hosts(self.collector)
        self.region = Region(seed=5, time_compression=200.0, hosts=self.hosts)
        self.sizes_set = _sizes_set(self.region)
        self.aws = LocalAwsServer(self.region)
        self.environ = quick_environment(
            AUTOSCALER_DATABASE_URL=database_url,
            AUTOSCALER_LEASE_SECONDS=str(LEASE_SECONDS),
            AUTOSCALER_STABILIZATION_SECONDS="1",
        )

    @property
    def faults(self) -> FaultInjector:
        return self.aws.front.faults

    async def start(self, *, most: int = 20, desired: int = 2) -> None:
        self.aws.start()
        self._stack.callback(self.aws.stop)
        self._stack.callback(self.faults.clear)
        tiers = (TierCapacity("gold", ("g5.xlarge",), 0, most, desired),)
        await asyncio.to_thread(seed_account, self.aws.endpoint, tiers)
        addresses = []
        for registration in (self.collector.registration, self.router.registration):
            server = RpcServer(
                [registration], load_settings(ServerSettings, {}), clock=SystemClock()
            )
            await server.start()
            self._stack.push_async_callback(server.stop, 0)
            addresses.append(server.address)
        self.environ |= {
            "AWS_ENDPOINT_URL": self.aws.endpoint,
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AUTOSCALER_COLLECTOR": addresses[0],
            "AUTOSCALER_ROUTERS": addresses[1],
        }

    async def spawn(self, name: str) -> ReplicaProcess:
        address = f"127.0.0.1:{free_ports(1)[0]}"
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
        channel = await self._stack.enter_async_context(open_channel(address))
        replica = ReplicaProcess(
            process, address, autoscaler_pb2_grpc.AutoscalerServiceStub(channel)
        )
        self._stack.push_async_callback(replica.kill)
        return replica

    async def connect(self) -> asyncpg.Connection:
        """Returns a connection to the autoscaler's database, closed with the world."""
        connection = await asyncpg.connect(self.database_url)
        self._stack.push_async_callback(connection.close, timeout=10)
        return connection

    def desired(self) -> int:
        size: int = self.region.groups.group(group_name("gold")).desired_capacity
        return size


def _sizes_set(region: Region) -> list[int]:
    """Return a list that grows by every size a replica sets."""
    sizes: list[int] = []
    groups = region.groups
    set_size = groups.set_desired_capacity

    def recorded(now: float, name: str, desired_capacity: int, **options: bool) -> None:
        set_size(now, name, desired_capacity, **options)
        sizes.append(desired_capacity)

    groups.set_desired_capacity = recorded  # type: ignore[method-assign]  # it is passed on
    return sizes


async def until(condition: Callable[[], object], timeout_seconds: float = 60.0) -> None:
    """Wait until other processes have made something true."""
    async with asyncio.timeout(timeout_seconds):
        while not condition():  # noqa: ASYNC110 - another process acts
            await asyncio.sleep(0.02)


async def until_leader(replica: ReplicaProcess, name: str, timeout_seconds: float = 80.0) -> float:
    """Wait until a replica sees `name` lead; return how long that took."""
    started = asyncio.get_running_loop().time()
    async with asyncio.timeout(timeout_seconds):
        while await replica.leader() != name:  # noqa: ASYNC110 - another process acts
            await asyncio.sleep(0.05)
    return asyncio.get_running_loop().time() - started
