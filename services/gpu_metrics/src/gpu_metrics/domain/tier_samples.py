"""How the figures of each tier's GPUs were distributed since they were last taken.

Every report counts once: its packed samples where it has some for a figure, else its reading. A
stale host and a figure that is missing count for nothing, so that neither lowers a percentile.
Values are rounded to steps that people can tell apart (1 %, 1 W, 1 °C), which bounds what is kept
by the figures' ranges and not by the number of GPUs.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
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


Reading = float | None


def _whole_percents(permilles: Sequence[Reading], _: Sequence[int | None]) -> list[int]:
    return [100 if each >= 1000 else int(each + 5) // 10 for each in permilles if each is not None]


def _percents_of_total(used: Sequence[Reading], totals: Sequence[int | None]) -> list[int]:
    return [
        min(100, round(100 * each / total))
        for each, total in zip(used, totals, strict=True)
        if each is not None and total
    ]


def _whole_watts(milliwatts: Sequence[Reading], _: Sequence[int | None]) -> list[int]:
    return [int(each + 500) // 1000 for each in milliwatts if each is not None]


def _whole_degrees(celsius: Sequence[Reading], _: Sequence[int | None]) -> list[int]:
    return [int(each) for each in celsius if each is not None]


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a figure comes from, and how raw values are rounded, given each GPU's memory in all.

    Values that are missing are None, and are left out.
    """

    metric: FleetMetric
    place: int
    rounded: Callable[[Sequence[Reading], Sequence[int | None]], list[int]]


def _source(
    metric: FleetMetric,
    name: str,
    rounded: Callable[[Sequence[Reading], Sequence[int | None]], list[int]],
) -> _Source:
    return _Source(metric, GPU_HISTORY_FIGURES.index(name), rounded)


_SOURCES: Mapping[GpuFigure, _Source] = {
    GpuFigure.UTILIZATION_PERCENT: _source(
        FleetMetric.GPU_UTILIZATION_PERMILLE, "utilization_permille", _whole_percents
    ),
    GpuFigure.MEMORY_USED_PERCENT: _source(
        FleetMetric.GPU_MEMORY_USED_BYTES, "memory_used_bytes", _percents_of_total
    ),
    GpuFigure.POWER_WATTS: _source(
        FleetMetric.GPU_POWER_MILLIWATTS, "power_milliwatts", _whole_watts
    ),
    GpuFigure.TEMPERATURE_CELSIUS: _source(
        FleetMetric.GPU_TEMPERATURE_CELSIUS, "temperature_celsius", _whole_degrees
    ),
}
_WIDTH = len(GPU_HISTORY_FIGURES)


@dataclass(frozen=True, slots=True)
class _Devices:
    """What stays the same of a host's GPUs, in the order of its reports, and whom they serve."""

    uuids: tuple[str, ...]
    servers: tuple[tuple[Tier, tuple[str, ...]], ...]
    indexes: tuple[int, ...]
    total_bytes: tuple[int | None, ...]
    places: Mapping[Tier, tuple[int, ...]]


class TierSamples:
    """Counts what hosts report between two takings; each report once, however often it is seen."""

    __slots__ = ("_counted", "_counts", "_devices")

    def __init__(self) -> None:
        self._counts: dict[tuple[Tier, GpuFigure], Counter[int]] = {}
        # The last report counted of each host.
        self._counted: dict[str, tuple[str, int]] = {}
        # To ask for it each time costs a whole reading.
        self._devices: dict[str, _Devices] = {}

    def observe(self, hosts: Iterable[HostState]) -> None:
        """Count the newest report of every fresh host that was not counted before.

        A host that another collector counts is left to it.
        """
        counted: dict[str, tuple[str, int]] = {}
        for state in hosts:
            report = state.report
            run = (report.boot_id, report.sequence)
            counted[state.host.host_id] = run
            if report.collectors_before or state.freshness is not Freshness.FRESH:
                continue
            if self._counted.get(state.host.host_id) != run:
                self._count(report)
        # What is not among the hosts any more has left; its next report is a new one.
        self._counted = counted

    def _count(self, report: HostReport) -> None:
        devices = self._devices_of(report)
        readings = gpu_history_figures(report.gpus)
        packed = {(each.gpu_index, each.metric): each.values for each in report.series}
        for tier, places in devices.places.items():
            for figure, source in _SOURCES.items():
                values: list[Reading] = []
                totals: list[int | None] = []
                if not packed:
                    values += [readings[place * _WIDTH + source.place] for place in places]
                    totals += [devices.total_bytes[place] for place in places]
                for place in places if packed else ():
                    samples = packed.get((devices.indexes[place], source.metric)) or (
                        readings[place * _WIDTH + source.place],
                    )
                    values += samples
                    totals += (devices.total_bytes[place],) * len(samples)
                counts = self._counts.setdefault((tier, figure), Counter())
                counts.update(source.rounded(values, totals))

    def _devices_of(self, report: HostReport) -> _Devices:
        uuids = gpu_uuids(report.gpus)
        servers = tuple([(server.tier, server.gpu_uuids) for server in report.servers])
        devices = self._devices.get(report.host.host_id)
        if devices is None or devices.uuids != uuids or devices.servers != servers:
            devices = _Devices(
                uuids,
                servers,
                tuple(gpu.index for gpu in report.gpus),
                tuple(known(gpu.memory_total_bytes) for gpu in report.gpus),
                attribute_positions(report.servers, uuids),
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
        # Of hosts that left nothing is kept, and of memory that was not told it is asked again.
        self._devices = {
            host_id: devices
            for host_id, devices in self._devices.items()
            if host_id in self._counted and None not in devices.total_bytes
        }
        return taken
