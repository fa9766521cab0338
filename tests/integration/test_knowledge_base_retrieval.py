"""Search and Recall are exact under filters and pruning, repeatable, and take a query's clues."""

import math
import random
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from gaming.knowledge_base.v1 import lore_pb2, story_pb2, worlds_pb2
from knowledge_base.adapters.database import RETRIEVAL_QUERIES, encode_vector
from knowledge_base.testing import (
    HashEmbedder,
    RunningKnowledgeBase,
    empty_database,
    serve_knowledge_base,
)
from localsuite.postgres import EmbeddedPostgres
from servicekit.testing import FakeClock

TIMEOUT_SECONDS = 60
START = datetime(2026, 3, 1, tzinfo=UTC)
PRUNE_ALL, PRUNE_NONE = 1, 10**9
HOSTILE = (
    "' OR 1=1; DROP TABLE knowledge_base.worlds; --",
    "a & | ! <-> (b:* ",
    "\\'; SELECT pg_sleep(60) --",
    "%_%\u202e\U0001f9ff\ud7ff\u0301",
    "$1 $$ {{query}} \x01",
    "the of and",
    "?" * 2000,
    "x " * 1000,
)


@pytest.fixture(scope="module")
def retrieval_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory: Path = tmp_path_factory.mktemp("retrieval")
    with EmbeddedPostgres(directory / "postgres", durable=False) as server:
        server.create_database("retrieval")
        yield server.url("retrieval")


@pytest.fixture
async def running(retrieval_database: str) -> AsyncIterator[RunningKnowledgeBase]:
    await empty_database(retrieval_database)
    async with serve_knowledge_base(retrieval_database, clock=FakeClock(START)) as running:
        yield running


def stamp(moment: datetime) -> Timestamp:
    return Timestamp(seconds=int(moment.timestamp()))


async def new_world(running: RunningKnowledgeBase) -> str:
    made = await running.stub.CreateWorld(
        worlds_pb2.CreateWorldRequest(name=str(uuid.uuid4()), request_id=str(uuid.uuid4())),
        timeout=TIMEOUT_SECONDS,
    )
    return made.world.world_id


async def record(
    running: RunningKnowledgeBase, world_id: str, events: Sequence[story_pb2.StoryEvent]
) -> None:
    for start in range(0, len(events), 100):
        await running.stub.RecordEvents(
            story_pb2.RecordEventsRequest(
                world_id=world_id,
                events=events[start : start + 100],
                request_id=str(uuid.uuid4()),
            ),
            timeout=TIMEOUT_SECONDS,
        )


async def recall(
    running: RunningKnowledgeBase, world_id: str, query: str, **options: Any
) -> story_pb2.RecallResponse:
    options.setdefault("weights", story_pb2.RecallWeights(relevance=1))
    return await running.stub.Recall(
        story_pb2.RecallRequest(world_id=world_id, query=query, **options),
        timeout=TIMEOUT_SECONDS,
    )


async def ingest(running: RunningKnowledgeBase, documents: dict[str, str]) -> None:
    steps = [
        lore_pb2.IngestDocumentsRequest(
            begin=lore_pb2.IngestBegin(collection="lore", remove_missing=True)
        ),
        *(
            lore_pb2.IngestDocumentsRequest(
                document=lore_pb2.IngestDocument(path=path, content=text.encode())
            )
            for path, text in documents.items()
        ),
    ]
    async for _ in running.stub.IngestDocuments(iter(steps), timeout=TIMEOUT_SECONDS):
        pass


async def search(
    running: RunningKnowledgeBase, query: str, **options: Any
) -> lore_pb2.SearchResponse:
    return await running.stub.Search(
        lore_pb2.SearchRequest(query=query, **options), timeout=TIMEOUT_SECONDS
    )


def texts(answer: story_pb2.RecallResponse) -> list[str]:
    return [item.event.text for item in answer.events]


async def test_a_filter_of_any_selectivity_leaves_as_many_events_as_match(
    running: RunningKnowledgeBase,
) -> None:
    rng = random.Random(5)  # noqa: S311  # repeatable, not secret
    world_id = await new_world(running)
    count = 512
    # Kind k holds every 2^k-th event, down to a single one.
    await record(
        running,
        world_id,
        [
            story_pb2.StoryEvent(
                text=f"lamp {rng.randint(0, 50)} event {number}",
                kind=f"k{(number & -number).bit_length() - 1}",
                occur_time=stamp(START + timedelta(minutes=number)),
            )
            for number in range(1, count + 1)
        ],
    )
    for exponent in range(10):
        matching = sum(
            (number & -number).bit_length() - 1 == exponent for number in range(1, count + 1)
        )
        for limit in (1, 10, 100):
            answer = await recall(running, world_id, "lamp 7", kinds=[f"k{exponent}"], limit=limit)
            assert len(answer.events) == min(limit, matching)
            assert {item.event.kind for item in answer.events} <= {f"k{exponent}"}
    for minutes in (1, 30, 511):
        until = stamp(START + timedelta(minutes=minutes + 1))
        answer = await recall(running, world_id, "lamp", end_time=until, limit=100)
        assert len(answer.events) == min(100, minutes)


@pytest.mark.parametrize("seed", range(2))
async def test_pruning_frequent_words_changes_nothing(
    running: RunningKnowledgeBase, seed: int
) -> None:
    rng = random.Random(seed)  # noqa: S311  # repeatable, not secret
    vocabulary = [f"w{a}{b}x" for a in "bcdfghk" for b in "bcdfghk"]

    def words(most: int) -> str:
        chosen = (int(len(vocabulary) * rng.random() ** 3) for _ in range(rng.randint(1, most)))
        return " ".join(vocabulary[index] for index in chosen)

    await ingest(running, {f"{number}.md": words(60) for number in range(150)})
    embedder = HashEmbedder()
    for number in range(24):
        mode = ("keyword", "hybrid")[number % 2]
        query = words(6)
        vector = await embedder.embed_query(query)
        limit = rng.choice([1, 5, 10])
        per_section = rng.choice([2, 10])

        async def found(
            frequent_from: int,
            *,
            mode: str = mode,
            query: str = query,
            vector: Any = vector,
            limit: int = limit,
            per_section: int = per_section,
        ) -> list[tuple[str, float]]:
            rows = await running.database.fetch(
                RETRIEVAL_QUERIES.search_passages,
                query,
                encode_vector(vector) if mode == "hybrid" else None,
                mode,
                None,
                limit,
                per_section,
                0,
                0.5,
                0.9,
                0.4,
                frequent_from,
                embedder.model,
            )
            return [(row["path"], round(row["score"], 9)) for row in rows]

        assert await found(PRUNE_ALL) == await found(PRUNE_NONE)


async def test_a_frequent_word_counts_for_the_few_that_can_come_first(
    running: RunningKnowledgeBase,
) -> None:
    texts = ["lamp " * (1 + number % 3) + f"w{number}x" for number in range(120)]
    await ingest(running, {f"{number}.md": text for number, text in enumerate(texts)})
    embedder = HashEmbedder()
    for mode in ("keyword", "hybrid"):
        for number in (5, 6, 7):
            query = f"lamp w{number}x"
            rows = [
                await running.database.fetch(
                    RETRIEVAL_QUERIES.search_passages,
                    query,
                    encode_vector(await embedder.embed_query(query)) if mode == "hybrid" else None,
                    mode,
                    None,
                    1,
                    1,
                    0,
                    0.5,
                    0.9,
                    0.4,
                    frequent_from,
                    embedder.model,
                )
                for frequent_from in (PRUNE_ALL, PRUNE_NONE)
            ]
            (pruned,), (whole,) = rows
            assert pruned["path"] == whole["path"] == f"{number}.md"
            assert pruned["keyword_score"] == pytest.approx(whole["keyword_score"])


async def test_the_same_search_gives_the_same_answer_on_equal_scores(
    running: RunningKnowledgeBase,
) -> None:
    await ingest(running, {f"{number:02}.md": "The lamp burns." for number in range(40)})
    first = await search(running, "lamp", limit=20)
    for _ in range(3):
        assert await search(running, "lamp", limit=20) == first


async def test_hostile_queries_are_words_and_nothing_else(running: RunningKnowledgeBase) -> None:
    await ingest(running, {"a.md": "# Lamp\n\nThe lamp burns by night."})
    world_id = await new_world(running)
    await record(
        running,
        world_id,
        [story_pb2.StoryEvent(text="The lamp burns.", participants=["O'Brien; DROP TABLE x"])],
    )
    for query in HOSTILE:
        for mode in (lore_pb2.SEARCH_MODE_HYBRID, lore_pb2.SEARCH_MODE_VECTOR):
            assert len((await search(running, query[:2000], mode=mode)).results) == 1
        await search(running, query[:2000], mode=lore_pb2.SEARCH_MODE_KEYWORD)
        assert texts(await recall(running, world_id, query[:2000])) == ["The lamp burns."]
    assert texts(await recall(running, world_id, "O'Brien; DROP TABLE")) == ["The lamp burns."]


async def test_no_section_crowds_out_the_others_and_none_is_lost(
    running: RunningKnowledgeBase,
) -> None:
    # Each paragraph is long enough to be a passage of its own.
    long = "The lamp burns bright over the harbour wall and its keeper trims the wick. " * 4
    crowd = "\n\n".join(f"Lamp lamp lamp {number}. {long}" for number in range(6))
    await ingest(
        running,
        {"a.md": f"# Lamps\n\n{crowd}", "b.md": "# Boats\n\nA boat carries a lamp at its stern."},
    )
    sections = [
        result.citation.heading_path[-1]
        for result in (await search(running, "lamp", limit=10)).results
    ]
    assert sections[:3] == ["Lamps", "Lamps", "Boats"]
    assert sections.count("Lamps") == 6
    apart = await search(running, "lamp", limit=2, passages_per_section=1)
    assert {result.citation.path for result in apart.results} == {"a.md", "b.md"}


async def test_neighbours_come_on_request(running: RunningKnowledgeBase) -> None:
    long = "and so it went on through the night until the watch was changed at dawn again " * 4
    await ingest(
        running, {"a.md": f"# Night\n\nFirst {long}\n\nSecond lantern {long}\n\nThird {long}"}
    )
    (result,) = (await search(running, "lantern", limit=1, neighbours=1)).results
    assert [text.split()[0] for text in result.text_before] == ["First"]
    assert [text.split()[0] for text in result.text_after] == ["Third"]
    assert not (await search(running, "lantern", limit=1)).results[0].text_before
    world_id = await new_world(running)
    await record(
        running, world_id, [story_pb2.StoryEvent(text=text) for text in ("one", "lantern", "three")]
    )
    (memory,) = (await recall(running, world_id, "lantern", limit=1, neighbours=2)).events
    assert [event.text for event in memory.before] == ["one"]
    assert [event.text for event in memory.after] == ["three"]


async def test_who_is_named_counts_as_one_who_took_part(running: RunningKnowledgeBase) -> None:
    world_id = await new_world(running)
    said = [("Mira", "I bought a boat."), ("Tesh", "I bought a boat.")]
    await record(
        running,
        world_id,
        [story_pb2.StoryEvent(text=text, participants=[who]) for who, text in said]
        + [story_pb2.StoryEvent(text="Mira, Mira, Mira! So they called.", participants=["Onn"])],
    )
    for who in ("Mira", "Tesh"):
        best = (await recall(running, world_id, f"What did {who} buy?")).events[0].event
        assert (best.text, list(best.participants)) == ("I bought a boat.", [who])


async def test_an_answer_is_found_by_the_question_before_it(running: RunningKnowledgeBase) -> None:
    world_id = await new_world(running)
    told = ["A quiet day.", "Which instrument do you play?", "The zither.", "Good night."]
    await record(running, world_id, [story_pb2.StoryEvent(text=text) for text in told])
    answer = await recall(running, world_id, "instrument played", limit=2)
    assert set(texts(answer)) == {"Which instrument do you play?", "The zither."}


async def test_a_time_that_is_named_counts(running: RunningKnowledgeBase) -> None:
    world_id = await new_world(running)
    days = [datetime(2025, month, 10, tzinfo=UTC) for month in (1, 5, 9)]
    await record(
        running,
        world_id,
        [story_pb2.StoryEvent(text="Dinner by the wall.", occur_time=stamp(day)) for day in days],
    )
    for query, day in (
        ("Dinner on 9 May 2025", days[1]),
        ("Dinner in January", days[0]),
        ("Dinner in September 2025", days[2]),
    ):
        best = (await recall(running, world_id, query)).events[0].event
        assert best.occur_time == stamp(day)


async def test_a_world_is_recalled_as_it_stood(retrieval_database: str) -> None:
    await empty_database(retrieval_database)
    clock = FakeClock(START)
    async with serve_knowledge_base(retrieval_database, clock=clock) as running:
        world_id = await new_world(running)
        await record(
            running,
            world_id,
            [
                story_pb2.StoryEvent(text="lamp one", occur_time=stamp(START)),
                story_pb2.StoryEvent(text="lamp two", occur_time=stamp(START + timedelta(days=9))),
            ],
        )
        await clock.advance(3600)
        await record(
            running, world_id, [story_pb2.StoryEvent(text="lamp three", occur_time=stamp(START))]
        )
        in_story = await recall(
            running, world_id, "lamp", as_of_time=stamp(START + timedelta(days=1)), neighbours=1
        )
        assert set(texts(in_story)) == {"lamp one", "lamp three"}
        assert all(
            event.text != "lamp two"
            for item in in_story.events
            for event in (*item.before, *item.after)
        )
        recorded = await recall(
            running, world_id, "lamp", as_of_record_time=stamp(START + timedelta(seconds=60))
        )
        assert set(texts(recorded)) == {"lamp one", "lamp two"}
        recency = {
            item.event.text: item.recency
            for item in (await recall(running, world_id, "lamp", as_of_time=stamp(START))).events
        }
        assert recency == {"lamp one": 1.0, "lamp three": 1.0}


async def test_weights_of_a_request_decide_what_comes_first(
    running: RunningKnowledgeBase,
) -> None:
    world_id = await new_world(running)
    await record(
        running,
        world_id,
        [
            story_pb2.StoryEvent(text="lamp", importance=0.1, occur_time=stamp(START)),
            story_pb2.StoryEvent(text="crown", importance=1.0, occur_time=stamp(START)),
            story_pb2.StoryEvent(
                text="mud", importance=0.1, occur_time=stamp(START + timedelta(days=90))
            ),
        ],
    )
    for weights, first in (
        (story_pb2.RecallWeights(relevance=1), "lamp"),
        (story_pb2.RecallWeights(importance=1), "crown"),
        (story_pb2.RecallWeights(recency=5), "mud"),
    ):
        answer = await recall(running, world_id, "lamp", weights=weights)
        assert texts(answer)[0] == first
        best = answer.events[0]
        total = weights.relevance + weights.recency + weights.importance
        assert math.isclose(
            best.score,
            (
                weights.relevance * best.relevance
                + weights.recency * best.recency
                + weights.importance * best.event.importance
            )
            / total,
        )


async def test_what_is_unlikely_to_answer_is_held_back_on_request(
    running: RunningKnowledgeBase,
) -> None:
    await ingest(running, {"a.md": "# Lamp\n\nThe lamp burns by night."})
    world_id = await new_world(running)
    await record(running, world_id, [story_pb2.StoryEvent(text="The lamp burns by night.")])
    near, far = "The lamp burns by night", "quarterly tax return forms"
    for query, kept in ((near, 1), (far, 0)):
        found = await search(running, query, minimum_answer_probability=0.5)
        recalled = await recall(running, world_id, query, minimum_answer_probability=0.5)
        assert len(found.results) == len(recalled.events) == kept
        assert (found.answer_probability >= 0.5) == (recalled.answer_probability >= 0.5) == kept
        assert len((await search(running, query)).results) == 1
