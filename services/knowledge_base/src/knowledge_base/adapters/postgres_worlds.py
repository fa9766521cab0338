"""Worlds as wholes in PostgreSQL: their states, jobs on them, and the log of what changed."""

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import structlog

from knowledge_base.adapters.database import Database
from knowledge_base.adapters.postgres_memory import world_of
from knowledge_base.domain.errors import WorldNotFound
from knowledge_base.domain.memory import World
from knowledge_base.domain.worlds import ForkOrder, Job, JobKind, JobState, WorldChange, WorldLog
from knowledge_base.ports import RequestKey
from servicekit.postgres import DatabaseAway, load_queries

__all__ = ["LEASE", "WORLD_QUERIES", "PostgresWorlds"]

log = structlog.get_logger(__name__)

WORLD_QUERIES = load_queries("knowledge_base", "world_queries.sql")

LEASE = timedelta(seconds=30)
_TRIES = 5
# Rows of one step: a copied event brings about fifteen rows of terms with it.
_STEP_ROWS = 500
_CHANNEL = "knowledge_base_world_changes"
_WAKINGS_WAITING = 1000
_LISTEN_CHECK_SECONDS = 2.0
_HEARTBEAT_SECONDS = 5.0
_VACUUM_SECONDS = 3600.0
_VACUUM_LOCK_WAIT = "5s"
# The longest call, an export, and a minute: no statement of the service sees deleted rows after it.
_OLD_READERS_SECONDS = 31 * 60.0
_OLD_READERS_POLL_SECONDS = 0.5
_CLEARABLE_STATISTICS_VERSION = 180000


class PostgresWorlds:
    """The port `WorldJobStore` on PostgreSQL.

    Args:
        owner_url: the schema's owner, for a server that has no right to VACUUM for others
            (PostgreSQL before 17); None: such a server cleans its tables in its own time.
        step_rows: most events copied, or rows deleted, in one transaction.
        lease: how long a job waits for a replica that died with it; each step extends it.
    """

    def __init__(
        self,
        database: Database,
        *,
        owner_url: str | None = None,
        step_rows: int = _STEP_ROWS,
        lease: timedelta = LEASE,
    ) -> None:
        self._database = database
        self._owner_url = owner_url
        self._step_rows = step_rows
        self._lease = lease

    async def set_archived(self, world_id: uuid.UUID, key: RequestKey, *, archived: bool) -> World:
        """Archives a world or ends that. Raises WorldNotFound, RequestIdReused."""
        (row,) = await self._database.fetch(
            WORLD_QUERIES.set_world_archived,
            world_id,
            key.request_id,
            key.fingerprint,
            key.now,
            archived,
        )
        return world_of(row)

    async def begin_fork(
        self, key: RequestKey, job_id: uuid.UUID, target_id: uuid.UUID, order: ForkOrder
    ) -> Job:
        """Begins a copy. Raises WorldNotFound, WorldNameTaken, RequestIdReused."""
        return await self._job(
            WORLD_QUERIES.begin_fork,
            order.source_id,
            key.request_id,
            key.fingerprint,
            key.now,
            job_id,
            target_id,
            order.name,
            order.description,
            order.end_time,
            order.with_subscription,
        )

    async def begin_erase(
        self, world_id: uuid.UUID, now: datetime, job_id: uuid.UUID, *, rewrite_tables: bool
    ) -> Job:
        """Hides a world and begins to erase it. Raises WorldNotFound, RequestIdReused."""
        return await self._job(WORLD_QUERIES.begin_erase, world_id, now, job_id, rewrite_tables)

    async def get_job(self, job_id: uuid.UUID) -> Job:
        """Returns a job. Raises JobNotFound."""
        return await self._job(WORLD_QUERIES.get_job, job_id)

    async def list_jobs(
        self, before: tuple[datetime, uuid.UUID] | None, *, unfinished_only: bool, limit: int
    ) -> list[Job]:
        """Returns jobs, newest first, before the one named."""
        time, job_id = before or (None, None)
        rows = await self._database.fetch(
            WORLD_QUERIES.list_jobs, time, job_id, unfinished_only, limit
        )
        return [job_of(row) for row in rows]

    async def cancel_job(self, job_id: uuid.UUID) -> Job:
        """Has a job undone. Raises JobNotFound, JobNotCancellable."""
        return await self._job(WORLD_QUERIES.cancel_job, job_id)

    async def claim(self, holder: uuid.UUID) -> Job | None:
        """Takes a job that nobody works on; None when there is none."""
        rows = await self._database.fetch(WORLD_QUERIES.claim_job, holder, self._lease)
        return job_of(rows[0]) if rows else None

    async def advance(self, job_id: uuid.UUID, holder: uuid.UUID) -> Job:
        """Does one bounded step. Raises JobTakenAway."""
        return await self._job(
            WORLD_QUERIES.advance_job, job_id, holder, self._lease, self._step_rows
        )

    async def note_failure(self, job_id: uuid.UUID, holder: uuid.UUID) -> None:
        """Lets a job be tried again later, or gives it up. Raises JobTakenAway."""
        await self._database.fetch(WORLD_QUERIES.note_job_failure, job_id, holder, _TRIES)

    async def purge(self, job: Job, holder: uuid.UUID) -> None:
        """Takes an erased world's dead rows out of the tables and ends the job.

        Raises JobTakenAway.
        """
        tables = await self._database.fetch(WORLD_QUERIES.vacuum_commands, job.rewrite_tables)
        allowed = all(table["allowed"] for table in tables)
        purged = False
        if allowed or self._owner_url is not None:
            async with asyncio.TaskGroup() as group:
                held = group.create_task(self._keep_holding(job.job_id, holder))
                purged = await self._old_readers_gone()
                if allowed:
                    async with self._database.connection() as connection:
                        await self._vacuum(connection, tables)
                else:
                    owner = await asyncpg.connect(self._owner_url, timeout=_HEARTBEAT_SECONDS)
                    try:
                        await self._vacuum(owner, tables)
                    finally:
                        await owner.close(timeout=_HEARTBEAT_SECONDS)
                held.cancel()
        if not purged:
            log.warning("erased_rows_left_to_autovacuum", job_id=str(job.job_id), allowed=allowed)
        await self._database.fetch(WORLD_QUERIES.end_erase, job.job_id, holder, self._lease, purged)

    async def last_erasure(self) -> datetime | None:
        """Returns when an erasure last began or ended."""
        time: datetime | None = await self._database.fetch_value(WORLD_QUERIES.last_erasure)
        return time

    async def forget_old(self, changes_before: datetime, jobs_before: datetime) -> None:
        """Forgets old changes and jobs."""
        await self._database.fetch(WORLD_QUERIES.forget_jobs, jobs_before)
        while await self._database.fetch_value(WORLD_QUERIES.forget_changes, changes_before):
            pass

    async def log_of(self, world_id: uuid.UUID, *, watch: bool) -> WorldLog:
        """Returns what is kept of a world's changes; asks to be woken when `watch`.

        Raises WorldNotFound.
        """
        rows = await self._database.fetch(WORLD_QUERIES.world_log, world_id, watch)
        if not rows:  # erased since the statement saw that it exists
            raise WorldNotFound("There is no world with this world_id; see ListWorlds.")
        return WorldLog(rows[0]["incarnation"], rows[0]["oldest"], rows[0]["newest"])

    async def changes_after(
        self, world_id: uuid.UUID, number: int, limit: int
    ) -> list[WorldChange]:
        """Returns a world's changes after one, oldest first. Raises WorldNotFound."""
        rows = await self._database.fetch(WORLD_QUERIES.read_changes, world_id, number, limit)
        return [
            WorldChange(row["change_number"], row["kind"], row["subject_id"], row["record_time"])
            for row in rows
        ]

    async def wakings(self) -> AsyncGenerator[uuid.UUID | None, None]:
        """Yields ids of watched worlds that changed, None when some may have been missed."""
        heard: asyncio.Queue[uuid.UUID] = asyncio.Queue(_WAKINGS_WAITING)
        missed = asyncio.Event()

        def hear(_connection: Any, _process: int, _channel: str, payload: str) -> None:
            try:
                heard.put_nowait(uuid.UUID(payload))
            except asyncio.QueueFull:
                missed.set()

        async with self._database.connection() as connection:
            await connection.add_listener(_CHANNEL, hear)
            try:
                yield None
                while not connection.is_closed():
                    changed = None
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_LISTEN_CHECK_SECONDS):
                            changed = await heard.get()
                    if changed is not None:
                        yield changed
                    if missed.is_set():
                        missed.clear()
                        yield None
            finally:
                if not connection.is_closed():
                    await connection.remove_listener(_CHANNEL, hear)
        raise DatabaseAway("The database cannot be reached; try again in a moment.")

    async def _job(self, query: str, *arguments: Any) -> Job:
        (row,) = await self._database.fetch(query, *arguments)
        return job_of(row)

    async def _keep_holding(self, job_id: uuid.UUID, holder: uuid.UUID) -> None:
        while True:
            await self._database.fetch(WORLD_QUERIES.keep_job, job_id, holder, self._lease)
            await asyncio.sleep(_HEARTBEAT_SECONDS)

    async def _old_readers_gone(self) -> bool:
        """Waits until nobody sees the deleted rows any more; False when that takes too long.

        VACUUM leaves rows that a transaction older than their deletion could still read.
        """
        old = {
            row["virtualtransaction"]
            for row in await self._database.fetch(WORLD_QUERIES.running_transactions)
        }
        with suppress(TimeoutError):
            async with asyncio.timeout(_OLD_READERS_SECONDS):
                while old:
                    await asyncio.sleep(_OLD_READERS_POLL_SECONDS)
                    old &= {
                        row["virtualtransaction"]
                        for row in await self._database.fetch(WORLD_QUERIES.running_transactions)
                    }
        return not old

    async def _vacuum(self, connection: asyncpg.Connection, tables: list[Any]) -> None:
        """Cleans the tables one after the other; also their samples in the planner's statistics."""
        await connection.execute(
            f"SET statement_timeout TO 0; SET lock_timeout TO '{_VACUUM_LOCK_WAIT}'"
        )
        version = await connection.fetchval(WORLD_QUERIES.server_version)
        for table in tables:
            # Analysing an empty table keeps the samples of the rows it had.
            await connection.execute(table["command"], timeout=_VACUUM_SECONDS)
            if version < _CLEARABLE_STATISTICS_VERSION:
                continue
            if await connection.fetchval(WORLD_QUERIES.table_is_empty, table["name"]):
                for column in table["columns"]:
                    await connection.execute(
                        WORLD_QUERIES.clear_column_statistics, table["name"], column
                    )


def job_of(row: Any) -> Job:
    """Returns a job from its row."""
    return Job(
        job_id=row["job_id"],
        kind=JobKind(row["kind"]),
        state=JobState(row["state"]),
        source_id=row["source_id"],
        target_id=row["target_id"],
        done_rows=row["done_rows"],
        total_rows=row["total_rows"],
        create_time=row["create_time"],
        update_time=row["update_time"],
        end_time=row["end_time"],
        failure_reason=row["failure_reason"],
        purging=row["phase"] == "purge",
        rewrite_tables=row["rewrite_tables"],
        rows_gone_time=row["rows_gone_time"],
        storage_gone_time=row["storage_gone_time"],
    )
