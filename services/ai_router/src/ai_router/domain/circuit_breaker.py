"""When a server that failed is left alone, and when it is tried again."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["BreakerPolicy", "CircuitBreaker", "CircuitState"]


class CircuitState(Enum):
    """What the breaker lets through."""

    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """When to open and for how long.

    Attributes:
        failures_to_open: so many failures in a row open the circuit; a refused connection always
            does.
        first_pause_seconds: how long it stays open the first time; doubled at each failed probe.
        longest_pause_seconds: the pause never grows beyond this.
    """

    failures_to_open: int = 3
    first_pause_seconds: float = 1.0
    longest_pause_seconds: float = 30.0


class CircuitBreaker:
    """One server's record: closed while it answers, open after failures, then one probe at a time.

    Successes of requests that began before the circuit opened say nothing about the server now and
    are ignored. Probes are real requests: before the first token they fail over, so nobody is hurt.
    """

    __slots__ = ("_failures", "_opened_at", "_pause_seconds", "_policy", "_retry_at")

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._failures = 0
        self._opened_at: float | None = None
        self._pause_seconds = policy.first_pause_seconds
        self._retry_at = 0.0

    def state(self, now: float) -> CircuitState:
        """Returns what the breaker lets through at `now` (monotonic seconds)."""
        if self._opened_at is None:
            return CircuitState.CLOSED
        return CircuitState.OPEN if now < self._retry_at else CircuitState.PROBING

    @property
    def retry_at(self) -> float | None:
        """When an open circuit lets a probe through; None while it is closed."""
        return None if self._opened_at is None else self._retry_at

    def record_success(self, started_at: float) -> None:
        """Takes in that a request begun at `started_at` was answered."""
        if self._opened_at is not None and started_at < self._opened_at:
            return
        self._opened_at = None
        self._failures = 0
        self._pause_seconds = self._policy.first_pause_seconds

    def record_failure(self, now: float, *, unreachable: bool = False) -> None:
        """Takes in a failure; `unreachable` means that no connection could be made at all."""
        if self._opened_at is not None:
            if now >= self._retry_at:
                longest = self._policy.longest_pause_seconds
                self._pause_seconds = min(longest, self._pause_seconds * 2)
                self._open(now)
            return
        self._failures += 1
        if unreachable or self._failures >= self._policy.failures_to_open:
            self._open(now)

    def _open(self, now: float) -> None:
        self._opened_at = now
        self._retry_at = now + self._pause_seconds
