"""Waiting for one of two things, by an injected clock."""

from __future__ import annotations

import asyncio

from servicekit.clock import Clock

__all__ = ["set_within"]


async def set_within(event: asyncio.Event, seconds: float, clock: Clock) -> bool:
    """Returns whether `event` is set, at once when it is, else at the latest after `seconds`."""
    if event.is_set() or seconds <= 0:
        return event.is_set()
    waiting = asyncio.ensure_future(event.wait())
    sleeping = asyncio.ensure_future(clock.sleep(seconds))
    try:
        await asyncio.wait((waiting, sleeping), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        sleeping.cancel()
    return event.is_set()
