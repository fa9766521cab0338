"""BM25 in SQL ranks as a reference written from the formula, for lore and for a world's events."""

import math
import random
import uuid
from collections import Counter
from collections.abc import Sequence

import pytest

from gaming.knowledge_base.v1 import lore_pb2, story_pb2, worlds_pb2
from knowledge_base.testing import RunningKnowledgeBase, serve_knowledge_base

TIMEOUT_SECONDS = 20
K1, B = 0.9, 0.4
# Of a world's events: saturation, and what a word counts that stands in an event's neighbours.
EVENT_K1 = 0.5
NEIGHBOURS = {0: 1.0, 1: 0.5, 2: 0.2, -1: 0.2}
# Words that the English stemmer leaves as they are, and that are no stop words.
VOCABULARY = [f"w{a}{b}x" for a in "bcdfgklmnprt" for b in "bcdfgklmnprt"]


def reference_ranking(corpus: Sequence[Sequence[str]], query: Sequence[str]) -> list[float]:
    """Robertson & Zaragoza 2009 with Lucene's inverse document frequency; a score per document."""
    counts = [Counter(document) for document in corpus]
    mean_length = sum(map(len, corpus)) / len(corpus)
    scores = [0.0] * len(corpus)
    for term in sorted(set(query)):
        containing = sum(term in count for count in counts)
        idf = math.log(1 + (len(corpus) - containing + 0.5) / (containing + 0.5))
        for index, count in enumerate(counts):
            frequency = count[term]
            norm = K1 * (1 - B + B * len(corpus[index]) / mean_length)
            scores[index] += idf * frequency / (frequency + norm)
    return scores


def reference_event_shares(corpus: Sequence[Sequence[str]], query: Sequence[str]) -> list[float]:
    """BM25F over each event and its neighbours, as a share of the sum of idf; a score per event."""
    counts = [Counter(document) for document in corpus]
    scores = [0.0] * len(corpus)
    bound = 0.0
    for term in sorted(set(query)):
        containing = sum(term in count for count in counts)
        idf = math.log(1 + (len(corpus) - containing + 0.5) / (containing + 0.5))
        bound += idf
        for index in range(len(corpus)):
            frequency = sum(
                weight * counts[index - step][term]
                for step, weight in NEIGHBOURS.items()
                if 0 <= index - step < len(corpus)
            )
            scores[index] += idf * frequency / (frequency + EVENT_K1)
    return [score / bound for score in scores]


def skewed_words(rng: random.Random, count: int) -> list[str]:
    """Zipf-like: few words are frequent, most are rare."""
    return [VOCABULARY[int(len(VOCABULARY) * rng.random() ** 3)] for _ in range(count)]


async def ingest_as_chunks(running: RunningKnowledgeBase, corpus: list[list[str]]) -> None:
    """Stores one document of one chunk each; the file's name is the document's number."""
    requests = [
        lore_pb2.IngestDocumentsRequest(
            begin=lore_pb2.IngestBegin(collection="lore", remove_missing=True)
        ),
        *(
            lore_pb2.IngestDocumentsRequest(
                document=lore_pb2.IngestDocument(path=str(number), content=" ".join(words).encode())
            )
            for number, words in enumerate(corpus)
        ),
    ]
    async for _ in running.stub.IngestDocuments(iter(requests), timeout=TIMEOUT_SECONDS):
        pass


@pytest.mark.parametrize("seed", range(3))
async def test_the_first_ten_are_those_of_the_reference(postgres_database: str, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311  # repeatable, not secret
    corpus = [skewed_words(rng, rng.randint(1, 90)) for _ in range(200)]
    queries = [skewed_words(rng, rng.randint(1, 12)) for _ in range(25)]
    async with serve_knowledge_base(postgres_database) as running:
        await ingest_as_chunks(running, [["replaced"], *corpus[:60]])
        await ingest_as_chunks(running, corpus)  # statistics after changes, not only at first
        for query in queries:
            expected = reference_ranking(corpus, query)
            best = sorted(range(len(corpus)), key=lambda n: -expected[n])[:10]
            response = await running.stub.Search(
                lore_pb2.SearchRequest(
                    query=" ".join(query), limit=10, mode=lore_pb2.SEARCH_MODE_KEYWORD
                ),
                timeout=TIMEOUT_SECONDS,
            )
            found = [int(result.citation.path) for result in response.results]
            scores = [result.keyword_score for result in response.results]
            assert scores == pytest.approx([expected[n] for n in best if expected[n] > 0])
            assert scores == pytest.approx([expected[n] for n in found])
            distinct = len({round(score, 9) for score in expected if score > 0})
            if distinct == sum(score > 0 for score in expected):  # no ties: one right order
                assert found == [n for n in best if expected[n] > 0]


async def test_a_worlds_events_are_scored_in_their_world_alone(postgres_database: str) -> None:
    rng = random.Random(11)  # noqa: S311  # repeatable, not secret
    corpus = [skewed_words(rng, rng.randint(1, 60)) for _ in range(100)]
    noise = [skewed_words(rng, 50) for _ in range(100)]
    async with serve_knowledge_base(
        postgres_database,
        KNOWLEDGE_BASE_VECTOR_WEIGHT="0",
        KNOWLEDGE_BASE_RECENCY_WEIGHT="0",
        KNOWLEDGE_BASE_IMPORTANCE_WEIGHT="0",
    ) as running:
        worlds: list[str] = []
        for texts in (noise, corpus):
            world = await running.stub.CreateWorld(
                worlds_pb2.CreateWorldRequest(name=str(len(worlds)), request_id=str(uuid.uuid4())),
                timeout=TIMEOUT_SECONDS,
            )
            worlds.append(world.world.world_id)
            await running.stub.RecordEvents(
                story_pb2.RecordEventsRequest(
                    world_id=worlds[-1],
                    request_id=str(uuid.uuid4()),
                    events=[story_pb2.StoryEvent(text=" ".join(words)) for words in texts],
                ),
                timeout=TIMEOUT_SECONDS,
            )
        for _ in range(25):
            query = skewed_words(rng, rng.randint(1, 8))
            expected = sorted(reference_event_shares(corpus, query), reverse=True)[:10]
            response = await running.stub.Recall(
                story_pb2.RecallRequest(world_id=worlds[1], query=" ".join(query), limit=10),
                timeout=TIMEOUT_SECONDS,
            )
            found = [recalled.relevance for recalled in response.events]
            assert found == pytest.approx(expected)
