"""The NVML adapter, through the unmodified nvidia-ml-py, against a fake driver library in C."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import pytest
from fake_driver import FakeDriver, build

from gpu_metrics.adapters.nvml import NvmlGpus
from gpu_metrics.domain.readings import GpuReading, MissingReason
from servicekit.testing import FakeClock

TWO_GPUS = """\
gpu 0 uuid GPU-5f1c0000-0000-0000-0000-000000000001
gpu 0 name NVIDIA A10G
gpu 0 utilization 37
gpu 0 memory_total 24146608128
gpu 0 memory_used 1000000000
gpu 0 memory_reserved 500000000
gpu 0 power 98765
gpu 0 energy 123456789012
gpu 0 temperature 54
gpu 0 sm_clock 1710
gpu 1 uuid GPU-5f1c0000-0000-0000-0000-000000000002
gpu 1 name NVIDIA L4
gpu 1 utilization 100
gpu 1 memory_total 24152899584
gpu 1 memory_used 2000000000
gpu 1 power 71999
gpu 1 energy 42
gpu 1 temperature 71
gpu 1 sm_clock 2040
"""

FIRST = GpuReading(
    gpu_uuid="GPU-5f1c0000-0000-0000-0000-000000000001",
    index=0,
    product_name="NVIDIA A10G",
    pci_bus_id="00000000:01:00.0",
    utilization_permille=370,
    memory_used_bytes=1_000_000_000,
    memory_total_bytes=24_146_608_128,
    power_milliwatts=98_765,
    energy_millijoules=123_456_789_012,
    temperature_celsius=54,
    sm_clock_megahertz=1710,
)


def figures_of(reading: GpuReading) -> dict[str, object]:
    """What TWO_GPUS says of a GPU; the rest the driver does not support."""
    names = [field.name for field in fields(GpuReading)]
    told = [name for name in names if not isinstance(getattr(FIRST, name), MissingReason)]
    return {name: getattr(reading, name) for name in told if name != "driver_epoch"}


async def read_until(
    gpus: NvmlGpus, condition: Callable[[Sequence[GpuReading]], bool]
) -> Sequence[GpuReading]:
    """Read until the readings are so; lookups and the ends of hangs take their own time."""
    async with asyncio.timeout(30):
        while not condition(readings := await gpus.read_gpus()):  # noqa: ASYNC110  # nothing to await
            await asyncio.sleep(0.01)
    return readings


@pytest.fixture(scope="session")
def driver_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def scenario(
    driver_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], None]]:
    """Writes what the driver does; a loaded library of the same name is what the binding gets."""
    driver = FakeDriver(driver_library, tmp_path)
    driver.load()
    monkeypatch.setenv("FAKE_NVML_SCENARIO", str(driver.scenario_path))
    driver.write(TWO_GPUS)
    yield driver.write
    driver.write(TWO_GPUS)


@pytest.fixture
async def gpus(scenario: Callable[[str], None]) -> AsyncIterator[NvmlGpus]:
    source = NvmlGpus(clock=FakeClock(), timeout_seconds=0.6)
    yield source
    source.close()


async def test_all_figures_of_all_gpus_arrive_in_their_units(gpus: NvmlGpus) -> None:
    first, second = await gpus.read_gpus()
    assert figures_of(first) == figures_of(FIRST)
    assert (second.index, second.product_name) == (1, "NVIDIA L4")
    assert (second.utilization_permille, second.power_milliwatts) == (1000, 71_999)
    assert [gpu.pci_bus_id for gpu in (first, second)] == ["00000000:01:00.0", "00000000:02:00.0"]


async def test_an_old_driver_gives_memory_by_its_first_version(
    gpus: NvmlGpus, scenario: Callable[[str], None]
) -> None:
    scenario(TWO_GPUS + "gpu 0 fail memory_v2 13\n")
    first, _ = await gpus.read_gpus()
    # The first version counts what the driver keeps for itself as used.
    assert first.memory_used_bytes == 1_500_000_000
    assert first.memory_total_bytes == 24_146_608_128


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (3, MissingReason.UNSUPPORTED),
        (4, MissingReason.PERMISSION),
        (10, MissingReason.TIMEOUT),
        (15, MissingReason.LOST),
        (999, MissingReason.UNREACHABLE),
    ],
)
async def test_a_figure_the_driver_refuses_is_missing_for_that_reason(
    gpus: NvmlGpus, scenario: Callable[[str], None], code: int, reason: MissingReason
) -> None:
    scenario(TWO_GPUS + f"gpu 0 fail power {code}\n")
    first, second = await gpus.read_gpus()
    assert first.power_milliwatts is reason
    assert first.temperature_celsius == 54
    assert second.power_milliwatts == 71_999


async def test_a_gpu_that_falls_off_the_bus_stays_in_the_report_as_lost(
    gpus: NvmlGpus, scenario: Callable[[str], None]
) -> None:
    await gpus.read_gpus()
    scenario(TWO_GPUS + "gpu 0 lost\n")
    first, second = await gpus.read_gpus()
    assert first.gpu_uuid == FIRST.gpu_uuid
    assert first.power_milliwatts is MissingReason.LOST
    assert first.memory_used_bytes is MissingReason.LOST
    assert second.power_milliwatts == 71_999


async def test_a_lost_gpu_is_known_by_its_uuid_after_the_next_lookup_and_comes_back_after_a_reset(
    scenario: Callable[[str], None],
) -> None:
    clock = FakeClock()
    gpus = NvmlGpus(clock=clock, timeout_seconds=0.6)
    await gpus.read_gpus()
    scenario(TWO_GPUS + "gpu 0 lost\n")
    await gpus.read_gpus()
    await clock.advance(6)
    first, _ = await gpus.read_gpus()
    assert (first.gpu_uuid, first.sm_clock_megahertz) == (FIRST.gpu_uuid, MissingReason.LOST)
    scenario(TWO_GPUS)
    await clock.advance(6)
    await read_until(gpus, lambda readings: figures_of(readings[0]) == figures_of(FIRST))
    gpus.close()


async def test_a_hanging_gpu_times_out_alone_and_keeps_what_it_gave_before_the_hang(
    gpus: NvmlGpus, scenario: Callable[[str], None]
) -> None:
    await gpus.read_gpus()
    scenario(TWO_GPUS + "gpu 0 hang power\n")
    loop = asyncio.get_running_loop()
    began = loop.time()
    first, second = await gpus.read_gpus()
    assert loop.time() - began < 10.0  # six tenths of a second, on a machine that may be busy
    assert first.utilization_permille == 370
    assert first.power_milliwatts is MissingReason.TIMEOUT
    assert first.sm_clock_megahertz is MissingReason.TIMEOUT
    assert second.power_milliwatts == 71_999

    took = []
    for _ in range(5):
        began = loop.time()
        first, second = await gpus.read_gpus()
        took.append(loop.time() - began)
    # The call before still hangs: no second thread is spent on it, and nothing is waited for.
    assert min(took) < 0.2, took
    assert first.utilization_permille is MissingReason.TIMEOUT
    assert second.power_milliwatts == 71_999


async def test_how_long_a_gpu_may_leave_a_reading_unanswered_is_what_was_set(
    driver_library: Path, scenario: Callable[[str], None]
) -> None:
    clock = FakeClock()
    patient = NvmlGpus(clock=clock, timeout_seconds=0.6, hung_after_seconds=20.0)
    try:
        await patient.read_gpus()
        scenario(TWO_GPUS + "gpu 0 hang power\n")
        told = []
        for _ in range(4):
            gpu = (await patient.read_gpus())[0]
            told.append(gpu.power_milliwatts)
            await clock.advance(8.0)
        assert told == [MissingReason.TIMEOUT] * 3 + [MissingReason.HUNG]
    finally:
        patient.close()


async def test_a_hanging_gpu_is_read_again_once_it_answers(
    gpus: NvmlGpus, scenario: Callable[[str], None]
) -> None:
    scenario(TWO_GPUS + "gpu 0 hang power\n")
    await gpus.read_gpus()
    scenario(TWO_GPUS)
    await read_until(gpus, lambda readings: figures_of(readings[0]) == figures_of(FIRST))


@pytest.mark.parametrize("statement", ["driver init_error 9", "driver hang init"])
async def test_without_a_working_driver_there_are_no_gpus_and_no_error(
    gpus: NvmlGpus, scenario: Callable[[str], None], statement: str
) -> None:
    scenario(TWO_GPUS + statement + "\n")
    assert list(await gpus.read_gpus()) == []


async def test_the_binding_loads_the_library_by_its_name_alone(
    driver_library: Path, scenario: Callable[[str], None]
) -> None:
    program = "import pynvml; pynvml.nvmlInit(); print(pynvml.nvmlDeviceGetCount())"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        env={**os.environ, "LD_LIBRARY_PATH": str(driver_library.parent)},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert output.decode().strip() == "2"
