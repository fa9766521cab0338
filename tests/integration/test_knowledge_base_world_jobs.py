"""Worlds as wholes over real gRPC and a real PostgreSQL: archive, fork, export, import, erase."""

import asyncio
from collections.abc import AsyncIterator

import grpc.aio
import pytest
from world_job_calls import (
    TIMEOUT_SECONDS,
    erase,
    events_of,
    export,
    fork,
    hour,
    import_world,
    make_world,
    new_id,
    recalled,
    record,
    ties_of,
)

from gaming.events.events_pb2 import WEATHER_CHANGED
from gaming.knowledge_base.v1 import (
    story_pb2,
    subscriptions_pb2,
    world_jobs_pb2,
    worlds_pb2,
)
from knowledge_base.ports_reranker import Rerankers
from knowledge_base.testing import (
    HashReranker,
    RunningKnowledgeBase,
    failure_of,
    serve_knowledge_base,
)


@pytest.fixture
async def running(knowledge_base_database: str) -> AsyncIterator[RunningKnowledgeBase]:
    async with serve_knowledge_base(
        knowledge_base_database, rerankers=Rerankers(memory=HashReranker())
    ) as running:
        yield running


async def test_an_archived_world_is_read_and_not_written_to(running: RunningKnowledgeBase) -> None:
    world_id = await make_world(running, "Mauk")
    archived = (
        await running.stub.ArchiveWorld(
            worlds_pb2.ArchiveWorldRequest(world_id=world_id, request_id=new_id()),
            timeout=TIMEOUT_SECONDS,
        )
    ).world
    assert archived.HasField("archive_time")
    assert len(await events_of(running, world_id)) == 5
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await record(running, world_id, "too late")
    told = failure_of(caught.value)
    assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "WORLD_ARCHIVED")
    back = (
        await running.stub.UnarchiveWorld(
            worlds_pb2.UnarchiveWorldRequest(world_id=world_id, request_id=new_id()),
            timeout=TIMEOUT_SECONDS,
        )
    ).world
    assert not back.HasField("archive_time")
    await record(running, world_id, "again")


@pytest.mark.endurance
async def test_a_repeat_of_what_was_written_before_archiving_is_answered(
    running: RunningKnowledgeBase,
) -> None:
    world_id = await make_world(running, "Mauk")
    request = story_pb2.RecordEventsRequest(
        world_id=world_id, events=[story_pb2.StoryEvent(text="once")], request_id=new_id()
    )
    first = await running.stub.RecordEvents(request, timeout=TIMEOUT_SECONDS)
    await running.stub.ArchiveWorld(
        worlds_pb2.ArchiveWorldRequest(world_id=world_id, request_id=new_id()),
        timeout=TIMEOUT_SECONDS,
    )
    assert await running.stub.RecordEvents(request, timeout=TIMEOUT_SECONDS) == first


# --- fork -----------------------------------------------------------------------------------------


async def test_a_fork_is_a_whole_copy_that_goes_its_own_way(running: RunningKnowledgeBase) -> None:
    source = await make_world(running, "Mauk")
    job = await fork(running, source, "Mauk, retold")
    assert job.state == world_jobs_pb2.JOB_STATE_SUCCEEDED, job
    copy = job.result_world_id
    assert await events_of(running, copy) == await events_of(running, source)
    assert await recalled(running, copy) == await recalled(running, source)
    assert await ties_of(running, copy) == await ties_of(running, source)
    got = await running.stub.GetEventSubscription(
        subscriptions_pb2.GetEventSubscriptionRequest(world_id=copy), timeout=TIMEOUT_SECONDS
    )
    assert list(got.subscription.event_types) == [WEATHER_CHANGED]
    await record(running, copy, "only here")
    assert len(await events_of(running, source)) == 5
    assert len(await events_of(running, copy)) == 6


async def test_a_fork_at_a_moment_of_the_story_knows_nothing_of_what_came_after(
    running: RunningKnowledgeBase,
) -> None:
    source = await make_world(running, "Mauk", events=0)
    # Recorded out of the story's order, so that the copy's numbers are not the source's.
    await record(running, source, "first", "second", "third", "fourth")
    await record(running, source, "earlier")
    job = await fork(running, source, "Then", hour(2))
    texts = {event.text for event in await events_of(running, job.result_world_id)}
    assert texts == {"first", "second", "earlier"}
    world = (
        await running.stub.GetWorld(
            worlds_pb2.GetWorldRequest(world_id=job.result_world_id), timeout=TIMEOUT_SECONDS
        )
    ).world
    assert world.event_count == 3
    # The next number is free: the copy is written to as any world.
    await record(running, job.result_world_id, "another way")
    assert len(await events_of(running, job.result_world_id)) == 4


async def test_a_fork_of_many_steps_is_seen_whole_or_not_at_all(
    running: RunningKnowledgeBase, knowledge_base_database: str
) -> None:
    source = await make_world(running, "Mauk", events=40)
    running.worlds.jobs._store._step_rows = 7  # type: ignore[attr-defined]  # small steps
    seen: list[int] = []
    done = asyncio.Event()

    async def look() -> None:
        while not done.is_set():
            answer = await running.stub.ListWorlds(
                worlds_pb2.ListWorldsRequest(), timeout=TIMEOUT_SECONDS
            )
            seen.extend(world.event_count for world in answer.worlds if world.name == "Copy")

    async with asyncio.TaskGroup() as group:
        group.create_task(look())
        job = await fork(running, source, "Copy")
        done.set()
    assert set(seen) <= {40}
    assert job.done_rows == job.total_rows > 40
    assert await recalled(running, job.result_world_id) == await recalled(running, source)


@pytest.mark.endurance
async def test_the_name_of_a_fork_is_taken_at_once(running: RunningKnowledgeBase) -> None:
    source = await make_world(running, "Mauk")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await fork(running, source, "Mauk")
    assert failure_of(caught.value).reason == "WORLD_NAME_TAKEN"


# --- export and import ----------------------------------------------------------------------------


async def test_an_exported_world_is_the_same_after_its_import(
    running: RunningKnowledgeBase,
) -> None:
    source = await make_world(running, "Mauk")
    records = [step.record for step in await export(running, source)]
    imported = await import_world(running, records, name="Mauk elsewhere")
    copy = imported.world.world_id
    assert copy != source
    assert imported.embedded_texts == 0
    assert await events_of(running, copy) == await events_of(running, source)
    assert await recalled(running, copy) == await recalled(running, source)
    assert await ties_of(running, copy) == await ties_of(running, source)
    again = [step.record for step in await export(running, copy)]
    assert again[-1].trailer.row_counts == records[-1].trailer.row_counts


async def test_a_world_comes_back_under_its_own_id_after_it_was_erased(
    running: RunningKnowledgeBase,
) -> None:
    source = await make_world(running, "Mauk")
    before = await events_of(running, source)
    records = [step.record for step in await export(running, source)]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await import_world(running, records, name="other", keep_world_id=True)
    assert failure_of(caught.value).reason == "WORLD_ID_TAKEN"
    await erase(running, source)
    request_id = new_id()
    imported = await import_world(running, records, keep_world_id=True, request_id=request_id)
    assert imported.world.world_id == source
    assert imported.world.name == "Mauk"
    assert await events_of(running, source) == before
    repeated = await import_world(running, records, keep_world_id=True, request_id=request_id)
    assert repeated == imported


async def test_an_export_goes_on_after_any_of_its_messages(running: RunningKnowledgeBase) -> None:
    source = await make_world(running, "Mauk", events=20)
    whole = await export(running, source)
    assert whole[-1].sent_rows == whole[-1].total_rows
    for index in range(len(whole) - 1):
        rest = await export(running, source, whole[index].resume_token)
        assert [step.record for step in rest] == [step.record for step in whole[index + 1 :]]


async def test_an_export_does_not_go_on_in_a_world_that_changed(
    running: RunningKnowledgeBase,
) -> None:
    source = await make_world(running, "Mauk")
    token = (await export(running, source))[1].resume_token
    await record(running, source, "meanwhile")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await export(running, source, token)
    told = failure_of(caught.value)
    assert (told.code, told.reason) == (grpc.StatusCode.OUT_OF_RANGE, "WORLD_CHANGED")


@pytest.mark.endurance
async def test_jobs_are_listed_newest_first_and_an_ended_one_stays_as_it_ended(
    running: RunningKnowledgeBase,
) -> None:
    source = await make_world(running, "Mauk")
    first = await fork(running, source, "One")
    second = await fork(running, source, "Two")
    page = await running.stub.ListJobs(
        world_jobs_pb2.ListJobsRequest(page_size=1), timeout=TIMEOUT_SECONDS
    )
    rest = await running.stub.ListJobs(
        world_jobs_pb2.ListJobsRequest(page_size=1, page_token=page.next_page_token),
        timeout=TIMEOUT_SECONDS,
    )
    assert [job.job_id for job in (*page.jobs, *rest.jobs)] == [second.job_id, first.job_id]
    kept = await running.stub.CancelJob(
        world_jobs_pb2.CancelJobRequest(job_id=first.job_id), timeout=TIMEOUT_SECONDS
    )
    assert kept.job.state == world_jobs_pb2.JOB_STATE_SUCCEEDED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.stub.GetJob(
            world_jobs_pb2.GetJobRequest(job_id=new_id()), timeout=TIMEOUT_SECONDS
        )
    assert failure_of(caught.value).reason == "JOB_NOT_FOUND"
