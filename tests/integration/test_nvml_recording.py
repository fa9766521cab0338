"""A driver's answers are recorded and played again, on the stand-in for the library."""

import asyncio
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_driver import FakeDriver, build

from gaming.gpu_metrics.v1 import gpu_metrics_pb2
from gpu_metrics.adapters.nvml_recorder import Recorder
from gpu_metrics.domain.driver_recording import (
    Recording,
    RecordingMalformed,
    read_recording,
    refresh_periods,
    ring_samples,
)
from gpu_metrics.domain.driver_scenario import scenario_of
from gpu_metrics.testing import collector_for_test

SCENARIO = """\
driver version 570.86.15
gpu 0 uuid GPU-5f1c0000-0000-0000-0000-000000000001
gpu 0 name NVIDIA A10G
gpu 0 utilization burst 5 95 700 200
gpu 0 memory_utilization 20
gpu 0 memory_total 24000000000
gpu 0 memory_used 1000000000
gpu 0 power burst 60000 250000 500 100
gpu 0 power_limit 300000
gpu 0 energy rate 1000 90000
gpu 0 temperature 54
gpu 0 sm_clock 1710
gpu 0 process 4711 123456
gpu 1 uuid GPU-5f1c0000-0000-0000-0000-000000000002
gpu 1 name NVIDIA L4
gpu 1 temperature 41
gpu 1 latency temperature 3000
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def driver(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    driver = FakeDriver(library, tmp_path)
    driver.load()
    monkeypatch.setenv("FAKE_NVML_SCENARIO", str(driver.scenario_path))
    yield driver
    driver.write(SCENARIO)


def record(seconds: float) -> Recording:
    """Record for so long and read the recording back from its own lines."""
    recorder = Recorder()
    calls = [call.as_line() for call in recorder.run(seconds=seconds, interval_seconds=0.1)]
    recorder.close()
    return read_recording([recorder.recording.header(), *calls])


def codes(recording: Recording) -> dict[tuple[int, str], set[int]]:
    """What each function answered, where it always answered the same."""
    found: dict[tuple[int, str], set[int]] = defaultdict(set)
    for call in recording.calls:
        found[call.gpu, call.call].add(call.code)
    return {key: each for key, each in found.items() if len(each) == 1 and "Event" not in key[1]}


def test_a_recording_that_is_played_is_recorded_the_same_again(driver: FakeDriver) -> None:
    started = time.time_ns() // 1000
    driver.write(f"{SCENARIO}driver started {started}\n")
    first = record(1.5)
    # What is played begins when the second recorder is surely there, or nearly so.
    started = time.time_ns() // 1000 + 1_000_000
    driver.write(scenario_of(first, started_microseconds=started))
    second = record(2.0)

    assert (second.driver_version, second.gpus) == (first.driver_version, first.gpus)
    samples, again = ring_samples(first), ring_samples(second)
    for ring in ("utilization", "power"):
        played = [value for _, value in samples[0, ring]]
        period = again[0, ring][1][0] - again[0, ring][0][0]
        heard = {round((moment - started) / period) - 1: value for moment, value in again[0, ring]}
        overlap = [number for number in heard if 0 <= number < len(played)]
        assert len(overlap) >= 3
        assert [heard[number] for number in overlap] == [played[number] for number in overlap]
    assert len({value for _, value in samples[0, "power"]}) == 2
    for key, answered in codes(first).items():
        assert codes(second).get(key, answered) == answered
    assert first.calls[0].answer.keys() == second.calls[0].answer.keys()
    processes = [call.answer["processes"] for call in second.calls if "processes" in call.answer]
    assert processes[0] == [[4711, 123456]]
    slow = [call for call in second.calls if call.gpu == 1 and call.answer.get("temperature")]
    assert min(call.took_microseconds for call in slow) >= 2500


def test_refresh_periods_are_those_of_the_driver(driver: FakeDriver) -> None:
    driver.write(SCENARIO)
    periods = refresh_periods(record(1.0))
    assert periods["ring power"] == pytest.approx(20, abs=0.1)
    assert "temperature" not in periods


def test_an_xid_is_part_of_the_recording_and_of_its_scenario(driver: FakeDriver) -> None:
    driver.write(SCENARIO)
    waits_before = driver.own_calls("nvmlEventSetWait_v2")
    recorder = Recorder()
    calls, happened = [], False
    for call in recorder.run(seconds=30.0, interval_seconds=0.05):
        calls.append(call)
        # Once the recorder waits for events, and once only.
        if not happened and driver.own_calls("nvmlEventSetWait_v2") > waits_before:
            driver.add("event 1 gpu 1 xid 79")
            happened = True
        if "xid" in call.answer:
            break
    recorder.close()
    assert (calls[-1].gpu, calls[-1].answer) == (1, {"xid": 79})
    recording = Recording("1", 0, recorder.recording.gpus, tuple(calls))
    assert "gpu 1 xid 79" in scenario_of(recording, started_microseconds=1)


@pytest.mark.parametrize("text", ["", "{}", '{"recording": 2}', "not json", "[]"])
def test_what_is_no_recording_is_refused(text: str) -> None:
    with pytest.raises(RecordingMalformed):
        read_recording(text.splitlines())


async def run_command(*arguments: str, environ: dict[str, str]) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gpu_metrics",
        *arguments,
        env={"PATH": os.environ["PATH"], **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, output.decode()


async def test_a_recording_is_made_and_played_to_a_collector_by_commands(
    driver: FakeDriver, tmp_path: Path
) -> None:
    driver.write(SCENARIO)
    file = str(tmp_path / "recording.jsonl")
    code, output = await run_command(
        "record", file, "--seconds", "1.5", environ=dict(driver.environ())
    )
    assert (code, "nvmlDeviceGetFieldValues" in output) == (0, True), output
    async with collector_for_test() as collector, asyncio.TaskGroup() as group:
        replay = group.create_task(
            run_command("replay", file, "--collector", collector.address, environ={})
        )
        updates = collector.fleet.WatchFleet(gpu_metrics_pb2.WatchFleetRequest(), timeout=60)
        async for update in updates:
            views = [*update.snapshot.hosts, *update.delta.changed_hosts]
            if any(view.gpus for view in views):
                break
        (view,) = views
        assert (view.host.host_id, view.host.simulated) == ("replayed", True)
        first, second = view.gpus
        assert (first.temperature_celsius, second.temperature_celsius) == (54, 41)
        assert (first.memory_used_bytes, first.power_limit_milliwatts) == (10**9, 300_000)
        code, output = await replay
        assert code == 0, output
    told = output.splitlines()
    assert "2 GPUs (NVIDIA A10G, NVIDIA L4), driver 570.86.15" in told[0]
    assert told[1] == f"played as host replayed to {collector.address}"
    assert told[-1].endswith("s played: all")
    assert "settings" not in output
