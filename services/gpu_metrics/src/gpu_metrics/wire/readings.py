"""Hosts, GPUs and model servers between messages and the domain's values."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf.message import Message

from gaming.common.v1 import tier_pb2
from gaming.gpu_metrics.v1 import fleet_pb2
from gpu_metrics.domain.histogram import Histogram
from gpu_metrics.domain.readings import (
    GPU_FIGURES,
    CountReading,
    GpuReading,
    HistogramReading,
    Host,
    MissingReason,
    ModelServerReading,
    ModelServerState,
    PurchaseOption,
    Tier,
)
from gpu_metrics.wire.moments import moment, timestamp

__all__ = [
    "gpu_from_message",
    "gpu_message",
    "host_from_message",
    "host_message",
    "put_histogram",
    "reason_from_message",
    "server_from_message",
    "server_message",
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


def host_from_message(message: fleet_pb2.Host) -> Host:
    """Return a machine."""
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


def reason_from_message(reason: int) -> MissingReason:
    """Return why a reading is missing; a reason of a newer agent counts as none."""
    return _REASONS.get(reason, MissingReason.NOT_TOLD)


def _set_fields(message: Message) -> dict[str, Any]:
    return {field.name: value for field, value in message.ListFields()}


def _reasons(present: Mapping[str, Any]) -> dict[str, MissingReason]:
    return {entry.field: reason_from_message(entry.reason) for entry in present.get("missing", ())}


def _figures(
    present: Mapping[str, Any], reasons: Mapping[str, MissingReason], names: Sequence[str]
) -> dict[str, CountReading]:
    return {name: present.get(name, reasons.get(name, MissingReason.NOT_TOLD)) for name in names}


def gpu_from_message(message: fleet_pb2.GpuSample) -> GpuReading:
    """Return a GPU's readings."""
    reasons = {entry.field: reason_from_message(entry.reason) for entry in message.missing}
    present: Callable[[Any], bool] = message.HasField
    return GpuReading(
        gpu_uuid=message.gpu_uuid,
        index=message.index,
        product_name=message.product_name,
        pci_bus_id=message.pci_bus_id,
        driver_epoch=message.driver_epoch,
        **{
            name: getattr(message, name)
            if present(name)
            else reasons.get(name, MissingReason.NOT_TOLD)
            for name in GPU_FIGURES
        },
    )


def server_from_message(message: fleet_pb2.ModelServerSample) -> ModelServerReading:
    """Return a model server's readings.

    Raises `HistogramShapeError` for an impossible histogram.
    """
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


def gpu_message(gpu: GpuReading) -> fleet_pb2.GpuSample:
    """Return a GPU's readings as a message."""
    message = fleet_pb2.GpuSample(
        gpu_uuid=gpu.gpu_uuid,
        index=gpu.index,
        product_name=gpu.product_name,
        pci_bus_id=gpu.pci_bus_id,
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
            put_histogram(getattr(message, name), reading)
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


def put_histogram(message: fleet_pb2.LatencyHistogram, histogram: Histogram) -> None:
    """Fill a histogram's message."""
    message.upper_bounds_seconds.extend(histogram.bounds)
    message.bucket_counts.extend(histogram.counts)
    message.sum_seconds = histogram.sum_seconds
    # An empty histogram is a reading too; setting a field marks the message as present.
    message.SetInParent()
