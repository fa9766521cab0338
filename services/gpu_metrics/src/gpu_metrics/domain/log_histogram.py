"""Histograms with buckets that grow by a constant ratio: merged exactly, percentiles within 1 %.

The scheme is DDSketch's (Masson, Rim and Lee, "DDSketch: a fast and fully-mergeable quantile sketch
with relative-error guarantees", PVLDB 12(12), 2019): with growth g = (1 + a) / (1 - a), bucket i
holds the values in (g^(i-1), g^i], and 2 g^i / (g + 1) is within the share a of all of them. As
buckets are the same everywhere, adding counts merges; no percentile is ever averaged.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["GROWTH", "RELATIVE_ACCURACY", "LogHistogram", "bucket_of", "merge_all"]

RELATIVE_ACCURACY = 0.01
"""How far a percentile may be from the true one, as a share of it."""

GROWTH = (1 + RELATIVE_ACCURACY) / (1 - RELATIVE_ACCURACY)
"""Ratio of the bounds of a bucket."""

_LOG_GROWTH = math.log(GROWTH)


def bucket_of(value: float) -> int:
    """Return the bucket of a value above 0."""
    return math.ceil(math.log(value) / _LOG_GROWTH - 1e-9)


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
        return cls.of_weighted((value, 1) for value in values)

    @classmethod
    def of_weighted(cls, observations: Iterable[tuple[float, int]]) -> "LogHistogram":
        """Return the histogram of values and how often each was observed, at least once.

        Raises ValueError for a value below 0 or not finite.
        """
        counts: dict[int, int] = {}
        zeros, minimum, maximum, total = 0, math.inf, -math.inf, 0.0
        buckets: dict[float, int] = {}
        for value, count in observations:
            if value == 0:
                zeros += count
            else:
                # Neighbouring observations are often the same.
                bucket = buckets.get(value)
                if bucket is None:
                    if not (0 < value < math.inf):
                        raise ValueError("a log-bucket histogram holds finite values from 0")
                    bucket = buckets[value] = bucket_of(value)
                counts[bucket] = counts.get(bucket, 0) + count
            minimum = min(minimum, value)
            maximum = max(maximum, value)
            total += value * count
        return cls(counts, zeros, minimum, maximum, total)

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
