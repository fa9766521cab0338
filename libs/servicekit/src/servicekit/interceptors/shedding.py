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
_MOMENT_SECONDS = 0.02
"""A server with a queue begins a call in this time even on a fifth of a core; after a flood, one
whose clients leave it no such moment would go on taking what the flood left for a queue."""
_RETRY_AFTER_SECONDS = 1.0


class SheddingInterceptor:
    """Refuses a share of the calls while `run` sees that they wait too long to begin.

    Streams pass: they are few, long, and others' eyes. So do health and reflection.
    """

    def __init__(self, shedder: LoadShedder) -> None:
        self._shedder = shedder
        self._running = 0
        self._begun = 0

    async def intercept(self, call: Call, proceed: Proceed) -> Any:
        """Refuses the call when it is one of those to turn away."""
        self._running += 1
        self._begun += 1
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
        lost = 0
        while True:
            empty = await self._until_next_look(statistics)
            passed = loop.time() - looked
            looked, counts = loop.time(), statistics.counts()
            known = counts.started - counts.finished - self._running
            lost = max(0, min(known, lost if empty is None else empty))
            wait_seconds = expected_wait_seconds(
                pending_calls=0 if empty is not None else known - lost,
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

    async def _until_next_look(self, statistics: ServerStatistics) -> int | None:
        """Waits; returns how many calls gRPC counts as pending though none was, if that was seen.

        What gRPC's core ends by itself (more calls than may wait, streams that were reset early) it
        counts as started and never as finished: after a flood that would look like a queue for
        ever. But a moment in which the event loop was on time and got no call is one without any.
        """
        loop = asyncio.get_running_loop()
        until, empty = loop.time() + _LOOK_SECONDS, None
        while empty is None and (moment := loop.time()) < until:
            begun = self._begun
            await asyncio.sleep(min(_MOMENT_SECONDS, until - moment))
            on_time = loop.time() - moment < 2 * _MOMENT_SECONDS
            if on_time and begun == self._begun:
                counts = statistics.counts()
                empty = counts.started - counts.finished - self._running
        await asyncio.sleep(max(0.0, until - loop.time()))
        return empty
