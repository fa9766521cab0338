"""Every XID is handed over, whatever becomes of the GPUs that are watched meanwhile."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_driver import FakeDriver, build

from gpu_metrics.adapters.nvml import NvmlGpus
from gpu_metrics.adapters.nvml_discovery import NvmlDriver
from gpu_metrics.adapters.nvml_events import XidWatcher
from gpu_metrics.adapters.nvml_library import NvmlLibrary
from gpu_metrics.adapters.process_cost import CostMeter
from gpu_metrics.journal import EventJournal
from servicekit.testing import FakeClock

WAIT_SECONDS = 30
GPUS = "gpu 0 uuid GPU-0\ngpu 1 uuid GPU-1\n"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def driver(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    driver = FakeDriver(library, tmp_path)
    driver.load()
    monkeypatch.setenv("FAKE_NVML_SCENARIO", str(driver.scenario_path))
    driver.write(GPUS)
    yield driver
    driver.write(GPUS)


class Watched:
    """A watcher of both GPUs, and the codes it handed over."""

    def __init__(self, driver: FakeDriver) -> None:
        found = NvmlDriver().look_up({}, attach_anew=False)
        self.library: NvmlLibrary = found.library
        self.uuids = {gpu.handle: gpu.uuid for gpu in found.gpus}
        self.codes: list[int] = []
        # Called in the watcher's thread with the first code, before any other is taken.
        self.on_first: Callable[[], None] = lambda: None
        self._driver = driver
        self._came = threading.Condition()
        self.watcher = XidWatcher(self._take)

    def _take(self, uuid: str, code: int) -> None:
        if not self.codes:
            self.on_first()
        with self._came:
            self.codes.append(code)
            self._came.notify_all()

    def watch(self, *indexes: int) -> None:
        uuids = {handle: uuid for handle, uuid in self.uuids.items() if int(uuid[4:]) in indexes}
        self.watcher.watch(self.library, uuids)

    async def is_waiting(self) -> None:
        """Return once the driver will tell what happens from now on."""
        before = self._driver.own_calls("nvmlEventSetWait_v2")
        async with asyncio.timeout(WAIT_SECONDS):
            while self._driver.own_calls("nvmlEventSetWait_v2") == before:  # noqa: ASYNC110  # nothing to await
                await asyncio.sleep(0.01)

    def has(self, last: int) -> None:
        """Return once this code was handed over."""
        with self._came:
            assert self._came.wait_for(lambda: last in self.codes, WAIT_SECONDS)


@pytest.fixture
def watched(driver: FakeDriver) -> Iterator[Watched]:
    watched = Watched(driver)
    yield watched
    watched.watcher.close()


def burst(first: int, last: int) -> str:
    return "\n".join(f"event {number} gpu 0 xid {number}" for number in range(first, last + 1))


@pytest.mark.parametrize("left", [(0,), (0, 1), ()])
async def test_a_burst_is_handed_over_whole_though_other_gpus_are_watched_in_its_midst(
    watched: Watched, driver: FakeDriver, left: tuple[int, ...]
) -> None:
    watched.watch(0, 1)
    await watched.is_waiting()
    watched.on_first = lambda: watched.watch(*left)
    driver.add(burst(1, 300))
    await asyncio.to_thread(watched.has, 300)
    assert watched.codes == list(range(1, 301))


async def test_errors_are_handed_over_before_the_library_ends(
    watched: Watched, driver: FakeDriver
) -> None:
    watched.watch(0, 1)
    await watched.is_waiting()
    driver.add(burst(1, 300))
    await asyncio.to_thread(watched.watcher.release)
    # The burst came before the release, so it is there when that returns.
    assert watched.codes == list(range(1, 301))
    freed = driver.own_calls("nvmlEventSetFree")
    watched.watch(0, 1)
    await watched.is_waiting()
    assert driver.own_calls("nvmlEventSetFree") == freed
    driver.add(burst(301, 302))
    await asyncio.to_thread(watched.has, 302)
    assert watched.codes[300:] == [301, 302]


async def test_no_error_is_missed_while_the_gpus_change_again_and_again(
    watched: Watched, driver: FakeDriver
) -> None:
    watched.watch(0, 1)
    await watched.is_waiting()
    # One error a millisecond from now on, and a change of what is watched as often.
    lines = [f"event {number} gpu 0 xid {number} {number}000" for number in range(1, 1001)]
    driver.write(f"{GPUS}driver started {time.time_ns() // 1000}\n" + "\n".join(lines) + "\n")
    while 1000 not in watched.codes:
        watched.watch(0)
        await asyncio.sleep(0.001)
        watched.watch(0, 1)
        await asyncio.sleep(0.001)
    # Some are told by two sets, each by one at least.
    assert set(watched.codes) == set(range(1, 1001))


async def test_where_no_new_set_can_be_made_the_one_before_goes_on(
    watched: Watched, driver: FakeDriver
) -> None:
    watched.watch(0, 1)
    await watched.is_waiting()
    driver.add("driver fail nvmlEventSetCreate 999")
    watched.watch(0)
    await watched.is_waiting()
    driver.add(burst(1, 3))
    await asyncio.to_thread(watched.has, 3)
    assert watched.codes == [1, 2, 3]


async def test_a_storm_waits_to_be_taken_at_once_and_what_does_not_fit_is_counted(
    driver: FakeDriver,
) -> None:
    gpus = NvmlGpus(clock=FakeClock(), timeout_seconds=2.0, most_events=1000)
    meter = CostMeter(drivers=[gpus], links=[], journal=EventJournal())
    waits = driver.own_calls("nvmlEventSetWait_v2")
    await gpus.read_gpus()
    async with asyncio.timeout(WAIT_SECONDS):
        while driver.own_calls("nvmlEventSetWait_v2") == waits:  # noqa: ASYNC110  # nothing to await
            await asyncio.sleep(0.01)
        driver.add(burst(1, 4000))
        while meter().lost_events < 3000:  # noqa: ASYNC110  # nothing to await
            await asyncio.sleep(0.01)
    assert [event.xid for event in await gpus.next_events()] == list(range(3001, 4001))
    assert meter().lost_events == 3000
    gpus.close()
