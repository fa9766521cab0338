"""Databases whose lore has many passages, made up and the same for the same size.

A passage begins with a memory of `story_corpus`, a sentence of the shipped lore with names before
it, and is filled up to fifty words by ones drawn as words of a language are: of 20,000 words the
n-th most frequent comes in proportion to 1 / (n + 30) (Zipf-Mandelbrot). Fifty words are three
sentences long, so its vector is the mean of those that the model gives three of them, moved a
little. With one sentence in place of three, lore is made of hundreds of near copies of each, which
no lore is, but which is the hardest for an index. Ten passages make a document, and collections are
of very different size.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import asyncpg
import numpy as np
from story_corpus import Corpus, WorldPlan

from knowledge_base.adapters.database import decode_vector, encode_vector
from knowledge_base.adapters.schema import migrate_schema
from knowledge_base.ports import Vector
from knowledge_base.testing import SERVICE_ROLE, service_url

__all__ = ["LIMIT", "WORDS", "Question", "fill_lore", "questions"]

LIMIT = 10
#: Words of a question, without its names.
WORDS = (3, 6, 10)
_SEED = 20_260_201
_PASSAGE_WORDS = 50
_VOCABULARY = 20_000
_OFFSET = 30
_PASSAGES_PER_DOCUMENT = 10
# Shares of the passages, the last one so small that a search of it is exact.
_COLLECTIONS = (("quests", 0.3), ("letters", 0.02), ("lore", 1.0))
_BATCH = 2_000

_AFTER_COPY = """
INSERT INTO knowledge_base.chunk_terms (term, chunk_id, collection, frequency, term_count)
SELECT t.lexeme, c.chunk_id, c.collection, cardinality(t.positions), c.term_count
FROM knowledge_base.document_chunks c, unnest(to_tsvector('english', c.text)) AS t
ORDER BY t.lexeme COLLATE "C", c.chunk_id;
INSERT INTO knowledge_base.lore_statistics (collection, chunk_count, term_count)
SELECT c.collection, count(*), sum(c.term_count) FROM knowledge_base.document_chunks c GROUP BY 1;
SELECT setval(pg_get_serial_sequence('knowledge_base.narrative_documents', 'document_id'),
    (SELECT max(document_id) FROM knowledge_base.narrative_documents));
VACUUM (ANALYZE) knowledge_base.document_chunks;
VACUUM (ANALYZE) knowledge_base.chunk_terms;
VACUUM (ANALYZE) knowledge_base.narrative_documents;
"""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and its vector."""

    text: str
    vector: Vector


def questions(corpus: Corpus, count: int, words: int, *, sentences: int = 3) -> list[Question]:
    """Returns questions: half as asked of memories, half near to what a passage says.

    `words` words drawn as those of passages stand in each.
    """
    rng = np.random.default_rng((_SEED, words))
    near = _passages(corpus, count, sentences, rng)
    asked = []
    for number in range(count):
        drawn = _words(rng, words)
        if number % 2:
            index = number // 2 % len(corpus.questions)
            asked.append(
                Question(f"{corpus.questions[index]} {drawn}", corpus.question_vectors[index])
            )
        else:
            asked.append(Question(drawn, next(near)[1]))
    return asked


async def fill_lore(owner_url: str, corpus: Corpus, passages: int, *, sentences: int = 3) -> None:
    """Migrates the database and fills its lore with passages of so many sentences each.

    The index is not made.
    """
    await migrate_schema(owner_url, service_url(owner_url), SERVICE_ROLE)
    connection = await asyncpg.connect(owner_url)
    try:
        await connection.set_type_codec(
            "vector", schema="public", encoder=bytes, decoder=decode_vector, format="binary"
        )
        await connection.execute(
            "SELECT knowledge_base.register_embedding_model($1, $2, now())",
            corpus.model,
            corpus.question_vectors.shape[1],
        )
        await _copy(connection, corpus, passages, sentences)
        for statement in _AFTER_COPY.strip().split(";\n"):
            await connection.execute(statement)
    finally:
        await connection.close()


async def _copy(
    connection: asyncpg.Connection, corpus: Corpus, passages: int, sentences: int
) -> None:
    rng = np.random.default_rng((_SEED, 0))
    now = datetime.now(UTC)
    documents, chunks = [], []
    for number, (text, vector) in enumerate(_passages(corpus, passages, sentences, rng)):
        document, ordinal = divmod(number, _PASSAGES_PER_DOCUMENT)
        if not ordinal:
            drawn = float(rng.random())
            collection = next(name for name, share in _COLLECTIONS if drawn < share)
            documents.append(
                (document + 1, collection, f"{document}.md", str(document), "{}", bytes(32),
                 f"made-up/{corpus.model}", _PASSAGES_PER_DOCUMENT, now)
            )  # fmt: skip
        chunks.append(
            (document + 1, ordinal + 1, collection, [str(document), str(ordinal // 3)], 1, 2, text,
             number.to_bytes(32, "big"), f"made-up/{corpus.model}", _PASSAGE_WORDS,
             encode_vector(vector))
        )  # fmt: skip
        if len(chunks) == _BATCH or number == passages - 1:
            await connection.copy_records_to_table(
                "narrative_documents", schema_name="knowledge_base", records=documents,
                columns=["document_id", "collection", "path", "title", "front_matter",
                         "content_sha256", "recipe", "chunk_count", "ingest_time"],
            )  # fmt: skip
            await connection.copy_records_to_table(
                "document_chunks", schema_name="knowledge_base", records=chunks,
                columns=["document_id", "ordinal", "collection", "heading_path", "start_line",
                         "end_line", "text", "embedding_input_sha256", "recipe", "term_count",
                         "embedding"],
            )  # fmt: skip
            documents, chunks = [], []


def _passages(
    corpus: Corpus, count: int, sentences: int, rng: np.random.Generator
) -> Iterator[tuple[str, Vector]]:
    world = WorldPlan(int(rng.integers(1 << 16)), UUID(int=count), count * sentences)
    events = (
        pair
        for session in corpus.sessions([world])
        for pair in zip(session.events, session.vectors, strict=True)
    )
    for _ in range(count):
        told = list(itertools.islice(events, sentences))
        text = told[0][0].text
        mean = np.sum([vector for _, vector in told], axis=0)
        missing = max(0, _PASSAGE_WORDS - len(text.split()))
        yield f"{text} {_words(rng, missing)}", mean / np.linalg.norm(mean)


def _words(rng: np.random.Generator, count: int) -> str:
    ranks = _OFFSET * (((_VOCABULARY + _OFFSET) / _OFFSET) ** rng.random(count) - 1)
    return " ".join(f"w{int(rank) + 1}x" for rank in ranks)
