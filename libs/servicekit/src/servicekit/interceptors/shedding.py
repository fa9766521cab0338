"""Turns calls away early while the server is too slow for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from servicekit.errors import Overloaded
from servicekit.interceptors.call import Call, Proceed
from servicekit.load_shedding import LoadShedder

__all__ = ["SheddingInterceptor"]

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 0.2
_MAXIMUM_LOOKS = 25
_QUIET_LOOKS = 4
"""So many looks in a row are left out while no calls come. Each is a call: at five a second they
would cost an idle server a hundredth of a core."""
_RETRY_AFTER_SECONDS = 1.0


class SheddingInterceptor:
    """Refuses a share of the calls while `run` sees that they wait too long to begin.

    Streams pass: they are few, long, and others' eyes. So do health and reflection.
    """

    def __init__(self, shedder: LoadShedder) -> None:
        self._shedder = shedder
        self._looks_under_way = 0
        self._gave_way = 0
        self._others = 0
        self._came = False

    async def intercept(self, call: Call, proceed: Proceed) -> Any:
        """Refuses the call when it is one of those to turn away."""
        passes = call.declaration is None or call.long_lived
        self._came = self._came or not passes
        if passes or self._shedder.admit():
            try:
                return await proceed(call)
            finally:
                self._gave_way += call.gave_way
                self._others += not call.gave_way
        raise Overloaded(
            "The server is too slow for the calls it gets; try again in a moment.",
            retry_after_seconds=_RETRY_AFTER_SECONDS,
            metadata={"admitted_percent": str(round(self._shedder.share * 100))},
        )

    def note_gave_way(self, count: int) -> None:
        """Takes how many calls gave way before they came here."""
        self._gave_way += count
        self._came = True

    async def run(self, wait_seconds: Callable[[], Awaitable[float | None]]) -> None:
        """Looks several times a second, or once while no calls come, until cancelled.

        Args:
            wait_seconds: makes a call and returns how long it waited to begin, None when it could
                not. Several are under way while calls wait for longer than a look takes.
        """
        async with asyncio.TaskGroup() as looks:
            left_out = _QUIET_LOOKS
            while True:
                if not (self._came or self._shedder.shedding) and left_out < _QUIET_LOOKS:
                    left_out += 1
                elif self._looks_under_way < _MAXIMUM_LOOKS:
                    self._looks_under_way += 1
                    self._came, left_out = False, 0
                    looks.create_task(self._look(wait_seconds))
                await asyncio.sleep(_LOOK_SECONDS)

    async def _look(self, wait_seconds: Callable[[], Awaitable[float | None]]) -> None:
        gave_way, others = self._gave_way, self._others
        try:
            seconds = await wait_seconds()
        finally:
            self._looks_under_way -= 1
        # Calls without a request cost as much when they are turned away. When most that ended
        # meanwhile were such, it was they that it waited for, and turning away others helps nobody.
        if seconds is None or self._gave_way - gave_way > self._others - others:
            return
        was_shedding = self._shedder.shedding
        self._shedder.observe(seconds)
        if self._shedder.shedding and not was_shedding:
            log.warning("shedding_begun", wait_seconds=round(seconds, 3))
        elif was_shedding and not self._shedder.shedding:
            log.info("shedding_ended")
