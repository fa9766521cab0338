"""Packed samples and an agent's cost, between messages and the domain's values."""

from collections.abc import Iterable
from functools import lru_cache

from google.protobuf.duration_pb2 import Duration

from gaming.gpu_metrics.v1 import gpu_metrics_pb2, samples_pb2
from gpu_metrics.domain.samples import (
    AgentCost,
    FleetMetric,
    PackedSeries,
    PackedValues,
    SampleBlock,
    SampleSeries,
    column_of,
    figure_of,
    packed,
)
from servicekit.errors import FieldViolation, InvalidRequest

__all__ = [
    "InvalidSampleBlock",
    "cost_from_message",
    "cost_message",
    "packed_series_from_message",
    "put_series",
]

_MOST_GPUS = 64
"""GPUs of a host, the protocol's limit."""


class InvalidSampleBlock(InvalidRequest):
    """The lists of a sample block do not fit together, or name what no series may."""

    reason = "INVALID_SAMPLE_BLOCK"


# Faster than asking the enum, thousands of times a second.
_METRICS = {metric.value: metric for metric in FleetMetric}


def _series_from_message(message: samples_pb2.SampleSeries) -> SampleSeries:
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


class _ValuesOfBlock(PackedValues):
    """The values of a block as bytes, which take a fraction of what numbers or a message would."""

    __slots__ = ("_length",)

    def __init__(self, message: samples_pb2.SampleBlock) -> None:
        self._length = len(message.values)
        # Only what counts is kept, however much else an agent sends.
        message.DiscardUnknownFields()
        # Fields are written in the order of their numbers, and all of a block are of numbers.
        self.encoded = message.SerializeToString()

    def __len__(self) -> int:
        return self._length

    def numbers(self) -> list[int]:
        # A slice is taken at once, where an iteration asks for one number after the other.
        return samples_pb2.SampleBlock.FromString(self.encoded).values[:]


def _block_from_message(message: samples_pb2.SampleBlock) -> SampleBlock:
    columns = _columns(tuple(message.gpu_indexes[:]), tuple(message.metrics[:]))
    offsets = tuple(message.offset_microseconds[:])
    if len(message.values) != len(columns) * len(offsets):
        raise _invalid("values", "must have an entry for each column at each moment")
    return SampleBlock(offsets, columns, _ValuesOfBlock(message))


def _block_message(block: SampleBlock) -> samples_pb2.SampleBlock:
    figures = [figure_of(column) for column in block.columns]
    return samples_pb2.SampleBlock(
        offset_microseconds=block.offset_microseconds,
        gpu_indexes=[gpu_index for gpu_index, _ in figures],
        metrics=[samples_pb2.FleetMetric.ValueType(metric) for _, metric in figures],
        values=block.numbers(),
    )


def put_series(
    message: gpu_metrics_pb2.StreamReportsRequest, series: Iterable[SampleSeries]
) -> None:
    """Add samples to a report as an agent sends them, those of the same moments together."""
    in_blocks = packed(series)
    message.series.extend(map(_series_message, in_blocks.alone))
    message.sample_blocks.extend(map(_block_message, in_blocks.blocks))


def _series_message(series: SampleSeries) -> samples_pb2.SampleSeries:
    return samples_pb2.SampleSeries(
        gpu_index=series.gpu_index,
        metric=samples_pb2.FleetMetric.ValueType(series.metric.value),
        offset_microseconds=series.offset_microseconds,
        values=series.values,
    )


def packed_series_from_message(message: gpu_metrics_pb2.StreamReportsRequest) -> PackedSeries:
    """Return a report's samples as they came. Raises `InvalidSampleBlock`."""
    return PackedSeries(
        tuple(map(_block_from_message, message.sample_blocks)),
        tuple(map(_series_from_message, message.series)),
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
