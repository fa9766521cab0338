"""Packed samples and an agent's cost, between messages and the domain's values."""

from google.protobuf.duration_pb2 import Duration

from gaming.gpu_metrics.v1 import samples_pb2
from gpu_metrics.domain.samples import AgentCost, FleetMetric, SampleSeries

__all__ = ["cost_from_message", "cost_message", "series_from_message", "series_message"]


# Faster than asking the enum, thousands of times a second.
_METRICS = {metric.value: metric for metric in FleetMetric}


def series_from_message(message: samples_pb2.SampleSeries) -> SampleSeries:
    """Return the samples of one figure of one GPU, as long as the shorter of the two lists."""
    offsets, values = tuple(message.offset_microseconds), tuple(message.values)
    if len(offsets) != len(values):
        length = min(len(offsets), len(values))
        offsets, values = offsets[:length], values[:length]
    return SampleSeries(
        gpu_index=message.gpu_index,
        metric=_METRICS[message.metric],
        offset_microseconds=offsets,
        values=values,
    )


def series_message(series: SampleSeries) -> samples_pb2.SampleSeries:
    """Return the samples as an agent sends them."""
    return samples_pb2.SampleSeries(
        gpu_index=series.gpu_index,
        metric=samples_pb2.FleetMetric.ValueType(series.metric.value),
        offset_microseconds=series.offset_microseconds,
        values=series.values,
    )


def cost_from_message(message: samples_pb2.AgentCost) -> AgentCost:
    """Return what an agent costs."""
    return AgentCost(
        driver_calls=message.driver_calls,
        driver_seconds=_seconds(message.driver_time),
        cpu_seconds=_seconds(message.cpu_time),
        resident_bytes=message.resident_bytes,
        replaced_reports=message.replaced_reports,
        lost_events=message.lost_events,
    )


def cost_message(cost: AgentCost) -> samples_pb2.AgentCost:
    """Return an agent's cost as a message."""
    return samples_pb2.AgentCost(
        driver_calls=cost.driver_calls,
        driver_time=_duration(cost.driver_seconds),
        cpu_time=_duration(cost.cpu_seconds),
        resident_bytes=cost.resident_bytes,
        replaced_reports=cost.replaced_reports,
        lost_events=cost.lost_events,
    )


def _seconds(message: Duration) -> float:
    return message.seconds + message.nanos / 1e9


def _duration(seconds: float) -> Duration:
    message = Duration()
    message.FromMicroseconds(round(seconds * 1_000_000))
    return message
