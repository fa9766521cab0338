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

from gpu_metrics.domain.aggregate import attribute_gpus
from gpu_metrics.domain.host_state import Freshness, HostState
from gpu_metrics.domain.readings import GpuReading, HostReport, Tier, known
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


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a figure comes from, and how a raw value of a GPU is rounded; None drops it."""

    metric: FleetMetric
    reading: Callable[[GpuReading], int | None]
    rounded: Callable[[int, GpuReading], int | None]


def _percent_of_total(used_bytes: int, gpu: GpuReading) -> int | None:
    total = known(gpu.memory_total_bytes)
    return min(100, (200 * used_bytes + total) // (2 * total)) if total else None


_SOURCES: Mapping[GpuFigure, _Source] = {
    GpuFigure.UTILIZATION_PERCENT: _Source(
        FleetMetric.GPU_UTILIZATION_PERMILLE,
        lambda gpu: known(gpu.utilization_permille),
        lambda permille, _: min(100, (permille + 5) // 10),
    ),
    GpuFigure.MEMORY_USED_PERCENT: _Source(
        FleetMetric.GPU_MEMORY_USED_BYTES,
        lambda gpu: known(gpu.memory_used_bytes),
        _percent_of_total,
    ),
    GpuFigure.POWER_WATTS: _Source(
        FleetMetric.GPU_POWER_MILLIWATTS,
        lambda gpu: known(gpu.power_milliwatts),
        lambda milliwatts, _: (milliwatts + 500) // 1000,
    ),
    GpuFigure.TEMPERATURE_CELSIUS: _Source(
        FleetMetric.GPU_TEMPERATURE_CELSIUS,
        lambda gpu: known(gpu.temperature_celsius),
        lambda celsius, _: celsius,
    ),
}


class TierSamples:
    """Counts what hosts report between two takings; each report once, however often it is seen."""

    __slots__ = ("_counted", "_counts")

    def __init__(self) -> None:
        self._counts: dict[tuple[Tier, GpuFigure], Counter[int]] = {}
        # The last report counted of each host.
        self._counted: dict[str, tuple[str, int]] = {}

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
        series = {(each.gpu_index, each.metric): each.values for each in report.series}
        for tier, gpus in attribute_gpus(report).items():
            for figure, source in _SOURCES.items():
                counts = self._counts.setdefault((tier, figure), Counter())
                for gpu in gpus:
                    values = series.get((gpu.index, source.metric))
                    if not values:
                        reading = source.reading(gpu)
                        values = () if reading is None else (reading,)
                    for value in values:
                        rounded = source.rounded(value, gpu)
                        if rounded is not None:
                            counts[rounded] += 1

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
        return taken
