"""`gamekeeper gpus` against a real collector."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner, Result

from gamekeeper.cli import app
from gpu_metrics.domain.processes import GpuProcess, ProcessReading
from gpu_metrics.domain.readings import GpuReading, Host, HostReport, ModelServerReading, Tier
from gpu_metrics.testing import CollectorForTest, collector_for_test
from servicekit.clock import SystemClock

CLOCK = SystemClock()


def a_report(sequence: int, age_seconds: float = 0.0) -> HostReport:
    gpus = tuple(
        GpuReading(
            gpu_uuid=f"GPU-{index}",
            index=index,
            product_name="NVIDIA A10G",
            utilization_permille=500 + 10 * sequence,
            memory_used_bytes=6 * 2**30,
            memory_total_bytes=24 * 2**30,
            power_milliwatts=150_000,
        )
        for index in range(2)
    )
    return HostReport(
        host=Host(host_id="i-1", instance_type="g5.12xlarge"),
        boot_id="boot",
        sequence=sequence,
        sample_time=CLOCK.now() - timedelta(seconds=age_seconds),
        gpus=gpus,
        servers=(
            ModelServerReading(
                server_id="gold-1",
                endpoint_url="http://h",
                tier=Tier.GOLD,
                model="studio/gold",
                gpu_uuids=("GPU-0",),
            ),
        ),
        processes=ProcessReading(
            read_time=CLOCK.now(),
            processes=(
                GpuProcess(
                    process_id=4321,
                    gpu_uuid="GPU-0",
                    name="vllm",
                    memory_used_bytes=5 * 2**30,
                    unknown_because="not in a container",
                ),
            ),
        ),
    )


@pytest.fixture(autouse=True)
def a_wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "220")


@pytest.fixture
async def collector() -> AsyncIterator[CollectorForTest]:
    async with collector_for_test(stale_after_seconds=300.0, expire_after_seconds=600.0) as running:
        for sequence in range(1, 4):
            running.view.apply(a_report(sequence), CLOCK.monotonic(), CLOCK.now())
        yield running


async def run(collector: CollectorForTest, *arguments: str) -> Result:
    command = ["--gpu-metrics", collector.address, "gpus", *arguments]
    result = await asyncio.to_thread(lambda: CliRunner().invoke(app, command))
    assert result.exit_code == 0, result.output
    return result


async def document(collector: CollectorForTest, *arguments: str) -> Any:
    return json.loads((await run(collector, *arguments, "-o", "json")).stdout)


async def test_the_fleet_is_shown_by_host_and_filtered(collector: CollectorForTest) -> None:
    shown = (await run(collector)).stdout
    assert "i-1  g5.12xlarge" in shown
    assert shown.count("53 %") == 2
    assert "GPUs: 0, hosts: 0" in (await run(collector, "--host", "i-2")).stdout
    assert "GPUs: 0, hosts: 0" in (await run(collector, "--tier", "bronze")).stdout
    for option, there, absent in (
        ("--server", "gold-1", "gold-2"),
        ("--model", "studio/gold", "studio"),
        ("--gpu", "GPU-1", "GPU"),
    ):
        assert "GPUs: 2, hosts: 1" in (await run(collector, option, there)).stdout
        assert "GPUs: 0, hosts: 0" in (await run(collector, option, absent)).stdout
    assert "hosts: 1" in (await run(collector, "--gpu", "GPU-9", "--gpu", "GPU-0")).stdout


async def test_gpus_are_listed_with_the_servers_on_them(collector: CollectorForTest) -> None:
    lines = (await run(collector, "list")).stdout.splitlines()
    assert ["gold-1" in line for line in lines if "GPU-" in line] == [True, False]
    listed = await document(collector, "list", "--host", "i-1")
    assert [each["gpu"]["gpuUuid"] for each in listed["gpus"]] == ["GPU-0", "GPU-1"]


async def test_processes_say_what_is_unknown_and_why(collector: CollectorForTest) -> None:
    shown = (await run(collector, "processes", "i-1")).stdout
    assert "4321" in shown
    assert "5,120 MiB" in shown
    assert "unknown: not in a container" in shown
    assert (await document(collector, "processes", "i-1"))["reading"]["processes"][0]["name"]


async def test_a_host_that_is_not_there_has_the_exit_code_of_what_is_not_found(
    collector: CollectorForTest,
) -> None:
    command = ["--gpu-metrics", collector.address, "gpus", "processes", "i-2"]
    result = await asyncio.to_thread(lambda: CliRunner().invoke(app, command))
    assert result.exit_code == 4


async def test_history_is_a_table_a_plot_a_file_and_json(
    collector: CollectorForTest, tmp_path: Path
) -> None:
    asked = ("history", "--metric", "power", "--host", "i-1", "--range", "30s", "--step", "1s")
    table = (await run(collector, *asked)).stdout
    assert "150.0 W" in table
    # Seconds in which nothing was told are shown as such.
    assert " - " in table
    drawn = (await run(collector, *asked, "--plot", "--aggregation", "p95")).stdout
    assert "power of i-1, p95 of each 1 s" in drawn
    assert "x: no sample" in drawn
    file = tmp_path / "power.svg"
    await run(collector, *asked, "--plot", str(file))
    ET.fromstring(file.read_text(encoding="utf-8"))  # noqa: S314  # written just now by us
    raster = tmp_path / "power.png"
    command = ["--gpu-metrics", collector.address, "gpus", *asked, "--plot", str(raster)]
    refused = await asyncio.to_thread(lambda: CliRunner().invoke(app, command))
    assert (refused.exit_code, raster.exists()) == (2, False)
    assert "power.svg" in refused.output
    points = (await document(collector, *asked))["points"]
    assert {point["value"] for point in points if "value" in point} == {150_000}


async def test_the_live_view_follows_and_says_each_step_as_json(
    collector: CollectorForTest,
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gamekeeper.cli"),
        *("--gpu-metrics", collector.address, "gpus", "--watch", "-o", "json"),
        *("--model", "studio/gold"),
        stdout=asyncio.subprocess.PIPE,
        limit=2**20,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            first = json.loads(await process.stdout.readline())
            assert first["snapshot"]["hosts"][0]["host"]["hostId"] == "i-1"
            collector.view.apply(a_report(4), CLOCK.monotonic(), CLOCK.now())
            second = json.loads(await process.stdout.readline())
            while "delta" not in second:
                second = json.loads(await process.stdout.readline())
            assert second["delta"]["changedHosts"]
    finally:
        process.terminate()
        async with asyncio.timeout(60):
            await process.wait()


async def test_without_a_terminal_the_live_view_is_printed_at_each_change(
    collector: CollectorForTest,
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gamekeeper.cli"),
        *("--gpu-metrics", collector.address, "gpus", "--watch"),
        stdout=asyncio.subprocess.PIPE,
        limit=2**20,
    )
    assert process.stdout is not None

    async def next_busy() -> list[str]:
        """What a snapshot says of the two GPUs, up to the line that counts them."""
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or "GPUs: 2, hosts: 1" not in lines[-1]:
            lines.append((await process.stdout.readline()).decode())
        return [word for line in lines for word in ("53 %", "54 %") if word in line]

    try:
        async with asyncio.timeout(60):
            assert await next_busy() == ["53 %", "53 %"]
            collector.view.apply(a_report(4), CLOCK.monotonic(), CLOCK.now())
            assert await next_busy() == ["54 %", "54 %"]
    finally:
        process.terminate()
        async with asyncio.timeout(60):
            await process.wait()
