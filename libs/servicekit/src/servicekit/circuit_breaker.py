"""When to stop asking something that does not answer, and when to ask it again. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["CircuitBreaker"]


@dataclass(slots=True)
class CircuitBreaker:
    """Opens after failures in a row; while it is open, lets one call in every pause through.

    The first of those to succeed closes it. One whose answer is long in coming, or that its caller
    gives up, holds no other up: the next goes through a pause later. Times are seconds of any clock
    that never steps back.

    Args:
        failures_to_open: so many in a row, with no success in between, open it.
        pause_seconds: between the calls let through while it is open.
    """

    failures_to_open: int = 3
    pause_seconds: float = 1.0
    _failures: int = field(default=0, init=False)
    _next_probe: float | None = field(default=None, init=False)

    @property
    def is_open(self) -> bool:
        """Whether calls are refused."""
        return self._next_probe is not None

    def admits(self, now: float) -> bool:
        """Whether a call may be made now; one that may is expected to be made."""
        if self._next_probe is None:
            return True
        if now < self._next_probe:
            return False
        self._next_probe = now + self.pause_seconds
        return True

    def failed(self, now: float) -> bool:
        """Counts a call that got no answer; True when that opens it."""
        self._failures += 1
        if self.is_open or self._failures < self.failures_to_open:
            return False
        self._next_probe = now + self.pause_seconds
        return True

    def succeeded(self) -> bool:
        """Counts a call that got its answer; True when that closes it."""
        was_open = self.is_open
        self._failures, self._next_probe = 0, None
        return was_open
