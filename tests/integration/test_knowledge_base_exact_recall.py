"""Recall under a filter gives exactly the best memories, however few or many pass the filter."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import asyncpg
import numpy as np
import pytest
import pytest_asyncio

from knowledge_base.adapters.database import decode_vector, encode_vector
from knowledge_base.adapters.postgres_memory import PostgresMemory
from knowledge_base.domain.lore import RankingParameters
from knowledge_base.domain.memory import RecallParameters, RecallQuery
from knowledge_base.testing import RunningKnowledgeBase, serve_knowledge_base

pytestmark = pytest.mark.asyncio(loop_scope="module")

EVENTS = 10_000
DIMENSIONS = 384
BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
# Kinds and how many of the 10,000 events are of each: 0.01 % to 89 %.
KINDS = {"once": 1, "ten": 10, "hundred": 100, "thousand": 1_000}
ONLY_MEANING = RecallParameters(relevance_weight=1.0, recency_weight=0.0, importance_weight=0.0)
# Nothing but vectors: then nothing but the vectors is read.
ONLY_VECTORS = replace(ONLY_MEANING, question_penalty=0.0)
MODEL = "hash-for-tests"


@dataclass(frozen=True, slots=True)
class FullWorld:
    """A world with 10,000 events, beside another one with some of the same."""

    world_id: uuid.UUID
    memory: PostgresMemory
    vectors: np.ndarray
    kinds: np.ndarray


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def full_world(module_database: str) -> AsyncIterator[FullWorld]:
    rng = np.random.default_rng(7)
    vectors = rng.standard_normal((EVENTS, DIMENSIONS)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kinds = np.full(EVENTS, "rest", dtype=object)
    places = rng.permutation(EVENTS)
    for kind, count in KINDS.items():
        kinds[places[:count]] = kind
        places = places[count:]
    async with serve_knowledge_base(module_database) as running:
        worlds = [uuid.uuid4(), uuid.uuid4()]
        await fill(module_database, worlds[0], vectors, kinds)
        await fill(module_database, worlds[1], vectors[:1_000], kinds)
        yield FullWorld(worlds[0], memory_of(running), vectors, kinds)


def memory_of(running: RunningKnowledgeBase) -> PostgresMemory:
    return PostgresMemory(running.database)


async def fill(url: str, world_id: uuid.UUID, vectors: np.ndarray, kinds: np.ndarray) -> None:
    connection = await asyncpg.connect(url, timeout=30)
    try:
        await connection.set_type_codec(
            "vector", schema="public", encoder=bytes, decoder=decode_vector, format="binary"
        )
        await connection.execute(
            "INSERT INTO knowledge_base.worlds"
            " (world_id, name, description, create_time, event_count)"
            " VALUES ($1, $2, '', now(), $3)",
            *(world_id, str(world_id), len(vectors)),
        )
        await connection.copy_records_to_table(
            "story_events",
            schema_name="knowledge_base",
            columns=[
                *("world_id", "sequence", "event_id", "text", "kind", "participants"),
                *("occur_time", "record_time", "importance", "embedding_model", "embedding"),
            ],
            records=(
                (
                    *(world_id, row + 1, uuid.uuid4(), "Something.", kinds[row], []),
                    *(BEGINNING + timedelta(minutes=row), BEGINNING, 0.5, MODEL),
                    encode_vector(vector),
                )
                for row, vector in enumerate(vectors)
            ),
            timeout=60,
        )
    finally:
        await connection.close()


async def recalled(
    world: FullWorld,
    question: np.ndarray,
    query: RecallQuery,
    *,
    world_id: uuid.UUID | None = None,
    parameters: RecallParameters = ONLY_MEANING,
) -> list[int]:
    found = await world.memory.recall(
        world_id or world.world_id,
        query,
        question,
        RankingParameters(vector_weight=1.0),
        parameters,
        model=MODEL,
    )
    return [memory.event.sequence for memory in found]


def best(world: FullWorld, question: np.ndarray, passing: np.ndarray, limit: int) -> list[int]:
    """The reference: every passing event scored, the best first; below zero all count as zero."""
    scores = np.maximum(0.0, world.vectors.astype(np.float64) @ question.astype(np.float64))
    rows = np.flatnonzero(passing)
    order = sorted(rows, key=lambda row: (-scores[row], -row))
    return [int(row) + 1 for row in order[:limit]]


def question_of(seed: int) -> np.ndarray:
    vector = np.random.default_rng(seed).standard_normal(DIMENSIONS).astype(np.float32)
    return vector / np.float32(np.linalg.norm(vector))


@pytest.mark.parametrize("limit", [1, 10, 100])
@pytest.mark.parametrize("kinds", [("once",), ("ten",), ("hundred",), ("thousand",), ("rest",), ()])
async def test_a_filter_of_any_selectivity_loses_no_memory(
    full_world: FullWorld, kinds: tuple[str, ...], limit: int
) -> None:
    question = question_of(limit)
    passing = np.isin(full_world.kinds, kinds or [*KINDS, "rest"])

    found = await recalled(full_world, question, RecallQuery("Something", limit, kinds=kinds))

    assert len(found) == min(limit, int(passing.sum()))
    assert found == best(full_world, question, passing, limit)


async def test_filters_together_lose_no_memory(full_world: FullWorld) -> None:
    rng = np.random.default_rng(11)
    rows = np.arange(EVENTS)
    for seed in range(12):
        first, last = sorted(int(place) for place in rng.integers(0, EVENTS, size=2))
        limit = int(rng.integers(1, 101))
        kinds = tuple(rng.choice([*KINDS, "rest"], size=2, replace=False))
        passing = np.isin(full_world.kinds, kinds) & (rows >= first) & (rows < last)
        query = RecallQuery(
            "Something",
            limit,
            BEGINNING + timedelta(minutes=first),
            BEGINNING + timedelta(minutes=last),
            kinds,
        )

        found = await recalled(full_world, question_of(seed), query)

        assert found == best(full_world, question_of(seed), passing, limit)


@pytest.mark.parametrize("limit", [1, 10, 100, 300])
async def test_vectors_alone_lose_no_memory(full_world: FullWorld, limit: int) -> None:
    for seed in range(8):
        question = question_of(seed)

        found = await recalled(
            full_world, question, RecallQuery("Something", limit), parameters=ONLY_VECTORS
        )

        assert found == best(full_world, question, np.ones(EVENTS, dtype=bool), limit)


@pytest.mark.parametrize("parameters", [ONLY_MEANING, ONLY_VECTORS])
@pytest.mark.parametrize("events", [40, 700])
async def test_vectors_that_half_precision_cannot_tell_apart_come_in_their_order(
    full_world: FullWorld, module_database: str, parameters: RecallParameters, events: int
) -> None:
    # All cosines to the question lie within 0.001, less than rounding to half precision may move
    # them, and most of them closer to each other than it does.
    question = question_of(1)
    rng = np.random.default_rng(events)
    vectors = question + rng.standard_normal((events, DIMENSIONS)).astype(np.float32) * 0.002
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors.astype(np.float32)
    world_id = uuid.uuid4()
    await fill(module_database, world_id, vectors, np.full(events, "rest", dtype=object))

    found = await recalled(
        full_world,
        question,
        RecallQuery("Something", 10),
        world_id=world_id,
        parameters=parameters,
    )

    assert found == await nearest_by_table(module_database, world_id, question, 10)


async def nearest_by_table(
    url: str, world_id: uuid.UUID, question: np.ndarray, limit: int
) -> list[int]:
    """The reference in the table's own arithmetic: single precision, summed in one order."""
    connection = await asyncpg.connect(url, timeout=30)
    try:
        await connection.set_type_codec(
            "vector", schema="public", encoder=bytes, decoder=decode_vector, format="binary"
        )
        rows = await connection.fetch(
            "SELECT sequence FROM knowledge_base.story_events WHERE world_id = $1"
            " ORDER BY least(1, -(embedding <#> $2)) DESC, sequence DESC LIMIT $3",
            *(world_id, encode_vector(question), limit),
        )
    finally:
        await connection.close()
    return [row["sequence"] for row in rows]
