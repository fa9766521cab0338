"""Rings of rows over time, packed: the memory of one GPU or model server, a cell for each figure.

Three levels: cells of a second, of ten and of sixty seconds. Samples go into the cells of a
second; once a longer cell can get no more samples it is made out of those and stands for itself.
A cell keeps the number of samples, their mean and their extremes, a longer one four quantiles as
well, so that percentiles over days and over many GPUs stay meaningful.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from operator import itemgetter, mul, truediv
from struct import Struct, calcsize

__all__ = [
    "BYTES_PER_CELL",
    "BYTES_PER_SECOND_CELL",
    "FIELDS_OF_SECOND",
    "HistoryLengths",
    "Track",
    "cells_of",
    "points_of",
]

_SECOND_CELL = "Hfff"
_CELL = "Hfff4H"

BYTES_PER_SECOND_CELL = calcsize("<" + _SECOND_CELL)
"""Memory of a cell of a second: samples, mean, minimum, maximum."""

BYTES_PER_CELL = calcsize("<" + _CELL)
"""Memory of a longer cell: the same and four quantiles."""

FIELDS_OF_SECOND = 4
"""Fields of a cell of a second: samples, mean, minimum, maximum."""

_MOST_SAMPLES = 0xFFFF
# What stands for the values of a column without any.
_NONE = (0,)
_SMALLEST_OF_SORTED, _LARGEST_OF_SORTED = itemgetter(0), itemgetter(-1)
# Of the samples between its extremes a longer cell keeps these quantiles, each the middle of the
# share it stands for; the extremes stand for themselves. The median and the 95th percentile of a
# cell are among them, so its percentiles are off by at most half a share's rank.
_QUANTILES = (0.175, 0.5, 0.775, 0.95)
_SHARES = (0.35, 0.3, 0.25, 0.1)
# So few are put in order sooner one by one than as points that stand for several.
_FEW_SAMPLES = 128
# Quantiles are kept as logarithms in 16 bits: 0.05 % apart from 0.001 to above 10^25.
_SMALLEST = 0.001
_STEPS = 1000.0


def _encode(value: float) -> int:
    if value < _SMALLEST:
        return 0
    return min(_MOST_SAMPLES, 1 + round(math.log(value / _SMALLEST) * _STEPS))


def _decode(code: int) -> float:
    return _SMALLEST * math.exp((code - 1) / _STEPS) if code else 0.0


def cells_of(columns: Sequence[Sequence[float]]) -> list[float]:
    """Return the fields of a cell of a second for each column of samples, one after the other."""
    counts: Sequence[int] = list(map(len, columns))
    lengths = counts
    if not all(counts):
        columns = [each or _NONE for each in columns]
        lengths = list(map(len, columns))
    fields = [0.0] * (len(columns) * FIELDS_OF_SECOND)
    fields[1::FIELDS_OF_SECOND] = map(truediv, map(sum, columns), lengths)
    # Of so few values both extremes are found sooner by sorting than one by one.
    in_order = list(map(sorted, columns))
    fields[2::FIELDS_OF_SECOND] = map(_SMALLEST_OF_SORTED, in_order)
    fields[3::FIELDS_OF_SECOND] = map(_LARGEST_OF_SORTED, in_order)
    if max(counts, default=0) > _MOST_SAMPLES:
        counts = [min(count, _MOST_SAMPLES) for count in counts]
    fields[0::FIELDS_OF_SECOND] = counts
    return fields


def _joined(row: list[float], fields: Sequence[float]) -> list[float]:
    """Return a row with what came later added to it."""
    for at in range(0, len(row), FIELDS_OF_SECOND):
        count, mean, minimum, maximum = fields[at : at + FIELDS_OF_SECOND]
        had = row[at]
        if count and had:
            mean = (had * row[at + 1] + count * mean) / (had + count)
            count = min(_MOST_SAMPLES, had + count)
            minimum, maximum = min(minimum, row[at + 2]), max(maximum, row[at + 3])
        if count:
            row[at : at + FIELDS_OF_SECOND] = (count, mean, minimum, maximum)
    return row


@dataclass(frozen=True, slots=True)
class HistoryLengths:
    """How many cells of each level are kept, and how late a sample may still come, in seconds."""

    seconds: int = 600
    ten_seconds: int = 2160
    minutes: int = 10080
    late_seconds: int = 60

    @property
    def bytes_per_figure(self) -> int:
        """Return what one figure of one GPU takes once its rings are full."""
        longer = self.ten_seconds + self.minutes
        return self.seconds * BYTES_PER_SECOND_CELL + longer * BYTES_PER_CELL

    def span_seconds(self, resolution: int) -> int:
        """Return how far back cells of a resolution (1, 10 or 60 seconds) reach."""
        return {1: self.seconds, 10: 10 * self.ten_seconds, 60: 60 * self.minutes}[resolution]


@lru_cache
def _row(cell: str, width: int) -> Struct:
    """Return how a row of `width` cells is packed."""
    return Struct("<" + cell * width)


@lru_cache
def _column(cell: str, width: int, column: int) -> Struct:
    """Return how one cell of such a row is read without the others."""
    size = calcsize("<" + cell)
    return Struct(f"<{size * column}x{cell}{size * (width - 1 - column)}x")


class _Ring:
    """The last rows of one resolution; memory grows with time up to the capacity."""

    __slots__ = ("_blank", "_bytes", "_capacity", "_cell", "_origin", "_row", "_width", "newest")

    def __init__(self, cell: str, width: int, capacity: int) -> None:
        self._cell = cell
        self._width = width
        self._row = _row(cell, width)
        self._blank = bytes(self._row.size)
        self._capacity = capacity
        self._bytes = bytearray()
        self._origin = 0
        self.newest = -1

    def reserve(self, number: int, before: int = 0) -> int:
        """Return where row `number` is, or -1 when it is no longer kept; newer ones are begun.

        A ring that is empty keeps room for `before` rows before the first.
        """
        size = self._row.size
        if self.newest < 0 or number - self.newest >= self._capacity:
            self._origin = number - min(before, self._capacity - 1)
            self._bytes = bytearray((number - self._origin + 1) * size)
            self.newest = number
        elif number > self.newest:
            for fresh in range(self.newest + 1, number + 1):
                if fresh - self._origin < self._capacity:
                    self._bytes += self._blank
                else:
                    place = (fresh - self._origin) % self._capacity * size
                    self._bytes[place : place + size] = self._blank
            self.newest = number
        elif number < self.oldest:
            return -1
        return (number - self._origin) % self._capacity * size

    @property
    def oldest(self) -> int:
        """Return the oldest row that is kept."""
        return max(self._origin, self.newest - self._capacity + 1)

    def append(self, fields: Sequence[float]) -> None:
        """Add the row after the newest; the ring must not be empty."""
        self.newest += 1
        offset = self.newest - self._origin
        if offset < self._capacity:
            self._bytes += self._row.pack(*fields)
        else:
            self._row.pack_into(self._bytes, offset % self._capacity * self._row.size, *fields)

    def write_row(self, place: int, fields: Sequence[float]) -> None:
        """Set all cells of the row at a place."""
        self._row.pack_into(self._bytes, place, *fields)

    def read_row(self, place: int) -> list[float]:
        """Return the fields of all cells of the row at a place."""
        return list(self._row.unpack_from(self._bytes, place))

    def rows(self, first: int, last: int) -> list[tuple[float, ...]]:
        """Return those of the rows from `first` to `last`, both included, that are kept."""
        return [row for _, rows in self._runs(first, last) for row in self._row.iter_unpack(rows)]

    def column(self, column: int, first: int, last: int) -> Iterator[tuple[int, tuple[float, ...]]]:
        """Yield one cell of the rows from `first` to `last`, where it holds something."""
        layout = _column(self._cell, self._width, column)
        for begin, rows in self._runs(first, last):
            yield from (each for each in enumerate(layout.iter_unpack(rows), begin) if each[1][0])

    def _runs(self, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        """Yield the rows in runs that lie together, each with the number of its first."""
        if self.newest < 0:
            return
        first, last = max(first, self.oldest), min(last, self.newest)
        size = self._row.size
        while first <= last:
            place = (first - self._origin) % self._capacity
            run = min(last - first + 1, self._capacity - place)
            # A copy, so that the ring may grow while the rows are read.
            yield first, bytes(self._bytes[place * size : (place + run) * size])
            first += run

    @property
    def bytes_held(self) -> int:
        """Return the memory of the rows."""
        return len(self._bytes)


class Track:
    """The figures of one GPU or server over time. Times are in whole seconds since 1970."""

    __slots__ = ("_late", "_minutes", "_seconds", "_tens", "_to_fold", "_width")

    def __init__(self, lengths: HistoryLengths, width: int) -> None:
        self._late = lengths.late_seconds
        self._width = width
        self._seconds = _Ring(_SECOND_CELL, width, lengths.seconds)
        self._tens = _Ring(_CELL, width, lengths.ten_seconds)
        self._minutes = _Ring(_CELL, width, lengths.minutes)
        # Before this second all is in the longer cells; a multiple of ten.
        self._to_fold = 0

    def add(self, second: int, samples: Mapping[int, Sequence[float]]) -> bool:
        """Take in samples of a second, by column, each at least one; False when it is too late."""
        columns: list[Sequence[float]] = [()] * self._width
        for column, values in samples.items():
            columns[column] = values
        return self.put(second, cells_of(columns))

    def put(self, second: int, fields: Sequence[float]) -> bool:
        """Take in what `cells_of` makes of the samples of a second; False when it is too late."""
        ring = self._seconds
        begins = second > ring.newest
        if begins:
            self._fold_until(second)
            if 0 <= ring.newest == second - 1:
                ring.append(fields)
                return True
        elif second < self._to_fold:
            return False
        place = ring.reserve(second, self._late)
        if place < 0:
            return False
        ring.write_row(place, fields if begins else _joined(ring.read_row(place), fields))
        return True

    def _fold_until(self, second: int) -> None:
        """Make the longer cells that get no more samples once `second` has been reached."""
        if second - self._late < self._to_fold + 10:
            return
        if self._seconds.newest < 0:
            self._to_fold = (second - self._late) // 10 * 10
            return
        # After a long silence there is nothing between what was heard last and now.
        ends = min((second - self._late) // 10 * 10, (self._seconds.newest // 60 + 1) * 60)
        while self._to_fold < ends:
            start = self._to_fold
            self._fold(self._tens, start, 10)
            self._to_fold = start + 10
            if self._to_fold % 60 == 0:
                self._fold(self._minutes, self._to_fold - 60, 60)
        self._to_fold = max(self._to_fold, (second - self._late) // 10 * 10)

    def _fold(self, ring: _Ring, start: int, length: int) -> None:
        columns = list(zip(*self._seconds.rows(start, start + length - 1), strict=True))
        fields: list[float] = []
        for at in range(0, len(columns), FIELDS_OF_SECOND):
            cells = columns[at : at + FIELDS_OF_SECOND]
            if 0 in cells[0]:
                cells = list(
                    zip(*[cell for cell in zip(*cells, strict=True) if cell[0]], strict=True)
                )
            fields += _folded(*cells) if cells else _EMPTY_CELL
        if any(fields[:: len(_EMPTY_CELL)]):
            ring.write_row(ring.reserve(start // length), fields)

    def cells(
        self, column: int, start: int, end: int, resolution: int
    ) -> Iterator[tuple[int, tuple[float, ...]]]:
        """Yield what was observed from `start` to before `end`: when a cell begins, and its fields.

        The fields are samples, mean, minimum, maximum and what `points_of` needs. What no cell of
        the resolution holds yet comes in cells of a second, so the last seconds are there.
        """
        folded = start
        if resolution > 1:
            folded = self._to_fold // resolution * resolution
            ring = self._tens if resolution == 10 else self._minutes
            last = -(-min(end, folded) // resolution) - 1
            for number, fields in ring.column(column, start // resolution, last):
                yield number * resolution, fields
        yield from self._seconds.column(column, max(start, folded), end - 1)

    @property
    def bytes_held(self) -> int:
        """Return the memory of all its cells."""
        return self._seconds.bytes_held + self._tens.bytes_held + self._minutes.bytes_held


_EMPTY_CELL = (0, 0.0, 0.0, 0.0, 0, 0, 0, 0)


def _folded(
    counts: Sequence[int],
    means: Sequence[float],
    minima: Sequence[float],
    maxima: Sequence[float],
) -> tuple[float, ...]:
    """Return one longer cell of the cells of seconds, none of them empty."""
    count = sum(counts)
    mean = sum(map(mul, counts, means)) / count
    minimum, maximum = min(minima), max(maxima)
    if minimum == maximum:
        codes = (_encode(minimum),) * len(_QUANTILES)
    else:
        codes = tuple(map(_encode, _quantiles(counts, means, minima, maxima, count)))
    return (min(_MOST_SAMPLES, count), mean, minimum, maximum, *codes)


def _second_points(fields: tuple[int, float, float, float]) -> tuple[tuple[float, int], ...]:
    count, mean, minimum, maximum = fields
    if minimum == maximum:
        return ((minimum, count),)
    if count == 2:
        return ((minimum, 1), (maximum, 1))
    rest = (count * mean - minimum - maximum) / (count - 2)
    return ((minimum, 1), (min(max(rest, minimum), maximum), count - 2), (maximum, 1))


def points_of(fields: Sequence[float]) -> Sequence[tuple[float, int]]:
    """Return values that stand for a cell's samples, and how many each stands for."""
    if len(fields) == FIELDS_OF_SECOND:
        return _second_points((int(fields[0]), fields[1], fields[2], fields[3]))
    count, minimum, maximum = int(fields[0]), fields[2], fields[3]
    if minimum == maximum:
        return ((minimum, count),)
    points = [(minimum, 1), (maximum, 1)]
    given, reached = 0, 0.0
    for code, share in zip(fields[FIELDS_OF_SECOND:], _SHARES, strict=True):
        reached += share
        weight = round(reached * (count - 2)) - given
        given += weight
        if weight:
            points.append((min(max(_decode(int(code)), minimum), maximum), weight))
    return points


def _quantiles(
    counts: Sequence[int],
    means: Sequence[float],
    minima: Sequence[float],
    maxima: Sequence[float],
    count: int,
) -> list[float]:
    """Return the quantiles of the points that stand for cells of seconds."""
    values, weights = list(minima), list(counts)
    if minima != maxima:
        cells = zip(counts, means, minima, maxima, strict=True)
        if min(counts) > 2:
            # What `_second_points` tells of each, all at once.
            values += maxima
            if count <= _FEW_SAMPLES:
                for n, mean, low, high in cells:
                    values += [(n * mean - low - high) / (n - 2)] * (n - 2)
                values.sort()
                return [values[1 + int(share * (count - 2))] for share in _QUANTILES]
            values += [(n * mean - low - high) / (n - 2) for n, mean, low, high in cells]
            weights = [1] * (2 * len(counts))
            weights += [n - 2 for n in counts]
        else:
            points = [point for cell in cells for point in _second_points(cell)]
            values, weights = [value for value, _ in points], [weight for _, weight in points]
    # Numbers are sorted sooner than pairs of them.
    order = sorted(range(len(values)), key=values.__getitem__)
    reached = list(accumulate(map(weights.__getitem__, order)))
    return [
        values[order[bisect_right(reached, 1 + int(share * (count - 2)))]] for share in _QUANTILES
    ]
