"""kill -9 of a collector: its successor has the fleet again, watchers start over by themselves."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gaming.gpu_metrics.v1 import fleet_pb2, gpu_metrics_pb2, gpu_metrics_pb2_grpc
from gpu_metrics.adapters.collector_link import CollectorLink
from gpu_metrics.adapters.configured_host import ConfiguredHost
from gpu_metrics.agent import Agent
from gpu_metrics.domain.readings import Host, ModelServerReading, Tier
from localsuite.ports import free_ports
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.telemetry import Telemetry
from servicekit.watching import watch

pytestmark = pytest.mark.slow

HOSTS = [f"i-{number}" for number in range(5)]


class NamedServer:
    def __init__(self, server_id: str) -> None:
        self._server_id = server_id

    async def read_server(self) -> ModelServerReading:
        return ModelServerReading(
            server_id=self._server_id, endpoint_url="http://127.0.0.1:9", tier=Tier.GOLD
        )


class Collector:
    """A collector process that is started again on the same port."""

    def __init__(self, port: int, log_file: Path) -> None:
        self.address = f"127.0.0.1:{port}"
        self._log_file = log_file
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        self._process = await asyncio.to_thread(self._spawn)
        async with asyncio.timeout(60):
            while not self._serves():  # noqa: ASYNC110  # another process's state has no event
                await asyncio.sleep(0.05)

    def _spawn(self) -> "subprocess.Popen[bytes]":
        with self._log_file.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "gpu_metrics", "collector"],
                env={
                    "PATH": os.environ["PATH"],
                    "GAMEKEEPER_LISTEN_ADDRESS": self.address,
                    "GPU_METRICS_CLOUDWATCH_ENABLED": "false",
                },
                stderr=log,
            )

    def _serves(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log_file.read_text()
        lines = self._log_file.read_text().splitlines()
        # The last line may be half written, and gRPC's own are no JSON.
        whole = (line for line in lines if line.startswith("{") and line.endswith("}"))
        return any(json.loads(line)["event"] == "server_started" for line in whole)

    async def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(self._process.wait, 20)


@asynccontextmanager
async def reporting_hosts(*collectors: Collector) -> AsyncIterator[None]:
    clock, telemetry, stopping = SystemClock(), Telemetry("test"), asyncio.Event()
    channels = {each.address: open_channel(each.address) for each in collectors}
    async with asyncio.TaskGroup() as group:
        for number, host_id in enumerate(HOSTS):
            agent = Agent(
                host=ConfiguredHost(Host(host_id=host_id)),
                gpus=[],
                servers=[NamedServer(f"server-of-{host_id}")],
                sinks=[
                    CollectorLink(
                        channel,
                        name=address,
                        clock=clock,
                        jitter=random.Random(number),  # noqa: S311  # spreads retries, no secret
                        telemetry=telemetry,
                    )
                    for address, channel in channels.items()
                ],
                clock=clock,
                boot_id=f"boot-{number}",
                interval_seconds=0.2,
            )
            group.create_task(agent.run(stopping))
        try:
            yield
        finally:
            stopping.set()
    for channel in channels.values():
        await channel.close()


class Mirror:
    """What a consumer of the feed knows, kept as the protocol says."""

    def __init__(self) -> None:
        self.hosts: dict[str, fleet_pb2.HostView] = {}
        self.snapshots = 0
        self._changed = asyncio.Event()

    async def follow(self, stub: "gpu_metrics_pb2_grpc.GpuMetricsServiceAsyncStub") -> None:
        def open_stream(token: str) -> AsyncIterable[gpu_metrics_pb2.WatchFleetResponse]:
            request = gpu_metrics_pb2.WatchFleetRequest(resume_token=token)
            request.minimum_interval.FromMilliseconds(200)
            return stub.WatchFleet(request)

        updates = watch(
            open_stream,
            token_of=lambda update: update.resume_token,
            clock=SystemClock(),
            name="fleet",
            maximum_backoff_seconds=0.5,
        )
        async for update in updates:
            if update.HasField("snapshot"):
                self.snapshots += 1
                self.hosts = {view.host.host_id: view for view in update.snapshot.hosts}
            for view in update.delta.changed_hosts:
                self.hosts[view.host.host_id] = view
            for host_id in update.delta.removed_host_ids:
                self.hosts.pop(host_id, None)
            self._changed.set()

    async def has_all(self, snapshots: int) -> None:
        """Wait until the mirror is of at least that many snapshots and holds every host."""
        async with asyncio.timeout(60):
            while self.snapshots < snapshots or sorted(self.hosts) != HOSTS:
                self._changed.clear()
                await self._changed.wait()


async def test_a_killed_collectors_successor_has_the_fleet_again(tmp_path: Path) -> None:
    killed_port, other_port = free_ports(2)
    killed = Collector(killed_port, tmp_path / "killed.log")
    other = Collector(other_port, tmp_path / "other.log")
    try:
        await asyncio.gather(killed.start(), other.start())
        async with (
            reporting_hosts(killed, other),
            open_channel(killed.address) as channel,
            open_channel(other.address) as other_channel,
        ):
            mirror, undisturbed = Mirror(), Mirror()
            watching = [
                asyncio.ensure_future(each.follow(gpu_metrics_pb2_grpc.GpuMetricsServiceStub(to)))
                for each, to in ((mirror, channel), (undisturbed, other_channel))
            ]
            await mirror.has_all(snapshots=1)
            await undisturbed.has_all(snapshots=1)
            await killed.kill()
            await killed.start()
            await mirror.has_all(snapshots=2)
            # The other collector's watchers noticed nothing: no new snapshot, no stale host.
            assert undisturbed.snapshots == 1
            assert sorted(undisturbed.hosts) == HOSTS
            assert {view.freshness for view in undisturbed.hosts.values()} == {
                fleet_pb2.FRESHNESS_FRESH
            }
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
    finally:
        await killed.kill()
        await other.kill()
