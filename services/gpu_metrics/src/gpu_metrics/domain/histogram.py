"""Latency histograms with explicit bucket bounds, and what may be done with them exactly.

A histogram here is what a Prometheus client exposes, with the counts per bucket instead of
cumulated: `bounds` are inclusive upper bounds in seconds, and the last bucket, which has no bound,
makes `counts` one longer. Percentiles of several servers may only be taken from merged
histograms: averaging the servers' percentiles understates the tail.
"""

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from servicekit.errors import InvalidRequest

__all__ = ["Histogram", "HistogramShapeError", "MergedHistogram", "coarsen", "merge"]


class HistogramShapeError(InvalidRequest):
    """A histogram whose bounds and counts do not fit each other."""

    reason = "HISTOGRAM_SHAPE"


@dataclass(frozen=True, slots=True)
class Histogram:
    """Observations counted per bucket, and their sum in seconds.

    Raises `HistogramShapeError` when the bounds do not ascend, are not finite, or the number of
    counts is not the number of bounds plus one.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum_seconds: float

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.bounds) + 1:
            raise HistogramShapeError("a histogram needs one more count than bounds")
        if min(self.counts) < 0:
            raise HistogramShapeError("histogram counts must not be negative")
        if not _ascend(self.bounds):
            raise HistogramShapeError("histogram bounds must be finite and ascend")

    @property
    def count(self) -> int:
        """Return the number of observations."""
        return sum(self.counts)

    def plus(self, other: "Histogram") -> "Histogram":
        """Return the histogram of both sets of observations; the bounds must be the same."""
        if self.bounds != other.bounds:
            raise HistogramShapeError("only histograms with the same bounds add up exactly")
        return Histogram(
            self.bounds,
            tuple(map(operator.add, self.counts, other.counts)),
            self.sum_seconds + other.sum_seconds,
        )

    def since(self, earlier: "Histogram") -> "Histogram | None":
        """Return what was observed after `earlier`, or None when a counter fell.

        A counter that fell says that the server started again, and then `self` is all there is.
        Raises `HistogramShapeError` when the bounds differ.
        """
        if self.bounds != earlier.bounds:
            raise HistogramShapeError("only histograms with the same bounds can be compared")
        counts = tuple(map(operator.sub, self.counts, earlier.counts))
        if min(counts) < 0:
            return None
        return Histogram(self.bounds, counts, max(0.0, self.sum_seconds - earlier.sum_seconds))

    def quantile(self, share: float) -> float | None:
        """Return the upper bound of the bucket that holds the quantile, or None when empty.

        The true quantile is at most this; `math.inf` when it lies in the unbounded bucket.
        """
        total = self.count
        if total == 0:
            return None
        rank = max(1, math.ceil(share * total))
        reached = 0
        for bound, count in zip((*self.bounds, math.inf), self.counts, strict=True):
            reached += count
            if reached >= rank:
                return bound
        return math.inf


# All servers of a tier have the same bounds, and every report carries them again.
@lru_cache(maxsize=256)
def _ascend(bounds: tuple[float, ...]) -> bool:
    return all(map(math.isfinite, bounds)) and all(low < high for low, high in pairwise(bounds))


@dataclass(frozen=True, slots=True)
class MergedHistogram:
    """A merged histogram; `coarsened` says that bounds differed and only common ones remain."""

    histogram: Histogram
    coarsened: bool


def coarsen(histogram: Histogram, bounds: tuple[float, ...]) -> Histogram:
    """Return the same observations in the buckets of `bounds`, a subset of its own bounds.

    This is exact: each new bucket is the sum of whole old ones. Raises `HistogramShapeError` when
    a bound is not one of the histogram's.
    """
    wanted = set(bounds)
    if not wanted.issubset(histogram.bounds):
        raise HistogramShapeError("a histogram can only be coarsened to bounds it has")
    counts: list[int] = []
    collected = 0
    for bound, count in zip(histogram.bounds, histogram.counts[:-1], strict=True):
        collected += count
        if bound in wanted:
            counts.append(collected)
            collected = 0
    counts.append(collected + histogram.counts[-1])
    return Histogram(bounds, tuple(counts), histogram.sum_seconds)


def merge(histograms: Iterable[Histogram]) -> MergedHistogram | None:
    """Return the histogram of all observations together, or None when there is nothing to merge.

    Histograms with differing bounds are first coarsened to the bounds that all of them have,
    which keeps every count exact at the price of resolution; the result says so.
    """
    parts = list(histograms)
    if not parts:
        return None
    distinct = {part.bounds for part in parts}
    if len(distinct) == 1:
        bounds = parts[0].bounds
    else:
        common = set.intersection(*(set(each) for each in distinct))
        bounds = tuple(sorted(common))
        parts = [coarsen(part, bounds) for part in parts]
    merged = Histogram(
        bounds,
        tuple(map(sum, zip(*(part.counts for part in parts), strict=True))),
        math.fsum(part.sum_seconds for part in parts),
    )
    return MergedHistogram(merged, coarsened=len(distinct) > 1)
