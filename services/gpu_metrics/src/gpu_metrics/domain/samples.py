"""Samples between two reports, and what an agent costs."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, overload

__all__ = [
    "AgentCost",
    "DriverCost",
    "FleetMetric",
    "PackedSeries",
    "PackedValues",
    "SampleBlock",
    "SampleSeries",
    "column_of",
    "figure_of",
    "packed",
    "sample_count",
]

_METRIC_BITS = 8


class FleetMetric(IntEnum):
    """A figure of a GPU or of a model server; the numbers are those of the protocol."""

    GPU_UTILIZATION_PERMILLE = 1
    GPU_MEMORY_UTILIZATION_PERMILLE = 2
    GPU_MEMORY_USED_BYTES = 3
    GPU_POWER_MILLIWATTS = 4
    GPU_TEMPERATURE_CELSIUS = 5
    GPU_SM_CLOCK_MEGAHERTZ = 6
    RUNNING_REQUESTS = 7
    WAITING_REQUESTS = 8
    KV_CACHE_USAGE_PERMILLE = 9
    GENERATION_TOKENS_PER_SECOND = 10


class SampleSeries(NamedTuple):
    """One figure of one GPU at several moments, in order of time.

    The first offset is before the report's sample time, each further one after the sample before;
    both tuples are equally long.
    """

    gpu_index: int
    metric: FleetMetric
    offset_microseconds: tuple[int, ...]
    values: tuple[int, ...]


def column_of(gpu_index: int, metric: int) -> int:
    """Return the number that stands for a figure of a GPU among those of its host."""
    return gpu_index << _METRIC_BITS | metric


def figure_of(column: int) -> tuple[int, int]:
    """Return the GPU's position and the figure that a number of `column_of` stands for."""
    return column >> _METRIC_BITS, column & (1 << _METRIC_BITS) - 1


class PackedValues(ABC):
    """Values of samples as they came, which are numbers only once somebody asks.

    `encoded` consists of base-128 numbers alone, of which the values are the last.
    """

    __slots__ = ("encoded",)

    encoded: bytes

    @abstractmethod
    def __len__(self) -> int:
        """Return how many there are."""

    @abstractmethod
    def numbers(self) -> Sequence[int]:
        """Return the values; every call makes them anew."""


class SampleBlock(NamedTuple):
    """Figures that were sampled at the same moments.

    `columns` are numbers of `column_of`; `values` hold the first column at every moment, then the
    second, and so on. The offsets are those of a `SampleSeries`.
    """

    offset_microseconds: tuple[int, ...]
    columns: tuple[int, ...]
    values: tuple[int, ...] | PackedValues

    def numbers(self) -> Sequence[int]:
        """Return the values."""
        return self.values.numbers() if isinstance(self.values, PackedValues) else self.values

    def series(self) -> Iterator[SampleSeries]:
        """Yield the columns one by one."""
        values = tuple(self.numbers())
        length = len(self.offset_microseconds)
        for place, column in enumerate(self.columns):
            gpu_index, metric = figure_of(column)
            yield SampleSeries(
                gpu_index=gpu_index,
                metric=FleetMetric(metric),
                offset_microseconds=self.offset_microseconds,
                values=values[place * length : (place + 1) * length],
            )


class PackedSeries(Sequence[SampleSeries]):
    """Samples of which those of the same moments are in blocks, and others alone.

    Blocks become series once somebody asks for one.
    """

    __slots__ = ("_series", "alone", "blocks")

    def __init__(
        self, blocks: tuple[SampleBlock, ...], alone: tuple[SampleSeries, ...] = ()
    ) -> None:
        self.blocks = blocks
        self.alone = alone
        self._series: tuple[SampleSeries, ...] | None = None

    def _unpacked(self) -> tuple[SampleSeries, ...]:
        if self._series is None:
            of_blocks = [each for block in self.blocks for each in block.series()]
            self._series = (*self.alone, *of_blocks)
        return self._series

    @overload
    def __getitem__(self, index: int) -> SampleSeries: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[SampleSeries, ...]: ...

    def __getitem__(self, index: int | slice) -> SampleSeries | tuple[SampleSeries, ...]:
        return self._unpacked()[index]

    def __len__(self) -> int:
        return len(self.alone) + sum([len(block.columns) for block in self.blocks])


def packed(series: Iterable[SampleSeries]) -> PackedSeries:
    """Return the same samples with those of the same moments together."""
    sharing: dict[tuple[int, ...], list[SampleSeries]] = {}
    for each in series:
        sharing.setdefault(each.offset_microseconds, []).append(each)
    blocks = [
        SampleBlock(
            offsets,
            tuple([column_of(each.gpu_index, each.metric) for each in together]),
            tuple([value for each in together for value in each.values]),
        )
        for offsets, together in sharing.items()
        if len(together) > 1
    ]
    # A block of one figure would be larger than the figure alone.
    alone = [together[0] for together in sharing.values() if len(together) == 1]
    return PackedSeries(tuple(blocks), tuple(alone))


def sample_count(series: Sequence[SampleSeries]) -> int:
    """Return how many samples all of them hold."""
    count = 0
    if isinstance(series, PackedSeries):
        count = sum([len(block.values) for block in series.blocks])
        series = series.alone
    return count + sum([len(each.values) for each in series])


@dataclass(frozen=True, slots=True)
class DriverCost:
    """What was asked of a GPU driver since the source was opened.

    `lost_events` were told by the driver and given up before they were written down.
    """

    calls: int = 0
    seconds: float = 0.0
    lost_events: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentCost:
    """What an agent cost its host since it started; processor time includes the driver's."""

    driver_calls: int = 0
    driver_seconds: float = 0.0
    cpu_seconds: float = 0.0
    resident_bytes: int = 0
    replaced_reports: int = 0
    lost_events: int = 0
