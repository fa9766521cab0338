"""Demand intervals: their length is what passed, whatever is done to the wall clock."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import pytest

from ai_router.demand_feed import DemandFeed
from ai_router.testing.builders import desk
from servicekit.testing import FakeClock

INTERVAL_SECONDS = 1.0


class SetClock(FakeClock):
    """A clock whose wall time somebody sets."""

    def __init__(self) -> None:
        super().__init__()
        self.set_by = timedelta()

    def now(self) -> datetime:
        return super().now() + self.set_by


@pytest.mark.parametrize("hours", [-1, 1])
async def test_an_interval_in_which_the_clock_was_set_is_as_long_as_the_others(hours: int) -> None:
    clock = SetClock()
    feed = DemandFeed(desk(), clock, router_id="r", epoch="e", interval_seconds=INTERVAL_SECONDS)
    intervals = feed.subscribe("")
    running = asyncio.create_task(feed.run())
    lengths = []
    for _ in range(3):
        reading = asyncio.ensure_future(anext(intervals))
        await clock.advance(INTERVAL_SECONDS)
        item = (await reading).item
        assert item is not None
        lengths.append((item.end - item.start).total_seconds())
        assert item.end == clock.now()
        clock.set_by = timedelta(hours=hours)
    running.cancel()
    assert lengths == [INTERVAL_SECONDS] * 3
