"""The replica that copies or erases a world is killed with SIGKILL; another one goes on with it."""

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from gaming.knowledge_base.v1 import story_pb2, world_jobs_pb2, worlds_pb2
from knowledge_base.adapters.schema import migrate_schema
from knowledge_base.testing import (
    SERVICE_ROLE,
    RunningKnowledgeBase,
    serve_knowledge_base,
    service_url,
)

TIMEOUT_SECONDS = 60
EVENTS = 40
WORKER = Path(__file__).parent / "world_job_worker.py"
STEP_ROWS, LEASE_SECONDS = 3, 2.0

# Two replicas start and are killed in each.
pytestmark = [pytest.mark.endurance, pytest.mark.timeout(280)]


@asynccontextmanager
async def worker(url: str, *, steps: int = 0) -> AsyncIterator[asyncio.subprocess.Process]:
    """A replica of its own process, killed at the end; does so many steps, all there are for 0."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(WORKER), service_url(url)),
        *(str(STEP_ROWS), str(LEASE_SECONDS), str(steps)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await process.wait()


async def killed_after(url: str, steps: int) -> None:
    """Has a replica do so many steps and kills it; its log's lines are no steps."""
    async with worker(url, steps=steps) as process, asyncio.timeout(TIMEOUT_SECONDS):
        assert process.stdout is not None
        done = 0
        while done < steps:
            line = await process.stdout.readline()
            assert line, "the replica ended by itself"
            done += line.strip().isdigit()
        process.kill()
        await process.wait()


async def make_world(running: RunningKnowledgeBase) -> str:
    made = await running.stub.CreateWorld(
        worlds_pb2.CreateWorldRequest(name="Mauk", request_id=str(uuid.uuid4())),
        timeout=TIMEOUT_SECONDS,
    )
    await running.stub.RecordEvents(
        story_pb2.RecordEventsRequest(
            world_id=made.world.world_id,
            events=[story_pb2.StoryEvent(text=f"gate {n}") for n in range(EVENTS)],
            request_id=str(uuid.uuid4()),
        ),
        timeout=TIMEOUT_SECONDS,
    )
    return made.world.world_id


async def ended(running: RunningKnowledgeBase, job_id: str) -> world_jobs_pb2.Job:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            answer = await running.stub.GetJob(
                world_jobs_pb2.GetJobRequest(job_id=job_id), timeout=TIMEOUT_SECONDS
            )
            if answer.job.HasField("end_time"):
                return answer.job
            await asyncio.sleep(0.05)


async def texts(running: RunningKnowledgeBase, world_id: str) -> list[str]:
    answer = await running.stub.ListEvents(
        story_pb2.ListEventsRequest(world_id=world_id, page_size=1000), timeout=TIMEOUT_SECONDS
    )
    return [event.text for event in answer.events]


@asynccontextmanager
async def idle_service(url: str) -> AsyncIterator[RunningKnowledgeBase]:
    """A service that takes calls and leaves the jobs to others."""
    async with serve_knowledge_base(url, runs_jobs=False) as running:
        yield running


async def test_a_fork_goes_on_where_a_killed_replica_left_it(postgres_database: str) -> None:
    await migrate_schema(postgres_database, service_url(postgres_database), SERVICE_ROLE)
    async with idle_service(postgres_database) as running:
        source = await make_world(running)
        answer = await running.stub.ForkWorld(
            world_jobs_pb2.ForkWorldRequest(
                world_id=source, name="Copy", request_id=str(uuid.uuid4())
            ),
            timeout=TIMEOUT_SECONDS,
        )
        await killed_after(postgres_database, 4)
        half = await running.stub.GetJob(
            world_jobs_pb2.GetJobRequest(job_id=answer.job.job_id), timeout=TIMEOUT_SECONDS
        )
        assert 0 < half.job.done_rows <= 4 * STEP_ROWS
        listed = await running.stub.ListWorlds(
            worlds_pb2.ListWorldsRequest(), timeout=TIMEOUT_SECONDS
        )
        assert [world.name for world in listed.worlds] == ["Mauk"]

        async with worker(postgres_database):
            job = await ended(running, answer.job.job_id)
        assert job.state == world_jobs_pb2.JOB_STATE_SUCCEEDED
        assert job.done_rows == job.total_rows == EVENTS
        assert await texts(running, job.result_world_id) == await texts(running, source)


async def test_a_cancelled_fork_and_an_erasure_are_finished_by_another_replica(
    postgres_database: str,
) -> None:
    await migrate_schema(postgres_database, service_url(postgres_database), SERVICE_ROLE)
    async with idle_service(postgres_database) as running:
        source = await make_world(running)
        fork = await running.stub.ForkWorld(
            world_jobs_pb2.ForkWorldRequest(
                world_id=source, name="Copy", request_id=str(uuid.uuid4())
            ),
            timeout=TIMEOUT_SECONDS,
        )
        await killed_after(postgres_database, 4)
        await running.stub.CancelJob(
            world_jobs_pb2.CancelJobRequest(job_id=fork.job.job_id), timeout=TIMEOUT_SECONDS
        )
        erase = await running.stub.EraseWorld(
            world_jobs_pb2.EraseWorldRequest(world_id=source, request_id=str(uuid.uuid4())),
            timeout=TIMEOUT_SECONDS,
        )
        await killed_after(postgres_database, 6)
        async with worker(postgres_database):
            assert (await ended(running, fork.job.job_id)).state == (
                world_jobs_pb2.JOB_STATE_CANCELLED
            )
            assert (await ended(running, erase.job.job_id)).state == (
                world_jobs_pb2.JOB_STATE_SUCCEEDED
            )
        owner = await asyncpg.connect(postgres_database)
        try:
            for table in ("story_events", "story_event_terms", "world_changes"):
                count = await owner.fetchval(f"SELECT count(*) FROM knowledge_base.{table}")  # noqa: S608  # own list
                assert count == 0, table
            assert await owner.fetchval("SELECT count(*) FROM knowledge_base.worlds") == 1
        finally:
            await owner.close()
