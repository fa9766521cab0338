"""Words that a slash holds together are found each; a number is the same with a sign or without."""

import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schema_history import apply_up_to, connected, migrations, statements, take_vectors, vector

from gaming.knowledge_base.v1 import lore_pb2, story_pb2, worlds_pb2
from knowledge_base.domain.memory import NewEvent
from knowledge_base.domain.text import words_apart
from knowledge_base.testing import HashEmbedder, RunningKnowledgeBase, serve_knowledge_base

TIMEOUT_SECONDS = 60
#: The newest schema whose texts were handed over as they are.
BEFORE = 73
NEWEST = max(migrations())
BEGIN = datetime(2026, 5, 1, tzinfo=UTC)
WORLD = uuid.UUID(int=7)
#: More than four segments of 250; the first word to be parted is of the second one.
EVENTS = 1_117
PARTED = {
    260: ("The ferry runs day/night from pier-7.", ["Mira"]),
    501: ("It was -12 degrees in the mill.", ["Tesh/Onn", "mill"]),
    700: ("It was cold.", ["Ott/Bram"]),
    1_110: ("Unit-4 came back.", []),
}
PASSAGE = "The lamps of pier-7 burn day/night."
#: Told beside what is looked for; the first two are its neighbours, which its words count for too.
OTHERS = ("A bell rang.", "The toll was paid.", "Bram slept.", "Tesh sang.", "Mira left.")
#: What an event is worth that holds all words of a question and means nothing like it.
WORDS_ALONE = 0.3
QUERIES = (
    "night",
    "Who was at pier 7?",
    "12 degrees",
    "What did Onn see?",
    "Ott",
    "unit 4",
    "bell",
)
# All that a world's words are read from, and those of lore.
POSTINGS = {
    "story_event_terms": "world_id, term, sequence",
    "story_event_words": "world_id, term, segment",
    "story_event_participants": "world_id, name, segment",
    "chunk_terms": "term",
}
SUMS = (
    "SELECT event_count, event_term_count, segmented_events FROM knowledge_base.worlds",
    "SELECT collection, chunk_count, term_count FROM knowledge_base.lore_statistics",
    "SELECT term_count FROM knowledge_base.document_chunks",
)


def events(*, apart: bool) -> list[dict[str, Any]]:
    """The story, its words as the version before handed them over, or as this one does."""
    told = []
    for number in range(1, EVENTS + 1):
        text, who = PARTED.get(number, (f"A bell rang for the ship w{number % 7}x.", ["Bram"]))
        indexed = NewEvent.of(text, participants=tuple(who)).search_text
        told.append(
            {
                "event_id": str(uuid.UUID(int=number)),
                "text": text,
                "kind": "event",
                "participants": who,
                "occur_time": (BEGIN + timedelta(minutes=number)).isoformat(),
                "importance": 0.5,
                "search_text": words_apart(indexed) if apart else indexed,
            }
        )
    return told


async def fill(owner: asyncpg.Connection, *, apart: bool) -> None:
    sql = statements()

    def request() -> tuple[uuid.UUID, bytes, datetime]:
        return uuid.uuid4(), hashlib.sha256(uuid.uuid4().bytes).digest(), BEGIN

    await owner.fetch(sql["create_world"], *request(), WORLD, "Mauk", "")
    told = events(apart=apart)
    for start in range(0, EVENTS, 100):
        part = told[start : start + 100]
        vectors = [await vector(event["text"]) for event in part]
        await owner.fetch(
            sql["record_events"],
            *(WORLD, *request(), json.dumps(part), HashEmbedder.model, vectors),
        )
    for name, text in (("pier", PASSAGE), ("bell", "The bell hangs in the tower.")):
        indexed = f"Mauk > Night/day\n\n{text}"
        chunk = {
            "heading_path": ["Mauk", "Night/day"],
            "start_line": 1,
            "end_line": 3,
            "text": text,
            "search_text": words_apart(indexed) if apart else indexed,
        }
        sha = hashlib.sha256(indexed.encode()).digest()
        await owner.fetch(
            sql["replace_document"],
            *("lore", f"{name}.md", "Mauk", "{}", sha, f"chunks-2/{HashEmbedder.model}", BEGIN),
            *(json.dumps([chunk]), [sha], [await vector(indexed)]),
        )


async def postings(url: str) -> dict[str, list[tuple[Any, ...]]]:
    async with connected(url) as owner:
        found = {
            table: [
                tuple(str(value) for value in row.values())
                for row in await owner.fetch(
                    f"SELECT * FROM knowledge_base.{table} ORDER BY {order}, 1, 2"  # noqa: S608 - ours
                )
            ]
            for table, order in POSTINGS.items()
        }
        for sums in SUMS:
            found[sums] = sorted(tuple(row.values()) for row in await owner.fetch(sums))
    return found


async def recalled(running: RunningKnowledgeBase, query: str) -> list[tuple[str, float]]:
    answer = await running.stub.Recall(
        story_pb2.RecallRequest(world_id=str(WORLD), query=query, limit=10), timeout=TIMEOUT_SECONDS
    )
    return [(each.event.text, round(each.score, 6)) for each in answer.events]


async def ingest(running: RunningKnowledgeBase, content: str) -> None:
    steps = [
        lore_pb2.IngestDocumentsRequest(begin=lore_pb2.IngestBegin(collection="lore")),
        lore_pb2.IngestDocumentsRequest(
            document=lore_pb2.IngestDocument(path="lore.md", content=content.encode())
        ),
    ]
    async for _ in running.stub.IngestDocuments(iter(steps), timeout=TIMEOUT_SECONDS):
        pass


@pytest.fixture
async def words_apart_in_sql(
    knowledge_base_database: str,
) -> AsyncIterator[Callable[[str], Awaitable[str]]]:
    async with serve_knowledge_base(knowledge_base_database):
        pass  # it migrates
    async with connected(knowledge_base_database) as owner:

        async def parted(text: str) -> str:
            return str(await owner.fetchval("SELECT knowledge_base.words_apart($1)", text))

        yield parted


async def test_what_was_stored_before_is_read_as_if_it_were_stored_now(
    postgres_database: str, module_database: str
) -> None:
    async with connected(postgres_database) as owner:
        await apply_up_to(owner, BEFORE)
        await take_vectors(owner)
        await fill(owner, apart=False)
    async with connected(module_database) as owner:
        await apply_up_to(owner, NEWEST)
        await take_vectors(owner)
        await fill(owner, apart=True)
    before = await postings(postgres_database)
    async with (
        serve_knowledge_base(postgres_database) as migrated,
        serve_knowledge_base(module_database) as new,
    ):
        for query in QUERIES:
            assert await recalled(migrated, query) == await recalled(new, query)
    after = await postings(postgres_database)
    assert before != after
    assert after == await postings(module_database)


@pytest.mark.parametrize(
    ("told", "asked"),
    [
        ("The ferry runs day/night.", "night"),
        ("They met at pier-7.", "7"),
        ("They met at pier 7.", "-7"),
        ("The well froze at -12 degrees.", "12"),
        ("Read archive/2/ledger.", "ledger"),
    ],
)
async def test_a_word_is_found_whatever_stands_beside_it(
    knowledge_base_database: str, told: str, asked: str
) -> None:
    async with serve_knowledge_base(knowledge_base_database) as running:
        made = await running.stub.CreateWorld(
            worlds_pb2.CreateWorldRequest(request_id=str(uuid.uuid4()), name="Mauk"),
            timeout=TIMEOUT_SECONDS,
        )
        world_id = made.world.world_id
        await running.stub.RecordEvents(
            story_pb2.RecordEventsRequest(
                request_id=str(uuid.uuid4()),
                world_id=world_id,
                events=[story_pb2.StoryEvent(text=text) for text in (told, *OTHERS)],
            ),
            timeout=TIMEOUT_SECONDS,
        )
        await ingest(running, f"# Mauk\n\n{told}\n\n# Tower\n\n{OTHERS[0]}\n")
        recalled = await running.stub.Recall(
            story_pb2.RecallRequest(
                world_id=world_id, query=asked, weights=story_pb2.RecallWeights(relevance=1)
            ),
            timeout=TIMEOUT_SECONDS,
        )
        found = await running.stub.Search(
            lore_pb2.SearchRequest(query=asked, mode=lore_pb2.SEARCH_MODE_KEYWORD),
            timeout=TIMEOUT_SECONDS,
        )
    relevance = {each.event.text: each.relevance for each in recalled.events}
    assert relevance[told] >= WORDS_ALONE
    assert all(relevance[text] < WORDS_ALONE for text in OTHERS[2:])
    assert [result.text for result in found.results] == [told]


@given(text=st.text(alphabet="ab7\u0663 /-+\n\u2212\u00e9"))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_the_migration_parts_words_as_the_service_does(
    words_apart_in_sql: Callable[[str], Awaitable[str]], text: str
) -> None:
    assert await words_apart_in_sql(text) == words_apart(text)
