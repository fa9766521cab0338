"""The machine's NVIDIA GPUs, through the driver's management library (NVML).

Calls into the driver block and can hang, so each GPU is read in a thread of its own and within a
time limit: a GPU that hangs or fell off the bus neither delays nor hides the others, and the
figures it still gave are kept. All NVML functions that are needed exist since driver 450; where a
later one tells more or costs less, it is used if the driver has it.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from datetime import datetime

import structlog

from gpu_metrics.adapters.daemon_worker import DaemonWorker
from gpu_metrics.adapters.nvml_discovery import Discovery, FoundGpu, NvmlDriver, is_mismatch
from gpu_metrics.adapters.nvml_events import XidWatcher
from gpu_metrics.adapters.nvml_gpu import NvmlGpu
from gpu_metrics.adapters.nvml_library import NvmlFailed, reason_of
from gpu_metrics.adapters.nvml_probe import LostGpuProbe
from gpu_metrics.domain.driver_health import (
    CounterWatch,
    DriverEpochs,
    GpuHealth,
    change_of_health,
    health_of,
)
from gpu_metrics.domain.gpu_events import GpuEventKind, ObservedEvent, Severity
from gpu_metrics.domain.processes import GpuProcess, ProcessReading
from gpu_metrics.domain.readings import GpuReading, MissingReason
from gpu_metrics.domain.samples import DriverCost, SampleSeries
from gpu_metrics.domain.xid_catalogue import xid_facts
from gpu_metrics.ports import DriverMismatch
from servicekit.clock import Clock

__all__ = ["NvmlGpus"]

log = structlog.get_logger(__name__)

_MOST_EVENTS = 16_384
_RECOVERY_SECONDS = 5.0
# A start of the library opens GPUs, which takes a driver that nothing keeps loaded seconds each.
_LONGEST_START_SECONDS = 10.0

_STATEMENTS = {
    GpuEventKind.GPU_LOST: (Severity.CRITICAL, "restart the host, or replace the instance"),
    GpuEventKind.GPU_HUNG: (Severity.CRITICAL, "drain the host; reset the GPU if it goes on"),
    GpuEventKind.GPU_BACK: (Severity.INFO, ""),
    GpuEventKind.DRIVER_RELOADED: (Severity.INFO, ""),
    GpuEventKind.DRIVER_MISMATCH: (Severity.CRITICAL, "restart the agent's container"),
}
_DESCRIPTIONS = {
    GpuEventKind.GPU_LOST: "the GPU fell off the bus",
    GpuEventKind.GPU_HUNG: "the driver stopped answering for the GPU",
    GpuEventKind.GPU_BACK: "the GPU answers again",
    GpuEventKind.DRIVER_RELOADED: "the driver was loaded anew; counters start from 0",
    GpuEventKind.DRIVER_MISMATCH: "the driver was replaced by another version than the library's",
}


class NvmlGpus:
    """Reads all GPUs of the machine; without a driver there are none, and that is logged.

    A reading takes at most `timeout_seconds`. A GPU whose driver has not answered for
    `hung_after_seconds` is hung: with readings a second apart the second one that is not answered
    says so, 2 s after the hang at most, and 3 s where a lock that one GPU's call holds stops the
    others a reading later. The driver's sample rings are emptied every `ring_seconds`, processes
    and memory errors are read every `slow_seconds`. GPUs are looked up again every
    `discovery_seconds`, and sooner after one was lost or the driver went away. While one is lost
    the others are read as ever: the library is started anew only once another process found that
    the lost one answers, and their samples then go on where they were left.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        timeout_seconds: float = 0.4,
        discovery_seconds: float = 30.0,
        hung_after_seconds: float = 0.9,
        ring_seconds: float = 1.0,
        slow_seconds: float = 10.0,
        most_events: int = _MOST_EVENTS,
    ) -> None:
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._discovery_seconds = discovery_seconds
        self._hung_after_seconds = hung_after_seconds
        self._ring_seconds = ring_seconds
        self._slow_seconds = slow_seconds
        self._driver = NvmlDriver()
        self._worker = DaemonWorker("nvml-driver")
        self._watcher: XidWatcher | None = None
        self._gpus: tuple[NvmlGpu, ...] = ()
        self._handles: dict[int, str] = {}
        self._processes_time = clock.now()
        self._discover_at = clock.monotonic()
        self._probe = LostGpuProbe(pause_seconds=discovery_seconds)
        self._start_wanted = False
        self._starting = False
        self._started_at = clock.monotonic()
        self._away = False
        self._epochs = DriverEpochs()
        self._most_events = most_events
        self._events: deque[ObservedEvent] = deque()
        self._events_wait = asyncio.Event()
        self._lost_events = 0
        self._mismatch = False
        self._driver_version = ""
        self._last_problem = ""

    @property
    def driver_version(self) -> str:
        """Return the driver's version; empty while it is unknown."""
        return self._driver_version

    @property
    def cost(self) -> DriverCost:
        """Return the calls into the driver, the time spent there and the events given up."""
        meters = [self._driver.meter, *(gpu.meter for gpu in self._gpus)]
        if self._watcher is not None:
            meters.append(self._watcher.meter)
        return DriverCost(
            sum(meter.calls for meter in meters),
            sum(meter.seconds for meter in meters),
            self._lost_events,
        )

    async def next_events(self) -> Sequence[ObservedEvent]:
        """Wait for events of a GPU or the driver and return all that wait.

        Beyond `most_events` that nobody took the oldest are given up, and counted in `cost`.
        """
        await self._events_wait.wait()
        self._events_wait.clear()
        events = tuple(self._events)
        self._events.clear()
        return events

    async def read_gpus(self) -> Sequence[GpuReading]:
        """Return all GPUs, each figure a value or the reason it is missing.

        Raises `DriverMismatch` when the driver was replaced under the library.
        """
        if self._clock.monotonic() >= self._discover_at and not self._worker.busy:
            await self._discover()
        if self._mismatch:
            raise DriverMismatch
        now = self._clock.monotonic()
        begun = [] if self._is_starting(now) else self._begin(now)
        if under_way := [reading for reading in begun if reading is not None]:
            done, _ = await asyncio.wait(under_way, timeout=self._timeout_seconds)
            for reading in done:
                # The driver's errors are reasons in the reading; anything else is a fault of ours.
                reading.result()
        now = self._clock.monotonic()
        for gpu in self._gpus:
            gpu.finish(now, hung_after_seconds=self._hung_after_seconds)
            self._judge(gpu)
        self._judge_driver()
        return [gpu.as_reading() for gpu in self._gpus]

    def _begin(self, now: float) -> "list[asyncio.Future[None] | None]":
        return [
            gpu.begin(
                now,
                time=self._clock.now(),
                ring_seconds=self._ring_seconds,
                slow_seconds=self._slow_seconds,
            )
            for gpu in self._gpus
        ]

    def _is_starting(self, now: float) -> bool:
        """Return whether the library starts anew, so that no reading may be begun."""
        if not self._starting:
            return False
        hangs = now >= self._started_at + _LONGEST_START_SECONDS
        for gpu in self._gpus:
            gpu.wait(MissingReason.HUNG if hangs else MissingReason.TIMEOUT)
        return True

    def take_series(self, sample_time: datetime) -> tuple[SampleSeries, ...]:
        """Return the samples since the last call, their offsets counted from `sample_time`."""
        return tuple(series for gpu in self._gpus for series in gpu.take_series(sample_time))

    async def read_processes(self) -> ProcessReading:
        """Return who uses the GPUs, as the driver said within the last `slow_seconds`.

        The time of the reading is that of the oldest list in it, and never goes back.
        """
        times: list[datetime] = []
        processes: list[GpuProcess] = []
        missing: list[tuple[str, int]] = []
        for gpu in self._gpus:
            found = gpu.processes()
            if found is MissingReason.NOT_TOLD:
                # Not asked yet.
                continue
            if isinstance(found, MissingReason):
                missing.append((gpu.found.uuid, found.value))
                continue
            times.append(gpu.listed_time)
            processes.extend(
                GpuProcess(process_id=process, gpu_uuid=gpu.found.uuid, memory_used_bytes=memory)
                for process, memory in found
            )
        self._processes_time = max(self._processes_time, min(times, default=self._processes_time))
        return ProcessReading(
            read_time=self._processes_time, processes=tuple(processes), missing=tuple(missing)
        )

    def _judge(self, gpu: NvmlGpu) -> None:
        """Note what a reading says of the GPU's driver, before the reading is given out."""
        before = gpu.health
        gpu.health, happened = change_of_health(before, health_of(gpu.last_figures))
        if gpu.counters.restarted(gpu.last_figures):
            gpu.epoch, is_news = self._epochs.restart(gpu.epoch, self._now_milliseconds())
            if is_news and before is not GpuHealth.LOST:
                self._tell(GpuEventKind.DRIVER_RELOADED, epoch=gpu.epoch)
        elif happened is GpuEventKind.GPU_BACK and before is GpuHealth.LOST:
            # It was reset meanwhile, and its counters may have passed where they were.
            gpu.epoch = self._epochs.start(self._now_milliseconds())
        if happened is not None:
            self._tell(happened, gpu_uuid=gpu.found.uuid, epoch=gpu.epoch)

    def _judge_driver(self) -> None:
        """Look for GPUs soon when one was lost, or at once when the driver is another one."""
        if not self._gpus:
            return
        soon = self._clock.monotonic() + _RECOVERY_SECONDS
        lost = any(gpu.health is GpuHealth.LOST for gpu in self._gpus)
        if self._watcher is not None:
            # A start of the library has to wait for it.
            self._watcher.brief = lost
        if lost:
            self._discover_at = min(self._discover_at, soon)
        if any(gpu.meter.detached for gpu in self._gpus) and not self._away:
            self._away = True
            self._discover_at = self._clock.monotonic()

    async def _discover(self) -> None:
        now = self._clock.monotonic()
        self._discover_at = now + (_RECOVERY_SECONDS if self._away else self._discovery_seconds)
        watcher = self._watcher = self._watcher or self._new_watcher()
        known_uuids = {gpu.found.driver_index: gpu.found.uuid for gpu in self._gpus}
        # A GPU that was reset may need a new start of the library, which no reading may see.
        lost = [gpu.found for gpu in self._gpus if gpu.health is GpuHealth.LOST]
        wanted = self._probe.wants_start(lost, now) or (self._start_wanted and bool(lost))
        self._start_wanted = wanted and not await self._drained()
        attach_anew = self._away or (wanted and not self._start_wanted)
        if attach_anew and not self._away:
            self._probe.started(now)

        def look_up() -> Discovery:
            if attach_anew:
                # Its events end with the library: as late as can be, so that few can be missed.
                watcher.release()
            return self._driver.look_up(known_uuids, attach_anew=attach_anew)

        lookup = self._worker.call(look_up)
        if attach_anew:
            self._starting, self._started_at = True, now
        if attach_anew or not self._gpus:
            await asyncio.wait({lookup}, timeout=self._timeout_seconds)
        if lookup.done():
            self._take(lookup)
            return
        # What is known is read on meanwhile; the answer is taken whenever it comes.
        if not self._gpus:
            self._note_problem("TIMEOUT")
        lookup.add_done_callback(self._take_late)

    def _new_watcher(self) -> XidWatcher:
        loop = asyncio.get_running_loop()

        def hand_over(uuid: str, code: int) -> None:
            try:
                loop.call_soon_threadsafe(self._note_xid, uuid, code)
            except RuntimeError:
                log.info("xid_after_close", xid=code)

        return XidWatcher(hand_over)

    async def _drained(self) -> bool:
        """Take all samples that wait, as handles end; return whether no call is left under way."""
        if draining := [each for gpu in self._gpus if (each := gpu.drain()) is not None]:
            await asyncio.wait(draining, timeout=self._timeout_seconds)
        return not any(gpu.busy for gpu in self._gpus)

    def _take_late(self, lookup: "asyncio.Future[Discovery]") -> None:
        if not lookup.cancelled():
            self._take(lookup)

    def _take(self, lookup: "asyncio.Future[Discovery]") -> None:
        self._starting = False
        error = lookup.exception()
        if isinstance(error, NvmlFailed):
            self._note_problem(str(error))
            self._lose_driver(error)
        elif error is not None:
            raise error
        else:
            self._note_problem("")
            self._replace(lookup.result())

    def _lose_driver(self, failed: NvmlFailed) -> None:
        """GPUs known before are shown without figures until there is a driver again."""
        self._away = True
        self._discover_at = min(self._discover_at, self._clock.monotonic() + _RECOVERY_SECONDS)
        for gpu in self._gpus:
            gpu.detach(reason_of(failed.code))
            gpu.meter.detached = False
        self._handles = {}
        if is_mismatch(failed) and not self._mismatch:
            self._mismatch = True
            self._tell(GpuEventKind.DRIVER_MISMATCH)

    def _replace(self, discovery: Discovery) -> None:
        """Take over what was found; each GPU keeps its thread, one that is gone is lost."""
        self._driver_version = discovery.driver_version
        by_uuid = {gpu.found.uuid: gpu for gpu in self._gpus}
        was_away, self._away = self._away, False
        fresh_epoch = 0
        if self._epochs.current == 0 or (was_away and discovery.attached_anew):
            fresh_epoch = self._epochs.start(self._now_milliseconds())
            if self._gpus:
                self._tell(GpuEventKind.DRIVER_RELOADED, epoch=fresh_epoch)
        gpus: list[NvmlGpu] = []
        for found in discovery.gpus:
            gpu = by_uuid.pop(found.uuid, None)
            if gpu is None:
                gpu = self._new_gpu(found, gpus)
                gpu.attach(discovery.library, found)
            elif discovery.attached_anew or found.handle != gpu.found.handle:
                gpu.attach(discovery.library, found, same_run=not was_away)
            gpu.meter.detached = False
            if fresh_epoch:
                # Counters that fall now are no further start.
                gpu.epoch, gpu.counters = fresh_epoch, CounterWatch()
            gpus.append(gpu)
        for gpu in by_uuid.values():
            if gpu.found.uuid.startswith("unidentified-"):
                # The cost since the start does not go down with it.
                self._driver.meter.calls += gpu.meter.calls
                self._driver.meter.seconds += gpu.meter.seconds
                gpu.close()
            else:
                gpu.detach(MissingReason.LOST)
                gpus.append(gpu)
        self._gpus = tuple(sorted(gpus, key=lambda gpu: gpu.index))
        handles = {found.handle: found.uuid for found in discovery.gpus if found.handle}
        if self._watcher is not None and (handles != self._handles or discovery.attached_anew):
            self._watcher.watch(discovery.library, handles)
        self._handles = handles

    def _new_gpu(self, found: FoundGpu, others: Sequence[NvmlGpu]) -> NvmlGpu:
        taken = {other.index for other in (*self._gpus, *others)}
        index = found.driver_index
        while index in taken:
            index += 1
        gpu = NvmlGpu(index, found)
        gpu.epoch = self._epochs.current
        return gpu

    def _note_xid(self, uuid: str, code: int) -> None:
        facts = xid_facts(code)
        epochs = [gpu.epoch for gpu in self._gpus if gpu.found.uuid == uuid]
        self._put(
            ObservedEvent(
                kind=GpuEventKind.XID,
                time=self._clock.now(),
                gpu_uuid=uuid,
                xid=code,
                severity=facts.severity,
                recommended_action=facts.action.value,
                description=facts.description,
                driver_epoch=epochs[0] if epochs else 0,
            )
        )

    def _tell(self, kind: GpuEventKind, *, gpu_uuid: str = "", epoch: int = 0) -> None:
        severity, action = _STATEMENTS[kind]
        self._put(
            ObservedEvent(
                kind=kind,
                time=self._clock.now(),
                gpu_uuid=gpu_uuid,
                severity=severity,
                recommended_action=action,
                description=_DESCRIPTIONS[kind],
                driver_epoch=epoch,
            )
        )

    def _put(self, event: ObservedEvent) -> None:
        self._events.append(event)
        self._events_wait.set()
        if len(self._events) > self._most_events:
            given_up = self._events.popleft()
            self._lost_events += 1
            if self._lost_events.bit_count() == 1:
                # In a storm, at powers of two alone.
                log.warning(
                    "gpu_events_given_up",
                    kind=given_up.kind.name,
                    xid=given_up.xid,
                    lost_events=self._lost_events,
                )

    def _now_milliseconds(self) -> int:
        return int(self._clock.now().timestamp() * 1000)

    def _note_problem(self, problem: str) -> None:
        if problem != self._last_problem:
            self._last_problem = problem
            if problem:
                log.warning("nvml_unavailable", cause=problem)
            else:
                log.info("nvml_available")

    def close(self) -> None:
        """Let all threads end."""
        for gpu in self._gpus:
            gpu.close()
        if self._watcher is not None:
            self._watcher.close()
        self._probe.close()
        self._worker.close()
