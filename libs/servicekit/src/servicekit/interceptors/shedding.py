"""Turns calls away early while the server is too slow for them."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from servicekit.errors import Overloaded
from servicekit.interceptors.call import Call, Proceed
from servicekit.load_shedding import LoadShedder, expected_wait_seconds
from servicekit.pending_calls import ServerStatistics

__all__ = ["SheddingInterceptor"]

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 0.2
_RETRY_AFTER_SECONDS = 1.0


class SheddingInterceptor:
    """Refuses a share of the calls while `run` sees that they wait too long to begin.

    Streams pass: they are few, long, and others' eyes. So do health and reflection.
    """

    def __init__(self, shedder: LoadShedder) -> None:
        self._shedder = shedder
        self._running = 0

    async def intercept(self, call: Call, proceed: Proceed) -> Any:
        """Refuses the call when it is one of those to turn away."""
        self._running += 1
        try:
            if call.declaration is None or call.long_lived or self._shedder.admit():
                return await proceed(call)
            raise Overloaded(
                "The server is too slow for the calls it gets; try again in a moment.",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
                metadata={"admitted_percent": str(round(self._shedder.share * 100))},
            )
        finally:
            self._running -= 1

    async def run(self, statistics: ServerStatistics) -> None:
        """Looks several times a second until cancelled; the loop's own time counts, no clock's."""
        loop = asyncio.get_running_loop()
        looked, before = loop.time(), statistics.counts()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            passed = loop.time() - looked
            looked, counts = loop.time(), statistics.counts()
            wait_seconds = expected_wait_seconds(
                pending_calls=counts.started - counts.finished - self._running,
                finished_calls=counts.finished - before.finished,
                passed_seconds=passed,
                late_seconds=passed - _LOOK_SECONDS,
            )
            before = counts
            was_shedding = self._shedder.shedding
            self._shedder.observe(wait_seconds)
            if self._shedder.shedding and not was_shedding:
                log.warning("shedding_begun", wait_seconds=round(wait_seconds, 3))
            elif was_shedding and not self._shedder.shedding:
                log.info("shedding_ended")
