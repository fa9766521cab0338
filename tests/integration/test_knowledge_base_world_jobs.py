"""Worlds as wholes over real gRPC and a real PostgreSQL: archive, fork, export, import, erase."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta

import asyncpg
import grpc.aio
import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from gaming.events.events_pb2 import WEATHER_CHANGED
from gaming.knowledge_base.v1 import (
    concepts_pb2,
    story_pb2,
    subscriptions_pb2,
    world_jobs_pb2,
    world_records_pb2,
    worlds_pb2,
)
from knowledge_base.testing import (
    HashEmbedder,
    RunningKnowledgeBase,
    failure_of,
    serve_knowledge_base,
)

TIMEOUT_SECONDS = 30
MORNING = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
ENDED = (
    world_jobs_pb2.JOB_STATE_SUCCEEDED,
    world_jobs_pb2.JOB_STATE_FAILED,
    world_jobs_pb2.JOB_STATE_CANCELLED,
)


@pytest.fixture
async def running(knowledge_base_database: str) -> AsyncIterator[RunningKnowledgeBase]:
    async with serve_knowledge_base(knowledge_base_database) as running:
        yield running


def new_id() -> str:
    return str(uuid.uuid4())


def stamp(moment: datetime) -> Timestamp:
    result = Timestamp()
    result.FromDatetime(moment)
    return result


def hour(number: int) -> datetime:
    return MORNING + timedelta(hours=number)


async def make_world(running: RunningKnowledgeBase, name: str, events: int = 5) -> str:
    """A world with an event an hour, concepts, a tie to a shared concept, and a subscription."""
    stub = running.stub
    world_id = (
        await stub.CreateWorld(
            worlds_pb2.CreateWorldRequest(name=name, description="d", request_id=new_id()),
            timeout=TIMEOUT_SECONDS,
        )
    ).world.world_id
    if events:
        await record(running, world_id, *(f"Mira passed gate {n}" for n in range(events)))
    for concept, world in (("Mira", world_id), ("The Bell", world_id), ("Odrelle", "")):
        await stub.PutConcept(
            concepts_pb2.PutConceptRequest(
                world_id=world, name=concept, kind="thing", description="d", request_id=new_id()
            ),
            timeout=TIMEOUT_SECONDS,
        )
    for other in ("The Bell", "Odrelle"):
        await stub.RelateConcepts(
            concepts_pb2.RelateConceptsRequest(
                world_id=world_id,
                from_concept="Mira",
                to_concept=other,
                kind="knows",
                request_id=new_id(),
            ),
            timeout=TIMEOUT_SECONDS,
        )
    await stub.SetEventSubscription(
        subscriptions_pb2.SetEventSubscriptionRequest(
            world_id=world_id,
            subscription=subscriptions_pb2.EventSubscription(event_types=[WEATHER_CHANGED]),
            request_id=new_id(),
        ),
        timeout=TIMEOUT_SECONDS,
    )
    return world_id


async def record(running: RunningKnowledgeBase, world_id: str, *texts: str) -> None:
    await running.stub.RecordEvents(
        story_pb2.RecordEventsRequest(
            world_id=world_id,
            events=[
                story_pb2.StoryEvent(text=text, occur_time=stamp(hour(n)), participants=["Mira"])
                for n, text in enumerate(texts)
            ],
            request_id=new_id(),
        ),
        timeout=TIMEOUT_SECONDS,
    )


async def job_ended(running: RunningKnowledgeBase, job_id: str) -> world_jobs_pb2.Job:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            job = (
                await running.stub.GetJob(
                    world_jobs_pb2.GetJobRequest(job_id=job_id), timeout=TIMEOUT_SECONDS
                )
            ).job
            if job.state in ENDED:
                return job
            await asyncio.sleep(0.02)


async def fork(
    running: RunningKnowledgeBase, world_id: str, name: str, end: datetime | None = None
) -> world_jobs_pb2.Job:
    answer = await running.stub.ForkWorld(
        world_jobs_pb2.ForkWorldRequest(
            world_id=world_id,
            name=name,
            end_time=stamp(end) if end else None,
            with_subscription=True,
            request_id=new_id(),
        ),
        timeout=TIMEOUT_SECONDS,
    )
    return await job_ended(running, answer.job.job_id)


async def erase(
    running: RunningKnowledgeBase, world_id: str, *, rewrite_tables: bool = False
) -> world_jobs_pb2.Job:
    answer = await running.stub.EraseWorld(
        world_jobs_pb2.EraseWorldRequest(
            world_id=world_id, rewrite_tables=rewrite_tables, request_id=new_id()
        ),
        timeout=TIMEOUT_SECONDS,
    )
    return await job_ended(running, answer.job.job_id)


async def events_of(running: RunningKnowledgeBase, world_id: str) -> list[story_pb2.StoryEvent]:
    answer = await running.stub.ListEvents(
        story_pb2.ListEventsRequest(world_id=world_id, page_size=1000), timeout=TIMEOUT_SECONDS
    )
    return list(answer.events)


async def recalled(
    running: RunningKnowledgeBase, world_id: str
) -> list[tuple[str, float, float, float]]:
    answer = await running.stub.Recall(
        story_pb2.RecallRequest(world_id=world_id, query="which gate did Mira pass?", limit=50),
        timeout=TIMEOUT_SECONDS,
    )
    return [
        (each.event.event_id, each.score, each.relevance, each.recency) for each in answer.events
    ]


async def ties_of(running: RunningKnowledgeBase, world_id: str) -> list[tuple[str, str, str]]:
    answer = await running.stub.ListRelationships(
        concepts_pb2.ListRelationshipsRequest(world_id=world_id, concept="Mira"),
        timeout=TIMEOUT_SECONDS,
    )
    return [(each.from_concept, each.to_concept, each.kind) for each in answer.relationships]


async def export(
    running: RunningKnowledgeBase, world_id: str, token: str = ""
) -> list[world_records_pb2.ExportWorldResponse]:
    call = running.stub.ExportWorld(
        world_records_pb2.ExportWorldRequest(world_id=world_id, resume_token=token),
        timeout=TIMEOUT_SECONDS,
    )
    return [step async for step in call]


async def import_world(
    running: RunningKnowledgeBase,
    records: Sequence[world_records_pb2.WorldRecord],
    *,
    name: str = "",
    keep_world_id: bool = False,
    request_id: str = "",
) -> world_records_pb2.ImportWorldResponse:
    begin = world_records_pb2.ImportBegin(
        name=name, keep_world_id=keep_world_id, request_id=request_id or new_id()
    )
    requests = [world_records_pb2.ImportWorldRequest(begin=begin)]
    requests += [world_records_pb2.ImportWorldRequest(record=record) for record in records]
    return await running.stub.ImportWorld(iter(requests), timeout=TIMEOUT_SECONDS)


async def world_names(running: RunningKnowledgeBase) -> set[str]:
    answer = await running.stub.ListWorlds(worlds_pb2.ListWorldsRequest(), timeout=TIMEOUT_SECONDS)
    return {world.name for world in answer.worlds}


# --- archive --------------------------------------------------------------------------------------


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


def broken(
    records: list[world_records_pb2.WorldRecord], how: str
) -> list[world_records_pb2.WorldRecord]:
    copies = []
    for record in records:
        copy = world_records_pb2.WorldRecord()
        copy.CopyFrom(record)
        copies.append(copy)
    events = next(each for each in copies if each.rows.table == "story_events")
    row = events.rows.rows[0]
    columns = json.loads(row.columns_json)
    changed: dict[str, Callable[[], object]] = {
        "cut": copies.pop,
        "a row less": lambda: events.rows.rows.pop(0),
        "a text changed": lambda: columns.update(text="forged"),
        "another world's row": lambda: columns.update(world_id=new_id()),
        "an unknown column": lambda: columns.update(owner="me"),
        "an unknown table": lambda: setattr(events.rows, "table", "pg_authid"),
        "a table that is not exported": lambda: setattr(events.rows, "table", "requests"),
        "a newer format": lambda: setattr(copies[0].header, "format_version", 2),
        "a vector cut": lambda: row.vectors.update(embedding=row.vectors["embedding"][:-1]),
    }
    changed.get(how, list)()
    row.columns_json = "{" if how == "not JSON" else json.dumps(columns)
    return copies


OFTEN_TRIED = ("cut", "a text changed", "another world's row")
SELDOM_TRIED = (
    "a row less",
    "an unknown column",
    "an unknown table",
    "a table that is not exported",
    "not JSON",
    "a vector cut",
    "a newer format",
)


@pytest.mark.parametrize(
    "how",
    [*OFTEN_TRIED, *(pytest.param(how, marks=pytest.mark.endurance) for how in SELDOM_TRIED)],
)
async def test_an_import_that_is_not_whole_leaves_nothing(
    running: RunningKnowledgeBase, knowledge_base_database: str, how: str
) -> None:
    source = await make_world(running, "Mauk")
    records = [step.record for step in await export(running, source)]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await import_world(running, broken(records, how), name="Bad")
    told = failure_of(caught.value)
    assert told.code == grpc.StatusCode.INVALID_ARGUMENT, told
    assert told.reason == "INVALID_WORLD_RECORDS"
    assert "Bad" not in await world_names(running)
    owner = await asyncpg.connect(knowledge_base_database)
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while await owner.fetchval("SELECT count(*) FROM knowledge_base.worlds") != 2:  # noqa: ASYNC110  # rows, not an event
                await asyncio.sleep(0.02)
        assert await owner.fetchval("SELECT count(*) FROM knowledge_base.story_events") == 5
    finally:
        await owner.close()
    # The same name can be used for a whole export afterwards.
    assert (await import_world(running, records, name="Bad")).world.event_count == 5


class OtherModel(HashEmbedder):
    """As a hash embedder, but of another name, with other vectors."""

    model = "hash-for-tests-turned"

    def _vector(self, text: str) -> np.ndarray:
        return np.roll(super()._vector(text), 7)


async def test_an_import_embeds_texts_anew_when_its_vectors_are_of_another_model(
    running: RunningKnowledgeBase, postgres_database: str
) -> None:
    source = await make_world(running, "Mauk")
    expected = await recalled(running, source)
    records = [step.record for step in await export(running, source)]
    async with serve_knowledge_base(postgres_database, embedder=OtherModel()) as other:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await import_world(other, records)
        told = failure_of(caught.value)
        assert told.metadata["first_missing_concept"] == "Odrelle"
        await other.stub.PutConcept(
            concepts_pb2.PutConceptRequest(
                name="Odrelle", kind="place", description="d", request_id=new_id()
            ),
            timeout=TIMEOUT_SECONDS,
        )
        imported = await import_world(other, records)
        assert imported.embedded_texts == 5
        # The other model's vectors are an image of the first one's, so the answers are the same.
        answers = await recalled(other, imported.world.world_id)
        assert [each[0] for each in answers] == [each[0] for each in expected]
        assert np.allclose([each[1:] for each in answers], [each[1:] for each in expected])
        assert ("Mira", "Odrelle", "knows") in await ties_of(other, imported.world.world_id)


# --- jobs -----------------------------------------------------------------------------------------


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
