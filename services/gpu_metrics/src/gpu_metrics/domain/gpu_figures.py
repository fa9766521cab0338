"""The figures of a GPU by the names others know, in base units.

`hw.*` names, units and attributes are those of OpenTelemetry's semantic conventions for hardware
and for GPUs (opentelemetry.io/docs/specs/semconv/hardware/gpu, in development in 2026). What these
do not name yet is an extension under `hw.gpu`: clocks, limits, rates and the peak of a second.
Nothing here is 0 for want of a reading: a missing figure is None.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from gpu_metrics.domain.readings import CountReading, GpuReading, known

__all__ = ["GPU_FIGURES_BY_NAME", "ExportedFigure", "FigureKind", "Unit"]


class FigureKind(Enum):
    """Whether a figure goes up and down or counts since the driver was loaded."""

    GAUGE = "gauge"
    COUNTER = "counter"


class Unit(Enum):
    """A base unit: its UCUM code for OTLP and its word in a Prometheus name."""

    RATIO = ("1", "ratio")
    BYTES = ("By", "bytes")
    BYTES_PER_SECOND = ("By/s", "bytes_per_second")
    WATTS = ("W", "watts")
    JOULES = ("J", "joules")
    CELSIUS = ("Cel", "celsius")
    HERTZ = ("Hz", "hertz")
    ERRORS = ("{error}", "")

    @property
    def ucum(self) -> str:
        """Return the unit as OTLP writes it."""
        return self.value[0]

    @property
    def word(self) -> str:
        """Return the unit as the end of a Prometheus name; empty for a plain count."""
        return self.value[1]


@dataclass(frozen=True, slots=True)
class ExportedFigure:
    """One figure: its OpenTelemetry name and what tells it from others of that name."""

    name: str
    kind: FigureKind
    unit: Unit
    help: str
    value: Callable[[GpuReading], float | None]
    attribute: tuple[str, str] | None = None


def _figure(
    name: str,
    kind: FigureKind,
    unit: Unit,
    help_text: str,
    reading: Callable[[GpuReading], CountReading],
    *,
    divisor: int = 1,
    factor: int = 1,
    attribute: tuple[str, str] | None = None,
) -> ExportedFigure:
    def value(gpu: GpuReading) -> float | None:
        figure = known(reading(gpu))
        return None if figure is None else figure * factor / divisor

    return ExportedFigure(name, kind, unit, help_text, value, attribute)


def _memory_ratio(gpu: GpuReading) -> float | None:
    used, total = known(gpu.memory_used_bytes), known(gpu.memory_total_bytes)
    return min(1.0, used / total) if used is not None and total else None


_GAUGE, _COUNTER = FigureKind.GAUGE, FigureKind.COUNTER
_ERRORS_HELP = "Errors since the driver was loaded."

GPU_FIGURES_BY_NAME: tuple[ExportedFigure, ...] = (
    _figure(
        "hw.gpu.utilization",
        _GAUGE,
        Unit.RATIO,
        "Share of the last sample period in which any kernel ran.",
        lambda gpu: gpu.utilization_permille,
        divisor=1000,
    ),
    _figure(
        "hw.gpu.utilization.peak",
        _GAUGE,
        Unit.RATIO,
        "Highest utilization of the driver's samples since the report before.",
        lambda gpu: gpu.peak_utilization_permille,
        divisor=1000,
    ),
    _figure(
        "hw.gpu.memory.usage",
        _GAUGE,
        Unit.BYTES,
        "Device memory in use.",
        lambda gpu: gpu.memory_used_bytes,
    ),
    _figure(
        "hw.gpu.memory.limit",
        _GAUGE,
        Unit.BYTES,
        "Device memory in all.",
        lambda gpu: gpu.memory_total_bytes,
    ),
    ExportedFigure(
        "hw.gpu.memory.utilization",
        _GAUGE,
        Unit.RATIO,
        "Share of device memory in use.",
        _memory_ratio,
    ),
    _figure(
        "hw.gpu.memory.controller.utilization",
        _GAUGE,
        Unit.RATIO,
        "Share of the last sample period in which device memory was read or written.",
        lambda gpu: gpu.memory_utilization_permille,
        divisor=1000,
    ),
    _figure(
        "hw.power",
        _GAUGE,
        Unit.WATTS,
        "Board power.",
        lambda gpu: gpu.power_milliwatts,
        divisor=1000,
    ),
    _figure(
        "hw.gpu.power.limit",
        _GAUGE,
        Unit.WATTS,
        "The most power the board may draw now.",
        lambda gpu: gpu.power_limit_milliwatts,
        divisor=1000,
    ),
    _figure(
        "hw.energy",
        _COUNTER,
        Unit.JOULES,
        "Energy since the driver was loaded.",
        lambda gpu: gpu.energy_millijoules,
        divisor=1000,
    ),
    _figure(
        "hw.temperature",
        _GAUGE,
        Unit.CELSIUS,
        "Temperature.",
        lambda gpu: gpu.temperature_celsius,
        attribute=("hw.sensor_location", "core"),
    ),
    _figure(
        "hw.temperature",
        _GAUGE,
        Unit.CELSIUS,
        "Temperature.",
        lambda gpu: gpu.memory_temperature_celsius,
        attribute=("hw.sensor_location", "memory"),
    ),
    _figure(
        "hw.gpu.clock",
        _GAUGE,
        Unit.HERTZ,
        "Clock.",
        lambda gpu: gpu.sm_clock_megahertz,
        factor=1_000_000,
        attribute=("hw.gpu.clock.domain", "sm"),
    ),
    _figure(
        "hw.gpu.clock",
        _GAUGE,
        Unit.HERTZ,
        "Clock.",
        lambda gpu: gpu.memory_clock_megahertz,
        factor=1_000_000,
        attribute=("hw.gpu.clock.domain", "memory"),
    ),
    _figure(
        "hw.gpu.io.rate",
        _GAUGE,
        Unit.BYTES_PER_SECOND,
        "Bytes over PCIe.",
        lambda gpu: gpu.pcie_transmit_bytes_per_second,
        attribute=("network.io.direction", "transmit"),
    ),
    _figure(
        "hw.gpu.io.rate",
        _GAUGE,
        Unit.BYTES_PER_SECOND,
        "Bytes over PCIe.",
        lambda gpu: gpu.pcie_receive_bytes_per_second,
        attribute=("network.io.direction", "receive"),
    ),
    _figure(
        "hw.errors",
        _COUNTER,
        Unit.ERRORS,
        _ERRORS_HELP,
        lambda gpu: gpu.ecc_corrected_total,
        attribute=("error.type", "corrected"),
    ),
    _figure(
        "hw.errors",
        _COUNTER,
        Unit.ERRORS,
        _ERRORS_HELP,
        lambda gpu: gpu.ecc_uncorrected_total,
        attribute=("error.type", "uncorrected"),
    ),
    _figure(
        "hw.errors",
        _COUNTER,
        Unit.ERRORS,
        _ERRORS_HELP,
        lambda gpu: gpu.pcie_replays_total,
        attribute=("error.type", "pcie_replay"),
    ),
)
