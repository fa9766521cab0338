"""An event loop whose time is virtual: hours of timers run in seconds, in one fixed order.

Sleeping, timeouts and scheduled callbacks all read this loop's time, so the services' own
coroutines run unchanged. Nothing here touches a socket, a thread or the machine's clock.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, TypeVarTuple, Unpack

__all__ = ["PROCESS", "NodeClock", "StuckError", "VirtualLoop", "run_virtual"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

PROCESS: ContextVar[str] = ContextVar("PROCESS", default="")
"""The simulated process that a task belongs to."""

START = datetime(2026, 3, 1, 18, 0, tzinfo=UTC)
"""The wall-clock time of virtual time 0 on a clock that goes right."""

_MOST_TURNS_AT_ONE_MOMENT = 200_000


class StuckError(RuntimeError):
    """Everybody waits for somebody else, or time stands still while work goes on for ever."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs what is ready, in the order in which it became so; then time jumps to the next timer.

    Timers of one moment run in the order in which they were set. The tasks of a process that is in
    `frozen_until` make no step before that time. Of `BaseEventLoop` everything is used but the
    waiting: its timers and the one method that runs a turn are this class's own.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._turns = 0
        self._order = 0
        self._ready: deque[asyncio.Handle]
        self._timers: list[tuple[float, int, asyncio.Handle]] = []
        self._outside = Context()
        self.frozen_until: dict[str, float] = {}

    def time(self) -> float:
        """Virtual seconds since the run began."""
        return self._now

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call `callback` at virtual time `when`."""
        # Time passes for a frozen process too; what a timer wakes is a task, and that waits.
        handle = asyncio.TimerHandle(when, callback, args, self, context or self._outside)
        self._set_timer(when, handle)
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call `callback` after `delay` virtual seconds."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def _run_once(self) -> None:
        ready, timers = self._ready, self._timers
        if not ready:
            while timers and timers[0][2].cancelled():
                heapq.heappop(timers)
            if not timers:
                raise StuckError("everybody waits and no timer is set")
            if timers[0][0] > self._now:
                self._now = timers[0][0]
                self._turns = 0
            while timers and timers[0][0] <= self._now:
                ready.append(heapq.heappop(timers)[2])
        self._turns += 1
        if self._turns > _MOST_TURNS_AT_ONE_MOMENT:
            raise StuckError(f"time stands still at {self._now:.3f} s")
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle.cancelled():
                continue
            if self.frozen_until and (thaws := self._thaws(handle)) > self._now:
                self._set_timer(thaws, handle)
            else:
                handle._run()

    def _set_timer(self, when: float, handle: asyncio.Handle) -> None:
        self._order += 1
        heapq.heappush(self._timers, (when, self._order, handle))

    def _thaws(self, handle: asyncio.Handle) -> float:
        process = handle._context.get(PROCESS, "")  # type: ignore[attr-defined]  # not in the stubs
        return self.frozen_until.get(process, 0.0)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is dropped when its time comes."""

    def _write_to_self(self) -> None:
        """Nobody wakes this loop from another thread."""


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end on a loop of its own and return its result."""
    loop = VirtualLoop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(main)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()


class NodeClock:
    """One machine's clock: its wall clock may be wrong and jump, its stopwatch starts anywhere.

    `drift` is the stopwatch's error as a ratio, e.g. 50e-6.
    """

    def __init__(
        self, *, wall_offset_seconds: float = 0.0, uptime_seconds: float = 0.0, drift: float = 0.0
    ) -> None:
        self.wall_offset_seconds = wall_offset_seconds
        self._loop = asyncio.get_running_loop()
        self._rate = 1.0 + drift
        self._uptime = uptime_seconds - self._loop.time() * self._rate

    def now(self) -> datetime:
        """Return the wall-clock time as this machine believes it."""
        return START + timedelta(seconds=self._loop.time() + self.wall_offset_seconds)

    def monotonic(self) -> float:
        """Return seconds since this machine's start, by its own stopwatch."""
        return self._uptime + self._loop.time() * self._rate

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds` of this machine's stopwatch."""
        await asyncio.sleep(max(0.0, seconds) / self._rate)
