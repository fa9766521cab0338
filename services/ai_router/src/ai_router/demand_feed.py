"""Publishes the demand, one interval after the other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from ai_router.domain.demand import TierDemand
from ai_router.domain.routing import RoutingDesk
from servicekit.clock import Clock
from servicekit.streams import ResumableLog, StreamItem

__all__ = ["DemandFeed", "DemandInterval"]

_HISTORY_INTERVALS = 600
_SUBSCRIBER_QUEUE = 64
# Two clocks read one after the other differ by the time between; slewing adds less than 1 %.
_CLOCKS_AGREE_WITHIN = timedelta(milliseconds=20)
# Every interval is itself a sign of life; the longest allowed one is below this.
_HEARTBEAT_SECONDS = 12.0


@dataclass(frozen=True, slots=True)
class DemandInterval:
    """What was asked of all tiers from `start` to `end`."""

    start: datetime
    end: datetime
    tiers: tuple[TierDemand, ...]


class DemandFeed:
    """Closes an interval every `interval_seconds` and keeps the last ten minutes for resumption."""

    def __init__(
        self,
        desk: RoutingDesk,
        clock: Clock,
        *,
        router_id: str,
        epoch: str,
        interval_seconds: float,
    ) -> None:
        self.router_id = router_id
        self._desk = desk
        self._clock = clock
        self._interval_seconds = interval_seconds
        self._log: ResumableLog[DemandInterval] = ResumableLog(
            clock=clock,
            epoch=epoch,
            history=_HISTORY_INTERVALS,
            subscriber_queue=_SUBSCRIBER_QUEUE,
            heartbeat_seconds=_HEARTBEAT_SECONDS,
        )

    async def run(self) -> None:
        """Publishes for ever; ends only when cancelled, and with it all subscriptions."""
        started = due = self._clock.monotonic()
        last_end = self._clock.now()
        try:
            while True:
                # Due times are absolute, so that intervals do not drift.
                due = max(due + self._interval_seconds, self._clock.monotonic())
                await self._clock.sleep(due - self._clock.monotonic())
                ended, end = self._clock.monotonic(), self._clock.now()
                # Readers divide by the length, so it is measured: between two readings of the wall
                # clock, somebody may set it. As long as nobody does, intervals touch.
                start = end - timedelta(seconds=ended - started)
                if abs(start - last_end) < _CLOCKS_AGREE_WITHIN:
                    start = last_end
                self._log.publish(DemandInterval(start, end, self._desk.close_demand_interval()))
                started, last_end = ended, end
        finally:
            self._log.close()

    def subscribe(self, resume_token: str) -> AsyncIterator[StreamItem[DemandInterval]]:
        """Yields intervals after the token, or from now on when it is empty."""
        return self._log.subscribe(resume_token)
