"""Cells of the history: what is kept of many samples of a figure, made for many figures at once.

A cell keeps the number of samples, their mean and their extremes; one of more than a second keeps
four quantiles as well, so that percentiles over days and over many GPUs stay meaningful.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "LONGER_CELL",
    "SECOND_CELL",
    "SecondCells",
    "add_earlier",
    "longer_cells",
    "points_of",
    "second_cells",
]

_FIELDS = [("count", "<u2"), ("mean", "<f4"), ("minimum", "<f4"), ("maximum", "<f4")]
# Of the samples between its extremes a longer cell keeps these quantiles, each the middle of the
# share it stands for; the extremes stand for themselves. The median and the 95th percentile of a
# cell are among them, so its percentiles are off by at most half a share's rank.
_QUANTILES = (0.175, 0.5, 0.775, 0.95)
_SHARES = (0.35, 0.3, 0.25, 0.1)

SECOND_CELL = np.dtype(_FIELDS)
"""A cell of a second: samples, mean, minimum, maximum."""

_QUANTILE_NAMES = tuple(f"quantile_{share}" for share in _QUANTILES)

LONGER_CELL = np.dtype([*_FIELDS, *((name, "<u2") for name in _QUANTILE_NAMES)])
"""A longer cell: the same and four quantiles."""

_FIELDS_OF_SECOND = len(_FIELDS)
_MOST_SAMPLES = 0xFFFF
# Quantiles are kept as logarithms in 16 bits: 0.05 % apart from 0.001 to above 10^25.
_SMALLEST = 0.001
_STEPS = 1000.0

_WEIGHT_BITS = np.uint64(16)
_WEIGHT = np.uint64(0xFFFF)

_Single = NDArray[np.float32]
Floats = NDArray[np.float64]
Cells = NDArray[np.void]


def _decode(code: int) -> float:
    return _SMALLEST * math.exp((code - 1) / _STEPS) if code else 0.0


class SecondCells(NamedTuple):
    """Cells of some seconds, in order of time, of all figures of a host.

    `fields[0]` are the samples of each second and figure, then come their means, their minima and
    their maxima; all are 0 where there is no sample. None is without when it is `complete`.
    """

    seconds: Sequence[int]
    fields: Floats
    complete: bool

    def seconds_with_samples(self, begin: int, end: int) -> int:
        """Return in how many seconds any of the figures from `begin` to before `end` was told."""
        return int(np.count_nonzero(self.fields[0, :, begin:end].any(axis=1)))

    def packed(self) -> Cells:
        """Return a row of `SECOND_CELL` for each second."""
        cells = np.empty(self.fields.shape[1:], SECOND_CELL)
        np.minimum(self.fields[0], _MOST_SAMPLES, out=self.fields[0])
        for name, values in zip(SECOND_CELL.names or (), self.fields, strict=True):
            cells[name] = values
        return cells


def second_cells(rows: Floats, seconds: Iterable[tuple[int, int]]) -> SecondCells:
    """Return the cells of rows of samples, a column for each figure, NaN where it has none.

    `seconds` are those of the rows, each with how many rows in turn are of it.
    """
    runs = list(seconds)
    numbers = [second for second, _ in runs]
    if any(after <= before for before, after in pairwise(numbers)):
        of_rows = np.repeat(numbers, [count for _, count in runs])
        rows = rows[of_rows.argsort(kind="stable")]
        found, sizes = np.unique(of_rows, return_counts=True)
        numbers, lengths = found.tolist(), sizes
    else:
        lengths = np.array([count for _, count in runs])
    starts = np.cumsum(lengths) - lengths
    fields = np.empty((_FIELDS_OF_SECOND, len(numbers), rows.shape[1]))
    count, mean, minimum, maximum = fields
    np.add.reduceat(rows, starts, out=mean)
    complete = not np.isnan(mean).any()
    if complete:
        count[:] = lengths[:, None]
        mean /= count
        np.minimum.reduceat(rows, starts, out=minimum)
        np.maximum.reduceat(rows, starts, out=maximum)
        return SecondCells(numbers, fields, complete=True)
    present = ~np.isnan(rows)
    np.add.reduceat(present, starts, dtype=np.float64, out=count)
    np.add.reduceat(np.where(present, rows, 0.0), starts, out=mean)
    mean /= np.maximum(count, 1.0)
    np.fmin.reduceat(rows, starts, out=minimum)
    np.fmax.reduceat(rows, starts, out=maximum)
    fields[2:, count == 0] = 0.0
    return SecondCells(numbers, fields, complete=False)


def add_earlier(fields: Floats, cells: Cells) -> None:
    """Add to the fields of a second, a column for each figure, the cells that it has already."""
    count, mean, minimum, maximum = fields
    earlier = cells["count"].astype(np.float64)
    if not earlier.any():
        return
    both = count + earlier
    mean *= count
    mean += earlier * cells["mean"]
    mean /= np.maximum(both, 1.0)
    lowest = np.where(earlier, cells["minimum"], np.inf)
    np.minimum(np.where(count, minimum, np.inf), lowest, out=minimum)
    highest = np.where(earlier, cells["maximum"], -np.inf)
    np.maximum(np.where(count, maximum, -np.inf), highest, out=maximum)
    count[:] = both
    fields[2:, both == 0] = 0.0


def longer_cells(cells: Cells) -> Cells:
    """Return one longer cell of all cells of seconds along the last axis.

    One without any samples is all zero.
    """
    count, mean, minimum, maximum = (
        cells[name].astype(np.float32, order="C") for name in SECOND_CELL.names or ()
    )
    total = count.sum(axis=-1)
    sums = count * mean
    longer = np.zeros(total.shape, LONGER_CELL)
    longer["count"] = np.minimum(total, _MOST_SAMPLES)
    longer["mean"] = sums.sum(axis=-1, dtype=np.float64) / np.maximum(total, 1.0)
    longer["minimum"] = np.where(count, minimum, np.float32(np.inf)).min(axis=-1)
    longer["maximum"] = maximum.max(axis=-1)
    points = _points(count, sums, minimum, maximum)
    ends = (points & _WEIGHT).view(np.int64).cumsum(axis=-1)
    between = np.maximum(total - 2.0, 0.0).astype(np.float64)
    lines = np.arange(len(points))
    for name, share in zip(_QUANTILE_NAMES, _QUANTILES, strict=True):
        # One sample alone is its own first, others come after their minimum.
        ranks = np.minimum(np.floor(share * between) + 1.0, total - 1.0)
        places = (ends > ranks.reshape(-1, 1).astype(np.int64)).argmax(axis=-1)
        bits = points[lines, places] >> _WEIGHT_BITS
        longer[name] = _encoded(bits.astype(np.uint32).view(np.float32)).reshape(total.shape)
    longer[total == 0.0] = 0
    return longer


def _points(
    count: _Single, sums: _Single, minimum: _Single, maximum: _Single
) -> NDArray[np.uint64]:
    """Return the values that stand for cells of seconds in order, a row for each longer cell.

    Of each second its extremes stand for a sample each, and what is between them for the rest. No
    figure is negative, and floats that are not are in the order of their bits: so each is in the
    upper bits of a number, and its weight in the lower ones.
    """
    length = count.shape[-1]
    rest = np.maximum(count - np.float32(2.0), np.float32(0.0))
    values = np.empty((*count.shape[:-1], 3 * length), np.float32)
    values[..., :length] = minimum
    values[..., length : 2 * length] = maximum
    middle = sums - minimum
    middle -= maximum
    middle /= np.maximum(rest, np.float32(1.0))
    np.clip(middle, minimum, maximum, out=values[..., 2 * length :])
    weights = np.empty(values.shape, np.uint32)
    weights[..., :length] = count >= 1.0
    weights[..., length : 2 * length] = count >= 2.0
    weights[..., 2 * length :] = rest
    points = values.view(np.uint32).astype(np.uint64)
    points <<= _WEIGHT_BITS
    points |= weights
    points.sort(axis=-1)
    return points.reshape(-1, 3 * length)


def _encoded(values: _Single) -> Floats:
    """Return values as the logarithms that `_decode` takes."""
    codes = 1.0 + np.rint(
        np.log(np.maximum(values, _SMALLEST, dtype=np.float64) / _SMALLEST) * _STEPS
    )
    codes[values < _SMALLEST] = 0.0
    return np.minimum(codes, _MOST_SAMPLES)


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
    if len(fields) == _FIELDS_OF_SECOND:
        return _second_points((int(fields[0]), fields[1], fields[2], fields[3]))
    count, minimum, maximum = int(fields[0]), fields[2], fields[3]
    if minimum == maximum:
        return ((minimum, count),)
    points = [(minimum, 1), (maximum, 1)]
    given, reached = 0, 0.0
    for code, share in zip(fields[_FIELDS_OF_SECOND:], _SHARES, strict=True):
        reached += share
        weight = round(reached * (count - 2)) - given
        given += weight
        if weight:
            points.append((min(max(_decode(int(code)), minimum), maximum), weight))
    return points
