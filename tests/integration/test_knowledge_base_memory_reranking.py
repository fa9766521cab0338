"""Recalls are reranked as far as codes of events are kept; codes go wherever their events go."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from embedding_change_calls import FAST, filling, finish, start, until

from gaming.knowledge_base.v1 import story_pb2, world_jobs_pb2, worlds_pb2
from knowledge_base.ports_reranker import Rerankers
from knowledge_base.testing import (
    HashEmbedder,
    HashReranker,
    IsometricEmbedder,
    RunningKnowledgeBase,
    serve_knowledge_base,
)

TIMEOUT_SECONDS = 60
EVENTS = (
    "Mira rang the bell when the tide turned.",
    "Dauro said that he would not come back.",
    "The bell boat was tarred for the winter.",
    "Mira wrote a letter about the bell.",
)
QUESTION = "Who rang the bell?"


class OtherReranker(HashReranker):
    """As a hash reranker, of another name."""

    name = "another"


@pytest.fixture
async def running(knowledge_base_database: str) -> AsyncIterator[RunningKnowledgeBase]:
    async with serving(knowledge_base_database) as running:
        yield running


@pytest.fixture
async def owner(knowledge_base_database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(knowledge_base_database)
    yield connection
    await connection.close()


def serving(database: str, **options: Any) -> Any:
    return serve_knowledge_base(
        database, **{"rerankers": Rerankers(memory=HashReranker()), **options}
    )


async def create_world(running: RunningKnowledgeBase, name: str = "Mauk") -> str:
    request = worlds_pb2.CreateWorldRequest(name=name, request_id=str(uuid.uuid4()))
    return (await running.stub.CreateWorld(request, timeout=TIMEOUT_SECONDS)).world.world_id


async def record(
    running: RunningKnowledgeBase, world_id: str, *texts: str, request_id: str = ""
) -> None:
    request = story_pb2.RecordEventsRequest(
        world_id=world_id,
        request_id=request_id or str(uuid.uuid4()),
        events=[story_pb2.StoryEvent(text=text) for text in texts],
    )
    for event in request.events:
        event.occur_time.FromDatetime(datetime(2026, 3, 1, tzinfo=UTC))
    await running.stub.RecordEvents(request, timeout=TIMEOUT_SECONDS)


async def recall(
    running: RunningKnowledgeBase, world_id: str, query: str = QUESTION, **options: Any
) -> list[story_pb2.RecalledEvent]:
    request = story_pb2.RecallRequest(world_id=world_id, query=query, **options)
    return list((await running.stub.Recall(request, timeout=TIMEOUT_SECONDS)).events)


async def codes(owner: asyncpg.Connection, world_id: str) -> dict[int, tuple[str, bytes]]:
    rows = await owner.fetch(
        "SELECT sequence, reranker, codes FROM knowledge_base.story_event_codes"
        " WHERE world_id = $1",
        uuid.UUID(world_id),
    )
    return {row["sequence"]: (row["reranker"], row["codes"]) for row in rows}


async def test_memories_come_by_the_rerankers_score_too(running: RunningKnowledgeBase) -> None:
    world_id = await create_world(running)
    await record(running, world_id, *EVENTS)
    found = await recall(running, world_id)
    assert found[0].event.text == EVENTS[0]
    # "Rang", "the" and "bell" of the four words; "Who" is in no event.
    assert found[0].reranker_score == pytest.approx(0.75)
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
    (only,) = await recall(running, world_id, limit=1)
    assert only == found[0]


async def test_without_a_reranker_nothing_is_kept_and_none_takes_part(
    knowledge_base_database: str, owner: asyncpg.Connection
) -> None:
    async with serving(knowledge_base_database, rerankers=Rerankers()) as running:
        world_id = await create_world(running)
        await record(running, world_id, *EVENTS)
        assert not await codes(owner, world_id)
        found = await recall(running, world_id)
        assert found[0].event.text == EVENTS[0]
        assert not any(item.HasField("reranker_score") for item in found)


async def test_events_recorded_without_codes_are_recalled_beside_those_with(
    knowledge_base_database: str,
) -> None:
    async with serving(knowledge_base_database, rerankers=Rerankers()) as running:
        world_id = await create_world(running)
        await record(running, world_id, *EVENTS[:2])
    async with serving(knowledge_base_database) as running:
        await record(running, world_id, *EVENTS[2:])
        found = await recall(running, world_id)
    assert {item.event.text: item.HasField("reranker_score") for item in found} == {
        EVENTS[0]: False,
        EVENTS[1]: False,
        EVENTS[2]: True,
        EVENTS[3]: True,
    }
    assert found[0].event.text == EVENTS[0]


async def test_codes_of_another_reranker_are_not_compared(
    knowledge_base_database: str, running: RunningKnowledgeBase
) -> None:
    world_id = await create_world(running)
    await record(running, world_id, *EVENTS)
    rerankers = Rerankers(memory=OtherReranker())
    async with serving(knowledge_base_database, rerankers=rerankers) as other:
        found = await recall(other, world_id)
    assert len(found) == len(EVENTS)
    assert not any(item.HasField("reranker_score") for item in found)


async def test_a_repeated_request_keeps_codes_once(
    running: RunningKnowledgeBase, owner: asyncpg.Connection
) -> None:
    world_id = await create_world(running)
    request_id = str(uuid.uuid4())
    await record(running, world_id, *EVENTS[:2], request_id=request_id)
    kept = await codes(owner, world_id)
    assert sorted(kept) == [1, 2]
    await record(running, world_id, *EVENTS[:2], request_id=request_id)
    await record(running, world_id, *EVENTS[2:])
    after = await codes(owner, world_id)
    assert sorted(after) == [1, 2, 3, 4]
    assert {number: after[number] for number in kept} == kept


async def test_neighbours_come_with_the_memories_that_are_given(
    running: RunningKnowledgeBase,
) -> None:
    world_id = await create_world(running)
    await record(running, world_id, *EVENTS)
    (only,) = await recall(running, world_id, limit=1, neighbours=2)
    assert not only.before
    assert [event.text for event in only.after] == list(EVENTS[1:3])


async def test_a_copy_of_a_part_of_the_story_has_the_codes_of_its_own_events(
    running: RunningKnowledgeBase, owner: asyncpg.Connection
) -> None:
    world_id = await create_world(running)
    request = story_pb2.RecordEventsRequest(
        world_id=world_id,
        request_id=str(uuid.uuid4()),
        events=[story_pb2.StoryEvent(text=text) for text in EVENTS],
    )
    for day, event in zip((9, 1, 8, 2), request.events, strict=True):
        event.occur_time.FromDatetime(datetime(2026, 3, day, tzinfo=UTC))
    await running.stub.RecordEvents(request, timeout=TIMEOUT_SECONDS)
    fork = world_jobs_pb2.ForkWorldRequest(
        world_id=world_id, name="Copy", request_id=str(uuid.uuid4())
    )
    fork.end_time.FromDatetime(datetime(2026, 3, 5, tzinfo=UTC))
    job = (await running.stub.ForkWorld(fork, timeout=TIMEOUT_SECONDS)).job
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while job.state == world_jobs_pb2.JobState.JOB_STATE_RUNNING:
            got = world_jobs_pb2.GetJobRequest(job_id=job.job_id)
            job = (await running.stub.GetJob(got, timeout=TIMEOUT_SECONDS)).job
    of_source, of_copy = await codes(owner, world_id), await codes(owner, job.result_world_id)
    assert of_copy == {1: of_source[2], 2: of_source[4]}


async def test_codes_stay_when_the_embedding_model_changes(
    knowledge_base_database: str, owner: asyncpg.Connection
) -> None:
    first, second = HashEmbedder(), IsometricEmbedder(HashEmbedder())
    async with serving(knowledge_base_database, embedders=(first, second), **FAST) as running:
        world_id = await create_world(running)
        await record(running, world_id, *EVENTS)
        kept, expected = await codes(owner, world_id), await recall(running, world_id)
        await start(running, second.model)
        async with filling(running):
            await until(running, lambda change: change.listed and change.remaining_rows == 0)
            await finish(running)
        assert await codes(owner, world_id) == kept
        found = await recall(running, world_id)
    assert [item.event.text for item in found] == [item.event.text for item in expected]
    assert [item.reranker_score for item in found] == [item.reranker_score for item in expected]
