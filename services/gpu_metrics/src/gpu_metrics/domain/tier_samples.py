"""How the figures of each tier's GPUs were distributed since they were last taken.

Every report counts once: its packed samples where it has some for a figure, else its reading. A
stale host and a figure that is missing count for nothing, so that neither lowers a percentile.
Values are rounded to steps that people can tell apart (1 %, 1 W, 1 °C), which bounds what is kept
by the figures' ranges and not by the number of GPUs.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from gpu_metrics.domain.aggregate import attribute_positions
from gpu_metrics.domain.host_state import Freshness, HostState
from gpu_metrics.domain.readings import (
    GPU_HISTORY_FIGURES,
    HostReport,
    Tier,
    gpu_history_figures,
    gpu_uuids,
    known,
)
from gpu_metrics.domain.samples import FleetMetric

__all__ = ["GpuFigure", "TierDistribution", "TierSamples"]


class GpuFigure(Enum):
    """A figure of a GPU as operators read it."""

    UTILIZATION_PERCENT = "utilization"
    MEMORY_USED_PERCENT = "memory"
    POWER_WATTS = "power"
    TEMPERATURE_CELSIUS = "temperature"


@dataclass(frozen=True, slots=True)
class TierDistribution:
    """Observations of one figure over a tier's GPUs, by rounded value, ascending."""

    tier: Tier
    figure: GpuFigure
    counts: Mapping[int, int]


def _whole_percent(permille: float, _: int | None) -> int | None:
    return min(100, int(permille + 5) // 10)


def _percent_of_total(used_bytes: float, total_bytes: int | None) -> int | None:
    return min(100, round(100 * used_bytes / total_bytes)) if total_bytes else None


def _whole_watts(milliwatts: float, _: int | None) -> int | None:
    return int(milliwatts + 500) // 1000


def _whole_degrees(celsius: float, _: int | None) -> int | None:
    return int(celsius)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a figure comes from, and how a raw value is rounded, given the GPU's memory in all."""

    metric: FleetMetric
    place: int
    rounded: Callable[[float, int | None], int | None]


def _source(
    metric: FleetMetric, name: str, rounded: Callable[[float, int | None], int | None]
) -> _Source:
    return _Source(metric, GPU_HISTORY_FIGURES.index(name), rounded)


_SOURCES: Mapping[GpuFigure, _Source] = {
    GpuFigure.UTILIZATION_PERCENT: _source(
        FleetMetric.GPU_UTILIZATION_PERMILLE, "utilization_permille", _whole_percent
    ),
    GpuFigure.MEMORY_USED_PERCENT: _source(
        FleetMetric.GPU_MEMORY_USED_BYTES, "memory_used_bytes", _percent_of_total
    ),
    GpuFigure.POWER_WATTS: _source(
        FleetMetric.GPU_POWER_MILLIWATTS, "power_milliwatts", _whole_watts
    ),
    GpuFigure.TEMPERATURE_CELSIUS: _source(
        FleetMetric.GPU_TEMPERATURE_CELSIUS, "temperature_celsius", _whole_degrees
    ),
}


@dataclass(frozen=True, slots=True)
class _Devices:
    """What stays the same of a host's GPUs, in the order of its reports."""

    uuids: tuple[str, ...]
    indexes: tuple[int, ...]
    total_bytes: tuple[int | None, ...]


class TierSamples:
    """Counts what hosts report between two takings; each report once, however often it is seen."""

    __slots__ = ("_counted", "_counts", "_devices")

    def __init__(self) -> None:
        self._counts: dict[tuple[Tier, GpuFigure], Counter[int]] = {}
        # The last report counted of each host.
        self._counted: dict[str, tuple[str, int]] = {}
        # Known for the time between two takings: to ask for it each time costs a whole reading.
        self._devices: dict[str, _Devices] = {}

    def observe(self, hosts: Iterable[HostState]) -> None:
        """Count the newest report of every fresh host that was not counted before."""
        counted: dict[str, tuple[str, int]] = {}
        for state in hosts:
            report = state.report
            run = (report.boot_id, report.sequence)
            counted[state.host.host_id] = run
            if state.freshness is Freshness.FRESH and self._counted.get(state.host.host_id) != run:
                self._count(report)
        # What is not among the hosts any more has left; its next report is a new one.
        self._counted = counted

    def _count(self, report: HostReport) -> None:
        devices = self._devices_of(report)
        figures = gpu_history_figures(report.gpus)
        series = {(each.gpu_index, each.metric): each.values for each in report.series}
        width = len(GPU_HISTORY_FIGURES)
        for tier, positions in attribute_positions(report.servers, devices.uuids).items():
            for figure, source in _SOURCES.items():
                counts = self._counts.setdefault((tier, figure), Counter())
                for position in positions:
                    total = devices.total_bytes[position]
                    values = series.get((devices.indexes[position], source.metric))
                    reading = figures[position * width + source.place]
                    for value in values or (() if reading is None else (reading,)):
                        rounded = source.rounded(value, total)
                        if rounded is not None:
                            counts[rounded] += 1

    def _devices_of(self, report: HostReport) -> _Devices:
        uuids = gpu_uuids(report.gpus)
        devices = self._devices.get(report.host.host_id)
        if devices is None or devices.uuids != uuids:
            devices = _Devices(
                uuids,
                tuple(gpu.index for gpu in report.gpus),
                tuple(known(gpu.memory_total_bytes) for gpu in report.gpus),
            )
            self._devices[report.host.host_id] = devices
        return devices

    def take(self) -> tuple[TierDistribution, ...]:
        """Return what was counted since the last taking, by tier and figure, and start again."""
        taken = tuple(
            TierDistribution(tier, figure, dict(sorted(counts.items())))
            for (tier, figure), counts in sorted(
                self._counts.items(), key=lambda item: (item[0][0].value, item[0][1].value)
            )
            if counts
        )
        self._counts = {}
        self._devices = {}
        return taken
