"""Time as an argument: services take a clock, so tests and simulations can bring their own."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


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
