"""When to stop asking something that does not answer, and when to ask it again. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["CircuitBreaker"]


@dataclass(slots=True)
class CircuitBreaker:
    """Opens after failures in a row; while it is open, lets one call at a time through.

    The first success closes it. After a failure there is a pause, and then the next call goes
    through. One that hangs, or whose end is never told, holds the next up for no longer than
    `patience_seconds`. Times are seconds of any clock that never steps back.

    Args:
        failures_to_open: so many in a row, with no success in between, open it.
        pause_seconds: between a failure and the next call let through.
        patience_seconds: between one call let through and the next, when the first tells nothing.
    """

    failures_to_open: int = 3
    pause_seconds: float = 1.0
    patience_seconds: float = 3.0
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
        self._next_probe = now + self.patience_seconds
        return True

    def failed(self, now: float) -> bool:
        """Counts a call that got no answer; True when that opens it."""
        self._failures += 1
        if self._failures < self.failures_to_open:
            return False
        opens = not self.is_open
        self._next_probe = now + self.pause_seconds
        return opens

    def succeeded(self) -> bool:
        """Counts a call that got its answer; True when that closes it."""
        was_open = self.is_open
        self._failures, self._next_probe = 0, None
        return was_open
