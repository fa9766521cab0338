"""What is read of one GPU, with every call and buffer prepared once.

The calls are made in the GPU's own thread and may hang. Figures arrive in the caller's dictionary
one by one, so that those before a hang are kept.
"""

import ctypes
import dataclasses
import time
from typing import Any

import pynvml

from gpu_metrics.adapters.nvml_fields import FAST_FIELDS, SLOW_FIELDS, FieldBatch, FieldValue
from gpu_metrics.adapters.nvml_library import CallMeter, NvmlLibrary, reason_of
from gpu_metrics.adapters.nvml_processes import ProcessList
from gpu_metrics.adapters.nvml_rings import SampleRing
from gpu_metrics.domain.driver_health import CounterWatch
from gpu_metrics.domain.readings import CountReading, MissingReason
from gpu_metrics.domain.samples import FleetMetric

__all__ = ["NvmlDevice"]

_SUCCESS = pynvml.NVML_SUCCESS
_UNSUPPORTED = MissingReason.UNSUPPORTED

_FIELD_FIGURES = (
    "power_milliwatts",
    "power_limit_milliwatts",
    "energy_millijoules",
    "memory_temperature_celsius",
    "pcie_replays_total",
)
# Calls for figures whose fields an older driver does not know.
_INSTEAD_OF_FIELDS = {
    "power_milliwatts": "nvmlDeviceGetPowerUsage",
    "power_limit_milliwatts": "nvmlDeviceGetEnforcedPowerLimit",
    "energy_millijoules": "nvmlDeviceGetTotalEnergyConsumption",
    "pcie_replays_total": "nvmlDeviceGetPcieReplayCounter",
}
# Bits of clock_event_reasons, by the counter that grows while the reason holds.
_REASON_BITS = {
    "held_by_power_cap": pynvml.nvmlClocksEventReasonSwPowerCap,
    "held_by_sync_boost": pynvml.nvmlClocksEventReasonSyncBoost,
    "held_by_thermal_slowdown": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
    "held_by_hardware_thermal_slowdown": pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
    "held_by_power_brake": pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
}
_PCIE = {
    "pcie_transmit_bytes_per_second": ("pcie_transmit_bytes", pynvml.NVML_PCIE_UTIL_TX_BYTES),
    "pcie_receive_bytes_per_second": ("pcie_receive_bytes", pynvml.NVML_PCIE_UTIL_RX_BYTES),
}
_BYTES_PER_THROUGHPUT_UNIT = 1024

_RINGS = (
    # figure, ring, metric, driver's unit in the metric's
    (
        "utilization_permille",
        pynvml.NVML_GPU_UTILIZATION_SAMPLES,
        FleetMetric.GPU_UTILIZATION_PERMILLE,
        10,
    ),
    (
        "memory_utilization_permille",
        pynvml.NVML_MEMORY_UTILIZATION_SAMPLES,
        FleetMetric.GPU_MEMORY_UTILIZATION_PERMILLE,
        10,
    ),
    ("power_milliwatts", pynvml.NVML_TOTAL_POWER_SAMPLES, FleetMetric.GPU_POWER_MILLIWATTS, 1),
    (
        "sm_clock_megahertz",
        pynvml.NVML_PROCESSOR_CLK_SAMPLES,
        FleetMetric.GPU_SM_CLOCK_MEGAHERTZ,
        1,
    ),
)


class _Single:
    """One number that the driver gives by a call of its own."""

    __slots__ = ("_call", "_value")

    def __init__(self, library: NvmlLibrary, names: str | tuple[str, ...], *arguments: Any) -> None:
        # Wide enough for all; a function that writes 32 bits leaves the upper half at 0.
        self._value = ctypes.c_ulonglong()
        self._call = library.prepare(names, *arguments, ctypes.byref(self._value))

    def read(self, meter: CallMeter) -> CountReading:
        code = meter.run(self._call)
        return int(self._value.value) if code == _SUCCESS else reason_of(code)


@dataclasses.dataclass(slots=True)
class _Kept:
    """What readings leave for those after them."""

    held: dict[str, int] = dataclasses.field(default_factory=dict)
    bytes: dict[str, tuple[int, float]] = dataclasses.field(default_factory=dict)
    slow: dict[str, CountReading] = dataclasses.field(default_factory=dict)
    counters: CounterWatch = dataclasses.field(default_factory=CounterWatch)
    peak: CountReading = MissingReason.STALE
    # The highest sample that was taken outside a reading, for the next one.
    drained: int = -1


class NvmlDevice:
    """Reads one GPU by its handle; only ever used by one thread at a time."""

    def __init__(self, library: NvmlLibrary, handle: Any, meter: CallMeter) -> None:
        self.processes = ProcessList(library, handle)
        self.rings = {
            figure: SampleRing(library, handle, ring, metric=metric, scale=scale)
            for figure, ring, metric, scale in _RINGS
        }
        self._meter = meter
        self._utilization = pynvml.c_nvmlUtilization_t()
        self._memory_v2 = pynvml.c_nvmlMemory_v2_t()
        self._memory_v2.version = pynvml.nvmlMemory_v2
        self._memory_v1 = pynvml.c_nvmlMemory_t()
        self._read_utilization = library.prepare(
            "nvmlDeviceGetUtilizationRates", handle, ctypes.byref(self._utilization)
        )
        # Version 2 leaves out what the driver keeps for itself; old drivers only have version 1.
        self._read_memory = [
            (library.prepare(name, handle, ctypes.byref(memory)), memory)
            for name, memory in (
                ("nvmlDeviceGetMemoryInfo_v2", self._memory_v2),
                ("nvmlDeviceGetMemoryInfo", self._memory_v1),
            )
        ]
        self._fast_fields = FieldBatch(library, handle, FAST_FIELDS)
        self._all_fields = FieldBatch(library, handle, FAST_FIELDS | SLOW_FIELDS)
        self._instead = {
            figure: _Single(library, name, handle) for figure, name in _INSTEAD_OF_FIELDS.items()
        }
        self._temperature = _Single(
            library,
            "nvmlDeviceGetTemperature",
            handle,
            ctypes.c_int(pynvml.NVML_TEMPERATURE_GPU),
        )
        self._clocks = {
            figure: _Single(library, "nvmlDeviceGetClockInfo", handle, ctypes.c_int(clock))
            for figure, clock in (
                ("sm_clock_megahertz", pynvml.NVML_CLOCK_SM),
                ("memory_clock_megahertz", pynvml.NVML_CLOCK_MEM),
            )
        }
        self._event_reasons = _Single(
            library,
            (
                "nvmlDeviceGetCurrentClocksEventReasons",
                "nvmlDeviceGetCurrentClocksThrottleReasons",
            ),
            handle,
        )
        self._throughput = {
            figure: _Single(library, "nvmlDeviceGetPcieThroughput", handle, ctypes.c_int(counter))
            for figure, (_, counter) in _PCIE.items()
        }
        self.kept = _Kept()

    def go_on_from(self, before: "NvmlDevice", *, same_run: bool) -> None:
        """Take over what was read by another handle of this GPU.

        Samples always go on where they were left. What is kept from reading to reading is taken
        over if the driver still counts from where it did.
        """
        for figure, ring in self.rings.items():
            ring.go_on_from(before.rings[figure])
        if same_run:
            self.processes.last = before.processes.last
            self.kept = before.kept

    def drain(self) -> None:
        """Take the samples that wait, before the handle is given up."""
        now = time.time_ns() // 1000
        for figure, ring in self.rings.items():
            highest = ring.drain(self._meter, now, MissingReason.STALE)
            if figure == "utilization_permille" and isinstance(highest, int):
                self.kept.drained = max(self.kept.drained, highest)

    def read(self, figures: dict[str, CountReading], *, rings: bool, slow: bool) -> bool:
        """Read into `figures`, by the names of a `GpuReading`'s fields.

        `rings` takes the driver's samples as well, `slow` what costs the driver much. What is not
        read now is given as it was read last, but not beyond a new start of the driver: what is
        slow is read then too. Returns whether it was.
        """
        meter = self._meter
        code = meter.run(self._read_utilization)
        if code == _SUCCESS:
            figures["utilization_permille"] = self._utilization.gpu * 10
            figures["memory_utilization_permille"] = self._utilization.memory * 10
        else:
            figures["utilization_permille"] = reason_of(code)
            figures["memory_utilization_permille"] = reason_of(code)
        self._put_memory(figures)

        # After a failure nothing is kept, so that what is shown next was read after it.
        slow = slow or not self.kept.slow
        batch = self._all_fields if slow else self._fast_fields
        fields = self._read_fields(batch, figures)
        if self.kept.counters.restarted(figures) and not slow:
            self.kept.slow.clear()
            slow, batch = True, self._all_fields
            fields = self._read_fields(batch, figures)
        if slow:
            self.kept.slow.update((figure, fields[figure].value) for figure in SLOW_FIELDS)
        figures["temperature_celsius"] = self._temperature.read(meter)
        for figure, clock in self._clocks.items():
            figures[figure] = clock.read(meter)
        figures["clock_event_reasons"] = self._reasons_since(fields)
        for figure, (field, _) in _PCIE.items():
            figures[figure] = self._bytes_per_second(figure, fields[field], slow=slow)
        figures.update(self.kept.slow)
        if rings:
            self._drain_rings(figures)
        if batch.failed is not None:
            figures.update(dict.fromkeys(self.kept.slow, batch.failed))
            self.kept.slow.clear()
            self.kept.peak = batch.failed
        figures["peak_utilization_permille"] = self.kept.peak
        if slow:
            self.processes.read(meter)
        return slow

    def _read_fields(
        self, batch: FieldBatch, figures: dict[str, CountReading]
    ) -> dict[str, FieldValue]:
        fields = batch.read(self._meter)
        for figure in _FIELD_FIGURES:
            value = fields[figure].value
            if value is _UNSUPPORTED and figure in self._instead:
                value = self._instead[figure].read(self._meter)
            figures[figure] = value
        return fields

    def _put_memory(self, figures: dict[str, CountReading]) -> None:
        for call, memory in self._read_memory:
            code = self._meter.run(call)
            if code == _SUCCESS:
                figures["memory_used_bytes"] = memory.used
                figures["memory_total_bytes"] = memory.total
                return
            figures["memory_used_bytes"] = figures["memory_total_bytes"] = reason_of(code)
            if reason_of(code) is not _UNSUPPORTED:
                return

    def _reasons_since(self, fields: dict[str, FieldValue]) -> CountReading:
        """Return the reasons that hold now or held since the reading before."""
        reasons = self._event_reasons.read(self._meter)
        for field, bit in _REASON_BITS.items():
            held = fields[field].value
            if isinstance(held, MissingReason):
                continue
            before = self.kept.held.get(field, held)
            self.kept.held[field] = held
            if held > before and not isinstance(reasons, MissingReason):
                reasons |= bit
        return reasons

    def _bytes_per_second(self, figure: str, field: FieldValue, *, slow: bool) -> CountReading:
        if isinstance(field.value, MissingReason):
            if field.value is not _UNSUPPORTED:
                return field.value
            # The driver takes 20 ms to count for this, so it is asked seldom.
            if slow:
                throughput = self._throughput[figure].read(self._meter)
                self.kept.slow[figure] = (
                    throughput
                    if isinstance(throughput, MissingReason)
                    else throughput * _BYTES_PER_THROUGHPUT_UNIT
                )
            return self.kept.slow.get(figure, _UNSUPPORTED)
        now = time.monotonic()
        value_before, read_before = self.kept.bytes.get(figure, (field.value, now))
        self.kept.bytes[figure] = (field.value, now)
        # The counter may wrap, and the first reading has nothing to compare with.
        if field.value < value_before or now <= read_before:
            return MissingReason.STALE
        return int((field.value - value_before) / (now - read_before))

    def _drain_rings(self, figures: dict[str, CountReading]) -> None:
        now = time.time_ns() // 1000
        for figure, ring in self.rings.items():
            highest = ring.drain(self._meter, now, figures[figure])
            if figure == "utilization_permille":
                drained, self.kept.drained = self.kept.drained, -1
                known = -1 if isinstance(highest, MissingReason) else highest
                self.kept.peak = max(drained, known) if max(drained, known) >= 0 else highest
