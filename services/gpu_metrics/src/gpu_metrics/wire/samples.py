"""Packed samples and an agent's cost, between messages and the domain's values."""

from collections.abc import Iterable
from functools import lru_cache

from google.protobuf.duration_pb2 import Duration

from gaming.gpu_metrics.v1 import gpu_metrics_pb2, samples_pb2
from gpu_metrics.domain.samples import (
    AgentCost,
    FleetMetric,
    PackedSeries,
    SampleBlock,
    SampleSeries,
    blocks_of,
    column_of,
)
from servicekit.errors import FieldViolation, InvalidRequest

__all__ = [
    "InvalidSampleBlock",
    "all_series_from_message",
    "block_messages",
    "cost_from_message",
    "cost_message",
    "packed_series_from_message",
    "series_from_message",
]

_MOST_GPUS = 64
"""GPUs of a host, the protocol's limit."""


class InvalidSampleBlock(InvalidRequest):
    """The lists of a sample block do not fit together, or name what no series may."""

    reason = "INVALID_SAMPLE_BLOCK"


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


@lru_cache(maxsize=256)
def _columns(gpu_indexes: tuple[int, ...], metrics: tuple[int, ...]) -> tuple[int, ...]:
    """Return the columns of a block. Raises `InvalidSampleBlock` unless each is one of a GPU.

    Reports of a host repeat them, so they are judged once and not a thousand times a second.
    """
    if len(gpu_indexes) != len(metrics):
        raise _invalid("metrics", "must have as many entries as gpu_indexes")
    if any(index >= _MOST_GPUS for index in gpu_indexes):
        raise _invalid("gpu_indexes", f"must be less than {_MOST_GPUS}")
    if any(metric not in _METRICS for metric in metrics):
        raise _invalid("metrics", "must be defined figures")
    columns = tuple(map(column_of, gpu_indexes, metrics))
    if len(set(columns)) != len(columns):
        raise _invalid("metrics", "must not name a figure of a GPU twice")
    return columns


def _invalid(field: str, problem: str) -> InvalidSampleBlock:
    path = f"sample_blocks.{field}"
    return InvalidSampleBlock(f"{path} {problem}", field_violations=[FieldViolation(path, problem)])


def _block_from_message(message: samples_pb2.SampleBlock) -> SampleBlock:
    columns = _columns(tuple(message.gpu_indexes), tuple(message.metrics))
    offsets, values = tuple(message.offset_microseconds), tuple(message.values)
    if len(values) != len(columns) * len(offsets):
        raise _invalid("values", "must have an entry for each column at each moment")
    return SampleBlock(offsets, columns, values)


def block_messages(series: Iterable[SampleSeries]) -> list[samples_pb2.SampleBlock]:
    """Return samples as an agent sends them."""
    return [
        samples_pb2.SampleBlock(
            offset_microseconds=block.offset_microseconds,
            gpu_indexes=[each.gpu_index for each in block.series()],
            metrics=[samples_pb2.FleetMetric.ValueType(each.metric) for each in block.series()],
            values=block.values,
        )
        for block in blocks_of(series)
    ]


def packed_series_from_message(message: gpu_metrics_pb2.StreamReportsRequest) -> PackedSeries:
    """Return the samples of a report's blocks. Raises `InvalidSampleBlock`."""
    return PackedSeries(tuple(map(_block_from_message, message.sample_blocks)))


def all_series_from_message(
    message: gpu_metrics_pb2.StreamReportsRequest,
) -> tuple[SampleSeries, ...]:
    """Return a report's samples, of both forms. Raises `InvalidSampleBlock`."""
    return (*map(series_from_message, message.series), *packed_series_from_message(message))


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
