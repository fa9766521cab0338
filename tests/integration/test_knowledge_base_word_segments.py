"""Words and vectors that lie side by side give the answers that the rows they come from give."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import numpy as np
import pytest
import pytest_asyncio

from gaming.knowledge_base.v1 import world_jobs_pb2
from knowledge_base.adapters.database import encode_vector
from knowledge_base.adapters.postgres_memory import PostgresMemory
from knowledge_base.domain.memory import NewEvent, RecallParameters
from knowledge_base.ports import RequestKey
from knowledge_base.testing import RunningKnowledgeBase, serve_knowledge_base

pytestmark = pytest.mark.asyncio(loop_scope="module")

TIMEOUT_SECONDS = 30
EVENTS = 1_260
SEGMENT = 250
BLOCK = 10
DIMENSIONS = 384
BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
MODEL = "hash-for-tests"
VOCABULARY = [f"w{a}{b}x" for a in "bcdfgklmnprt" for b in "bcdfgklmnprt"]
NAMES = ("Ada", "Brand", "Cira")

RECALL = """
SELECT sequence, score, relevance, recency, cosine, keyword_share
FROM knowledge_base.{}(
    $1, $2, $3::vector, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19,
    $20, $21, $22, $23, $24, $25, $26
)
"""
# The last argument says how many of the first are to be sure.
RECALL_CANDIDATES = RECALL.replace("$26", "$26, $27")


@dataclass(frozen=True, slots=True)
class LongWorld:
    """A world of five segments and some events more, recorded as a game does."""

    world_id: uuid.UUID
    running: RunningKnowledgeBase
    owner: asyncpg.Connection


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def long_world(module_database: str) -> AsyncIterator[LongWorld]:
    rng = random.Random(5)  # noqa: S311  # repeatable, not secret
    async with serve_knowledge_base(module_database) as running:
        memory = PostgresMemory(running.database)
        world_id = uuid.uuid4()
        await memory.create_world(new_key(), world_id, "Long", "")
        recorded = 0
        while recorded < EVENTS:
            count = min(rng.randint(1, 60), EVENTS - recorded)
            vectors = np.random.default_rng(recorded).standard_normal((count, DIMENSIONS))
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            await memory.record_events(
                world_id,
                new_key(),
                [(uuid.uuid4(), event(rng, recorded + number)) for number in range(count)],
                MODEL,
                vectors.astype(np.float32),
            )
            recorded += count
        owner = await asyncpg.connect(module_database, timeout=TIMEOUT_SECONDS)
        try:
            yield LongWorld(world_id, running, owner)
        finally:
            await owner.close()


def event(rng: random.Random, number: int) -> NewEvent:
    words = " ".join(words_of(rng, rng.randint(1, 12)))
    return NewEvent.of(
        words + rng.choice("..?"),
        participants=tuple(rng.choices(NAMES, k=rng.choice([0, 0, 0, 1, 1, 2, 3]))),
        # Not in the order of recording, so that a block's latest event may be any of it.
        occur_time=BEGINNING + timedelta(hours=number + rng.randint(-30, 30)),
        importance=rng.random(),
    )


def words_of(rng: random.Random, count: int) -> list[str]:
    """Few words are frequent, most are rare."""
    return [VOCABULARY[int(len(VOCABULARY) * rng.random() ** 3)] for _ in range(count)]


def new_key() -> RequestKey:
    return RequestKey(uuid.uuid4(), bytes(32), BEGINNING)


def asked(rng: random.Random, seed: int) -> list[Any]:
    """What a recall may be asked for, the world apart: usual weights as often as unusual ones."""
    vector = np.random.default_rng(seed).standard_normal(DIMENSIONS)
    shares = rng.choice([(0.9, 0.05, 0.05), (0.4, 0.3, 0.3), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)])
    start = BEGINNING + timedelta(hours=rng.randint(0, EVENTS))
    spans = rng.random() < 0.3
    return [
        " ".join(words_of(rng, rng.randint(0, 8))),
        encode_vector((vector / np.linalg.norm(vector)).astype(np.float32)),
        rng.choice([1, 10, 100, 400]),
        start if rng.random() < 0.2 else None,
        start + timedelta(hours=200) if rng.random() < 0.2 else None,
        None,
        [rng.choice(NAMES)] if rng.random() < 0.2 else None,
        start if rng.random() < 0.2 else None,
        None,
        rng.choices([*NAMES, "Nobody"], k=rng.randint(1, 2)) if rng.random() < 0.5 else None,
        [start] if spans else None,
        [start + timedelta(hours=50)] if spans else None,
        None,
        rng.choice([0.0, 0.5, 0.5, 0.9]),
        *(0.5, 0.5, 0.2, 0.2),
        *(0.1, 0.1),
        rng.choice([0.0, 0.03]),
        RecallParameters().half_life_hours * 3600.0,
        *shares,
    ]


async def recalled(
    world: LongWorld, function: str, arguments: list[Any], statement: str = RECALL
) -> list[Any]:
    """The answer; of scores that are equal but for the order of summing, the later event first."""
    rows = await world.running.database.fetch(
        statement.format(function), world.world_id, *arguments
    )
    return sorted(rows, key=lambda row: (-round(row["score"], 12), -row["sequence"]))


async def test_segments_and_blocks_are_written_as_a_world_grows(long_world: LongWorld) -> None:
    row = await long_world.owner.fetchrow(
        "SELECT w.event_count, w.segmented_events,"
        " (SELECT count(*) FROM knowledge_base.story_event_blocks b"
        "  WHERE b.world_id = w.world_id) AS blocks"
        " FROM knowledge_base.worlds w WHERE w.world_id = $1",
        long_world.world_id,
    )
    # Each block is full, and a segment waits for the event after it.
    assert tuple(row) == (EVENTS, (EVENTS - 1) // SEGMENT * SEGMENT, EVENTS // BLOCK)


async def test_a_recall_from_segments_is_the_one_from_postings(long_world: LongWorld) -> None:
    rng = random.Random(17)  # noqa: S311  # repeatable, not secret
    for seed in range(60):
        arguments = asked(rng, seed)

        expected = await recalled(long_world, "recall_from_postings", arguments)
        found = await recalled(long_world, "recall_story_events", arguments)

        assert [row["sequence"] for row in found] == [row["sequence"] for row in expected]
        for ours, theirs in zip(found, expected, strict=True):
            assert tuple(ours) == pytest.approx(tuple(theirs), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("more", [0, 10, 50])
async def test_of_candidates_the_first_are_sure_and_as_many_come_as_pass(
    long_world: LongWorld, more: int
) -> None:
    rng = random.Random(23 + more)  # noqa: S311  # repeatable, not secret
    for seed in range(30):
        arguments = asked(rng, seed)
        sure = arguments[2]
        everything = await recalled(
            long_world, "recall_from_postings", [*arguments[:2], EVENTS, *arguments[3:]]
        )
        wider = [*arguments[:2], sure + more, *arguments[3:], sure]

        found = await recalled(long_world, "recall_story_events", wider, RECALL_CANDIDATES)

        assert len(found) == min(sure + more, len(everything))
        # By scores: of two that are equal but for the order of summing, either may be the last.
        assert [row["score"] for row in found[:sure]] == pytest.approx(
            [row["score"] for row in everything[:sure]], rel=1e-12
        )
        scores = {row["sequence"]: row["score"] for row in everything}
        assert [row["score"] for row in found] == pytest.approx(
            [scores[row["sequence"]] for row in found], rel=1e-12
        )


async def test_other_weights_of_neighbours_are_kept_to(long_world: LongWorld) -> None:
    arguments = asked(random.Random(3), 1)  # noqa: S311  # repeatable, not secret
    arguments[0] = " ".join(VOCABULARY[:6])
    arguments[13] = 0.0
    usual = await recalled(long_world, "recall_story_events", arguments)
    arguments[14] = 1.5

    expected = await recalled(long_world, "recall_from_postings", arguments)
    found = await recalled(long_world, "recall_story_events", arguments)

    assert [tuple(row) for row in found] == [tuple(row) for row in expected]
    assert [row["score"] for row in found] != [row["score"] for row in usual]


async def test_a_copy_of_a_world_gets_its_own_and_an_erased_one_leaves_none(
    long_world: LongWorld,
) -> None:
    stub = long_world.running.stub
    forked = await stub.ForkWorld(
        world_jobs_pb2.ForkWorldRequest(
            world_id=str(long_world.world_id), name="Copy", request_id=str(uuid.uuid4())
        ),
        timeout=TIMEOUT_SECONDS,
    )
    copy = uuid.UUID((await ended(long_world, forked.job.job_id)).result_world_id)
    assert await side_by_side(long_world, copy) == await side_by_side(
        long_world, long_world.world_id
    )

    erased = await stub.EraseWorld(
        world_jobs_pb2.EraseWorldRequest(world_id=str(copy), request_id=str(uuid.uuid4())),
        timeout=TIMEOUT_SECONDS,
    )
    await ended(long_world, erased.job.job_id)

    assert await side_by_side(long_world, copy) == [[], [], []]


async def side_by_side(world: LongWorld, world_id: uuid.UUID) -> list[list[Any]]:
    """What a world's segments and blocks hold, the world's name apart."""
    return [
        await world.owner.fetch(
            f"SELECT to_jsonb(t) - 'world_id' FROM knowledge_base.{table} t"  # noqa: S608  # these
            " WHERE t.world_id = $1 ORDER BY 1",
            world_id,
        )
        for table in ("story_event_words", "story_event_participants", "story_event_blocks")
    ]


async def ended(world: LongWorld, job_id: str) -> world_jobs_pb2.Job:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            answer = await world.running.stub.GetJob(
                world_jobs_pb2.GetJobRequest(job_id=job_id), timeout=TIMEOUT_SECONDS
            )
            if answer.job.HasField("end_time"):
                return answer.job
            await asyncio.sleep(0.02)
