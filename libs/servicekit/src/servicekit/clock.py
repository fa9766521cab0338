"""Time as an argument: services take a clock, so tests and simulations can bring their own."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

__all__ = ["Clock", "SteadyClock", "SystemClock"]

_SLEW_RATIO = 0.01


class Clock(Protocol):
    """Where a service gets the time from."""

    def now(self) -> datetime:
        """Returns the wall-clock time, aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Returns seconds that never go back, for measuring durations."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Returns after `seconds` of this clock."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Returns the wall-clock time, aware, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Returns seconds that never go back, for measuring durations."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Returns after `seconds`."""
        await asyncio.sleep(seconds)


class SteadyClock:
    """A clock whose wall time never jumps, for code that measures durations in it.

    It starts at another clock's wall time and goes on by that clock's stopwatch. When the wall time
    is set meanwhile, this clock approaches it by at most a hundredth of the time that passes, so a
    duration is wrong by at most that and time never goes back.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wall = clock.now()
        self._stopwatch = clock.monotonic()

    def now(self) -> datetime:
        """Returns the wall-clock time, aware, in UTC."""
        stopwatch = self._clock.monotonic()
        passed = timedelta(seconds=stopwatch - self._stopwatch)
        error = self._clock.now() - (self._wall + passed)
        most = passed * _SLEW_RATIO
        self._wall += passed + max(-most, min(most, error))
        self._stopwatch = stopwatch
        return self._wall

    def monotonic(self) -> float:
        """Returns seconds that never go back, for measuring durations."""
        return self._clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Returns after `seconds` of the other clock."""
        await self._clock.sleep(seconds)
