"""What a host told lately and is in no cell of the history yet.

Samples wait as they came, until somebody asks for them or a bound is reached. Those of several
reports then become cells at once, so most of the work is begun once and not for every report.
"""

import math
from array import array
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from itertools import accumulate
from struct import Struct
from struct import error as StructError  # noqa: N812  # its name says nothing by itself
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpu_metrics.domain.history_cells import SecondCells, second_cells
from gpu_metrics.domain.host_ingest import AcceptedReport
from gpu_metrics.domain.samples import FleetMetric, PackedValues, column_of
from gpu_metrics.domain.varints import numbers_of

__all__ = ["GPU_METRICS", "MOST_PIECES", "MOST_SAMPLES", "MOST_SECONDS", "PendingSamples"]

GPU_METRICS = (
    FleetMetric.GPU_UTILIZATION_PERMILLE,
    FleetMetric.GPU_MEMORY_UTILIZATION_PERMILLE,
    FleetMetric.GPU_MEMORY_USED_BYTES,
    FleetMetric.GPU_POWER_MILLIWATTS,
    FleetMetric.GPU_TEMPERATURE_CELSIUS,
    FleetMetric.GPU_SM_CLOCK_MEGAHERTZ,
)
"""The figures of a GPU, in the order of `GPU_HISTORY_FIGURES`."""

MOST_PIECES = 128
"""Blocks, series apart and reports' readings of a host that wait at most, but for the last."""

MOST_SAMPLES = 16_384
"""Samples that wait at most, but for the last; mostly of two bytes each."""

MOST_SECONDS = 20
"""Seconds from the first sample that waits to the last."""

_ENOUGH = 2
"""What is worth taking: this part of what may wait."""

_NOTHING: AbstractSet[int] = frozenset()
_NEVER = 1 << 80

_Rows = NDArray[np.float64]


class _Piece(NamedTuple):
    """Values in columns that are `length` long; of those `columns[n]` is the figure `places[n]`.

    One that is `whole` has a column for each figure of the host and no other, in order.
    """

    moments: tuple[tuple[int, int, int], ...]
    length: int
    columns: Sequence[int]
    places: Sequence[int]
    whole: bool
    values: Sequence[float] | PackedValues


class _Figures(NamedTuple):
    """Which columns of a block are a figure of the host, and where those are among its figures."""

    columns: tuple[int, ...]
    places: tuple[int, ...]
    names: frozenset[int]
    whole: bool


@lru_cache(maxsize=256)
def _figures(columns: tuple[int, ...], gpus: int, width: int) -> _Figures:
    """Return what columns of `column_of` are to a host with so many GPUs and figures in all."""
    wanted = {
        column_of(gpu_index, metric): gpu_index * len(GPU_METRICS) + place
        for gpu_index in range(gpus)
        for place, metric in enumerate(GPU_METRICS)
    }
    found = [(number, wanted[column]) for number, column in enumerate(columns) if column in wanted]
    places = tuple([place for _, place in found])
    whole = len(columns) == width and places == tuple(range(width))
    return _Figures(tuple([number for number, _ in found]), places, frozenset(places), whole)


@lru_cache
def _row(width: int) -> Struct:
    """Return how a reading of each of so many figures is packed."""
    return Struct(f"={width}d")


class PendingSamples:
    """Samples of a host, until they are taken; worth it once `enough` wait, due when it is `full`.

    The host has so many GPUs, the figures of which come first, and `width` figures in all.
    """

    __slots__ = (
        "_gpus",
        "_newest",
        "_oldest",
        "_pieces",
        "_readings",
        "_row",
        "_samples",
        "_width",
    )

    def __init__(self, gpus: int, width: int) -> None:
        self._gpus = gpus
        self._width = width
        self._row = _row(width)
        self._begin()

    def _begin(self) -> None:
        self._pieces: list[_Piece] = []
        self._readings: list[tuple[int, bytes]] = []
        self._samples = 0
        self._oldest, self._newest = _NEVER, 0

    def add_samples(self, accepted: AcceptedReport) -> AbstractSet[int]:
        """Keep what is accepted of a report's samples; return the places of their figures."""
        told = _NOTHING
        for moments, block in accepted.blocks:
            columns, places, of_block, whole = _figures(block.columns, self._gpus, self._width)
            length = len(block.offset_microseconds)
            self._keep(_Piece(moments, length, columns, places, whole, block.values))
            told = told | of_block if told else of_block
        for each in accepted.series:
            column = column_of(each.gpu_index, each.metric)
            columns, places, of_one, whole = _figures((column,), self._gpus, self._width)
            values = array("d", each.values)
            self._keep(_Piece(each.moments, len(values), columns, places, whole, values))
            told |= of_one
        return told

    def _keep(self, piece: _Piece) -> None:
        if piece.places:
            self._pieces.append(piece)
            self._count(len(piece.values), piece.moments[0][0], piece.moments[-1][0])

    def add_readings(self, second: int, figures: Sequence[float | None]) -> None:
        """Keep the readings of a report, one of each figure; None is one that is missing."""
        try:
            row = self._row.pack(*figures)
        except StructError:
            # To look for a None first takes longer than all the rest.
            row = self._row.pack(*[math.nan if each is None else each for each in figures])
        self._readings.append((second, row))
        self._count(self._width, second, second)

    def _count(self, samples: int, first: int, last: int) -> None:
        self._samples += samples
        self._oldest = min(self._oldest, first)
        self._newest = max(self._newest, last)

    def _waits(self, part: int) -> bool:
        """Return whether that part of what may wait does."""
        return (
            (self._newest - self._oldest) * part >= MOST_SECONDS
            or (len(self._pieces) + len(self._readings)) * part >= MOST_PIECES
            or self._samples * part >= MOST_SAMPLES
        )

    @property
    def enough(self) -> bool:
        """Return whether so much waits that it is worth taking."""
        return self._waits(_ENOUGH)

    @property
    def full(self) -> bool:
        """Return whether as much waits as may."""
        return self._waits(1)

    def take(self) -> SecondCells | None:
        """Return the cells of what waited, None of nothing, and wait for more."""
        pieces, readings = self._pieces, self._readings
        if not pieces and not readings:
            return None
        self._begin()
        seconds = [
            (second, end - start) for piece in pieces for second, start, end in piece.moments
        ]
        rows = list(self._rows(pieces))
        if readings:
            seconds += [(second, 1) for second, _ in readings]
            told = np.frombuffer(b"".join([figures for _, figures in readings]))
            rows.append(told.reshape(-1, self._width))
        return second_cells(np.concatenate(rows), _joined(seconds))

    def _rows(self, pieces: Sequence[_Piece]) -> Iterator[_Rows]:
        """Yield the rows of samples of each piece, NaN for a figure that it does not tell."""
        encoded = [
            piece.values.encoded for piece in pieces if isinstance(piece.values, PackedValues)
        ]
        numbers, ends = numbers_of(b"".join(encoded))
        lasts = iter(np.searchsorted(ends, list(accumulate(map(len, encoded)))).tolist())
        for _, length, columns, places, whole, packed in pieces:
            if isinstance(packed, PackedValues):
                last = next(lasts)
                values = numbers[last - len(packed) : last]
            else:
                values = np.array(packed, dtype=np.float64)
            in_columns = values.reshape(-1, length)
            if whole:
                yield in_columns.T
            else:
                rows = np.full((length, self._width), np.nan)
                rows[:, places] = in_columns[columns, :].T
                yield rows


def _joined(seconds: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield runs of the same second as one."""
    now, count = seconds[0][0], 0
    for second, samples in seconds:
        if second != now:
            yield now, count
            now, count = second, 0
        count += samples
    yield now, count
