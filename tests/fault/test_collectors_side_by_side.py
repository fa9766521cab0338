"""Two collectors hear every agent; a consumer that loses one goes on at the other."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import grpc.aio
import pytest
from service_processes import ServiceProcess, collector_process

from ai_router.adapters.collector_fleet import CollectorFleetSource
from ai_router.domain.fleet import FleetView
from autoscaler.adapters.fleet_feed import WatchedFleet
from gaming.gpu_metrics.v1 import gpu_metrics_pb2_grpc
from gpu_metrics import wire
from gpu_metrics.domain.readings import Host, HostReport, ModelServerReading, Tier
from servicekit.channels import open_channel
from servicekit.clock import SystemClock

RESUMES_WITHIN_SECONDS = 3.0
HOSTS = ("i-1", "i-2", "i-3")


async def report_for_ever(channel: grpc.aio.Channel, host_id: str) -> None:
    """Report on a host five times a second, whatever happens to the collector."""
    stub = gpu_metrics_pb2_grpc.GpuReportServiceStub(channel)
    sequence = 0
    while True:
        try:
            stream = stub.StreamReports(timeout=600)
            while True:
                sequence += 1
                report = HostReport(
                    host=Host(host_id=host_id),
                    boot_id="boot",
                    sequence=sequence,
                    sample_time=datetime.now(UTC),
                    servers=(
                        ModelServerReading(
                            server_id=f"server-{host_id}",
                            endpoint_url="http://10.0.0.1:8000",
                            tier=Tier.GOLD,
                        ),
                    ),
                )
                await stream.write(wire.report_message(report))
                if await stream.read() is grpc.aio.EOF:
                    break
                await asyncio.sleep(0.2)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The collector is away, or ended the stream between two reports.
            pass
        await asyncio.sleep(0.2)


class Consumers:
    """The router's and the autoscaler's view of the fleet, each following one collector."""

    def __init__(self, channels: list[grpc.aio.Channel]) -> None:
        clock = SystemClock()
        stubs = [gpu_metrics_pb2_grpc.GpuMetricsServiceStub(channel) for channel in channels]
        self._router = CollectorFleetSource(
            stubs[0],
            clock,
            further=stubs[1:],
            random=random.Random(1),  # noqa: S311  # jitter, no secret
        )
        self.autoscaler = WatchedFleet(
            channels[0],
            clock=clock,
            further=channels[1:],
            jitter=random.Random(2),  # noqa: S311  # jitter, no secret
        )
        self._router_view: FleetView | None = None

    async def follow_as_router(self) -> None:
        async for view in self._router.views():
            self._router_view = view or self._router_view

    def heard_since(self, moment: float) -> bool:
        """Return whether both know every host, fresh, by a report made after `moment`."""
        view, fleet = self._router_view, self.autoscaler.view()
        if view is None or fleet.age_seconds is None:
            return False
        of_router = {
            report.server_id
            for report in view.servers
            if not report.stale and report.heard_at > moment
        }
        of_autoscaler = {host.host_id for host in fleet.hosts.values() if host.is_fresh}
        return (
            of_router == {f"server-{host_id}" for host_id in HOSTS}
            and of_autoscaler == set(HOSTS)
            and time.monotonic() - fleet.age_seconds > moment
        )

    async def resumed(self) -> float:
        """Return how long it takes until both have heard of every host anew."""
        lost_at = time.monotonic()
        async with asyncio.timeout(60):
            while not self.heard_since(lost_at):  # noqa: ASYNC110  # other processes have no event
                await asyncio.sleep(0.02)
        return time.monotonic() - lost_at


@asynccontextmanager
async def followed_pair(
    tmp_path: Path,
) -> AsyncIterator[tuple[ServiceProcess, ServiceProcess, Consumers]]:
    async with AsyncExitStack() as stack:
        pair = await asyncio.gather(
            stack.enter_async_context(collector_process(tmp_path / "one.log")),
            stack.enter_async_context(collector_process(tmp_path / "two.log")),
        )
        agents, channels = [
            [await stack.enter_async_context(open_channel(each.address)) for each in pair]
            for _ in range(2)
        ]
        consumers = Consumers(channels)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(report_for_ever(channel, host_id))
                for channel in agents
                for host_id in HOSTS
            ]
            tasks.append(group.create_task(consumers.follow_as_router()))
            tasks.append(group.create_task(consumers.autoscaler.run()))
            try:
                await consumers.resumed()
                yield pair[0], pair[1], consumers
            finally:
                for task in tasks:
                    task.cancel()


async def test_consumers_resume_at_the_other_collector_within_three_seconds(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    async with followed_pair(tmp_path) as (one, two, consumers):
        # A busy machine holds up this process too, so the limit has to be kept once in three times.
        frozen, other = one, two
        for _ in range(3):
            frozen.freeze()
            after_freeze = await consumers.resumed()
            frozen.thaw()
            frozen, other = other, frozen
            if after_freeze <= RESUMES_WITHIN_SECONDS:
                break
        record_property("resumed after a freeze, s", round(after_freeze, 2))
        await frozen.kill()
        after_kill = await consumers.resumed()
        record_property("resumed after a kill, s", round(after_kill, 2))
    print(f"resumed after a freeze in {after_freeze:.2f} s, after a kill in {after_kill:.2f} s")
    assert after_freeze <= RESUMES_WITHIN_SECONDS
    assert after_kill <= RESUMES_WITHIN_SECONDS


@pytest.mark.endurance
async def test_while_no_collector_is_there_nothing_becomes_fresh(tmp_path: Path) -> None:
    async with followed_pair(tmp_path) as (one, two, consumers):
        await asyncio.gather(one.kill(), two.kill())
        lost_at = time.monotonic()
        await asyncio.sleep(1.5)
        assert not consumers.heard_since(lost_at + 0.5)
        age = consumers.autoscaler.view().age_seconds
        assert age is not None
        assert age > 0.5
