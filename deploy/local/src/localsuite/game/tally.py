"""Counts every request of the game: sent is completed, shed, failed or still in flight. Pure."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field

__all__ = ["Answer", "TierTally", "percentile"]

# Enough for ten seconds at several times the game's pace; older readings fall out.
_WINDOW_READINGS = 2048


@dataclass(frozen=True, slots=True)
class Answer:
    """How one completed request felt to its player; durations in seconds.

    `seconds_per_token` is unset for answers of fewer than two tokens.
    """

    first_token_seconds: float
    seconds_per_token: float | None
    output_tokens: int
    cached: bool
    fell_back: bool


@dataclass(slots=True)
class TierTally:
    """What became of the requests that wanted one tier."""

    sent: int = 0
    completed: int = 0
    output_tokens: int = 0
    cached: int = 0
    fell_back: int = 0
    shed: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    _answers: deque[tuple[float, Answer]] = field(
        default_factory=lambda: deque(maxlen=_WINDOW_READINGS)
    )

    @property
    def in_flight(self) -> int:
        """Requests sent whose end is not known yet."""
        return self.sent - self.completed - self.shed.total() - self.failed.total()

    def complete(self, answer: Answer, *, now: float) -> None:
        """Counts a request that was answered in full."""
        self.completed += 1
        self.output_tokens += answer.output_tokens
        self.cached += answer.cached
        self.fell_back += answer.fell_back
        self._answers.append((now, answer))

    def first_token_p95_seconds(self, *, now: float, window_seconds: float) -> float | None:
        """Time to first token at P95 over the window, cached answers apart; None without any."""
        return percentile(
            [
                answer.first_token_seconds
                for at, answer in self._answers
                if now - at <= window_seconds and not answer.cached
            ],
            0.95,
        )

    def seconds_per_token_p95(self, *, now: float, window_seconds: float) -> float | None:
        """Time per token at P95 over the window, cached answers apart; None without any."""
        return percentile(
            [
                answer.seconds_per_token
                for at, answer in self._answers
                if now - at <= window_seconds
                and answer.seconds_per_token is not None
                and not answer.cached
            ],
            0.95,
        )


def percentile(values: list[float], share: float) -> float | None:
    """The smallest value that at least `share` of all values do not exceed; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]
