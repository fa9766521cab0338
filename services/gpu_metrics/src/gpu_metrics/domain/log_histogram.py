"""Histograms whose buckets grow by a constant ratio: they merge exactly, percentiles stay within 1 %.

The scheme is DDSketch's (Masson, Rim and Lee, "DDSketch: a fast and fully-mergeable quantile sketch
with relative-error guarantees", PVLDB 12(12), 2019): with growth g = (1 + a) / (1 - a), bucket i
holds the values in (g^(i-1), g^i], and 2 g^i / (g + 1) is within the share a of all of them. As
buckets are the same everywhere, adding counts merges; no percentile is ever averaged.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["GROWTH", "RELATIVE_ACCURACY", "LogHistogram", "bucket_of", "buckets_of", "merge_all"]

RELATIVE_ACCURACY = 0.01
"""How far a percentile may be from the true one, as a share of it."""

GROWTH = (1 + RELATIVE_ACCURACY) / (1 - RELATIVE_ACCURACY)
"""Ratio of the bounds of a bucket."""

_LOG_GROWTH = math.log(GROWTH)


def bucket_of(value: float) -> int:
    """Return the bucket of a value above 0."""
    return math.ceil(math.log(value) / _LOG_GROWTH - 1e-9)


def buckets_of(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the buckets of values above 0."""
    return np.ceil(np.log(values) / _LOG_GROWTH - 1e-9).astype(np.int64)


def _middle(bucket: int) -> float:
    return float(2 * GROWTH**bucket / (GROWTH + 1))


@dataclass(frozen=True, slots=True)
class LogHistogram:
    """Observations that are 0 or more, counted by bucket; an empty one has no extremes."""

    counts: Mapping[int, int] = field(default_factory=dict)
    zero_count: int = 0
    minimum: float = math.inf
    maximum: float = -math.inf
    total: float = 0.0

    @classmethod
    def of(cls, values: Iterable[float]) -> "LogHistogram":
        """Return the histogram of values. Raises ValueError for one below 0 or not finite."""
        found = list(values)
        if any(not math.isfinite(value) or value < 0 for value in found):
            raise ValueError("a log-bucket histogram holds finite values from 0")
        counts = Counter(bucket_of(value) for value in found if value > 0)
        if not found:
            return cls()
        zeros = len(found) - sum(counts.values())
        return cls(dict(counts), zeros, min(found), max(found), math.fsum(found))

    @classmethod
    def of_weighted(
        cls, values: npt.NDArray[np.float64], weights: npt.NDArray[np.int64]
    ) -> "LogHistogram":
        """Return the histogram of values from 0 that were each observed `weights` times."""
        if not len(values):
            return cls()
        positive = values > 0
        buckets = buckets_of(values[positive])
        counts: dict[int, int] = {}
        if len(buckets):
            lowest = int(buckets.min())
            counted = np.bincount(buckets - lowest, weights=weights[positive])
            counts = {
                lowest + int(place): round(counted[place]) for place in np.flatnonzero(counted)
            }
        return cls(
            counts,
            int(weights[~positive].sum()),
            float(values.min()),
            float(values.max()),
            float(values @ weights),
        )

    @property
    def count(self) -> int:
        """Return the number of observations."""
        return self.zero_count + sum(self.counts.values())

    def plus(self, other: "LogHistogram") -> "LogHistogram":
        """Return the histogram of both sets of observations."""
        counts = dict(self.counts)
        for bucket, count in other.counts.items():
            counts[bucket] = counts.get(bucket, 0) + count
        return LogHistogram(
            counts,
            self.zero_count + other.zero_count,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
            self.total + other.total,
        )

    def quantile(self, share: float) -> float | None:
        """Return the value that `share` of the observations do not exceed, None when empty.

        It is within `RELATIVE_ACCURACY` of an observation, and never outside the extremes.
        """
        count = self.count
        if count == 0:
            return None
        rank = max(1, math.ceil(share * count))
        reached = self.zero_count
        if reached >= rank:
            return 0.0
        for bucket in sorted(self.counts):
            reached += self.counts[bucket]
            if reached >= rank:
                return min(max(_middle(bucket), self.minimum), self.maximum)
        return self.maximum


def merge_all(histograms: Iterable[LogHistogram]) -> LogHistogram:
    """Return the histogram of all observations together, in any order of them."""
    counts: Counter[int] = Counter()
    zeros, minimum, maximum, totals = 0, math.inf, -math.inf, []
    for histogram in histograms:
        counts.update(histogram.counts)
        zeros += histogram.zero_count
        minimum = min(minimum, histogram.minimum)
        maximum = max(maximum, histogram.maximum)
        totals.append(histogram.total)
    return LogHistogram(dict(counts), zeros, minimum, maximum, math.fsum(totals))
