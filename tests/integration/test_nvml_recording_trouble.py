"""Recording a driver that hangs, one that does one thing at a time, and being interrupted."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest
from fake_driver import FakeDriver, build

from gpu_metrics.adapters.nvml_hung_calls import CallHung
from gpu_metrics.adapters.nvml_recorder import Recorder
from gpu_metrics.domain.driver_recording import DriverCall, Recording, read_recording
from gpu_metrics.domain.driver_scenario import scenario_of

TWO_GPUS = """\
driver version 570.86.15
gpu 0 uuid GPU-a
gpu 0 name NVIDIA L4
gpu 0 temperature 54
gpu 1 uuid GPU-b
gpu 1 name NVIDIA L4
gpu 1 temperature 41
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def driver(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    driver = FakeDriver(library, tmp_path)
    driver.load()
    monkeypatch.setenv("FAKE_NVML_SCENARIO", str(driver.scenario_path))
    driver.write(TWO_GPUS)
    yield driver
    # Whatever hangs returns.
    driver.write(TWO_GPUS)


async def record_command(
    driver: FakeDriver, file: Path, *options: str
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gpu_metrics", "record", str(file), *options),
        env={"PATH": os.environ["PATH"], **driver.environ()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str]:
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


def recording_in(file: Path) -> Recording:
    with file.open(encoding="utf-8") as lines:
        return read_recording(lines)


async def test_a_gpu_that_hangs_from_the_start_is_named_and_the_others_are_recorded(
    driver: FakeDriver, tmp_path: Path
) -> None:
    driver.add("gpu 0 hang all")
    file = tmp_path / "recording.jsonl"
    process = await record_command(driver, file, "--seconds", "0.5", "--call-timeout", "0.5")
    code, output = await ended(process)
    assert code == 3, output
    assert "GPU 0 gave no answer to nvmlDevice" in output
    recording = recording_in(file)
    assert [gpu.uuid for gpu in recording.gpus] == ["unidentified-0", "GPU-b"]
    assert {call.gpu for call in recording.calls} == {1}
    assert any(call.answer.get("temperature") == 41 for call in recording.calls)


def test_a_gpu_that_begins_to_hang_is_left_out_from_there_on(driver: FakeDriver) -> None:
    recorder = Recorder(call_limit_seconds=0.3)
    calls: list[DriverCall] = []
    hung_after = 0
    for call in recorder.run(seconds=2.5, interval_seconds=0.05):
        calls.append(call)
        if not hung_after:
            driver.add("gpu 1 hang temperature")
            hung_after = len(calls)
    recorder.close()
    (hung,) = recorder.hung
    assert (hung.gpu, hung.function) == (1, "nvmlDeviceGetTemperature")
    last = max(place for place, call in enumerate(calls) if call.gpu == 1)
    assert sum(call.gpu == 0 for call in calls[last:]) > 20


async def test_a_driver_that_answers_nothing_is_said_and_no_file_is_left(
    driver: FakeDriver, tmp_path: Path
) -> None:
    driver.add("driver hang everything")
    file = tmp_path / "recording.jsonl"
    code, output = await ended(await record_command(driver, file, "--call-timeout", "0.3"))
    assert (code, file.exists()) == (3, False)
    assert "the driver itself gave no answer to nvmlInitWithFlags within 0.3 s" in output
    with pytest.raises(CallHung):
        Recorder(call_limit_seconds=0.3)


async def test_a_gpu_that_holds_up_the_driver_as_a_whole_is_named_too(
    driver: FakeDriver, tmp_path: Path
) -> None:
    driver.add("driver serialized\ngpu 1 hang all")
    file = tmp_path / "recording.jsonl"
    code, output = await ended(await record_command(driver, file, "--call-timeout", "0.3"))
    assert (code, file.exists()) == (3, False)
    assert "the driver itself gave no answer to nvmlInitWithFlags" in output
    assert "after GPU 1 gave no answer to nvmlDevice" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_what_was_recorded_until_an_interrupt_is_kept(
    driver: FakeDriver, tmp_path: Path, number: signal.Signals
) -> None:
    file = tmp_path / "recording.jsonl"
    process = await record_command(driver, file, "--seconds", "600")
    async with asyncio.timeout(60):
        while "nvmlDeviceGetSamples" not in driver.counts():  # noqa: ASYNC110  # another process's
            await asyncio.sleep(0.02)
    process.send_signal(number)
    code, output = await ended(process)
    assert code == 130, output
    assert "2 GPUs (NVIDIA L4)" in output
    assert recording_in(file).calls


def latencies(driver: FakeDriver, *statements: str) -> tuple[float, float]:
    """Median microseconds that the temperature takes alone, and with another thread asking."""
    driver.add("\n".join(statements))
    recorder = Recorder()
    alone = list(recorder.run(seconds=0.5, interval_seconds=0.05))
    contended = list(recorder.run_contended(seconds=1.5))
    recorder.close()
    assert {call.thread for call in alone} == {0}
    assert {(call.thread, call.gpu) for call in contended} == {(1, 0), (2, 1)}
    alone_microseconds, at_once_microseconds = (
        median(c.took_microseconds for c in calls if c.call == "nvmlDeviceGetTemperature")
        for calls in (alone, contended)
    )
    return alone_microseconds, at_once_microseconds


def test_a_driver_that_does_one_thing_at_a_time_shows_when_two_threads_ask(
    driver: FakeDriver,
) -> None:
    # On a busy machine the two may come to ask in turn by themselves; then they are asked again.
    ratios: list[float] = []
    while len(ratios) < 5 and max(ratios, default=0.0) < 1.5:
        alone, at_once = latencies(driver, "driver latency all 8000", "driver serialized")
        ratios.append(at_once / alone)
    assert max(ratios) > 1.5
    driver.write(TWO_GPUS)
    alone, at_once = latencies(driver, "driver latency all 8000")
    assert at_once < 1.5 * alone


def test_calls_of_two_threads_are_kept_apart_and_not_played(driver: FakeDriver) -> None:
    recorder = Recorder()
    calls = [
        *recorder.run(seconds=0.3, interval_seconds=0.05),
        *recorder.run_contended(seconds=0.3),
    ]
    recorder.close()
    lines = [recorder.recording.header(), *(call.as_line() for call in calls)]
    both = read_recording(lines)
    assert both.contended
    assert all(call.thread for call in both.contended)
    alone = read_recording(line for line in lines if '"thread"' not in line)
    assert both.calls == alone.calls
    assert scenario_of(both, started_microseconds=1) == scenario_of(alone, started_microseconds=1)
    assert both.seconds < min(call.at_microseconds for call in both.contended) / 1e6
