"""Writes to the journal in order, and keeps what the database cannot take yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from autoscaler.domain.decision import DecisionRecord
from autoscaler.domain.drains import Drain
from autoscaler.ports import DecisionJournal, DrainStore
from servicekit.postgres import DatabaseAway

__all__ = ["BufferedJournal", "EndDrain", "JournalEntry", "SaveDecision", "SaveDrain"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SaveDecision:
    """A decision, or what came of it."""

    record: DecisionRecord


@dataclass(frozen=True, slots=True)
class SaveDrain:
    """A drain that begins."""

    drain: Drain


@dataclass(frozen=True, slots=True)
class EndDrain:
    """A drain that ended."""

    instance_id: str


JournalEntry = SaveDecision | SaveDrain | EndDrain


class BufferedJournal:
    """A journal that never blocks the control loop: at most `limit` entries wait in memory.

    While `reachable` says that the database is away it is not even tried: one that is frozen, or
    behind a network that swallows everything, would keep every round waiting for its timeouts.

    When more would wait, the oldest decision that changed nothing goes first, then the oldest
    decision; what happened to drains is never dropped. Repeats of an entry are harmless, so an
    entry whose answer was lost is simply written again.

    What happened to drains is written in the `epoch` of the lead that this replica believes in when
    it writes. When the database knows a later one, the entry is given up: drains are that leader's.
    """

    def __init__(
        self,
        journal: DecisionJournal,
        drains: DrainStore,
        *,
        limit: int,
        epoch: Callable[[], int],
        reachable: Callable[[], bool] = lambda: True,
    ) -> None:
        self._journal = journal
        self._drains = drains
        self._limit = limit
        self._epoch = epoch
        self._reachable = reachable
        self._waiting: list[JournalEntry] = []
        self.dropped = 0

    @property
    def waiting_decisions(self) -> int:
        """Decisions that wait for the database."""
        return sum(isinstance(entry, SaveDecision) for entry in self._waiting)

    async def write(self, entry: JournalEntry) -> bool:
        """Write an entry after all that wait; False when it waits too, or was given up."""
        self._add(entry)
        return await self.flush()

    async def flush(self) -> bool:
        """Write what waits, oldest first; False when the database is away or another one leads."""
        if not self._reachable():
            return False
        done = given_up = 0
        try:
            for entry in self._waiting:
                if not await self._write(entry):
                    given_up += 1
                done += 1
        except DatabaseAway:
            return False
        finally:
            if done > 1:
                log.info("journal_flushed", entries=done)
            del self._waiting[:done]
            if given_up:
                log.warning("drains_not_written_another_leads", entries=given_up)
        return not given_up

    async def _write(self, entry: JournalEntry) -> bool:
        """Write one entry; False when it is another leader's to write."""
        match entry:
            case SaveDecision(record):
                await self._journal.save(record)
                return True
            case SaveDrain(drain):
                return await self._drains.save_drain(drain, self._epoch())
            case EndDrain(instance_id):
                return await self._drains.end_drain(instance_id, self._epoch())

    def _add(self, entry: JournalEntry) -> None:
        if isinstance(entry, SaveDecision):
            for index, waiting in enumerate(self._waiting):
                if (
                    isinstance(waiting, SaveDecision)
                    and waiting.record.decision_id == entry.record.decision_id
                ):
                    self._waiting[index] = entry
                    return
        self._waiting.append(entry)
        if len(self._waiting) > self._limit:
            self._drop_one()

    def _drop_one(self) -> None:
        decisions = [i for i, e in enumerate(self._waiting) if isinstance(e, SaveDecision)]
        if not decisions:
            return
        dispensable = (i for i in decisions if not self._is_change(i))
        del self._waiting[next(dispensable, decisions[0])]
        self.dropped += 1
        log.warning("journal_entry_dropped", dropped=self.dropped)

    def _is_change(self, index: int) -> bool:
        entry = self._waiting[index]
        return isinstance(entry, SaveDecision) and entry.record.is_change
