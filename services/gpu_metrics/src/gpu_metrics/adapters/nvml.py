"""The machine's NVIDIA GPUs, through the driver's management library (NVML).

Calls into the driver block and can hang, so each GPU is read in a thread of its own and within a
time limit: a GPU that hangs or fell off the bus neither delays nor hides the others, and the
figures it still gave are kept. All NVML functions used exist since driver 450.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pynvml
import structlog

from gpu_metrics.adapters.daemon_worker import DaemonWorker
from gpu_metrics.domain.readings import CountReading, GpuReading, MissingReason
from servicekit.clock import Clock

__all__ = ["NvmlGpus"]

log = structlog.get_logger(__name__)

_REASONS = {
    pynvml.NVML_ERROR_NOT_SUPPORTED: MissingReason.UNSUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: MissingReason.UNSUPPORTED,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH: MissingReason.UNSUPPORTED,
    pynvml.NVML_ERROR_NO_DATA: MissingReason.UNSUPPORTED,
    pynvml.NVML_ERROR_GPU_IS_LOST: MissingReason.LOST,
    pynvml.NVML_ERROR_GPU_NOT_FOUND: MissingReason.LOST,
    pynvml.NVML_ERROR_RESET_REQUIRED: MissingReason.LOST,
    pynvml.NVML_ERROR_TIMEOUT: MissingReason.TIMEOUT,
    pynvml.NVML_ERROR_NOT_READY: MissingReason.TIMEOUT,
    pynvml.NVML_ERROR_NO_PERMISSION: MissingReason.PERMISSION,
    pynvml.NVML_ERROR_CORRUPTED_INFOROM: MissingReason.MALFORMED,
}


def _reason_of(error: Exception) -> MissingReason:
    code = getattr(error, "value", None)
    return _REASONS.get(code, MissingReason.UNREACHABLE)


def _memory(handle: Any) -> tuple[int, ...]:
    # Version 2 leaves out what the driver keeps for itself; old drivers only have version 1.
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2)
    except pynvml.NVMLError as error:
        if _reason_of(error) is not MissingReason.UNSUPPORTED:
            raise
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return memory.used, memory.total


_READERS: tuple[tuple[tuple[str, ...], Callable[[Any], tuple[int, ...]]], ...] = (
    (
        ("utilization_permille",),
        lambda handle: (pynvml.nvmlDeviceGetUtilizationRates(handle).gpu * 10,),
    ),
    (("memory_used_bytes", "memory_total_bytes"), _memory),
    (("power_milliwatts",), lambda handle: (pynvml.nvmlDeviceGetPowerUsage(handle),)),
    (
        ("energy_millijoules",),
        lambda handle: (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle),),
    ),
    (
        ("temperature_celsius",),
        lambda handle: (pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),),
    ),
    (
        ("sm_clock_megahertz",),
        lambda handle: (pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),),
    ),
)
_FIGURES = tuple(name for names, _ in _READERS for name in names)


@dataclass(frozen=True, slots=True)
class _FoundGpu:
    """A GPU the driver counts; `handle` is the reason instead when it cannot be opened."""

    index: int
    handle: Any
    uuid: str
    product_name: str


def _find_gpus(known_uuids: dict[int, str]) -> list[_FoundGpu]:
    """Open all GPUs the driver counts; runs in a thread. Raises `NVMLError` without a driver."""
    pynvml.nvmlInit()
    found = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        fallback_uuid = known_uuids.get(index, f"unidentified-{index}")
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = pynvml.nvmlDeviceGetUUID(handle)
        except pynvml.NVMLError as error:
            found.append(_FoundGpu(index, _reason_of(error), fallback_uuid, ""))
            continue
        try:
            name = pynvml.nvmlDeviceGetName(handle)
        except pynvml.NVMLError:
            name = ""
        found.append(_FoundGpu(index, handle, str(uuid), str(name)))
    return found


def _read_figures(handle: Any, figures: dict[str, CountReading]) -> None:
    """Read all figures into `figures`, one by one, so that those before a hang are kept."""
    for names, read in _READERS:
        try:
            figures.update(zip(names, read(handle), strict=True))
        except pynvml.NVMLError as error:
            figures.update(dict.fromkeys(names, _reason_of(error)))


class _Gpu:
    """One GPU and the thread that reads it."""

    def __init__(self, found: _FoundGpu) -> None:
        self.found = found
        self._worker = DaemonWorker(f"nvml-gpu-{found.index}")

    async def read(self, timeout_seconds: float) -> GpuReading:
        """Return the GPU's figures within the limit."""
        figures: dict[str, CountReading] = {}
        missing = MissingReason.TIMEOUT
        handle = self.found.handle
        if isinstance(handle, MissingReason):
            missing = handle
        elif not self._worker.busy:
            # While an earlier call still hangs, none is added: the GPU stays timed out.
            reading = self._worker.call(lambda: _read_figures(handle, figures))
            await asyncio.wait({reading}, timeout=timeout_seconds)
        read = dict(figures)
        readings: dict[str, Any] = {name: read.get(name, missing) for name in _FIGURES}
        return GpuReading(
            gpu_uuid=self.found.uuid,
            index=self.found.index,
            product_name=self.found.product_name,
            **readings,
        )

    def close(self) -> None:
        """Let the thread end."""
        self._worker.close()


class NvmlGpus:
    """Reads all GPUs of the machine; without a driver there are none, and that is logged.

    GPUs are looked up again every `discovery_seconds`, and sooner after one was lost, as its
    handle is not valid after a reset. A reading takes at most `timeout_seconds`, a lookup as much
    again.
    """

    def __init__(
        self, *, clock: Clock, timeout_seconds: float = 0.4, discovery_seconds: float = 30.0
    ) -> None:
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._discovery_seconds = discovery_seconds
        self._driver = DaemonWorker("nvml-driver")
        self._gpus: tuple[_Gpu, ...] = ()
        self._discover_at = clock.monotonic()
        self._last_problem = ""

    async def read_gpus(self) -> Sequence[GpuReading]:
        """Return all GPUs, each figure a value or the reason it is missing."""
        if self._clock.monotonic() >= self._discover_at and not self._driver.busy:
            await self._discover()
        readings = await asyncio.gather(*(gpu.read(self._timeout_seconds) for gpu in self._gpus))
        if any(reading.power_milliwatts is MissingReason.LOST for reading in readings):
            self._discover_at = min(self._discover_at, self._clock.monotonic() + 5.0)
        return readings

    async def _discover(self) -> None:
        self._discover_at = self._clock.monotonic() + self._discovery_seconds
        known_uuids = {gpu.found.index: gpu.found.uuid for gpu in self._gpus}
        lookup = self._driver.call(lambda: _find_gpus(known_uuids))
        done, _ = await asyncio.wait({lookup}, timeout=self._timeout_seconds)
        if not done:
            # A slow driver keeps what was known; the lookup goes on and its answer comes later.
            self._note_problem("TIMEOUT")
            lookup.add_done_callback(self._take_late)
            return
        self._take(lookup)

    def _take_late(self, lookup: "asyncio.Future[list[_FoundGpu]]") -> None:
        if not lookup.cancelled():
            self._take(lookup)

    def _take(self, lookup: "asyncio.Future[list[_FoundGpu]]") -> None:
        error = lookup.exception()
        if isinstance(error, Exception):
            # No driver, or one that is being replaced; GPUs known before are shown as unreachable.
            self._note_problem(type(error).__name__)
            reason = _reason_of(error)
            self._replace(
                [
                    _FoundGpu(gpu.found.index, reason, gpu.found.uuid, gpu.found.product_name)
                    for gpu in self._gpus
                ]
            )
            return
        self._note_problem("")
        self._replace(lookup.result())

    def _replace(self, found: Sequence[_FoundGpu]) -> None:
        """Keep each GPU's thread, so that one that hangs is not given another."""
        by_index = {gpu.found.index: gpu for gpu in self._gpus}
        gpus = []
        for each in found:
            gpu = by_index.pop(each.index, None) or _Gpu(each)
            gpu.found = each
            gpus.append(gpu)
        for gone in by_index.values():
            gone.close()
        self._gpus = tuple(gpus)

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
        self._driver.close()
