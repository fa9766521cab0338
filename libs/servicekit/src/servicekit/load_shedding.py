"""When calls come in faster than a server answers them: how many it turns away at once.

A server that has less CPU than its calls need answers all of them late, and late answers are worth
nothing: their callers have gone. Turning some away at once, for a tenth of their cost, keeps the
rest on time. What tells is how long a call waits before its handler begins.

The share of calls admitted falls in proportion to the wait and rises slowly (additive increase,
multiplicative decrease: Chiu and Jain, 1989). One look that finds a wait is a burst or a pause; two
in a row are a standing queue (the idea of CoDel, RFC 8289).
"""

from __future__ import annotations

__all__ = ["LoadShedder"]

_GREATEST_FALL = 0.3
_RISE_FACTOR = 1.3
_RISE_STEP = 0.01
_ALWAYS_ADMITTED = 1
_SHORTER = 0.8


class LoadShedder:
    """Decides call by call; time comes in only as the wait that `observe` is told.

    Args:
        target_seconds: wait from which on calls are turned away.
    """

    def __init__(self, *, target_seconds: float) -> None:
        self._target_seconds = target_seconds
        self._last_wait_seconds = 0.0
        self._credit = 0.0
        self._admitted_since = 0
        self.share = 1.0
        """Share of calls admitted."""

    @property
    def shedding(self) -> bool:
        """Whether calls are turned away."""
        return self.share < 1.0

    def observe(self, wait_seconds: float) -> None:
        """Takes how long calls wait to begin, looked at several times a second."""
        if wait_seconds <= self._target_seconds:
            self.share = min(1.0, self.share * _RISE_FACTOR + _RISE_STEP)
        elif self._target_seconds < self._last_wait_seconds < wait_seconds / _SHORTER:
            # While the wait grows shorter the last fall was enough, and the queue is on its way.
            self.share *= max(_GREATEST_FALL, self._target_seconds / wait_seconds)
        self._last_wait_seconds = wait_seconds
        self._admitted_since = 0

    def admit(self) -> bool:
        """Whether the next call is taken.

        The first one after each look always is: where so few come, they are not what keeps the
        server slow, and turning them away would help nobody.
        """
        if not self.shedding:
            return True
        self._credit += self.share
        admitted = self._credit >= 1.0 or self._admitted_since < _ALWAYS_ADMITTED
        if admitted:
            self._credit = max(0.0, self._credit - 1.0)
            self._admitted_since += 1
        return admitted
