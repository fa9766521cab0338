"""Between the protocol's messages and the domain's values; nothing is decided here.

An unset figure without an entry in `missing` becomes `MissingReason.NOT_TOLD`, so a reading is
never taken for 0 because an agent forgot to say why it has none.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.message import Message

from gaming.common.v1 import tier_pb2
from gaming.gpu_metrics.v1 import fleet_pb2, gpu_metrics_pb2
from gpu_metrics.domain.aggregate import TierAggregate
from gpu_metrics.domain.histogram import Histogram
from gpu_metrics.domain.host_state import HostState
from gpu_metrics.domain.readings import (
    GPU_FIGURES,
    CountReading,
    GpuReading,
    HistogramReading,
    Host,
    HostReport,
    MissingReason,
    ModelServerReading,
    ModelServerState,
    PurchaseOption,
    Tier,
)
from gpu_metrics.wire.events import event_from_message, event_message
from gpu_metrics.wire.moments import moment, timestamp
from gpu_metrics.wire.processes import processes_from_message, processes_message
from gpu_metrics.wire.samples import (
    cost_from_message,
    cost_message,
    series_from_message,
    series_message,
)

__all__ = [
    "aggregate_message",
    "host_message",
    "host_view_message",
    "report_from_message",
    "report_message",
    "server_message",
    "tiers_from_message",
    "timestamp",
]

_SERVER_FIGURES = (
    "running_requests",
    "waiting_requests",
    "kv_cache_usage_permille",
    "kv_cache_capacity_tokens",
    "prompt_tokens_total",
    "generation_tokens_total",
)
_SERVER_HISTOGRAMS = ("time_to_first_token", "inter_token_latency")
_REASONS = {reason.value: reason for reason in MissingReason}


def tiers_from_message(tiers: Iterable[tier_pb2.Tier.ValueType]) -> frozenset[Tier]:
    """Return a tier filter; unset entries are ignored, and no entries mean all tiers."""
    return frozenset(Tier(tier) for tier in tiers if tier)


def report_from_message(message: gpu_metrics_pb2.StreamReportsRequest) -> HostReport:
    """Return an agent's report. Raises `HistogramShapeError` for an impossible histogram."""
    return HostReport(
        host=_host(message.host),
        boot_id=message.boot_id,
        sequence=message.sequence,
        sample_time=moment(message.sample_time),
        gpus=tuple(_gpu(gpu) for gpu in message.gpus),
        servers=tuple(_server(server) for server in message.servers),
        leaving=message.leaving,
        monotonic_microseconds=message.monotonic_microseconds,
        series=tuple(series_from_message(series) for series in message.series),
        events=tuple(event_from_message(event) for event in message.events),
        journal_id=message.journal_id,
        events_only=message.events_only,
        processes=(
            processes_from_message(message.processes) if message.HasField("processes") else None
        ),
        cost=cost_from_message(message.cost) if message.HasField("cost") else None,
        oldest_event_sequence=message.oldest_event_sequence,
    )


def _host(message: fleet_pb2.Host) -> Host:
    return Host(
        host_id=message.host_id,
        instance_type=message.instance_type,
        availability_zone=message.availability_zone,
        purchase_option=PurchaseOption(message.purchase_option),
        interruption_time=(
            moment(message.interruption_time) if message.HasField("interruption_time") else None
        ),
        simulated=message.simulated,
        rebalance_time=(
            moment(message.rebalance_time) if message.HasField("rebalance_time") else None
        ),
        ecs_cluster=message.ecs_cluster,
        driver_version=message.driver_version,
    )


def _set_fields(message: Message) -> dict[str, Any]:
    return {field.name: value for field, value in message.ListFields()}


def _reasons(present: Mapping[str, Any]) -> dict[str, MissingReason]:
    entries = present.get("missing", ())
    return {entry.field: _REASONS.get(entry.reason, MissingReason.NOT_TOLD) for entry in entries}


def _figures(
    present: Mapping[str, Any], reasons: Mapping[str, MissingReason], names: Sequence[str]
) -> dict[str, CountReading]:
    return {name: present.get(name, reasons.get(name, MissingReason.NOT_TOLD)) for name in names}


def _gpu(message: fleet_pb2.GpuSample) -> GpuReading:
    present = _set_fields(message)
    return GpuReading(
        gpu_uuid=message.gpu_uuid,
        index=message.index,
        product_name=message.product_name,
        driver_epoch=message.driver_epoch,
        **_figures(present, _reasons(present), GPU_FIGURES),
    )


def _server(message: fleet_pb2.ModelServerSample) -> ModelServerReading:
    present = _set_fields(message)
    reasons = _reasons(present)

    def histogram(name: str) -> HistogramReading:
        if name in present:
            return _histogram(present[name])
        return reasons.get(name, MissingReason.NOT_TOLD)

    return ModelServerReading(
        server_id=message.server_id,
        endpoint_url=message.endpoint_url,
        tier=Tier(message.tier),
        model=message.model,
        state=ModelServerState(message.state),
        gpu_uuids=tuple(message.gpu_uuids),
        time_to_first_token=histogram("time_to_first_token"),
        inter_token_latency=histogram("inter_token_latency"),
        **_figures(present, reasons, _SERVER_FIGURES),
    )


def _histogram(message: fleet_pb2.LatencyHistogram) -> Histogram:
    return Histogram(
        tuple(message.upper_bounds_seconds), tuple(message.bucket_counts), message.sum_seconds
    )


def report_message(report: HostReport) -> gpu_metrics_pb2.StreamReportsRequest:
    """Return a report as an agent sends it."""
    return gpu_metrics_pb2.StreamReportsRequest(
        host=host_message(report.host),
        boot_id=report.boot_id,
        sequence=report.sequence,
        sample_time=timestamp(report.sample_time),
        gpus=[_gpu_message(gpu) for gpu in report.gpus],
        servers=[server_message(server) for server in report.servers],
        leaving=report.leaving,
        monotonic_microseconds=report.monotonic_microseconds,
        series=[series_message(series) for series in report.series],
        events=[event_message(event) for event in report.events],
        journal_id=report.journal_id,
        events_only=report.events_only,
        processes=processes_message(report.processes) if report.processes is not None else None,
        cost=cost_message(report.cost) if report.cost is not None else None,
        oldest_event_sequence=report.oldest_event_sequence,
    )


def host_message(host: Host) -> fleet_pb2.Host:
    """Return a machine as a message."""
    return fleet_pb2.Host(
        host_id=host.host_id,
        instance_type=host.instance_type,
        availability_zone=host.availability_zone,
        purchase_option=fleet_pb2.PurchaseOption.ValueType(host.purchase_option.value),
        interruption_time=(
            timestamp(host.interruption_time) if host.interruption_time is not None else None
        ),
        simulated=host.simulated,
        rebalance_time=timestamp(host.rebalance_time) if host.rebalance_time is not None else None,
        ecs_cluster=host.ecs_cluster,
        driver_version=host.driver_version,
    )


def _gpu_message(gpu: GpuReading) -> fleet_pb2.GpuSample:
    message = fleet_pb2.GpuSample(
        gpu_uuid=gpu.gpu_uuid,
        index=gpu.index,
        product_name=gpu.product_name,
        driver_epoch=gpu.driver_epoch,
    )
    _put_figures(message, gpu, GPU_FIGURES)
    return message


def server_message(server: ModelServerReading) -> fleet_pb2.ModelServerSample:
    """Return a model server's readings as a message."""
    message = fleet_pb2.ModelServerSample(
        server_id=server.server_id,
        endpoint_url=server.endpoint_url,
        tier=tier_pb2.Tier.ValueType(server.tier.value),
        model=server.model,
        state=fleet_pb2.ModelServerState.ValueType(server.state.value),
        gpu_uuids=server.gpu_uuids,
    )
    _put_figures(message, server, _SERVER_FIGURES)
    for name in _SERVER_HISTOGRAMS:
        reading: HistogramReading = getattr(server, name)
        if isinstance(reading, Histogram):
            _put_histogram(getattr(message, name), reading)
        else:
            _put_missing(message, name, reading)
    return message


def _put_figures(
    message: fleet_pb2.GpuSample | fleet_pb2.ModelServerSample,
    readings: GpuReading | ModelServerReading,
    names: Sequence[str],
) -> None:
    for name in names:
        reading: CountReading = getattr(readings, name)
        if isinstance(reading, MissingReason):
            _put_missing(message, name, reading)
        else:
            setattr(message, name, reading)


def _put_missing(
    message: fleet_pb2.GpuSample | fleet_pb2.ModelServerSample, name: str, reason: MissingReason
) -> None:
    if reason is not MissingReason.NOT_TOLD:
        message.missing.add(field=name, reason=fleet_pb2.MissingReason.ValueType(reason.value))


def _put_histogram(message: fleet_pb2.LatencyHistogram, histogram: Histogram) -> None:
    message.upper_bounds_seconds.extend(histogram.bounds)
    message.bucket_counts.extend(histogram.counts)
    message.sum_seconds = histogram.sum_seconds
    # An empty histogram is a reading too; setting a field marks the message as present.
    message.SetInParent()


def host_view_message(state: HostState) -> fleet_pb2.HostView:
    """Return a host as the view shows it."""
    return fleet_pb2.HostView(
        host=host_message(state.host),
        gpus=[_gpu_message(gpu) for gpu in state.report.gpus],
        servers=[server_message(server) for server in state.report.servers],
        freshness=fleet_pb2.Freshness.ValueType(state.freshness.value),
        sample_time=timestamp(state.report.sample_time),
        receive_time=timestamp(state.receive_time),
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
    )
    if aggregate.time_to_first_token is not None:
        _put_histogram(message.time_to_first_token, aggregate.time_to_first_token)
    if aggregate.inter_token_latency is not None:
        _put_histogram(message.inter_token_latency, aggregate.inter_token_latency)
    return message
