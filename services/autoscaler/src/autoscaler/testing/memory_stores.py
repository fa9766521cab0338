"""The same stores in memory, for tests; several replicas may share one `MemoryDatabase`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from autoscaler.domain.decision import DecisionRecord, Outcome
from autoscaler.domain.drains import Drain
from autoscaler.domain.observation import Players
from autoscaler.domain.overrides import Override
from autoscaler.domain.player_counts import PlayerShare, players_in_force
from autoscaler.domain.tiers import Tier
from autoscaler.ports import (
    DecisionFilter,
    DecisionPage,
    JournalTail,
    LeaseView,
    RequestIdReused,
    Stores,
    TierReport,
)
from servicekit.postgres import DatabaseAway

__all__ = ["MemoryDatabase", "MemoryStores"]

# The real journal repeats some entries too: publications may become visible out of order.
_TAIL_REPEATS = 8


@dataclass(slots=True)
class MemoryDatabase:
    """What would be in the database; `now` is the database's own clock in Unix seconds."""

    now: Callable[[], float]
    is_reachable: bool = True
    decisions: dict[str, DecisionRecord] = field(default_factory=dict)
    publications: list[str] = field(default_factory=list)
    reports: dict[Tier, TierReport] = field(default_factory=dict)
    drains: dict[str, Drain] = field(default_factory=dict)
    overrides: dict[Tier, Override] = field(default_factory=dict)
    answers: dict[str, tuple[object, Override | None]] = field(default_factory=dict)
    players: Players | None = None
    shares: dict[tuple[str, str], PlayerShare] = field(default_factory=dict)
    players_stale_seconds: float = 120.0
    lease: tuple[str, int, float] | None = None

    def check(self) -> None:
        """Raise DatabaseAway while the database is not reachable."""
        if not self.is_reachable:
            raise DatabaseAway("The database cannot be reached; try again in a moment.")

    def is_epoch(self, epoch: int) -> bool:
        """Whether the lease is of this epoch, though it may have run out."""
        return self.lease is not None and self.lease[1] == epoch

    def stores(self) -> Stores:
        """Return the stores on this database."""
        stores = MemoryStores(self)
        return Stores(journal=stores, drains=stores, overrides=stores, players=stores, lease=stores)


class MemoryStores:
    """All stores on one `MemoryDatabase`."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    async def save(self, record: DecisionRecord) -> None:
        """Write a decision, or what came of one that was written; repeats are harmless."""
        database = self._checked()
        before = database.decisions.get(record.decision_id)
        if before is not None and (before.outcome is not None or record.outcome is None):
            return
        database.decisions[record.decision_id] = record
        if record.outcome is not None:
            database.publications.append(record.decision_id)

    async def save_reports(self, reports: Sequence[TierReport]) -> None:
        """Keep the latest view of each tier."""
        self._checked().reports.update({r.record.decision.tier: r for r in reports})

    async def reports(self) -> dict[Tier, TierReport]:
        """Return the latest view of each tier."""
        return dict(self._checked().reports)

    async def get(self, decision_id: str) -> DecisionRecord | None:
        """Return one decision whose outcome is known."""
        record = self._checked().decisions.get(decision_id)
        return None if record is None or record.outcome is None else record

    async def list_page(self, wanted: DecisionFilter, limit: int) -> DecisionPage:
        """Return decisions whose outcome is known, newest first."""
        database = self._checked()
        found = [
            record
            for _, record in sorted(database.decisions.items(), reverse=True)
            if _matches(record, wanted)
        ]
        return DecisionPage(tuple(found[:limit]), has_more=len(found) > limit)

    async def tail(self, position: int | None, limit: int) -> JournalTail:
        """Return what became known after `position`, with a few repeats; None gives the end."""
        database = self._checked()
        if position is None:
            return JournalTail((), len(database.publications))
        start = max(0, position - _TAIL_REPEATS)
        ids = database.publications[start : position + limit]
        records = tuple(database.decisions[i] for i in ids if i in database.decisions)
        return JournalTail(records, max(position, start + len(ids)))

    async def close_intents(self, before_epoch: int, message: str) -> int:
        """Mark intents of earlier leaders as failed; return how many there were."""
        intents = [
            record
            for record in self._checked().decisions.values()
            if record.outcome is None and record.lease_epoch < before_epoch
        ]
        for record in intents:
            await self.save(replace(record, outcome=Outcome.FAILED, outcome_message=message))
        return len(intents)

    async def delete_before(self, time: float) -> int:
        """Delete decisions older than `time`; return how many went."""
        database = self._checked()
        old = [i for i, record in database.decisions.items() if record.decide_time < time]
        for decision_id in old:
            del database.decisions[decision_id]
        return len(old)

    async def save_drain(self, drain: Drain, epoch: int) -> bool:
        """Keep a drain, the first one of an instance; False when the epoch is another."""
        database = self._checked()
        if not database.is_epoch(epoch):
            return False
        database.drains.setdefault(drain.instance_id, drain)
        return True

    async def end_drain(self, instance_id: str, epoch: int) -> bool:
        """Forget a drain; False when the epoch is another. Repeats are harmless."""
        database = self._checked()
        if not database.is_epoch(epoch):
            return False
        database.drains.pop(instance_id, None)
        return True

    async def drains(self) -> dict[str, Drain]:
        """Return all drains by instance id."""
        return dict(self._checked().drains)

    async def overrides(self, now: float) -> dict[Tier, Override]:
        """Return the holds in force."""
        return {t: o for t, o in self._checked().overrides.items() if o.in_force(now)}

    async def set_override(
        self, tier: Tier, override: Override, request_id: str, now: float
    ) -> Override:
        """Set a hold and return it as set; a repeated request returns the first answer."""
        database = self._checked()
        request = ("set", tier, replace(override, set_by=""))
        if request_id in database.answers:
            answer = self._answer(request_id, request)
            assert answer is not None  # noqa: S101 - setting always answers with a hold
            return answer
        database.overrides[tier] = override
        database.answers[request_id] = (request, override)
        return override

    async def clear_override(
        self, tier: Tier, request_id: str, cleared_by: str, now: float
    ) -> Override | None:
        """End the hold in force and return it; a repeated request returns the first answer."""
        database = self._checked()
        request = ("clear", tier)
        if request_id in database.answers:
            return self._answer(request_id, request)
        ended = database.overrides.pop(tier, None)
        if ended is not None and not ended.in_force(now):
            ended = None
        database.answers[request_id] = (request, ended)
        return ended

    async def report_players(self, players: Players, reported_by: str) -> Players:
        """Keep a count unless a newer one is there; return the one in force."""
        database = self._checked()
        if database.players is None or database.players.count_time < players.count_time:
            database.players = players
        return await self.players() or players

    async def report_share(self, share: PlayerShare) -> None:
        """Keep what one service counted unless a newer count of it is there."""
        shares, key = self._checked().shares, (share.source, share.world_id)
        if key not in shares or shares[key].count_time < share.count_time:
            shares[key] = share

    async def players(self) -> Players | None:
        """Return the count in force."""
        database = self._checked()
        return players_in_force(
            database.players,
            list(database.shares.values()),
            now=database.now(),
            stale_seconds=database.players_stale_seconds,
        )

    async def acquire(self, holder: str, ttl_seconds: float) -> LeaseView:
        """Take or renew the lease if it is free, expired or one's own."""
        database = self._checked()
        now = database.now()
        lease = database.lease
        if lease is None:
            database.lease = (holder, 1, now + ttl_seconds)
        elif lease[0] == holder and lease[2] > now:
            database.lease = (holder, lease[1], now + ttl_seconds)
        elif lease[0] == holder or lease[2] <= now:
            database.lease = (holder, lease[1] + 1, now + ttl_seconds)
        assert database.lease is not None  # noqa: S101 - every branch left one
        return LeaseView(holder=database.lease[0], epoch=database.lease[1])

    async def release(self, holder: str) -> None:
        """Let the next one lead at once; does nothing for others' leases."""
        database = self._checked()
        if database.lease is not None and database.lease[0] == holder:
            database.lease = (*database.lease[:2], database.now())

    def _checked(self) -> MemoryDatabase:
        self._database.check()
        return self._database

    def _answer(self, request_id: str, request: object) -> Override | None:
        first, answer = self._database.answers[request_id]
        if first != request:
            raise RequestIdReused("The request id was used for another request; make a new one.")
        return answer


def _matches(record: DecisionRecord, wanted: DecisionFilter) -> bool:
    return (
        record.outcome is not None
        and (wanted.tier is None or record.decision.tier is wanted.tier)
        and (not wanted.changes_only or record.is_change)
        and (wanted.start_time is None or record.decide_time >= wanted.start_time)
        and (wanted.end_time is None or record.decide_time < wanted.end_time)
        and (wanted.before_id is None or record.decision_id < wanted.before_id)
    )
