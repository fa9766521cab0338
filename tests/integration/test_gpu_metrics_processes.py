"""The collector and the agent as processes: settings, signals, kill -9, a real driver binding."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fake_driver import FakeDriver, build

from gaming.gpu_metrics.v1 import fleet_pb2, gpu_metrics_pb2, gpu_metrics_pb2_grpc
from servicekit.channels import open_channel

ONE_GPU = """\
gpu 0 uuid GPU-5f1c0000-0000-0000-0000-000000000009
gpu 0 name NVIDIA A10G
gpu 0 utilization 42
gpu 0 memory_total 24146608128
gpu 0 memory_used 1000000000
gpu 0 power 98765
gpu 0 temperature 54
gpu 0 sm_clock 1710
"""


class Running:
    """A process of the service; its log goes to a file."""

    def __init__(self, role: str, environ: Mapping[str, str], log_file: Path) -> None:
        self.log_file = log_file
        with log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gpu_metrics", role],
                env={"PATH": os.environ["PATH"], **environ},
                stderr=log,
            )

    async def logged(self, event: str) -> dict[str, str]:
        """Wait for a line with this event and return it."""
        async with asyncio.timeout(60):
            while True:
                for line in self.log_file.read_text().splitlines():
                    if line.startswith("{") and json.loads(line).get("event") == event:
                        return dict(json.loads(line))
                assert self.process.poll() is None, self.log_file.read_text()
                await asyncio.sleep(0.05)

    async def end(self, wanted: signal.Signals) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(wanted)
        return await asyncio.to_thread(self.process.wait, 60)


@asynccontextmanager
async def running(role: str, log_file: Path, **environ: str) -> AsyncIterator[Running]:
    process = Running(role, environ, log_file)
    try:
        yield process
    finally:
        process.process.kill()
        await asyncio.to_thread(process.process.wait, 60)


@pytest.mark.slow
async def test_an_agents_host_comes_goes_and_is_missed(tmp_path: Path) -> None:
    driver = FakeDriver(build(tmp_path / "driver"), tmp_path)
    driver.write(ONE_GPU)
    async with running(
        "collector",
        tmp_path / "collector.log",
        GAMEKEEPER_LISTEN_ADDRESS="127.0.0.1:0",
        GPU_METRICS_STALE_AFTER_SECONDS="2",
        GPU_METRICS_EXPIRE_AFTER_SECONDS="4",
        GPU_METRICS_CLOUDWATCH_ENABLED="false",
    ) as collector:
        address = (await collector.logged("server_started"))["address"]
        agent_settings = {
            "GPU_METRICS_COLLECTORS": address,
            "GPU_METRICS_HOST_ID": "i-0abc",
            "GPU_METRICS_STATE_DIRECTORY": str(tmp_path / "state"),
            "GPU_METRICS_IMDS_ENABLED": "false",
            "GPU_METRICS_INSTANCE_TYPE": "g5.xlarge",
            "GPU_METRICS_PURCHASE_OPTION": "on-demand",
            "GPU_METRICS_MODEL_SERVERS": "gold=http://127.0.0.1:9",
            "GPU_METRICS_REPORT_INTERVAL_SECONDS": "0.2",
            **driver.environ(),
        }
        async with open_channel(address) as channel:
            request = gpu_metrics_pb2.WatchFleetRequest()
            request.minimum_interval.FromMilliseconds(100)
            updates = aiter(
                gpu_metrics_pb2_grpc.GpuMetricsServiceStub(channel).WatchFleet(request, timeout=100)
            )

            async def next_view() -> fleet_pb2.HostView | str:
                async for update in updates:
                    for removed in update.delta.removed_host_ids:
                        return str(removed)
                    for view in update.delta.changed_hosts:
                        return view
                raise AssertionError("the stream ended")

            async with running("agent", tmp_path / "agent.log", **agent_settings) as agent:
                view = await next_view()
                assert isinstance(view, fleet_pb2.HostView)
                assert view.host.host_id == "i-0abc"
                assert view.host.purchase_option == fleet_pb2.PURCHASE_OPTION_ON_DEMAND
                (gpu,) = view.gpus
                assert (gpu.product_name, gpu.utilization_permille) == ("NVIDIA A10G", 420)
                missing = {entry.field: entry.reason for entry in gpu.missing}
                assert missing["energy_millijoules"] == fleet_pb2.MISSING_REASON_UNSUPPORTED
                assert "power_milliwatts" not in missing
                (server,) = view.servers
                assert server.state == fleet_pb2.MODEL_SERVER_STATE_STARTING
                assert list(server.gpu_uuids) == [gpu.gpu_uuid]

                assert await agent.end(signal.SIGTERM) == 0
                while not isinstance(gone := await next_view(), str):
                    assert gone.freshness == fleet_pb2.FRESHNESS_FRESH
                assert gone == "i-0abc"

            async with running("agent", tmp_path / "agent2.log", **agent_settings) as agent:
                await next_view()
                await agent.end(signal.SIGKILL)
                freshness = []
                while not isinstance(view := await next_view(), str):
                    freshness.append(view.freshness)
                assert freshness[-1] == fleet_pb2.FRESHNESS_STALE
        assert await collector.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("role", "environ", "problems"),
    [
        (
            "agent",
            {"GPU_METRICS_MODEL_SERVERS": "gold", "GPU_METRICS_REPORT_INTERVAL_SECONDS": "0"},
            ["GPU_METRICS_MODEL_SERVERS='gold' is wrong", "GPU_METRICS_REPORT_INTERVAL_SECONDS"],
        ),
        (
            "collector",
            {"GPU_METRICS_STALE_AFTER_SECONDS": "soon"},
            ["GPU_METRICS_STALE_AFTER_SECONDS='soon' is wrong"],
        ),
        ("gpu", {}, ["usage: python -m gpu_metrics agent|collector"]),
    ],
)
def test_mistakes_are_told_all_at_once_and_nothing_starts(
    role: str, environ: dict[str, str], problems: list[str]
) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "gpu_metrics", role],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    for problem in problems:
        assert re.search(re.escape(problem), result.stderr)
    assert "Traceback" not in result.stderr


def test_an_agent_says_what_it_is_told_by_and_how_it_ends() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "gpu_metrics", "agent", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "GPU_METRICS_COLLECTORS" in result.stdout
    assert "3 when the GPU driver was replaced" in result.stdout
