"""How much each of many keys may take: the generic cell rate algorithm, exact and bounded.

The algorithm is GCRA(T, tau) of ITU-T Recommendation I.371 in its virtual scheduling form. A key's
whole state is one number, its theoretical arrival time: the moment at which it owes nothing any
more. A call that costs `n` units counts as `n` cells arriving at once, which conform when the last
of them does: with the emission interval `T` (one unit's share of the rate) and the tolerance
`tau = (burst - 1) * T` that is

    max(now, theoretical arrival) + n * T <= now + burst * T

and the left side is then the next theoretical arrival time. A call that does not conform changes
nothing, so callers that keep trying are served at the full rate all the same.

Times are whole nanoseconds: sums of them neither drift nor depend on the clock's age.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

__all__ = ["RateLimit", "RateLimiter"]

NANOSECONDS = 1_000_000_000
_DROPPED_PER_CALL = 2


@dataclass(frozen=True, slots=True)
class RateLimit:
    """What a key may take: `units_per_second` for ever, and `burst_units` at once after a rest.

    Raises:
        ValueError: when either is not positive.
    """

    units_per_second: float
    burst_units: int

    def __post_init__(self) -> None:
        """Refuses limits that would let nothing through."""
        if self.units_per_second <= 0 or self.burst_units < 1:
            raise ValueError("a rate limit needs a rate above 0 and a burst of 1 or more")


class RateLimiter:
    """One limit, applied to each key by itself.

    At most `maximum_keys` are remembered. Keys that owe nothing are forgotten first, which changes
    no answer; beyond that the key unused for longest is, which forgives it at most one burst. Names
    made up by a caller can therefore not fill the memory.
    """

    def __init__(self, limit: RateLimit, *, maximum_keys: int = 10_000) -> None:
        self.limit = limit
        self._maximum_keys = maximum_keys
        self._interval = max(1, round(NANOSECONDS / limit.units_per_second))
        self._window = self._interval * limit.burst_units
        # Theoretical arrival times; the key used last stands last.
        self._arrivals: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        """Returns how many keys are remembered."""
        return len(self._arrivals)

    def take(self, key: str, units: int, now_nanoseconds: int) -> int:
        """Takes `units` from `key`'s budget, or nothing when they are not there.

        Returns:
            0 when they were taken, else the nanoseconds after which they will be there if nobody
            takes any before.

        Raises:
            ValueError: `units` are more than the burst, so that they never would be.
        """
        if units > self.limit.burst_units:
            raise ValueError(f"{units} units never fit a burst of {self.limit.burst_units}")
        arrival = max(now_nanoseconds, self._arrivals.get(key, 0)) + units * self._interval
        wait = arrival - self._window - now_nanoseconds
        if wait <= 0:
            self._remember(key, arrival, now_nanoseconds)
            return 0
        self._arrivals.move_to_end(key)
        return wait

    def _remember(self, key: str, arrival: int, now: int) -> None:
        arrivals = self._arrivals
        arrivals[key] = arrival
        arrivals.move_to_end(key)
        for _ in range(_DROPPED_PER_CALL):
            oldest = next(iter(arrivals))
            if arrivals[oldest] > now and len(arrivals) <= self._maximum_keys:
                return
            del arrivals[oldest]
            if not arrivals:
                return
