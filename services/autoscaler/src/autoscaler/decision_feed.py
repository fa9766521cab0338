"""The decisions as they happen, the same on every replica."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator

import structlog

from autoscaler.domain.decision import DecisionRecord
from autoscaler.domain.tiers import Tier
from autoscaler.ports import DecisionJournal
from servicekit.clock import Clock
from servicekit.postgres import DatabaseAway
from servicekit.streams import ResumableLog, StreamItem

__all__ = ["DecisionFeed"]

log = structlog.get_logger(__name__)

_HISTORY = 2048
_UNWRITTEN = 512
_BATCH = 256


class DecisionFeed:
    """Published by the leader at once, and by every replica from what it finds in the journal."""

    def __init__(
        self,
        journal: DecisionJournal,
        *,
        clock: Clock,
        epoch: str,
        poll_seconds: float,
        heartbeat_seconds: float = 5.0,
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._log: ResumableLog[DecisionRecord] = ResumableLog(
            clock=clock, epoch=epoch, history=_HISTORY, heartbeat_seconds=heartbeat_seconds
        )
        self._recent: OrderedDict[str, DecisionRecord] = OrderedDict()
        self._unwritten: OrderedDict[str, DecisionRecord] = OrderedDict()
        self._position: int | None = None

    def publish(self, record: DecisionRecord) -> None:
        """Hand a decision to the subscribers unless they have it."""
        if self._is_new(record):
            self._log.publish(record)

    def remember(self, record: DecisionRecord) -> None:
        """Keep a decision that the journal does not hold, so that it can be explained for a while.

        Rounds that change nothing are seldom written, and yet a tier's last decision may be one.
        """
        if record.decision_id in self._recent:
            return
        self._unwritten[record.decision_id] = record
        while len(self._unwritten) > _UNWRITTEN:
            self._unwritten.popitem(last=False)

    def recent(self, decision_id: str) -> DecisionRecord | None:
        """Return a decision from memory."""
        return self._recent.get(decision_id) or self._unwritten.get(decision_id)

    def latest_change(self, tier: Tier) -> DecisionRecord | None:
        """Return the tier's latest decision in memory that changed something."""
        changes = (r for r in self._recent.values() if r.decision.tier is tier and r.is_change)
        return max(changes, key=lambda r: r.decision_id, default=None)

    async def subscribe(
        self, resume_token: str, tier: Tier | None, *, changes_only: bool
    ) -> AsyncGenerator[StreamItem[DecisionRecord], None]:
        """Yield matching decisions after the token, and signs of life between them."""
        last_sent = self._clock.monotonic()
        async for step in self._log.subscribe(resume_token):
            record = step.item
            wanted = (
                record is not None
                and (tier is None or record.decision.tier is tier)
                and (not changes_only or record.is_change)
            )
            now = self._clock.monotonic()
            if wanted or record is None or now - last_sent >= self._heartbeat_seconds:
                last_sent = now
                yield step if wanted else StreamItem(step.token, None)

    async def run(self) -> None:
        """Follow the journal until cancelled, whoever writes it."""
        while True:
            try:
                await self.poll()
            except DatabaseAway:
                log.debug("journal_not_followed")
            await self._clock.sleep(self._poll_seconds)

    async def poll(self) -> None:
        """Publish what became known since the last look. Raises DatabaseAway."""
        position = self._position
        if position is None:
            position = (await self._journal.tail(None, _BATCH)).position
        tail = await self._journal.tail(position, _BATCH)
        for record in tail.records:
            # The journal repeats a few entries before the position; at the first look they are
            # history and not news.
            if self._position is None:
                self._is_new(record)
            else:
                self.publish(record)
        self._position = tail.position

    def close(self) -> None:
        """End all subscriptions."""
        self._log.close()

    def _is_new(self, record: DecisionRecord) -> bool:
        """Remember a decision; False when it was known."""
        if record.decision_id in self._recent:
            return False
        self._recent[record.decision_id] = record
        while len(self._recent) > _HISTORY:
            self._recent.popitem(last=False)
        return True
