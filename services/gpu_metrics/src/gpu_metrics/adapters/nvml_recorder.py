"""Records what the driver of this machine answers, call by call.

Everything is asked in one thread, one call after the other, so that times are those of the driver
alone. After that, if wanted, two threads ask at once: where the driver does one thing at a time,
each then waits for the other. A GPU whose call does not return is left out from then on, with its
thread; where the driver as a whole does not answer any more the recording ends.
"""

import ctypes
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import pynvml

from gpu_metrics.adapters.nvml_discovery import Discovery, FoundGpu, NvmlDriver
from gpu_metrics.adapters.nvml_events import XidWatcher
from gpu_metrics.adapters.nvml_fields import FAST_FIELDS, SLOW_FIELDS, FieldBatch
from gpu_metrics.adapters.nvml_hung_calls import CallHung, WatchedMeter, from_threads
from gpu_metrics.adapters.nvml_library import CallMeter, NvmlLibrary, PreparedCall
from gpu_metrics.adapters.nvml_processes import ProcessList
from gpu_metrics.adapters.nvml_rings import SampleRing
from gpu_metrics.domain.driver_recording import DriverCall, RecordedGpu, Recording
from gpu_metrics.domain.readings import MissingReason
from gpu_metrics.domain.samples import FleetMetric

__all__ = ["Recorder"]

_SLOW_SECONDS = 10.0
_CONTENDED_ROUND_SECONDS = 0.02
# Figures that functions give as one number, with the argument that chooses it.
_NUMBERS: tuple[tuple[str, str, int | None], ...] = (
    ("temperature", "nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU),
    ("sm_clock", "nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM),
    ("memory_clock", "nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_MEM),
    ("graphics_clock", "nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_GRAPHICS),
    ("max_sm_clock", "nvmlDeviceGetMaxClockInfo", pynvml.NVML_CLOCK_SM),
    ("max_memory_clock", "nvmlDeviceGetMaxClockInfo", pynvml.NVML_CLOCK_MEM),
    ("clock_event_reasons", "nvmlDeviceGetCurrentClocksThrottleReasons", None),
    ("performance_state", "nvmlDeviceGetPerformanceState", None),
    ("power", "nvmlDeviceGetPowerUsage", None),
    ("power_limit", "nvmlDeviceGetEnforcedPowerLimit", None),
    ("energy", "nvmlDeviceGetTotalEnergyConsumption", None),
    ("pcie_replays", "nvmlDeviceGetPcieReplayCounter", None),
    ("fan", "nvmlDeviceGetFanSpeed", None),
)
_SLOW_NUMBERS: tuple[tuple[str, str, int | None], ...] = (
    ("pcie_tx", "nvmlDeviceGetPcieThroughput", pynvml.NVML_PCIE_UTIL_TX_BYTES),
    ("pcie_rx", "nvmlDeviceGetPcieThroughput", pynvml.NVML_PCIE_UTIL_RX_BYTES),
)
_RINGS = {
    "power": (pynvml.NVML_TOTAL_POWER_SAMPLES, FleetMetric.GPU_POWER_MILLIWATTS),
    "utilization": (pynvml.NVML_GPU_UTILIZATION_SAMPLES, FleetMetric.GPU_UTILIZATION_PERMILLE),
    "memory_utilization": (
        pynvml.NVML_MEMORY_UTILIZATION_SAMPLES,
        FleetMetric.GPU_MEMORY_UTILIZATION_PERMILLE,
    ),
    "sm_clock": (pynvml.NVML_PROCESSOR_CLK_SAMPLES, FleetMetric.GPU_SM_CLOCK_MEGAHERTZ),
}

_Answer = Callable[[int], dict[str, Any]]
_Item = TypeVar("_Item")


class _Probe:
    """The calls of one GPU, each with what it answers."""

    def __init__(self, library: NvmlLibrary, index: int, handle: Any) -> None:
        self.meter = WatchedMeter(index)
        self.fast = [self._utilization(library, handle), *self._memory(library, handle)]
        self.fast += [self._number(library, handle, *number) for number in _NUMBERS]
        self.slow = [self._number(library, handle, *number) for number in _SLOW_NUMBERS]
        self.fields = FieldBatch(library, handle, FAST_FIELDS | SLOW_FIELDS)
        self.numbers = FAST_FIELDS | SLOW_FIELDS
        self.processes = ProcessList(library, handle)
        self.rings = {
            name: SampleRing(library, handle, ring, metric=metric)
            for name, (ring, metric) in _RINGS.items()
        }

    @staticmethod
    def _utilization(library: NvmlLibrary, handle: Any) -> tuple[str, PreparedCall, _Answer]:
        rates = pynvml.c_nvmlUtilization_t()
        name = "nvmlDeviceGetUtilizationRates"
        return (
            name,
            library.prepare(name, handle, ctypes.byref(rates)),
            lambda _: {"utilization": rates.gpu, "memory_utilization": rates.memory},
        )

    @staticmethod
    def _memory(library: NvmlLibrary, handle: Any) -> list[tuple[str, PreparedCall, _Answer]]:
        memory = pynvml.c_nvmlMemory_v2_t()
        memory.version = pynvml.nvmlMemory_v2
        older = pynvml.c_nvmlMemory_t()
        return [
            (
                "nvmlDeviceGetMemoryInfo_v2",
                library.prepare("nvmlDeviceGetMemoryInfo_v2", handle, ctypes.byref(memory)),
                lambda _: {
                    "memory_total": memory.total,
                    "memory_used": memory.used,
                    "memory_reserved": memory.reserved,
                },
            ),
            (
                "nvmlDeviceGetMemoryInfo",
                library.prepare("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(older)),
                lambda _: {},
            ),
        ]

    @staticmethod
    def _number(
        library: NvmlLibrary, handle: Any, figure: str, function: str, argument: int | None
    ) -> tuple[str, PreparedCall, _Answer]:
        value = ctypes.c_ulonglong()
        arguments = [handle] if argument is None else [handle, ctypes.c_int(argument)]
        call = library.prepare(function, *arguments, ctypes.byref(value))
        return function, call, lambda _: {figure: value.value}


class _PatientDriver(NvmlDriver):
    """Leaves out the GPUs that hang when they are opened."""

    def __init__(self, hung: frozenset[int]) -> None:
        super().__init__()
        self.meter: WatchedMeter = WatchedMeter()
        self._hung = hung

    def _open(self, library: NvmlLibrary, index: int, known_uuids: Mapping[int, str]) -> FoundGpu:
        if index not in self._hung:
            return super()._open(library, index, known_uuids)
        self.meter.gpu = index
        return FoundGpu(index, f"unidentified-{index}", reason=MissingReason.HUNG)

    def found(self) -> Iterator[Discovery]:
        """Yield what there is, once."""
        yield self.look_up(MappingProxyType({}), attach_anew=False)


class Recorder:
    """Asks the driver of every GPU again and again, until `stopping` is set.

    A call that takes longer than `call_limit_seconds` counts as hung; `hung` tells of each. Raises
    `NvmlFailed` without a driver, and `CallHung` where it does not even say which GPUs there are.
    """

    def __init__(
        self, *, call_limit_seconds: float = 5.0, stopping: threading.Event | None = None
    ) -> None:
        self.hung: list[CallHung] = []
        self._call_limit_seconds = call_limit_seconds
        self._stopping = stopping or threading.Event()
        found = self._find()
        self._library = found.library
        self._probes: dict[int, _Probe] = {}
        self._handles: dict[int, int] = {}
        self._started = time.time_ns() // 1000
        self._xids: list[DriverCall] = []
        self._guard = threading.Lock()
        uuids: dict[int, str] = {}
        self._order: dict[str, int] = {}
        for gpu in found.gpus:
            self._order[gpu.uuid] = gpu.driver_index
            if gpu.handle:
                uuids[gpu.handle] = gpu.uuid
                self._handles[gpu.driver_index] = gpu.handle
                self._probes[gpu.driver_index] = self._probe(gpu.driver_index)
        self.recording = Recording(
            found.driver_version,
            self._started,
            tuple(RecordedGpu(gpu.uuid, gpu.product_name) for gpu in found.gpus),
        )
        self._watcher = XidWatcher(self._note_xid)
        self._watcher.watch(found.library, uuids)

    def _find(self) -> Discovery:
        while True:
            driver = _PatientDriver(frozenset(each.gpu for each in self.hung))
            # Looking the GPUs up is not interrupted: it answers or hangs.
            looking = self._threads([driver.found()], [driver.meter], threading.Event())
            try:
                return next(looking)
            except CallHung as hung:
                if hung.gpu < 0 or any(hung.gpu == each.gpu for each in self.hung):
                    raise hung from (self.hung[0] if self.hung else None)
                self.hung.append(hung)

    def _threads(
        self,
        sources: Sequence[Iterator[_Item]],
        meters: Sequence[WatchedMeter],
        stopping: threading.Event | None = None,
    ) -> Iterator[_Item]:
        return from_threads(
            sources,
            meters,
            limit_seconds=self._call_limit_seconds,
            stopping=stopping or self._stopping,
        )

    def _probe(self, index: int) -> _Probe:
        return _Probe(self._library, index, ctypes.c_void_p(self._handles[index]))

    def _since_start(self) -> int:
        return time.time_ns() // 1000 - self._started

    def _note_xid(self, uuid: str, code: int) -> None:
        at, gpu = self._since_start(), self._order.get(uuid, 0)
        with self._guard:
            self._xids.append(DriverCall(at, gpu, "nvmlEventSetWait_v2", 0, 0.0, {"xid": code}))

    def _taken_xids(self) -> list[DriverCall]:
        with self._guard:
            xids, self._xids = self._xids, []
        return xids

    def run(self, *, seconds: float, interval_seconds: float) -> Iterator[DriverCall]:
        """Yield every call that is made in this time; each figure is asked once an interval."""
        until = time.monotonic() + seconds
        while self._probes and time.monotonic() < until:
            meters = [probe.meter for probe in self._probes.values()]
            try:
                yield from self._threads(
                    [self._rounds(dict(self._probes), until, interval_seconds)], meters
                )
            except CallHung as hung:
                self._leave_out(hung)
            else:
                return

    def _leave_out(self, hung: CallHung) -> None:
        self.hung.append(hung)
        self._probes.pop(hung.gpu, None)

    def _rounds(
        self, probes: Mapping[int, _Probe], until: float, interval_seconds: float
    ) -> Iterator[DriverCall]:
        due = slow_due = time.monotonic()
        while due < until and not self._stopping.wait(max(0.0, due - time.monotonic())):
            slow = time.monotonic() >= slow_due
            if slow:
                slow_due = time.monotonic() + _SLOW_SECONDS
            for index, probe in probes.items():
                yield from self._ask(index, probe, slow=slow)
            yield from self._taken_xids()
            due = max(due + interval_seconds, time.monotonic())

    def run_contended(self, *, seconds: float) -> Iterator[DriverCall]:
        """Yield the calls of two threads that ask at once: of the first GPU and of the last.

        They begin each round together, fifty times a second. The interpreter runs one thread at a
        time between the calls, which adds microseconds to what a call is seen to take.
        """
        if not self._probes or seconds <= 0:
            return
        probes = [self._probe(min(self._probes)), self._probe(max(self._probes))]
        until = time.monotonic() + seconds
        together = threading.Barrier(len(probes))
        sources = [
            self._contended(probe, thread, together, until)
            for thread, probe in enumerate(probes, start=1)
        ]
        try:
            yield from self._threads(sources, [probe.meter for probe in probes])
        except CallHung as hung:
            self._leave_out(hung)
        finally:
            together.abort()
        yield from self._taken_xids()

    def _contended(
        self, probe: _Probe, thread: int, together: threading.Barrier, until: float
    ) -> Iterator[DriverCall]:
        with suppress(threading.BrokenBarrierError):
            while time.monotonic() < until and not self._stopping.wait(_CONTENDED_ROUND_SECONDS):
                together.wait()
                for name, call, _ in probe.fast:
                    code, at, took = self._timed(probe.meter, call)
                    yield DriverCall(at, probe.meter.gpu, name, code, took, {}, thread)
        # Whoever waits for this thread waits no longer.
        together.abort()

    def _ask(self, index: int, probe: _Probe, *, slow: bool) -> Iterator[DriverCall]:
        for name, call, answer in probe.fast + (probe.slow if slow else []):
            code, at, took = self._timed(probe.meter, call)
            yield DriverCall(at, index, name, code, took, answer(code) if code == 0 else {})
        yield self._observed(index, probe, "nvmlDeviceGetFieldValues", lambda: self._fields(probe))
        for name in probe.rings:
            samples = partial(self._samples, name, probe)
            yield self._observed(index, probe, "nvmlDeviceGetSamples", samples)
        if slow:
            yield self._observed(
                index,
                probe,
                "nvmlDeviceGetComputeRunningProcesses_v3",
                lambda: self._processes(probe),
            )

    def _timed(self, meter: CallMeter, call: PreparedCall) -> tuple[int, int, float]:
        at, before = self._since_start(), meter.seconds
        code = meter.run(call)
        return code, at, (meter.seconds - before) * 1e6

    def _observed(
        self, index: int, probe: _Probe, name: str, ask: Callable[[], dict[str, Any]]
    ) -> DriverCall:
        codes: list[int] = []
        at, before = self._since_start(), probe.meter.seconds
        probe.meter.observe = lambda _call, code, _took: codes.append(code)
        try:
            answer = ask()
        finally:
            probe.meter.observe = None
        took = (probe.meter.seconds - before) * 1e6
        return DriverCall(at, index, name, codes[-1] if codes else 0, took, answer)

    @staticmethod
    def _fields(probe: _Probe) -> dict[str, Any]:
        values = probe.fields.read(probe.meter)
        if probe.fields.failed is not None:
            return {}
        statuses = probe.fields.statuses()
        return {
            "fields": {
                str(probe.numbers[name]): [
                    statuses[name],
                    None if isinstance(field.value, MissingReason) else field.value,
                ]
                for name, field in values.items()
            }
        }

    @staticmethod
    def _samples(name: str, probe: _Probe) -> dict[str, Any]:
        ring = probe.rings[name]
        ring.drain(probe.meter, time.time_ns() // 1000, MissingReason.NOT_TOLD)
        samples = [list(sample) for sample in ring.samples]
        ring.samples.clear()
        return {"ring": name, "samples": samples}

    @staticmethod
    def _processes(probe: _Probe) -> dict[str, Any]:
        probe.processes.read(probe.meter)
        last = probe.processes.last
        return (
            {} if isinstance(last, MissingReason) else {"processes": [list(each) for each in last]}
        )

    def close(self) -> None:
        """Stop watching for XIDs, and asking."""
        self._stopping.set()
        self._watcher.close()
