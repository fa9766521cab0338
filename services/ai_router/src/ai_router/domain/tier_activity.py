"""What a tier did for its callers over the last minute."""

from __future__ import annotations

from dataclasses import dataclass

from ai_router.domain.latency_window import CountWindow, LatencyWindow

__all__ = ["ActivitySummary", "TierActivity"]

_WINDOW_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivitySummary:
    """The last minute; percentiles are None when nothing was measured."""

    first_token_p95_seconds: float | None
    token_p95_seconds: float | None
    completed: int
    shed: int
    failed: int


class TierActivity:
    """Sliding windows of one tier; all times are monotonic seconds."""

    __slots__ = ("_completed", "_failed", "_first_token", "_shed", "_token")

    def __init__(self) -> None:
        self._first_token = LatencyWindow(_WINDOW_SECONDS)
        self._token = LatencyWindow(_WINDOW_SECONDS)
        self._completed = CountWindow(_WINDOW_SECONDS)
        self._shed = CountWindow(_WINDOW_SECONDS)
        self._failed = CountWindow(_WINDOW_SECONDS)

    def completed(
        self,
        now: float,
        *,
        first_token_seconds: float,
        generation_seconds: float,
        output_tokens: int,
    ) -> None:
        """Takes in an answer: time from arrival to first token, and from there to the last."""
        self._completed.add(now)
        self._first_token.add(now, first_token_seconds)
        if output_tokens > 1:
            self._token.add(now, generation_seconds / (output_tokens - 1))

    def shed(self, now: float) -> None:
        """Takes in a request turned away."""
        self._shed.add(now)

    def failed(self, now: float) -> None:
        """Takes in an attempt that a server failed."""
        self._failed.add(now)

    def summary(self, now: float) -> ActivitySummary:
        """Returns the minute that ends at `now`."""
        return ActivitySummary(
            first_token_p95_seconds=self._first_token.percentile(now, 0.95),
            token_p95_seconds=self._token.percentile(now, 0.95),
            completed=self._completed.total(now),
            shed=self._shed.total(now),
            failed=self._failed.total(now),
        )
