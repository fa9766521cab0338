"""What the agent's driver source says when a driver fails, on the stand-in for the library."""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from weakref import WeakKeyDictionary

import pytest
from fake_driver import FakeDriver, build

from gpu_metrics.adapters.nvml import NvmlGpus
from gpu_metrics.domain.gpu_events import GpuEventKind, ObservedEvent, Severity
from gpu_metrics.domain.readings import GPU_FIGURES, GpuReading, MissingReason
from gpu_metrics.domain.samples import FleetMetric
from gpu_metrics.ports import DriverMismatch
from servicekit.testing import FakeClock

UUIDS = tuple(f"GPU-5f1c0000-0000-0000-0000-00000000000{number}" for number in range(4))
SIXTH_OF_A_SECOND = 166_667


def scenario(gpus: int = 2, **figures: str) -> str:
    """A driver with so many equal GPUs."""
    told = {
        "utilization": "40",
        "memory_utilization": "20",
        "memory_total": "24000000000",
        "memory_used": "1000000000",
        "power": "98765",
        "power_limit": "300000",
        "energy": "5000000",
        "temperature": "54",
        "sm_clock": "1710",
        "memory_clock": "6251",
        "clock_event_reasons": "0",
        "pcie_replays": "3",
        "ecc_corrected": "7",
        "ecc_uncorrected": "0",
        **figures,
    }
    lines = ["driver version 570.86.15"]
    for index in range(gpus):
        lines += [f"gpu {index} uuid {UUIDS[index]}", f"gpu {index} name NVIDIA A10G"]
        lines += [f"gpu {index} {figure} {value}" for figure, value in told.items()]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def driver(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    driver = FakeDriver(library, tmp_path)
    driver.load()
    monkeypatch.setenv("FAKE_NVML_SCENARIO", str(driver.scenario_path))
    driver.write(scenario())
    yield driver
    # Whatever still hangs returns.
    driver.write(scenario())


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def gpus(driver: FakeDriver, clock: FakeClock) -> AsyncIterator[NvmlGpus]:
    # A reading takes its time on a busy machine; hangs are told by the clock, which tests turn.
    source = NvmlGpus(clock=clock, timeout_seconds=2.0)
    yield source
    source.close()


async def read_until(
    gpus: NvmlGpus, condition: Callable[[Sequence[GpuReading]], bool]
) -> Sequence[GpuReading]:
    async with asyncio.timeout(30):
        while not condition(readings := await gpus.read_gpus()):  # noqa: ASYNC110  # nothing to await
            await asyncio.sleep(0.01)
    return readings


_taken: WeakKeyDictionary[NvmlGpus, deque[ObservedEvent]] = WeakKeyDictionary()


async def next_event(gpus: NvmlGpus) -> ObservedEvent:
    waiting = _taken.setdefault(gpus, deque())
    if not waiting:
        waiting.extend(await asyncio.wait_for(gpus.next_events(), 30))
    return waiting.popleft()


def answers(reading: GpuReading) -> bool:
    return isinstance(reading.temperature_celsius, int)


def values_of(reading: GpuReading) -> set[object]:
    return {getattr(reading, name) for name in GPU_FIGURES}


async def test_every_figure_of_a_reading_is_filled_in(gpus: NvmlGpus, driver: FakeDriver) -> None:
    driver.add("gpu 0 memory_temperature 61\ngpu 0 pcie_tx 10\ngpu 0 pcie_rx 20")
    first, _ = await gpus.read_gpus()
    assert {name: getattr(first, name) for name in GPU_FIGURES} == {
        "utilization_permille": 400,
        "memory_used_bytes": 1_000_000_000,
        "memory_total_bytes": 24_000_000_000,
        "power_milliwatts": 98_765,
        "energy_millijoules": 5_000_000,
        "temperature_celsius": 54,
        "sm_clock_megahertz": 1710,
        # The ring held nothing newer than the start.
        "peak_utilization_permille": MissingReason.STALE,
        "memory_utilization_permille": 200,
        "memory_clock_megahertz": 6251,
        "memory_temperature_celsius": 61,
        "clock_event_reasons": 0,
        "power_limit_milliwatts": 300_000,
        "pcie_transmit_bytes_per_second": 10_240,
        "pcie_receive_bytes_per_second": 20_480,
        "pcie_replays_total": 3,
        "ecc_corrected_total": 7,
        "ecc_uncorrected_total": 0,
    }
    assert gpus.driver_version == "570.86.15"
    assert first.driver_epoch > 0


async def test_a_burst_of_a_sixth_of_a_second_is_seen_whenever_the_gpus_are_read(
    gpus: NvmlGpus, driver: FakeDriver, clock: FakeClock
) -> None:
    started = time.time_ns() // 1000 - 30_000_000
    # Never in phase with the ring, so a burst falls into two samples, half of it at least into one.
    # Whenever a second begins and ends, one burst is within it as a whole.
    driver.write(
        scenario(1, utilization="burst 0 100 450 166.667 53") + f"driver started {started}\n"
    )
    await gpus.read_gpus()
    gpus.take_series(datetime.now(UTC))
    for _ in range(2):
        await asyncio.sleep(1.0)
        await clock.advance(1)
        (reading,) = await gpus.read_gpus()
        assert isinstance(reading.peak_utilization_permille, int)
        assert reading.peak_utilization_permille >= 500
    moment = datetime.now(UTC)
    (series,) = [
        series
        for series in gpus.take_series(moment)
        if series.metric is FleetMetric.GPU_UTILIZATION_PERMILLE
    ]
    assert len(series.values) == len(series.offset_microseconds) >= 10
    assert set(series.offset_microseconds[1:]) == {SIXTH_OF_A_SECOND}
    oldest = moment.timestamp() - series.offset_microseconds[0] / 1e6
    assert moment.timestamp() - 30 < oldest < moment.timestamp()
    assert gpus.take_series(moment) == ()


async def test_no_sample_is_taken_twice_and_none_is_left_out(
    gpus: NvmlGpus, driver: FakeDriver, clock: FakeClock
) -> None:
    # A ring that holds more than a busy machine lets wait.
    driver.write(
        f"{scenario(1)}driver started {time.time_ns() // 1000 - 30_000_000}\n"
        "gpu 0 ring power 20 2000\n"
    )
    await gpus.read_gpus()
    gpus.take_series(datetime.now(UTC))
    moments: list[int] = []
    for _ in range(4):
        await asyncio.sleep(0.3)
        await clock.advance(1)
        await gpus.read_gpus()
        now = datetime.now(UTC)
        for series in gpus.take_series(now):
            if series.metric is FleetMetric.GPU_POWER_MILLIWATTS:
                first, *later = series.offset_microseconds
                moment = round(now.timestamp() * 1_000_000) - first
                moments.extend(itertools.accumulate(later, initial=moment))
    # 20 ms apart throughout, over all readings.
    steps = {later - earlier for earlier, later in itertools.pairwise(moments)}
    assert len(moments) > 20
    assert steps == {20_000}


async def test_samples_that_lie_ahead_of_a_clock_that_was_set_back_are_of_this_moment(
    gpus: NvmlGpus, clock: FakeClock
) -> None:
    await gpus.read_gpus()
    await asyncio.sleep(0.1)
    await clock.advance(1)
    await gpus.read_gpus()
    taken = gpus.take_series(datetime.now(UTC) - timedelta(hours=1))
    (power, _) = (each for each in taken if each.metric is FleetMetric.GPU_POWER_MILLIWATTS)
    first, *steps = power.offset_microseconds
    assert first == 0
    assert steps
    assert min(steps) >= 0


@pytest.mark.parametrize(
    ("state", "peak"), [("empty", MissingReason.STALE), ("unsupported", MissingReason.UNSUPPORTED)]
)
async def test_without_samples_the_momentary_value_stands_in_and_the_peak_is_missing(
    gpus: NvmlGpus, driver: FakeDriver, state: str, peak: MissingReason
) -> None:
    driver.write(scenario(1) + f"gpu 0 ring utilization {state}\n")
    (reading,) = await gpus.read_gpus()
    assert (reading.utilization_permille, reading.peak_utilization_permille) == (400, peak)
    (series,) = [
        series
        for series in gpus.take_series(datetime.now(UTC))
        if series.metric is FleetMetric.GPU_UTILIZATION_PERMILLE
    ]
    assert series.values == (400,)


async def test_a_hung_gpu_is_timed_out_then_hung_then_back_and_delays_no_other(
    driver: FakeDriver, clock: FakeClock
) -> None:
    gpus = NvmlGpus(clock=clock, timeout_seconds=0.6)
    await read_until(gpus, lambda readings: all(map(answers, readings)))
    driver.add("gpu 0 hang all")
    first, second = await gpus.read_gpus()
    assert values_of(first) == {MissingReason.TIMEOUT}
    # A hang begins at most a second before the first reading, so the second is within two.
    await clock.advance(1)
    first, second = await gpus.read_gpus()
    assert values_of(first) == {MissingReason.HUNG}
    assert answers(second)
    hung = await next_event(gpus)
    assert (hung.kind, hung.gpu_uuid) == (GpuEventKind.GPU_HUNG, UUIDS[0])
    assert hung.severity is Severity.CRITICAL
    processes = await gpus.read_processes()
    assert processes.missing == ((UUIDS[0], MissingReason.HUNG.value),)

    driver.write(scenario())
    await read_until(gpus, lambda readings: answers(readings[0]))
    assert (await next_event(gpus)).kind is GpuEventKind.GPU_BACK
    gpus.close()


@pytest.mark.parametrize(
    "statements", ["driver hang everything", "driver serialized\ngpu 1 hang all"]
)
async def test_a_hang_that_holds_everything_leaves_no_gpu_fresh(
    driver: FakeDriver, clock: FakeClock, statements: str
) -> None:
    gpus = NvmlGpus(clock=clock, timeout_seconds=0.6, discovery_seconds=1.0)
    await read_until(gpus, lambda readings: all(map(answers, readings)))
    driver.add(statements)
    # With a lock, who gets it first may answer once more, and is stopped a reading later.
    await gpus.read_gpus()
    for _ in range(2):
        await clock.advance(1)
        readings = await gpus.read_gpus()
    assert [values_of(reading) for reading in readings] == [{MissingReason.HUNG}] * 2
    events = {(event.kind, event.gpu_uuid) for event in [await next_event(gpus) for _ in range(2)]}
    assert events == {(GpuEventKind.GPU_HUNG, uuid) for uuid in UUIDS[:2]}
    gpus.close()


async def test_a_lost_gpu_and_its_return_are_events_and_its_counters_are_of_a_new_epoch(
    gpus: NvmlGpus, driver: FakeDriver, clock: FakeClock
) -> None:
    before, other = await gpus.read_gpus()
    driver.add("gpu 0 lost")
    lost, _ = await gpus.read_gpus()
    assert values_of(lost) == {MissingReason.LOST}
    assert (await next_event(gpus)).kind is GpuEventKind.GPU_LOST
    driver.write(scenario())
    await clock.advance(6)
    back, unharmed = await read_until(gpus, lambda readings: answers(readings[0]))
    event = await next_event(gpus)
    assert (event.kind, event.gpu_uuid) == (GpuEventKind.GPU_BACK, UUIDS[0])
    assert back.driver_epoch > before.driver_epoch
    assert unharmed.driver_epoch == other.driver_epoch


async def test_a_gpu_that_the_driver_stops_counting_stays_in_its_place_as_lost(
    gpus: NvmlGpus, driver: FakeDriver, clock: FakeClock
) -> None:
    await gpus.read_gpus()
    second_alone = scenario(1).replace(UUIDS[0], UUIDS[1])
    driver.write(second_alone)
    await clock.advance(31)
    first, second = await read_until(
        gpus, lambda readings: readings[0].power_milliwatts is MissingReason.LOST
    )
    assert (first.gpu_uuid, first.index) == (UUIDS[0], 0)
    assert (second.gpu_uuid, second.index, second.power_milliwatts) == (UUIDS[1], 1, 98_765)


async def test_a_driver_that_was_loaded_anew_between_two_readings_starts_an_epoch(
    gpus: NvmlGpus, driver: FakeDriver
) -> None:
    before = await gpus.read_gpus()
    driver.write(scenario(energy="120"))
    after = await gpus.read_gpus()
    assert [reading.energy_millijoules for reading in after] == [120, 120]
    assert all(
        later.driver_epoch > earlier.driver_epoch
        for earlier, later in zip(before, after, strict=True)
    )
    # One new run, however many GPUs show it.
    assert len({reading.driver_epoch for reading in after}) == 1
    event = await next_event(gpus)
    assert (event.kind, event.driver_epoch) == (
        GpuEventKind.DRIVER_RELOADED,
        after[0].driver_epoch,
    )
    driver.add("event 1 gpu 0 xid 31")
    assert (await next_event(gpus)).kind is GpuEventKind.XID


async def test_a_driver_that_was_loaded_anew_is_one_event_and_no_figure_of_before_is_left(
    gpus: NvmlGpus, driver: FakeDriver, clock: FakeClock
) -> None:
    driver.write(scenario() + "gpu 0 process 41 1000\n")
    await gpus.read_gpus()
    await clock.advance(1)
    driver.write(scenario(energy="120", ecc_corrected="0"))
    readings = [await gpus.read_gpus()]
    # What is slow to read is not waited for.
    assert (await gpus.read_processes()).processes == ()
    for _ in range(14):
        await clock.advance(1)
        readings.append(await gpus.read_gpus())
    assert {gpu.ecc_corrected_total for gpus_read in readings for gpu in gpus_read} == {0}
    assert len({gpu.driver_epoch for gpus_read in readings for gpu in gpus_read}) == 1
    assert [event.kind for event in await gpus.next_events()] == [GpuEventKind.DRIVER_RELOADED]


async def test_a_driver_that_was_away_and_counts_from_zero_is_one_event(
    gpus: NvmlGpus, driver: FakeDriver, clock: FakeClock
) -> None:
    await gpus.read_gpus()
    driver.add("driver unloaded")
    await gpus.read_gpus()
    driver.write(scenario(energy="120", ecc_corrected="0"))
    await clock.advance(6)
    await read_until(gpus, lambda readings: all(map(answers, readings)))
    await clock.advance(1)
    await gpus.read_gpus()
    assert [event.kind for event in await gpus.next_events()] == [GpuEventKind.DRIVER_RELOADED]


async def test_while_the_driver_is_away_nothing_is_zero_and_its_return_starts_an_epoch(
    gpus: NvmlGpus, driver: FakeDriver, clock: FakeClock
) -> None:
    before, _ = await gpus.read_gpus()
    driver.add("driver unloaded")
    for _ in range(3):
        readings = await gpus.read_gpus()
        assert [values_of(reading) for reading in readings] == [{MissingReason.UNREACHABLE}] * 2
        await clock.advance(1)
    driver.write(scenario(energy="9000000"))
    await clock.advance(6)
    after, _ = await read_until(gpus, lambda readings: all(map(answers, readings)))
    assert after.driver_epoch > before.driver_epoch
    assert (await next_event(gpus)).kind is GpuEventKind.DRIVER_RELOADED


async def test_a_driver_of_another_version_ends_the_source_after_an_event(
    gpus: NvmlGpus, driver: FakeDriver
) -> None:
    await gpus.read_gpus()
    driver.add("driver fail all 18")
    with pytest.raises(DriverMismatch):
        await read_until(gpus, lambda readings: False)
    assert (await next_event(gpus)).kind is GpuEventKind.DRIVER_MISMATCH


async def test_a_mismatch_at_the_start_ends_the_source_too(
    gpus: NvmlGpus, driver: FakeDriver
) -> None:
    driver.add("driver init_error 18")
    with pytest.raises(DriverMismatch):
        await gpus.read_gpus()


async def test_xids_arrive_at_once_each_once_and_in_order(
    gpus: NvmlGpus, driver: FakeDriver
) -> None:
    driver.add("event 1 gpu 0 xid 31")
    before = driver.own_calls("nvmlEventSetWait_v2")
    await gpus.read_gpus()
    # The driver tells of what happens after a watcher has registered, not before.
    await watching(driver, before)
    codes = [48, 79, 48, 94]
    for serial, code in enumerate(codes, start=2):
        driver.add(f"event {serial} gpu {serial % 2} xid {code}")
    events = [await next_event(gpus) for _ in codes]
    assert [(event.xid, event.gpu_uuid) for event in events] == [
        (code, UUIDS[serial % 2]) for serial, code in enumerate(codes, start=2)
    ]
    assert events[1].severity is Severity.CRITICAL
    assert events[1].recommended_action == "restart the host, or replace the instance"
    assert events[0].driver_epoch > 0


async def watching(driver: FakeDriver, before: int) -> None:
    async with asyncio.timeout(30):
        while driver.own_calls("nvmlEventSetWait_v2") == before:  # noqa: ASYNC110  # nothing to await
            await asyncio.sleep(0.01)


async def test_clocks_that_were_held_back_between_two_readings_are_told(
    gpus: NvmlGpus, driver: FakeDriver
) -> None:
    driver.write(scenario(1) + "gpu 0 field 74 1000\n")
    (before,) = await gpus.read_gpus()
    driver.write(scenario(1) + "gpu 0 field 74 5000000\n")
    (reading,) = await gpus.read_gpus()
    (after,) = await gpus.read_gpus()
    assert [each.clock_event_reasons for each in (before, reading, after)] == [0, 4, 0]


async def test_processes_and_memory_errors_are_read_every_ten_seconds_alone(
    gpus: NvmlGpus, driver: FakeDriver, clock: FakeClock
) -> None:
    driver.write(scenario(1) + "gpu 0 process 41 1000\ngpu 0 process 42 18446744073709551615\n")
    began = clock.now()
    name = "nvmlDeviceGetComputeRunningProcesses_v3"
    before = driver.own_calls(name)
    await gpus.read_gpus()
    first = await gpus.read_processes()
    assert [(each.process_id, each.memory_used_bytes) for each in first.processes] == [
        (41, 1000),
        (42, None),
    ]
    driver.write(scenario(1, ecc_corrected="9"))
    for _ in range(9):
        await clock.advance(1)
        (reading,) = await gpus.read_gpus()
        assert (await gpus.read_processes()) == first
        assert reading.ecc_corrected_total == 7
    await clock.advance(1)
    (reading,) = await gpus.read_gpus()
    assert reading.ecc_corrected_total == 9
    second = await gpus.read_processes()
    assert second.processes == ()
    assert [each.read_time for each in (first, second)] == [began, clock.now()]
    assert driver.own_calls(name) - before == 2


async def test_more_processes_than_expected_are_all_told(
    gpus: NvmlGpus, driver: FakeDriver
) -> None:
    driver.write(scenario(1) + "".join(f"gpu 0 process {number} 1\n" for number in range(1, 41)))
    await gpus.read_gpus()
    assert len((await gpus.read_processes()).processes) == 40


async def test_an_older_driver_without_these_fields_is_asked_figure_by_figure(
    gpus: NvmlGpus, driver: FakeDriver
) -> None:
    fields = (186, 190, 83, 94, 197, 198, 74, 76, 269, 270, 271, 82, 3, 4)
    driver.write(scenario(1) + "".join(f"gpu 0 field {field} fail 2\n" for field in fields))
    (reading,) = await gpus.read_gpus()
    assert reading.power_milliwatts == 98_765
    assert reading.energy_millijoules == 5_000_000
    assert reading.pcie_replays_total == 3
    assert reading.ecc_corrected_total is MissingReason.UNSUPPORTED


async def test_the_cost_counts_calls_and_the_drivers_time(
    gpus: NvmlGpus, driver: FakeDriver
) -> None:
    await gpus.read_gpus()
    before = gpus.cost
    driver.write(scenario() + "gpu 0 latency temperature 20000\n")
    await gpus.read_gpus()
    after = gpus.cost
    assert 14 <= after.calls - before.calls <= 40
    assert after.seconds - before.seconds >= 0.02
