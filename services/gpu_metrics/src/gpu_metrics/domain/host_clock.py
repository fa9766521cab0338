"""How far a host's clock is from the collector's, told from reports alone.

A report's sample time lies before its arrival by the delay of the network, and off by the skew of
the host's clock. The delay is never negative and now and then almost nothing, so the largest
difference seen lately is the skew, too small by the smallest delay: the minimum filter of NTP's
clock filter (RFC 5905, section 10), with two windows instead of eight samples.

The host's monotonic clock tells a wall clock that was set from time that passed.
"""

from enum import Enum

__all__ = ["ClockOutcome", "HostClock"]

_FILTER_MICROSECONDS = 30_000_000
_SET_MICROSECONDS = 500_000


class ClockOutcome(Enum):
    """What a report said of its host's clocks."""

    STEADY = "steady"
    WALL_CLOCK_SET = "wall_clock_set"
    HOST_RESTARTED = "host_restarted"


class HostClock:
    """One host's clock against the collector's; all times are in microseconds."""

    __slots__ = ("_before", "_lately", "_monotonic", "_sample", "_since")

    def __init__(self) -> None:
        self._sample: int | None = None
        self._monotonic = 0
        self._lately: int | None = None
        self._before: int | None = None
        self._since = 0

    def observe(self, sample: int, monotonic: int, received: int) -> ClockOutcome:
        """Take in a report's sample time, the host's monotonic clock (0: unknown) and arrival."""
        outcome = ClockOutcome.STEADY
        if self._sample is not None and monotonic and self._monotonic:
            passed = monotonic - self._monotonic
            if passed < 0:
                outcome = ClockOutcome.HOST_RESTARTED
            elif abs(sample - self._sample - passed) > _SET_MICROSECONDS:
                outcome = ClockOutcome.WALL_CLOCK_SET
        elif self._sample is not None and sample < self._sample - _SET_MICROSECONDS:
            # Reports are in order, so time that goes back was set back.
            outcome = ClockOutcome.WALL_CLOCK_SET
        self._sample, self._monotonic = sample, monotonic
        ahead = sample - received
        if outcome is not ClockOutcome.STEADY or self._lately is None:
            self._lately, self._before, self._since = ahead, None, received
        elif received - self._since >= _FILTER_MICROSECONDS:
            self._before, self._lately, self._since = self._lately, ahead, received
        elif ahead > self._lately:
            self._lately = ahead
        return outcome

    @property
    def skew(self) -> int:
        """Return by how much the host's clock is ahead; negative when it is behind."""
        if self._lately is None:
            return 0
        return self._lately if self._before is None else max(self._lately, self._before)
