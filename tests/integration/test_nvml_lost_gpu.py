"""A GPU that is lost takes nothing from those that are well, on the stand-in for the library."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fake_driver import FakeDriver, build

from gpu_metrics.adapters.nvml import NvmlGpus
from gpu_metrics.domain.readings import GpuReading, MissingReason
from gpu_metrics.domain.samples import FleetMetric
from servicekit.testing import FakeClock

PERIOD_MICROSECONDS = 20_000
WAIT_SECONDS = 30


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def driver(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    driver = FakeDriver(library, tmp_path)
    driver.load()
    # Other processes find the library and the scenario by these.
    for name, value in driver.environ().items():
        monkeypatch.setenv(name, value)
    # At a whole second, so that the driver's samples are told from those that stand in for them.
    started = (time.time_ns() // 1_000_000_000 - 30) * 1_000_000
    lines = [f"driver started {started}", "driver keeps_losses"]
    for index in range(2):
        lines += [
            f"gpu {index} uuid GPU-{index}",
            f"gpu {index} utilization 40",
            f"gpu {index} power 98765",
            f"gpu {index} energy rate 0 75000",
            f"gpu {index} temperature 54",
            f"gpu {index} ecc_corrected 7",
            # Rings that hold more than a busy machine lets wait.
            f"gpu {index} ring power {PERIOD_MICROSECONDS // 1000} 4000",
        ]
    driver.write("\n".join(lines) + "\n")
    # What was lost in a test before would be lost for ever.
    driver.shut_down()
    return driver


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def gpus(driver: FakeDriver, clock: FakeClock) -> AsyncIterator[NvmlGpus]:
    source = NvmlGpus(clock=clock, timeout_seconds=5.0)
    yield source
    source.close()


class Readings:
    """Reads once a second of the clock, and keeps when the first GPU's power samples were."""

    def __init__(self, gpus: NvmlGpus, clock: FakeClock) -> None:
        self._gpus = gpus
        self._clock = clock
        self.moments: list[int] = []

    async def read(self) -> Sequence[GpuReading]:
        # Time for the driver to sample.
        await asyncio.sleep(0.005)
        await self._clock.advance(1)
        readings = await self._gpus.read_gpus()
        now = datetime.now(UTC)
        for series in self._gpus.take_series(now):
            if series.gpu_index == 0 and series.metric is FleetMetric.GPU_POWER_MILLIWATTS:
                first, *steps = series.offset_microseconds
                oldest = round(now.timestamp() * 1_000_000) - first
                self.moments.extend(
                    moment
                    for moment in itertools.accumulate(steps, initial=oldest)
                    if moment % PERIOD_MICROSECONDS == 0
                )
        return readings

    async def until(self, lost: bool) -> Sequence[GpuReading]:
        """Read until the second GPU is lost, or is not."""
        async with asyncio.timeout(WAIT_SECONDS):
            while is_lost((await self.read())[1]) is not lost:
                pass
            return await self.read()

    @property
    def steps(self) -> set[int]:
        return {later - earlier for earlier, later in itertools.pairwise(self.moments)}


def is_lost(reading: GpuReading) -> bool:
    return reading.power_milliwatts is MissingReason.LOST


def without_loss(driver: FakeDriver) -> str:
    return driver.text.replace("gpu 1 lost\n", "")


async def test_while_a_gpu_is_lost_the_library_is_left_alone_and_no_sample_of_another_is_missed(
    gpus: NvmlGpus, driver: FakeDriver, clock: FakeClock
) -> None:
    readings = Readings(gpus, clock)
    await readings.read()
    shut_down = driver.own_calls("nvmlShutdown")
    driver.add("gpu 1 lost")
    for _ in range(130):
        well, _ = await readings.read()
        assert (well.power_milliwatts, well.ecc_corrected_total) == (98_765, 7)
    assert driver.own_calls("nvmlShutdown") == shut_down
    assert readings.steps == {PERIOD_MICROSECONDS}


async def test_a_gpu_that_answers_a_new_process_is_taken_back_and_no_sample_of_another_is_missed(
    gpus: NvmlGpus, driver: FakeDriver, clock: FakeClock
) -> None:
    readings = Readings(gpus, clock)
    await readings.read()
    driver.add("gpu 1 lost")
    await readings.until(lost=True)
    (epoch, _) = (reading.driver_epoch for reading in await readings.read())
    shut_down = driver.own_calls("nvmlShutdown")
    driver.write(without_loss(driver))
    well, back = await readings.until(lost=False)
    assert driver.own_calls("nvmlShutdown") == shut_down + 1
    assert (well.driver_epoch, well.ecc_corrected_total) == (epoch, 7)
    assert back.driver_epoch > epoch
    assert readings.steps == {PERIOD_MICROSECONDS}


async def test_no_xid_that_waits_is_missed_when_the_library_starts_anew(
    gpus: NvmlGpus, driver: FakeDriver, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/true")
    readings = Readings(gpus, clock)
    waits = driver.own_calls("nvmlEventSetWait_v2")
    await readings.read()
    async with asyncio.timeout(WAIT_SECONDS):
        while driver.own_calls("nvmlEventSetWait_v2") == waits:  # noqa: ASYNC110  # nothing to await
            await asyncio.sleep(0.01)
    # The driver hands over more slowly than errors come, so that some always wait.
    driver.add("gpu 1 lost\ndriver latency nvmlEventSetWait_v2 3000")
    await readings.until(lost=True)
    shut_down = driver.own_calls("nvmlShutdown")
    told = 0
    async with asyncio.timeout(WAIT_SECONDS):
        while driver.own_calls("nvmlShutdown") == shut_down:
            lines = [f"event {told + each} gpu 0 xid {told + each}" for each in range(1, 5)]
            driver.add("\n".join(lines))
            told += 4
            await readings.read()
        codes: list[int] = []
        while told not in codes:
            codes += [event.xid for event in await gpus.next_events() if event.xid]
    # One may be told by the sets of before and after the loss.
    assert list(dict.fromkeys(codes)) == list(range(1, told + 1))


async def test_samples_of_a_gpu_that_fell_off_the_bus_are_still_told(
    gpus: NvmlGpus, driver: FakeDriver, clock: FakeClock
) -> None:
    await gpus.read_gpus()
    await asyncio.sleep(0.1)
    await clock.advance(1)
    await gpus.read_gpus()
    driver.add("gpu 0 lost")
    for _ in range(7):
        await clock.advance(1)
        first, _ = await gpus.read_gpus()
    assert first.power_milliwatts is MissingReason.LOST
    series = gpus.take_series(datetime.now(UTC))
    assert (0, FleetMetric.GPU_POWER_MILLIWATTS) in {
        (each.gpu_index, each.metric) for each in series
    }


@pytest.mark.parametrize("can_be_asked", [True, False])
async def test_a_start_in_vain_is_tried_again_ever_less_often(
    gpus: NvmlGpus,
    driver: FakeDriver,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    can_be_asked: bool,
) -> None:
    # The lost GPU seems to answer others, or no other process can be started.
    monkeypatch.setattr("sys.executable", "/bin/true" if can_be_asked else "/nowhere/python")
    readings = Readings(gpus, clock)
    await readings.read()
    driver.add("gpu 1 lost")
    shut_down = driver.own_calls("nvmlShutdown")
    starts: list[int] = []
    for second in range(400):
        await readings.read()
        if driver.own_calls("nvmlShutdown") > shut_down + len(starts):
            starts.append(second)
    pauses = [later - earlier for earlier, later in itertools.pairwise([0, *starts])]
    assert len(starts) in (3, 4)
    assert all(later > 1.5 * earlier for earlier, later in itertools.pairwise(pauses))
    assert readings.steps == {PERIOD_MICROSECONDS}
