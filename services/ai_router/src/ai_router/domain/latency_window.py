"""What happened lately: percentiles and counts over a sliding window, in bounded memory."""

from __future__ import annotations

from math import ceil, log

__all__ = ["CountWindow", "LatencyWindow"]

_SLICES = 6
_SMALLEST_SECONDS = 0.0005
# Bounds grow by 10 %, so a percentile is at most 10 % too high; 130 buckets reach 2 minutes.
_GROWTH = 1.1
_LOG_GROWTH = log(_GROWTH)
_BUCKETS = 131


class _Rotation:
    """Slices of time of which the oldest is dropped when a new one begins."""

    __slots__ = ("_current", "_slice_seconds", "due")

    def __init__(self, window_seconds: float) -> None:
        self._slice_seconds = window_seconds / _SLICES
        self._current = 0
        # When the present slice ends: before that there is nothing to drop.
        self.due = 0.0

    def advance(self, now: float) -> int:
        """Returns how many slices to drop, at most all of them, before writing at `now`."""
        index = int(now / self._slice_seconds)
        passed = index - self._current
        if passed > 0:
            self._current = index
        self.due = (self._current + 1) * self._slice_seconds
        return min(max(passed, 0), _SLICES)


class CountWindow:
    """Counts events of the last `window_seconds`, with a sixth of it as its grain."""

    __slots__ = ("_counts", "_rotation")

    def __init__(self, window_seconds: float = 60.0) -> None:
        self._rotation = _Rotation(window_seconds)
        self._counts = [0] * _SLICES

    def add(self, now: float, amount: int = 1) -> None:
        """Counts `amount` at `now` (monotonic seconds)."""
        if now >= self._rotation.due:
            self._drop(now)
        self._counts[-1] += amount

    def total(self, now: float) -> int:
        """Returns the count over the window that ends at `now`."""
        self._drop(now)
        return sum(self._counts)

    def _drop(self, now: float) -> None:
        passed = self._rotation.advance(now)
        if passed:
            self._counts = self._counts[passed:] + [0] * passed


class LatencyWindow:
    """Percentiles of durations of the last `window_seconds`, at most 10 % too high, never too low.

    Durations below half a millisecond count as that, above two minutes as about two minutes.
    """

    __slots__ = ("_rotation", "_slices")

    def __init__(self, window_seconds: float = 60.0) -> None:
        self._rotation = _Rotation(window_seconds)
        self._slices: list[list[int]] = [[0] * _BUCKETS for _ in range(_SLICES)]

    def add(self, now: float, seconds: float) -> None:
        """Takes in a duration that ended at `now` (monotonic seconds)."""
        if now >= self._rotation.due:
            self._drop(now)
        bucket = 0
        if seconds > _SMALLEST_SECONDS:
            bucket = min(_BUCKETS - 1, ceil(log(seconds / _SMALLEST_SECONDS) / _LOG_GROWTH))
        self._slices[-1][bucket] += 1

    def percentile(self, now: float, share: float) -> float | None:
        """Returns the duration that `share` (0 to 1) of them do not exceed; None if empty."""
        self._drop(now)
        merged = [sum(column) for column in zip(*self._slices, strict=True)]
        count = sum(merged)
        if count == 0:
            return None
        rank = max(1, ceil(share * count))
        seen = 0
        for bucket, amount in enumerate(merged):
            seen += amount
            if seen >= rank:
                return float(_SMALLEST_SECONDS * _GROWTH**bucket)
        return None

    def _drop(self, now: float) -> None:
        passed = self._rotation.advance(now)
        if passed:
            fresh = [[0] * _BUCKETS for _ in range(passed)]
            self._slices = self._slices[passed:] + fresh
