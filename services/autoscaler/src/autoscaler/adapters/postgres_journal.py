"""The decision journal and the drains under way, in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import asyncpg

from autoscaler.adapters.bus_events import capacity_message
from autoscaler.adapters.decision_json import (
    record_from_json,
    record_to_json,
    report_from_json,
    report_to_json,
)
from autoscaler.adapters.postgres_errors import store_errors
from autoscaler.adapters.postgres_lease import LEASE_NAME
from autoscaler.domain.decision import DecisionRecord, Outcome
from autoscaler.domain.drains import Drain
from autoscaler.domain.tiers import Tier
from autoscaler.ports import DecisionFilter, DecisionPage, JournalTail, TierReport
from messaging.outbox import enqueue
from servicekit.postgres import Queries

__all__ = ["SCHEMA", "PostgresDrains", "PostgresJournal", "to_datetime"]

SCHEMA = "autoscaler"

# Publication numbers are drawn in order but may be committed a little out of order.
_TAIL_OVERLAP = 64


def to_datetime(unix_seconds: float) -> datetime:
    """Return Unix seconds as the driver wants them."""
    return datetime.fromtimestamp(unix_seconds, UTC)


class PostgresJournal:
    """Keeps decisions for as long as the retention allows. All methods raise DatabaseAway.

    Args:
        announces: whether changes of capacity are put into the outbox with the journal's entry.
    """

    def __init__(self, pool: asyncpg.Pool, queries: Queries, *, announces: bool = False) -> None:
        self._pool = pool
        self._queries = queries
        self._announces = announces

    async def save(self, record: DecisionRecord) -> None:
        """Write a decision, or what came of one that was written; repeats are harmless."""
        event = capacity_message(record) if self._announces else None
        with store_errors():
            async with self._pool.acquire() as connection:
                # One statement is a transaction by itself: most decisions change nothing.
                if event is None:
                    await self._write(connection, record)
                    return
                async with connection.transaction():
                    # An outcome that was written before is also announced already.
                    if await self._write(connection, record):
                        await enqueue(connection, event, schema=SCHEMA)

    async def _write(self, connection: asyncpg.Connection, record: DecisionRecord) -> bool:
        """Write a decision; return whether the journal changed by it."""
        decision = record.decision
        status: str = await connection.execute(
            self._queries.save_decision,
            UUID(record.decision_id),
            decision.tier.value,
            to_datetime(record.decide_time),
            decision.previous_desired,
            decision.desired,
            decision.rule.value,
            record.is_change,
            None if record.outcome is None else record.outcome.value,
            record.decided_by,
            record.lease_epoch,
            record_to_json(record),
        )
        return status != "INSERT 0 0"

    async def save_reports(self, reports: Sequence[TierReport]) -> None:
        """Keep the latest view of each tier, for replicas that do not lead."""
        rows = [(r.record.decision.tier.value, report_to_json(r)) for r in reports]
        with store_errors():
            await self._pool.executemany(self._queries.save_report, rows)

    async def reports(self) -> dict[Tier, TierReport]:
        """Return the latest view of each tier."""
        with store_errors():
            rows = await self._pool.fetch(self._queries.list_reports)
        return {Tier(row["tier"]): report_from_json(row["report"]) for row in rows}

    async def get(self, decision_id: str) -> DecisionRecord | None:
        """Return one decision; None when there is none, or the id is none of ours."""
        try:
            key = UUID(decision_id)
        except ValueError:
            return None
        with store_errors():
            text = await self._pool.fetchval(self._queries.get_decision, key)
        return None if text is None else record_from_json(text)

    async def list_page(self, wanted: DecisionFilter, limit: int) -> DecisionPage:
        """Return decisions whose outcome is known, newest first."""
        with store_errors():
            rows = await self._pool.fetch(
                self._queries.list_decisions,
                None if wanted.tier is None else wanted.tier.value,
                wanted.changes_only,
                None if wanted.start_time is None else to_datetime(wanted.start_time),
                None if wanted.end_time is None else to_datetime(wanted.end_time),
                None if wanted.before_id is None else UUID(wanted.before_id),
                limit + 1,
            )
        records = tuple(record_from_json(row["record"]) for row in rows[:limit])
        return DecisionPage(records, has_more=len(rows) > limit)

    async def tail(self, position: int | None, limit: int) -> JournalTail:
        """Return what became known after `position`, with a few repeats; None gives the end."""
        with store_errors():
            if position is None:
                end = await self._pool.fetchval(self._queries.latest_publication)
                return JournalTail((), end)
            rows = await self._pool.fetch(
                self._queries.tail_decisions,
                max(0, position - _TAIL_OVERLAP),
                limit + _TAIL_OVERLAP,
            )
        latest = max((row["publication"] for row in rows), default=position)
        return JournalTail(
            tuple(record_from_json(row["record"]) for row in rows), max(position, latest)
        )

    async def close_intents(self, before_epoch: int, message: str) -> int:
        """Mark intents of earlier leaders as failed; return how many there were."""
        with store_errors():
            rows = await self._pool.fetch(self._queries.open_intents, before_epoch)
        for row in rows:
            record = record_from_json(row["record"])
            await self.save(replace(record, outcome=Outcome.FAILED, outcome_message=message))
        return len(rows)

    async def delete_before(self, time: float) -> int:
        """Delete decisions older than `time`, with holds and answers that ended before it."""
        moment = to_datetime(time)
        with store_errors():
            status = await self._pool.execute(self._queries.delete_decisions, moment)
            await self._pool.execute(self._queries.delete_answered_requests, moment)
            await self._pool.execute(self._queries.delete_overrides, moment)
            await self._pool.execute(self._queries.delete_player_shares, moment)
        return int(status.rsplit(" ", 1)[-1])


class PostgresDrains:
    """Keeps drains under way, so that the next leader goes on with them.

    Writes are fenced by the epoch of the lease, in the statement itself.
    """

    def __init__(self, pool: asyncpg.Pool, queries: Queries) -> None:
        self._pool = pool
        self._queries = queries

    async def save_drain(self, drain: Drain, epoch: int) -> bool:
        """Keep a drain, the first one of an instance; False when the epoch is another."""
        with store_errors():
            leads: bool = await self._pool.fetchval(
                self._queries.save_drain,
                LEASE_NAME,
                epoch,
                drain.instance_id,
                drain.tier.value,
                list(drain.server_ids),
                to_datetime(drain.start_time),
                to_datetime(drain.deadline),
                UUID(drain.decision_id),
            )
        return leads

    async def end_drain(self, instance_id: str, epoch: int) -> bool:
        """Forget a drain; False when the epoch is another. Repeats are harmless."""
        with store_errors():
            leads: bool = await self._pool.fetchval(
                self._queries.end_drain, LEASE_NAME, epoch, instance_id
            )
        return leads

    async def drains(self) -> dict[str, Drain]:
        """Return all drains by instance id."""
        with store_errors():
            rows = await self._pool.fetch(self._queries.list_drains)
        return {
            row["instance_id"]: Drain(
                instance_id=row["instance_id"],
                tier=Tier(row["tier"]),
                server_ids=tuple(row["server_ids"]),
                start_time=row["start_time"].timestamp(),
                deadline=row["deadline"].timestamp(),
                decision_id=str(row["decision_id"]),
            )
            for row in rows
        }
