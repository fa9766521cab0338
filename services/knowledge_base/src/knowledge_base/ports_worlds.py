"""What work on whole worlds needs from outside."""

import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Protocol

from knowledge_base.domain.memory import World
from knowledge_base.domain.world_records import WorldHeader, WorldRow
from knowledge_base.domain.worlds import ForkOrder, Job, WorldChange, WorldLog
from knowledge_base.ports import RequestKey

__all__ = ["Forgetful", "WorldExport", "WorldImport", "WorldJobStore", "WorldRecordStore"]


class Forgetful(Protocol):
    """Something that remembers texts in memory."""

    def forget_texts(self) -> None:
        """Forgets them all."""
        ...


class WorldJobStore(Protocol):
    """Keeps worlds' states, jobs and logs of changes. Raises Unavailable when it is away."""

    async def set_archived(self, world_id: uuid.UUID, key: RequestKey, *, archived: bool) -> World:
        """Archives a world or ends that. Raises WorldNotFound, RequestIdReused."""
        ...

    async def begin_fork(
        self, key: RequestKey, job_id: uuid.UUID, target_id: uuid.UUID, order: ForkOrder
    ) -> Job:
        """Begins a copy. Raises WorldNotFound, WorldNameTaken, RequestIdReused."""
        ...

    async def begin_erase(
        self, world_id: uuid.UUID, now: datetime, job_id: uuid.UUID, *, rewrite_tables: bool
    ) -> Job:
        """Hides a world and begins to erase it. Raises WorldNotFound, RequestIdReused."""
        ...

    async def get_job(self, job_id: uuid.UUID) -> Job:
        """Returns a job. Raises JobNotFound."""
        ...

    async def list_jobs(
        self, before: tuple[datetime, uuid.UUID] | None, *, unfinished_only: bool, limit: int
    ) -> list[Job]:
        """Returns jobs, newest first, before the one named."""
        ...

    async def cancel_job(self, job_id: uuid.UUID) -> Job:
        """Has a job undone. Raises JobNotFound, JobNotCancellable."""
        ...

    async def claim(self, holder: uuid.UUID) -> Job | None:
        """Takes a job that nobody works on; None when there is none."""
        ...

    async def advance(self, job_id: uuid.UUID, holder: uuid.UUID) -> Job:
        """Does one bounded step. Raises JobTakenAway."""
        ...

    async def note_failure(self, job_id: uuid.UUID, holder: uuid.UUID) -> None:
        """Lets a job be tried again later, or gives it up. Raises JobTakenAway."""
        ...

    async def purge(self, job: Job, holder: uuid.UUID) -> None:
        """Takes an erased world's dead rows out of the tables and ends the job.

        Raises JobTakenAway.
        """
        ...

    async def last_erasure(self) -> datetime | None:
        """Returns when an erasure last began or ended."""
        ...

    async def forget_old(self, changes_before: datetime, jobs_before: datetime) -> None:
        """Forgets old changes and jobs."""
        ...

    async def log_of(self, world_id: uuid.UUID, *, watch: bool) -> WorldLog:
        """Returns what is kept of a world's changes; asks to be woken when `watch`.

        Raises WorldNotFound.
        """
        ...

    async def changes_after(
        self, world_id: uuid.UUID, number: int, limit: int
    ) -> list[WorldChange]:
        """Returns a world's changes after one, oldest first. Raises WorldNotFound."""
        ...

    def wakings(self) -> AsyncGenerator[uuid.UUID | None, None]:
        """Yields ids of watched worlds that changed, None when some may have been missed."""
        ...


class WorldExport(Protocol):
    """One world, as it was at one instant."""

    log: WorldLog
    shared_concepts: dict[uuid.UUID, str]
    tables: list[tuple[str, int]]
    world: World

    async def rows(self, table: str, after: str | None, limit: int) -> list[tuple[str, WorldRow]]:
        """Returns rows of a table with their keys, in order, after a key."""
        ...


class WorldImport(Protocol):
    """A world that is being made and that nobody sees yet."""

    world_id: uuid.UUID
    job_id: uuid.UUID

    async def add(self, table: str, rows: Sequence[WorldRow], model: str) -> int:
        """Takes rows in. Raises InvalidWorldRecords, JobTakenAway."""
        ...

    async def finish(self, key: RequestKey, embedded_texts: int) -> None:
        """Shows the world. Raises InvalidWorldRecords, JobTakenAway."""
        ...

    async def give_up(self, reason: str) -> None:
        """Has everything removed."""
        ...


class WorldRecordStore(Protocol):
    """Reads and writes whole worlds. Raises Unavailable when it is away."""

    def exporting(self, world_id: uuid.UUID) -> AbstractAsyncContextManager[WorldExport]:
        """Returns a world as it is now. Raises WorldNotFound."""
        ...

    async def imported(self, key: RequestKey) -> tuple[uuid.UUID, uuid.UUID, int, int] | None:
        """Returns world, job, rows and embedded texts of an import that succeeded before.

        None when this request has not. Raises RequestIdReused.
        """
        ...

    async def begin_import(
        self,
        key: RequestKey,
        job_id: uuid.UUID,
        world_id: uuid.UUID,
        header: WorldHeader,
        *,
        name: str,
    ) -> WorldImport:
        """Makes a hidden, empty world. Raises WorldNameTaken, WorldIdTaken, InvalidWorldRecords."""
        ...
