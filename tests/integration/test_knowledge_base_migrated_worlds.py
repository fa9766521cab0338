"""A world large enough for blocks and segments answers after its migration as one that needed none.

A migration that rewrites events makes blocks of ten, segments of a thousand and the postings of
participants from what is there: a world of one event has none of them.
"""

import hashlib
import json
import random
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from schema_history import apply_up_to, connected, migrations, statements, take_vectors, vector

from gaming.knowledge_base.v1 import story_pb2
from knowledge_base.testing import HashEmbedder, RunningKnowledgeBase, serve_knowledge_base

TIMEOUT_SECONDS = 60
BEGIN = datetime(2026, 5, 1, tzinfo=UTC)
#: A segment and more, and no whole number of blocks.
EVENTS = 1_117
EVENTS_PER_CALL = 100
WORLD = uuid.UUID(int=7)
NAMES = ("Mira", "Tesh", "Onn", "Ottoline", "Bram")
WORDS = (
    *("bell", "lamp", "mill", "gate", "ferry", "toll", "widow", "ledger"),
    *("boat", "storm", "bridge", "crown", "salt", "rope", "debt"),
)
QUERIES = (
    *("Where did Mira put the bell?", "Tesh and the ledger of debt", "Ottoline, crown and salt"),
    *("who lit the lamp at the mill", "storm bridge", "widow", "nothing of this was told"),
)
WAYS: tuple[dict[str, Any], ...] = (
    {"limit": 10},
    {"limit": 10, "weights": story_pb2.RecallWeights(relevance=1)},
    {"limit": 5, "participants": ["Mira"]},
    {"limit": 5, "kinds": ["quarrel"]},
)
NEWEST = max(migrations())
#: Before coarse vectors (0046), blocks of vectors (0051), segments of words (0054) and postings of
#: participants (0062).
BEFORE = (45, 50, 53, 61)


def events() -> list[dict[str, Any]]:
    """The same story each time, as the first release's service hands it over."""
    story = random.Random(20260501)  # noqa: S311 - words
    told = []
    for number in range(EVENTS):
        who = story.sample(NAMES, story.randint(0, 2))
        text = " ".join(story.choices(WORDS, k=story.randint(4, 12)))
        told.append(
            {
                "event_id": str(uuid.UUID(int=number + 1)),
                "text": text,
                "kind": story.choice(["event", "quarrel"]),
                "participants": who,
                "occur_time": (BEGIN + timedelta(minutes=number)).isoformat(),
                "importance": round(story.random(), 3),
                "search_text": f"{', '.join(who)}: {text}" if who else text,
            }
        )
    return told


async def fill(owner: asyncpg.Connection) -> None:
    """Records the story by the first release's statements, which every later schema takes."""
    sql = statements()

    def request() -> tuple[uuid.UUID, bytes, datetime]:
        return uuid.uuid4(), hashlib.sha256(uuid.uuid4().bytes).digest(), BEGIN

    await owner.fetch(sql["create_world"], *request(), WORLD, "Mauk", "")
    told = events()
    for start in range(0, EVENTS, EVENTS_PER_CALL):
        part = told[start : start + EVENTS_PER_CALL]
        vectors = [await vector(event["search_text"]) for event in part]
        await owner.fetch(
            sql["record_events"],
            WORLD,
            *request(),
            json.dumps(part),
            HashEmbedder.model,
            vectors,
        )


async def recalled(running: RunningKnowledgeBase) -> list[list[tuple[str, float]]]:
    """What is found by each query in each way, in order, with its score."""
    answers = []
    for query in QUERIES:
        for way in WAYS:
            request = story_pb2.RecallRequest(world_id=str(WORLD), query=query, **way)
            answer = await running.stub.Recall(request, timeout=TIMEOUT_SECONDS)
            answers.append([(each.event.event_id, round(each.score, 6)) for each in answer.events])
    return answers


async def rows(url: str) -> dict[str, int]:
    """How many rows of the world each table has, but those that say what was done when."""
    async with connected(url) as owner:
        tables = await owner.fetch(
            "SELECT table_name FROM knowledge_base.known_world_tables()"
            " WHERE table_name NOT IN ('requests', 'world_changes', 'outbox', 'inbox')"
        )
        return {
            table["table_name"]: await owner.fetchval(
                f"SELECT count(*) FROM knowledge_base.{table['table_name']}"  # noqa: S608 - as listed
                " WHERE world_id = $1",
                WORLD,
            )
            for table in tables
        }


async def of_schema(url: str, newest: int) -> tuple[list[list[tuple[str, float]]], dict[str, int]]:
    """Fills a database with the schema `newest`, migrates it, and asks it."""
    async with connected(url) as owner:
        await apply_up_to(owner, newest)
        await take_vectors(owner)
        await fill(owner)
    async with serve_knowledge_base(url) as running:
        return await recalled(running), await rows(url)


@pytest.mark.parametrize("newest", BEFORE)
async def test_a_migrated_world_answers_as_one_that_never_was_migrated(
    module_database: str, postgres_database: str, newest: int
) -> None:
    answers, counts = await of_schema(postgres_database, newest)
    async with connected(module_database) as owner:
        known = await owner.fetchval("SELECT to_regclass('knowledge_base.worlds') IS NOT NULL")
    if not known:
        async with connected(module_database) as owner:
            await apply_up_to(owner, NEWEST)
            await take_vectors(owner)
            await fill(owner)
    async with serve_knowledge_base(module_database) as running:
        assert answers == await recalled(running)
    assert all(answers)
    assert counts == await rows(module_database)
    assert counts["story_events"] == EVENTS
