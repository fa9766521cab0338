"""The agent as a process: what it tells of its host, kill -9, and a driver that was replaced."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from fake_driver import FakeDriver, build
from metadata_service import MetadataService, served

from gaming.gpu_metrics.v1 import events_pb2, fleet_pb2, gpu_metrics_pb2, processes_pb2
from gpu_metrics.testing import CollectorForTest, collector_for_test

ONE_GPU = f"""\
gpu 0 uuid GPU-a
gpu 0 name NVIDIA L4
gpu 0 utilization 42
gpu 0 process {os.getpid()} 1000000
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("driver"))


class Agent:
    """An agent process with one fake GPU; its log goes to a file."""

    def __init__(self, directory: Path, driver: FakeDriver, collector: str, **environ: str) -> None:
        self._log = directory / "agent.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gpu_metrics", "agent"],
                env={
                    "PATH": os.environ["PATH"],
                    **driver.environ(),
                    "GPU_METRICS_COLLECTORS": collector,
                    "GPU_METRICS_STATE_DIRECTORY": str(directory / "state"),
                    "GPU_METRICS_IMDS_ENABLED": "false",
                    "GPU_METRICS_HOST_ID": "i-1",
                    "GPU_METRICS_REPORT_INTERVAL_SECONDS": "0.2",
                    "GAMEKEEPER_LOG_FORMAT": "json",
                    **environ,
                },
                stderr=log,
            )

    def logged(self, event: str) -> bool:
        """Return whether there is a line with this event."""
        for line in self._log.read_text().splitlines():
            with suppress(ValueError):
                if json.loads(line).get("event") == event:
                    return True
        return False

    async def ended(self) -> int:
        """Wait for the end and return the exit status."""
        return await asyncio.to_thread(self.process.wait, 60)

    async def kill(self) -> None:
        self.process.kill()
        await self.ended()


@asynccontextmanager
async def agent_of(
    directory: Path, driver: FakeDriver, collector: str, **environ: str
) -> AsyncIterator[Agent]:
    agent = Agent(directory, driver, collector, **environ)
    try:
        yield agent
    finally:
        await agent.kill()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # files of another process are watched
            await asyncio.sleep(0.02)


async def view_where(
    collector: CollectorForTest, condition: Callable[[fleet_pb2.HostView], bool]
) -> fleet_pb2.HostView:
    """Wait until the only host is as wanted and return it."""
    async with asyncio.timeout(60):
        while True:
            response = await collector.fleet.GetFleet(gpu_metrics_pb2.GetFleetRequest(), timeout=30)
            for view in response.fleet.hosts:
                if condition(view):
                    return view
            await asyncio.sleep(0.05)


async def first_events(collector: CollectorForTest, count: int) -> list[events_pb2.GpuEvent]:
    found: list[events_pb2.GpuEvent] = []
    call = collector.fleet.WatchGpuEvents(events_pb2.WatchGpuEventsRequest(), timeout=60)
    async for step in call:
        if step.HasField("event"):
            found.append(step.event)
        if len(found) == count:
            break
    call.cancel()
    return found


async def test_a_host_learns_who_it_is_and_tells_of_a_spot_notice(
    library: Path, tmp_path: Path
) -> None:
    driver = FakeDriver(library, tmp_path)
    driver.write(ONE_GPU)
    async with (
        collector_for_test() as collector,
        served(MetadataService()) as service,
        agent_of(
            tmp_path,
            driver,
            collector.address,
            GPU_METRICS_HOST_ID="",
            GPU_METRICS_IMDS_ENABLED="true",
            GPU_METRICS_IMDS_URL=service.url,
            GPU_METRICS_IMDS_TIMEOUT_SECONDS="10",
            GPU_METRICS_SPOT_POLL_SECONDS="0.1",
        ),
    ):
        service.pages["spot/instance-action"] = json.dumps(
            {"action": "terminate", "time": "2026-01-01T12:02:00Z"}
        )
        (event,) = await first_events(collector, 1)
        assert event.kind == events_pb2.GPU_EVENT_KIND_SPOT_INTERRUPTION
        assert event.due_time.ToJsonString() == "2026-01-01T12:02:00Z"
        view = await view_where(collector, lambda view: view.host.HasField("interruption_time"))
    assert view.host.host_id == "i-0123456789abcdef0"
    assert view.host.instance_type == "g6.2xlarge"
    assert view.host.availability_zone == "eu-central-1b"


@pytest.mark.endurance
async def test_an_xid_survives_a_kill_of_the_agent_while_no_collector_is_there(
    library: Path, tmp_path: Path
) -> None:
    driver = FakeDriver(library, tmp_path)
    driver.write(ONE_GPU)

    def watches() -> bool:
        count = driver.counts().get("nvmlEventSetWait_v2")
        return count is not None and count.calls > 0

    async with collector_for_test() as collector:
        address = collector.address
    async with agent_of(tmp_path, driver, address) as agent:
        await until(watches)
        driver.add("event 1 gpu 0 xid 31")
        await until(lambda: agent.logged("gpu_event"))
        agent.process.send_signal(signal.SIGKILL)
        await agent.ended()
    driver.counts_path.unlink()
    async with (
        collector_for_test(port=int(address.rpartition(":")[2])) as collector,
        agent_of(tmp_path, driver, address) as agent,
    ):
        (before,) = await first_events(collector, 1)
        await until(watches)
        driver.add("event 2 gpu 0 xid 31")
        both = await first_events(collector, 2)
    assert (before.xid, before.sequence, before.xid_count) == (31, 1, 1)
    assert both[0] == before
    assert (both[1].xid, both[1].sequence, both[1].xid_count) == (31, 2, 2)


async def test_processes_are_told_until_a_replaced_driver_ends_the_agent_with_its_own_status(
    library: Path, tmp_path: Path
) -> None:
    driver = FakeDriver(library, tmp_path)
    driver.write(ONE_GPU)
    async with (
        collector_for_test() as collector,
        agent_of(tmp_path, driver, collector.address) as agent,
    ):
        await view_where(collector, lambda view: bool(view.gpus))
        async with asyncio.timeout(60):
            while True:
                answer = await collector.fleet.GetGpuProcesses(
                    processes_pb2.GetGpuProcessesRequest(host_id="i-1"), timeout=30
                )
                if answer.HasField("reading"):
                    break
                await asyncio.sleep(0.05)
        (process,) = answer.reading.processes
        assert (process.process_id, process.gpu_uuid) == (os.getpid(), "GPU-a")
        assert process.name
        # No ECS task of this machine's, whatever it is: that is said.
        assert process.unknown_because
        driver.add("driver fail all 18")
        (event,) = await first_events(collector, 1)
        assert event.kind == events_pb2.GPU_EVENT_KIND_DRIVER_MISMATCH
        assert await agent.ended() == 3
        # The host is about to be back: it has not left, and shows no GPU that nobody can read.
        await view_where(collector, lambda view: not view.gpus)
