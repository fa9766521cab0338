"""Histograms with fixed boundaries, the way Prometheus and vLLM count latencies."""

from bisect import bisect_left
from collections.abc import Sequence

__all__ = [
    "END_TO_END_BOUNDARIES_SECONDS",
    "INTER_TOKEN_BOUNDARIES_SECONDS",
    "TIME_TO_FIRST_TOKEN_BOUNDARIES_SECONDS",
    "LatencyHistogram",
]

# The three bucket lists are vLLM's (vllm/v1/metrics/loggers.py).
TIME_TO_FIRST_TOKEN_BOUNDARIES_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
INTER_TOKEN_BOUNDARIES_SECONDS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
END_TO_END_BOUNDARIES_SECONDS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0),
    *(240.0, 480.0, 960.0, 1920.0, 7680.0),
)


class LatencyHistogram:
    """Counts observations per bucket.

    `counts[i]` are those at most `boundaries[i]` and above the boundary before; the last entry
    counts those above every boundary. Weights may be fractional: a batch that
    advances 3.5 tokens between two events contributes 3.5 observations.
    """

    __slots__ = ("boundaries", "counts", "total_seconds")

    def __init__(self, boundaries: Sequence[float]) -> None:
        self.boundaries = boundaries
        self.counts = [0.0] * (len(boundaries) + 1)
        self.total_seconds = 0.0

    def observe(self, seconds: float, weight: float = 1.0) -> None:
        """Add `weight` observations of one value."""
        self.counts[bisect_left(self.boundaries, seconds)] += weight
        self.total_seconds += seconds * weight

    def quantile(self, q: float) -> float | None:
        """Return a quantile by linear interpolation inside its bucket; None when empty.

        Values above every boundary are reported as the highest boundary.
        """
        total = sum(self.counts)
        if total <= 0:
            return None
        rank, below, lower = q * total, 0.0, 0.0
        for boundary, count in zip(self.boundaries, self.counts, strict=False):
            if count and below + count >= rank:
                return lower + (boundary - lower) * (rank - below) / count
            below += count
            lower = boundary
        return self.boundaries[-1]
