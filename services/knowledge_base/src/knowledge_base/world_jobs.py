"""Forking, archiving and erasing worlds, and doing the long work of it step by step."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial

import structlog

from knowledge_base.domain.memory import World
from knowledge_base.domain.requests import Json, fingerprint
from knowledge_base.domain.text import check_text, normalise_name
from knowledge_base.domain.world_errors import JobTakenAway
from knowledge_base.domain.worlds import ForkOrder, Job, JobKind
from knowledge_base.ports import RequestKey
from knowledge_base.ports_worlds import Forgetful, WorldJobStore
from servicekit.clock import Clock
from servicekit.errors import Unavailable
from servicekit.paging import Page, decode_page_token, encode_page_token

__all__ = ["WorldJobs"]

log = structlog.get_logger(__name__)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# How soon a job that another replica left is found, and an erasure made through another replica.
_POLL_SECONDS = 1.0
_FORGET_EVERY_SECONDS = 3600.0
_KEPT_JOBS = timedelta(days=90)
_ERASE_REQUESTS = uuid.UUID("5f0d9a4e-7f0c-4a53-9c1e-2b1c6a1d9e37")


class WorldJobs:
    """Work on whole worlds.

    Args:
        forgetful: what keeps texts in this process's memory; they go when a world is erased.
        change_retention: how long changes are kept for those who watch.
        backup_retention: how long backups are kept; told to whoever erases a world.
        new_id: makes the ids of worlds and jobs.
    """

    def __init__(
        self,
        store: WorldJobStore,
        clock: Clock,
        *,
        forgetful: Sequence[Forgetful],
        change_retention: timedelta,
        backup_retention: timedelta,
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        self._store = store
        self._clock = clock
        self._forgetful = forgetful
        self._change_retention = change_retention
        self._backup_retention = backup_retention
        self._new_id = new_id
        self._holder = uuid.uuid4()
        self._submitted = asyncio.Event()
        self._last_erasure: datetime | None = None

    async def set_archived(
        self, request_id: uuid.UUID, world_id: uuid.UUID, *, archived: bool
    ) -> World:
        """Makes a world read-only, or ends that. Raises WorldNotFound, RequestIdReused."""
        method = "ArchiveWorld" if archived else "UnarchiveWorld"
        key = self._key(request_id, method, {"world": str(world_id)})
        return await self._store.set_archived(world_id, key, archived=archived)

    async def fork(self, request_id: uuid.UUID, order: ForkOrder) -> Job:
        """Begins to copy a world; the same request again returns the same job.

        Raises WorldNotFound, WorldNameTaken, RequestIdReused, InvalidText.
        """
        order = ForkOrder(
            order.source_id,
            normalise_name("name", order.name),
            check_text("description", order.description),
            order.end_time,
            order.with_subscription,
        )
        key = self._key(
            request_id,
            "ForkWorld",
            {
                "world": str(order.source_id),
                "name": order.name,
                "description": order.description,
                "end_time": order.end_time.isoformat() if order.end_time else None,
                "with_subscription": order.with_subscription,
            },
        )
        job = await self._store.begin_fork(key, self._new_id(), self._new_id(), order)
        self._submitted.set()
        return job

    async def erase(
        self, request_id: uuid.UUID, world_id: uuid.UUID, *, rewrite_tables: bool
    ) -> Job:
        """Hides a world at once and begins to remove every trace of it.

        A repeat is known by the job: the world's own record of requests goes with it.

        Raises WorldNotFound, RequestIdReused.
        """
        job = await self._store.begin_erase(
            world_id,
            self._clock.now(),
            uuid.uuid5(_ERASE_REQUESTS, str(request_id)),
            rewrite_tables=rewrite_tables,
        )
        self._forget_texts()
        self._submitted.set()
        return job

    async def get_job(self, job_id: uuid.UUID) -> Job:
        """Returns a job. Raises JobNotFound."""
        return await self._store.get_job(job_id)

    async def list_jobs(
        self, page_size: int, page_token: str, *, unfinished_only: bool
    ) -> Page[Job]:
        """Returns jobs, newest first. Raises InvalidPageToken."""
        scope = ("jobs", str(unfinished_only))
        position = decode_page_token(page_token, scope, (int, str))
        before = None
        if position is not None:
            before = (_EPOCH + int(position[0]) * _MICROSECOND, uuid.UUID(str(position[1])))
        found = await self._store.list_jobs(
            before, unfinished_only=unfinished_only, limit=page_size + 1
        )
        items = tuple(found[:page_size])
        token = ""
        if len(found) > page_size:
            microseconds = (items[-1].create_time - _EPOCH) // _MICROSECOND
            token = encode_page_token(scope, (microseconds, str(items[-1].job_id)))
        return Page(items, token)

    async def cancel_job(self, job_id: uuid.UUID) -> Job:
        """Has a fork or an import undone. Raises JobNotFound, JobNotCancellable."""
        job = await self._store.cancel_job(job_id)
        self._submitted.set()
        return job

    def backups_gone_time(self, job: Job) -> datetime:
        """Returns when no backup can hold the world of an erasure any more."""
        return job.backups_gone_time(self._clock.now(), self._backup_retention)

    async def run(self) -> None:
        """Does jobs, whoever submitted them, one at a time; runs until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._every(_POLL_SECONDS, self._work))
            group.create_task(self._every(_POLL_SECONDS, self._hear_of_erasures))
            group.create_task(self._forget_old())

    async def _every(self, pause_seconds: float, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            await _tried(step)
            # A job submitted here need not wait for the pause to end.
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_seconds):
                    await self._submitted.wait()
            self._submitted.clear()

    async def _work(self) -> None:
        while (job := await self._store.claim(self._holder)) is not None:
            try:
                await self._finish(job)
            except JobTakenAway:
                log.info("job_taken_away", job_id=str(job.job_id), kind=job.kind)
            except Unavailable:
                raise  # its lease runs out, and whoever reaches the database then goes on
            except Exception:  # whatever it is, other jobs go on, and this one is tried again
                log.exception("job_step_failed", job_id=str(job.job_id), kind=job.kind)
                with suppress(JobTakenAway):
                    await self._store.note_failure(job.job_id, self._holder)

    async def _finish(self, job: Job) -> None:
        log.info("job_taken", job_id=str(job.job_id), kind=job.kind, state=job.state)
        while job.end_time is None and not job.purging:
            job = await self._store.advance(job.job_id, self._holder)
        if job.end_time is None:
            await self._store.purge(job, self._holder)
            job = await self._store.get_job(job.job_id)
        log.info("job_ended", job_id=str(job.job_id), kind=job.kind, state=job.state)
        if job.kind is JobKind.ERASE:
            self._forget_texts()

    async def _hear_of_erasures(self) -> None:
        last = await self._store.last_erasure()
        if last != self._last_erasure:
            self._last_erasure = last
            self._forget_texts()

    async def _forget_old(self) -> None:
        while True:
            now = self._clock.now()
            await _tried(
                partial(self._store.forget_old, now - self._change_retention, now - _KEPT_JOBS)
            )
            await self._clock.sleep(_FORGET_EVERY_SECONDS)

    def _forget_texts(self) -> None:
        for each in self._forgetful:
            each.forget_texts()

    def _key(self, request_id: uuid.UUID, method: str, content: dict[str, Json]) -> RequestKey:
        return RequestKey(request_id, fingerprint(method, content), self._clock.now())


async def _tried(step: Callable[[], Awaitable[None]]) -> None:
    """Does a step that is done again later, so that its failure need not take the service down."""
    try:
        await step()
    except Unavailable:
        log.debug("world_upkeep_put_off", reason="database away")
    except Exception:  # what else may come of a database that is not as it should be
        log.exception("world_upkeep_failed")
