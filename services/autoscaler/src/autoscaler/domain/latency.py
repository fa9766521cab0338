"""Percentiles of latency histograms."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Histogram", "quantile_seconds"]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Observations per bucket; the last bucket has no upper bound.

    `counts` has one entry more than `upper_bounds_seconds`; both are as the fleet feed sends them.
    """

    upper_bounds_seconds: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.upper_bounds_seconds) + 1:
            raise ValueError("a histogram has one count more than bounds")

    @property
    def observations(self) -> int:
        """How many values were observed."""
        return sum(self.counts)


def quantile_seconds(histogram: Histogram, quantile: float) -> float | None:
    """Return the value below which `quantile` of the observations lie; None without observations.

    Linear within a bucket, as Prometheus' `histogram_quantile` does it. A quantile in the unbounded
    bucket gives the highest bound, which is too low: callers see "at least".
    """
    total = histogram.observations
    if total == 0 or not histogram.upper_bounds_seconds:
        return None
    rank = quantile * total
    return _interpolate(histogram.upper_bounds_seconds, histogram.counts, rank)


def _interpolate(bounds: Sequence[float], counts: Sequence[int], rank: float) -> float:
    below = 0
    lower = 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count and below + count >= rank:
            return lower + (bound - lower) * max(0.0, rank - below) / count
        below += count
        lower = bound
    return bounds[-1]
