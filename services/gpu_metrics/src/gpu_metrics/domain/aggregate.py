"""A tier as a whole, from its model servers.

Sums and latencies are over fresh servers that reported the figure; a stale server counts as known
and as nothing else, so it can neither raise nor lower a figure. A figure that no fresh server
reported is None, never 0.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from gpu_metrics.domain.histogram import Histogram, merge
from gpu_metrics.domain.host_energy import EnergyUse
from gpu_metrics.domain.readings import (
    GPU_HISTORY_FIGURES,
    CountReading,
    GpuReading,
    HostReport,
    ModelServerReading,
    ModelServerState,
    Tier,
    gpu_history_figures,
    gpu_uuids,
    known,
)

__all__ = [
    "GpuLoad",
    "TierAggregate",
    "TierMember",
    "aggregate_tier",
    "attribute_gpus",
    "attribute_loads",
    "attribute_positions",
]

_Item = TypeVar("_Item")
_UTILIZATION = GPU_HISTORY_FIGURES.index("utilization_permille")
_POWER = GPU_HISTORY_FIGURES.index("power_milliwatts")


class GpuLoad(NamedTuple):
    """What a GPU adds to its tier; None is missing."""

    utilization_permille: float | None
    power_milliwatts: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TierMember:
    """One model server with what is counted with it.

    `gpus` are the GPUs its tier has on its host, and `energy` what the tier generated and used
    there, both given to one server of the host only.
    """

    server: ModelServerReading
    fresh: bool
    time_to_first_token: Histogram | None
    inter_token_latency: Histogram | None
    gpus: tuple[GpuLoad, ...] = ()
    energy: EnergyUse | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TierAggregate:
    """One tier. `latency_coarsened` says that servers had differing histogram bounds.

    `kv_cache_used_tokens` and `kv_cache_capacity_tokens` are over the same servers, those that
    reported both usage and capacity, so that one may be divided by the other. `tokens_per_joule` is
    over fresh servers whose GPUs all have an energy counter.
    """

    tier: Tier
    known_servers: int
    fresh_servers: int
    ready_servers: int
    running_requests: int | None
    waiting_requests: int | None
    kv_cache_used_tokens: int | None
    kv_cache_capacity_tokens: int | None
    time_to_first_token: Histogram | None
    inter_token_latency: Histogram | None
    fresh_gpus: int
    mean_gpu_utilization_permille: int | None
    power_milliwatts: int | None
    latency_coarsened: bool = False
    tokens_per_joule: float | None = None


def attribute_gpus(report: HostReport) -> Mapping[Tier, tuple[GpuReading, ...]]:
    """Return which GPUs of a host work for which tier, as `attribute_positions` tells."""
    positions = attribute_positions(report.servers, gpu_uuids(report.gpus))
    return {
        tier: tuple(report.gpus[position] for position in served)
        for tier, served in positions.items()
    }


def attribute_loads(report: HostReport) -> Mapping[Tier, tuple[GpuLoad, ...]]:
    """Return what the GPUs of a host add to which tier, as `attribute_positions` tells.

    Figures are read out of the report as it came: a `GpuReading` of each would cost ten times that.
    """
    positions = attribute_positions(report.servers, gpu_uuids(report.gpus))
    figures = gpu_history_figures(report.gpus) if positions else []
    return {
        tier: tuple(
            GpuLoad(
                figures[position * len(GPU_HISTORY_FIGURES) + _UTILIZATION],
                figures[position * len(GPU_HISTORY_FIGURES) + _POWER],
            )
            for position in served
        )
        for tier, served in positions.items()
    }


def attribute_positions(
    servers: Sequence[ModelServerReading], uuids: Sequence[str]
) -> Mapping[Tier, tuple[int, ...]]:
    """Return which of a host's GPUs work for which tier, as positions in `uuids`.

    Servers that name their GPUs decide. Where none does, all GPUs belong to the host's tier, if
    all its servers are of one; otherwise they cannot be told apart and belong to none.
    """
    naming = [server for server in servers if server.gpu_uuids]
    if not naming:
        tiers = {server.tier for server in servers}
        return {tiers.pop(): tuple(range(len(uuids)))} if len(tiers) == 1 else {}
    attributed: dict[Tier, tuple[int, ...]] = {}
    for tier in {server.tier for server in naming}:
        named = {uuid for server in naming if server.tier is tier for uuid in server.gpu_uuids}
        attributed[tier] = tuple(position for position, uuid in enumerate(uuids) if uuid in named)
    return attributed


def aggregate_tier(tier: Tier, members: Sequence[TierMember]) -> TierAggregate:
    """Return the aggregate of the tier's servers, in any order of them."""
    fresh = [member for member in members if member.fresh]
    servers = [member.server for member in fresh]
    gpus = [gpu for member in fresh for gpu in member.gpus]
    caches = [
        (usage, capacity)
        for server in servers
        if (usage := known(server.kv_cache_usage_permille)) is not None
        and (capacity := known(server.kv_cache_capacity_tokens)) is not None
    ]
    first_token = merge(_present(member.time_to_first_token for member in fresh))
    inter_token = merge(_present(member.inter_token_latency for member in fresh))
    utilizations = [
        gpu.utilization_permille for gpu in gpus if gpu.utilization_permille is not None
    ]
    powers = [gpu.power_milliwatts for gpu in gpus if gpu.power_milliwatts is not None]
    return TierAggregate(
        tier=tier,
        known_servers=len(members),
        fresh_servers=len(fresh),
        ready_servers=sum(server.state is ModelServerState.READY for server in servers),
        running_requests=_total(_known(servers, lambda server: server.running_requests)),
        waiting_requests=_total(_known(servers, lambda server: server.waiting_requests)),
        kv_cache_used_tokens=_total(
            [(usage * capacity + 500) // 1000 for usage, capacity in caches]
        ),
        kv_cache_capacity_tokens=_total([capacity for _, capacity in caches]),
        time_to_first_token=first_token.histogram if first_token else None,
        inter_token_latency=inter_token.histogram if inter_token else None,
        fresh_gpus=len(gpus),
        mean_gpu_utilization_permille=(
            round(sum(utilizations) / len(utilizations)) if utilizations else None
        ),
        power_milliwatts=round(sum(powers)) if powers else None,
        latency_coarsened=any(merged.coarsened for merged in (first_token, inter_token) if merged),
        tokens_per_joule=_tokens_per_joule(fresh),
    )


def _tokens_per_joule(members: Iterable[TierMember]) -> float | None:
    uses = [member.energy for member in members if member.energy is not None]
    millijoules = sum(use.millijoules for use in uses)
    return 1000 * sum(use.tokens for use in uses) / millijoules if millijoules else None


def _known(items: Iterable[_Item], reading_of: Callable[[_Item], CountReading]) -> list[int]:
    values = (known(reading_of(item)) for item in items)
    return [value for value in values if value is not None]


def _present(histograms: Iterable[Histogram | None]) -> list[Histogram]:
    return [histogram for histogram in histograms if histogram is not None]


def _total(values: Sequence[int]) -> int | None:
    return sum(values) if values else None
