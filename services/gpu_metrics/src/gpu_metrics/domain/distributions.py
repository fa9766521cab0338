"""How figures were distributed over the last minute: per host, server, tier and over the fleet.

Only fresh readings count. What is stale or missing is in `expected` and nowhere else, so it can
neither raise nor lower a percentile; a figure that a device does not offer is not expected of it.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from gpu_metrics.domain.aggregate import attribute_gpus
from gpu_metrics.domain.history import GPU_METRICS, SERVER_METRICS, History, Subject
from gpu_metrics.domain.history_cells import points_of
from gpu_metrics.domain.host_state import Freshness, HostState
from gpu_metrics.domain.log_histogram import LogHistogram, merge_all
from gpu_metrics.domain.readings import (
    GPU_HISTORY_FIGURES,
    CountReading,
    GpuReading,
    MissingReason,
    ModelServerReading,
    Tier,
)
from gpu_metrics.domain.samples import FleetMetric

__all__ = ["DistributionRun", "DistributionScope", "PartOfFleet", "ScopedDistribution"]

_WINDOW_SECONDS = 60


class DistributionScope(Enum):
    """What kind of part of the fleet; the numbers are those of the protocol."""

    FLEET = 1
    TIER = 2
    HOST = 3
    SERVER = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PartOfFleet:
    """A host, a model server or a tier; none of them is the whole fleet."""

    host_id: str = ""
    server_id: str = ""
    tier: Tier | None = None

    @property
    def scope(self) -> DistributionScope:
        """Return what kind of part it is."""
        if self.host_id:
            return DistributionScope.HOST
        if self.server_id:
            return DistributionScope.SERVER
        return DistributionScope.FLEET if self.tier is None else DistributionScope.TIER


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopedDistribution:
    """How one figure was distributed over a part of the fleet.

    `oldest_age_seconds` is the age of the oldest newest reading that counts, None without any.
    """

    part: PartOfFleet
    metric: FleetMetric
    expected: int
    observed: int
    oldest_age_seconds: float | None
    histogram: LogHistogram


@dataclass(slots=True)
class _Gathered:
    expected: int = 0
    oldest_age_seconds: float = 0.0
    histograms: list[LogHistogram] = field(default_factory=list)


class DistributionRun:
    """Gathers the distributions host by host, so that others run in between.

    `now` is on the clock of `HostState.received_at`, `second` in seconds since 1970. Of a figure
    without history the newest reading is its one sample. Without `scopes` all parts are gathered.
    """

    def __init__(
        self,
        history: History | None,
        *,
        now: float,
        second: int,
        scopes: Collection[DistributionScope] = (),
    ) -> None:
        self._history = history
        self._scopes = frozenset(scopes or DistributionScope)
        self._now = now
        self._second = second
        self._gathered: dict[tuple[PartOfFleet, FleetMetric], _Gathered] = {}

    def take(self, state: HostState) -> None:
        """Take in a host."""
        whole = [PartOfFleet(), PartOfFleet(host_id=state.host.host_id)]
        servers = state.report.servers
        tiers_of: dict[str, list[Tier]] = {}
        for tier, gpus in attribute_gpus(state.report).items() if servers else ():
            for gpu in gpus:
                tiers_of.setdefault(gpu.gpu_uuid, []).append(tier)
        for gpu in state.report.gpus:
            parts = [
                *whole,
                *(PartOfFleet(tier=tier) for tier in tiers_of.get(gpu.gpu_uuid, ())),
                *(
                    PartOfFleet(server_id=server.server_id)
                    for server in servers
                    if _runs_on(server, gpu, servers)
                ),
            ]
            subject = self._history.gpu(gpu.gpu_uuid) if self._history is not None else None
            for metric, name in zip(GPU_METRICS, GPU_HISTORY_FIGURES, strict=True):
                self._count(state, parts, metric, getattr(gpu, name), subject)
        for server in servers:
            parts = [
                *whole,
                PartOfFleet(tier=server.tier),
                PartOfFleet(server_id=server.server_id),
            ]
            subject = self._history.server(server.server_id) if self._history is not None else None
            readings = (
                server.running_requests,
                server.waiting_requests,
                server.kv_cache_usage_permille,
            )
            for metric, reading in zip(SERVER_METRICS, readings, strict=False):
                self._count(state, parts, metric, reading, subject)

    def _count(
        self,
        state: HostState,
        parts: Sequence[PartOfFleet],
        metric: FleetMetric,
        reading: CountReading,
        subject: Subject | None,
    ) -> None:
        if reading is MissingReason.UNSUPPORTED:
            return
        histogram: LogHistogram | None = None
        if not isinstance(reading, MissingReason) and state.freshness is Freshness.FRESH:
            histogram = self._samples(subject, metric) or LogHistogram.of((reading,))
        age = max(0.0, self._now - state.received_at)
        for part in parts:
            if part.scope not in self._scopes:
                continue
            gathered = self._gathered.setdefault((part, metric), _Gathered())
            gathered.expected += 1
            if histogram is not None:
                gathered.histograms.append(histogram)
                gathered.oldest_age_seconds = max(gathered.oldest_age_seconds, age)

    def _samples(self, subject: Subject | None, metric: FleetMetric) -> LogHistogram | None:
        if subject is None:
            return None
        cells = subject.cells(metric, self._second - _WINDOW_SECONDS + 1, self._second + 1, 1)
        found = LogHistogram.of_weighted(
            point for _, fields in cells for point in points_of(fields)
        )
        return found if found.count else None

    def distributions(self) -> Iterator[ScopedDistribution]:
        """Yield what was gathered: the fleet, hosts, servers, tiers as they were met."""
        for (part, metric), gathered in self._gathered.items():
            yield ScopedDistribution(
                part=part,
                metric=metric,
                expected=gathered.expected,
                observed=len(gathered.histograms),
                oldest_age_seconds=gathered.oldest_age_seconds if gathered.histograms else None,
                histogram=merge_all(gathered.histograms),
            )


def _runs_on(
    server: ModelServerReading, gpu: GpuReading, servers: Sequence[ModelServerReading]
) -> bool:
    # The only server of a host runs on all its GPUs.
    return gpu.gpu_uuid in server.gpu_uuids or (len(servers) == 1 and not server.gpu_uuids)
