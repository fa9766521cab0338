"""Between the protocol's messages and the domain's values; nothing is decided here.

An unset figure without an entry in `missing` becomes `MissingReason.NOT_TOLD`, so a reading is
never taken for 0 because an agent forgot to say why it has none.
"""

from collections.abc import Iterable, Sequence

from gaming.common.v1 import tier_pb2
from gaming.gpu_metrics.v1 import fleet_pb2, gpu_metrics_pb2
from gpu_metrics.domain.aggregate import TierAggregate
from gpu_metrics.domain.fleet_filter import FleetFilter
from gpu_metrics.domain.host_state import HostState
from gpu_metrics.domain.readings import GpuReading, HostReport, Tier
from gpu_metrics.wire.events import event_from_message, event_message
from gpu_metrics.wire.lazy import LazyGpus, lazy_report_from_message
from gpu_metrics.wire.moments import moment, timestamp
from gpu_metrics.wire.processes import processes_from_message, processes_message
from gpu_metrics.wire.readings import (
    gpu_from_message,
    gpu_message,
    host_from_message,
    host_message,
    put_histogram,
    server_from_message,
    server_message,
)
from gpu_metrics.wire.samples import (
    cost_from_message,
    cost_message,
    packed_series_from_message,
    put_series,
)

__all__ = [
    "aggregate_message",
    "filter_from_message",
    "gpu_message",
    "gpu_messages",
    "host_message",
    "host_view_message",
    "lazy_report_from_message",
    "report_from_message",
    "report_message",
    "server_message",
    "timestamp",
]


def filter_from_message(
    message: gpu_metrics_pb2.GetFleetRequest | gpu_metrics_pb2.WatchFleetRequest,
) -> FleetFilter:
    """Return which hosts a request wants; unset tiers are ignored."""
    return FleetFilter(
        tiers=frozenset(Tier(tier) for tier in message.tiers if tier),
        host_ids=frozenset(message.filter.host_ids),
        server_ids=frozenset(message.filter.server_ids),
        models=frozenset(message.filter.models),
        gpu_uuids=frozenset(message.filter.gpu_uuids),
    )


def report_from_message(message: gpu_metrics_pb2.StreamReportsRequest) -> HostReport:
    """Return an agent's report.

    Raises `HistogramShapeError` for an impossible histogram, and `InvalidSampleBlock`.
    """
    return HostReport(
        host=host_from_message(message.host),
        boot_id=message.boot_id,
        sequence=message.sequence,
        sample_time=moment(message.sample_time),
        gpus=tuple(gpu_from_message(gpu) for gpu in message.gpus),
        servers=tuple(server_from_message(server) for server in message.servers),
        leaving=message.leaving,
        monotonic_microseconds=message.monotonic_microseconds,
        series=tuple(packed_series_from_message(message)),
        events=tuple(event_from_message(event) for event in message.events),
        journal_id=message.journal_id,
        events_only=message.events_only,
        processes=(
            processes_from_message(message.processes) if message.HasField("processes") else None
        ),
        cost=cost_from_message(message.cost) if message.HasField("cost") else None,
        oldest_event_sequence=message.oldest_event_sequence,
        collectors_before=message.collectors_before,
    )


def report_message(report: HostReport) -> gpu_metrics_pb2.StreamReportsRequest:
    """Return a report as an agent sends it."""
    message = gpu_metrics_pb2.StreamReportsRequest(
        host=host_message(report.host),
        boot_id=report.boot_id,
        sequence=report.sequence,
        sample_time=timestamp(report.sample_time),
        gpus=[gpu_message(gpu) for gpu in report.gpus],
        servers=[server_message(server) for server in report.servers],
        leaving=report.leaving,
        monotonic_microseconds=report.monotonic_microseconds,
        events=[event_message(event) for event in report.events],
        journal_id=report.journal_id,
        events_only=report.events_only,
        processes=processes_message(report.processes) if report.processes is not None else None,
        cost=cost_message(report.cost) if report.cost is not None else None,
        oldest_event_sequence=report.oldest_event_sequence,
        collectors_before=report.collectors_before,
    )
    put_series(message, report.series)
    return message


def gpu_messages(gpus: Sequence[GpuReading]) -> Iterable[fleet_pb2.GpuSample]:
    """Return GPUs as messages: those they came as, where they came as messages."""
    return gpus.messages if isinstance(gpus, LazyGpus) else map(gpu_message, gpus)


def host_view_message(state: HostState) -> fleet_pb2.HostView:
    """Return a host as the view shows it."""
    return fleet_pb2.HostView(
        host=host_message(state.host),
        gpus=gpu_messages(state.report.gpus),
        servers=map(server_message, state.report.servers),
        freshness=fleet_pb2.Freshness.ValueType(state.freshness.value),
        sample_time=timestamp(state.report.sample_time),
        receive_time=timestamp(state.receive_time),
        agent_cost=cost_message(state.cost) if state.cost is not None else None,
    )


def aggregate_message(aggregate: TierAggregate) -> fleet_pb2.TierAggregate:
    """Return a tier's aggregate as a message; figures nobody reported stay unset."""
    message = fleet_pb2.TierAggregate(
        tier=tier_pb2.Tier.ValueType(aggregate.tier.value),
        known_servers=aggregate.known_servers,
        fresh_servers=aggregate.fresh_servers,
        ready_servers=aggregate.ready_servers,
        fresh_gpus=aggregate.fresh_gpus,
        running_requests=aggregate.running_requests,
        waiting_requests=aggregate.waiting_requests,
        kv_cache_used_tokens=aggregate.kv_cache_used_tokens,
        kv_cache_capacity_tokens=aggregate.kv_cache_capacity_tokens,
        mean_gpu_utilization_permille=aggregate.mean_gpu_utilization_permille,
        power_milliwatts=aggregate.power_milliwatts,
        tokens_per_joule=aggregate.tokens_per_joule,
    )
    if aggregate.time_to_first_token is not None:
        put_histogram(message.time_to_first_token, aggregate.time_to_first_token)
    if aggregate.inter_token_latency is not None:
        put_histogram(message.inter_token_latency, aggregate.inter_token_latency)
    return message
