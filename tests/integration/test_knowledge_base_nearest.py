"""Memories nearest to a vector: the same in worlds of every size, by the active model alone."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import asyncpg
import numpy as np
import pytest
import pytest_asyncio

from knowledge_base.adapters.database import RETRIEVAL_QUERIES, encode_vector
from knowledge_base.adapters.postgres_memory import PostgresMemory
from knowledge_base.domain.embedding_models import EmbeddingModelChanged
from knowledge_base.domain.errors import WorldNotFound
from knowledge_base.domain.lore import RankingParameters
from knowledge_base.domain.memory import NewEvent, RecallParameters, RecallQuery
from knowledge_base.ports import RequestKey
from knowledge_base.testing import serve_knowledge_base

pytestmark = pytest.mark.asyncio(loop_scope="module")

DIMENSIONS = 384
MODEL = "hash-for-tests"
BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
# From 250 events on a world's vectors are read in blocks of ten.
SIZES = (1, 9, 10, 11, 249, 250, 251, 260)
HALF_LIFE_SECONDS = 3_600.0
ONLY_VECTORS = RecallParameters(
    relevance_weight=1.0, recency_weight=0.0, importance_weight=0.0, question_penalty=0.0
)
BY_THE_VERSION_BEFORE = """
SELECT * FROM knowledge_base.nearest_story_events(
    $1, knowledge_base.embedded_with($5, $2), $3, $4
)
"""


@dataclass(frozen=True, slots=True)
class Memories:
    """Worlds by their number of events, all beginning with the same ones."""

    database_url: str
    memory: PostgresMemory
    worlds: dict[int, uuid.UUID]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def memories(module_database: str) -> AsyncIterator[Memories]:
    rng = np.random.default_rng(11)
    vectors = rng.standard_normal((max(SIZES), DIMENSIONS)).astype(np.float32)
    vectors[20:24] = vectors[3]  # of equals the later one comes first
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    async with serve_knowledge_base(module_database) as running:
        memory = PostgresMemory(running.database)
        worlds = {}
        for size in (0, *SIZES):
            worlds[size] = uuid.uuid4()
            await memory.create_world(key(), worlds[size], f"World of {size}", "")
            if size:
                events = [
                    (uuid.uuid4(), NewEvent.of(f"Event {row}.", occur_time=at(row)))
                    for row in range(size)
                ]
                await memory.record_events(worlds[size], key(), events, MODEL, vectors[:size])
        yield Memories(module_database, memory, worlds)


def key() -> RequestKey:
    return RequestKey(uuid.uuid4(), b"\0" * 32, BEGINNING)


def at(row: int) -> datetime:
    return BEGINNING + timedelta(minutes=row)


def question_of(seed: int) -> np.ndarray:
    vector = np.random.default_rng(seed).standard_normal(DIMENSIONS).astype(np.float32)
    return vector / np.float32(np.linalg.norm(vector))


async def nearest(
    memories: Memories, world_id: uuid.UUID, question: np.ndarray, *, model: str = MODEL
) -> list[int]:
    found = await memories.memory.recall(
        world_id,
        RecallQuery("Something", 10),
        question,
        RankingParameters(vector_weight=1.0),
        ONLY_VECTORS,
        model=model,
    )
    return [memory.event.sequence for memory in found]


async def rows_of(memories: Memories, query: str, *arguments: object) -> list[tuple[object, ...]]:
    return [tuple(row) for row in await memories.memory._database.fetch(query, *arguments)]


@pytest.mark.parametrize("size", SIZES)
async def test_answers_are_those_of_the_version_before(memories: Memories, size: int) -> None:
    for seed in range(5):
        for limit in (1, 10, 100):
            arguments = (
                *(memories.worlds[size], encode_vector(question_of(seed)), limit),
                *(HALF_LIFE_SECONDS, MODEL),
            )
            found = await rows_of(memories, RETRIEVAL_QUERIES.nearest_story_events, *arguments)
            assert len(found) == min(size, limit)
            assert found == await rows_of(memories, BY_THE_VERSION_BEFORE, *arguments)


@pytest.mark.parametrize("size", [11, 249, 260])
async def test_of_equals_the_later_comes_first(memories: Memories, size: int) -> None:
    rng = np.random.default_rng(11)
    vectors = rng.standard_normal((max(SIZES), DIMENSIONS)).astype(np.float32)
    question = vectors[3] / np.float32(np.linalg.norm(vectors[3]))
    equals = [24, 23, 22, 21, 4] if size > 24 else [4]
    assert (await nearest(memories, memories.worlds[size], question))[: len(equals)] == equals


@pytest.mark.parametrize("size", [0, 11, 260])
async def test_vectors_of_another_model_are_refused_in_every_world(
    memories: Memories, size: int
) -> None:
    for world_id in (memories.worlds[size], uuid.uuid4()):
        with pytest.raises(EmbeddingModelChanged):
            await nearest(memories, world_id, question_of(1), model="another")
        with pytest.raises(EmbeddingModelChanged):
            await nearest(memories, world_id, question_of(1)[:7], model="another")


async def test_a_world_without_events_remembers_nothing_and_one_that_is_not_there_is_not_found(
    memories: Memories,
) -> None:
    assert await nearest(memories, memories.worlds[0], question_of(1)) == []
    with pytest.raises(WorldNotFound):
        await nearest(memories, uuid.uuid4(), question_of(1))


@pytest.mark.parametrize("size", [11, 260])
async def test_a_search_that_waits_for_a_change_of_model_holds_no_events_that_the_change_wants(
    memories: Memories, size: int
) -> None:
    def search() -> asyncio.Task[list[int]]:
        return asyncio.create_task(nearest(memories, memories.worlds[size], question_of(1)))

    await asyncio.gather(*(search() for _ in range(8)))  # every session has its plans
    owner = await asyncpg.connect(memories.database_url, timeout=30)
    try:
        async with asyncio.timeout(30):
            async with owner.transaction():
                await owner.execute("LOCK TABLE knowledge_base.embedding_models")
                waiting = search()
                while not await owner.fetchval(  # noqa: ASYNC110  # it happens in the server
                    "SELECT count(*) FROM pg_locks WHERE NOT granted AND"
                    " relation = 'knowledge_base.embedding_models'::regclass"
                ):
                    await asyncio.sleep(0.01)
                # Else each would wait for the other, and one of them would fail.
                await owner.execute("LOCK TABLE knowledge_base.story_events NOWAIT")
            assert await waiting
    finally:
        await owner.close()
