"""LangChain's PGVectorStore and txtai beside the knowledge base: one server, texts and vectors.

LangChain's table holds the memories of the chosen worlds with the world as an indexed column; the
first world is stored through the library, the others are copied in by SQL, since the library takes
a statement and a transaction for each row. txtai has no filter within its index, so it is given one
world alone, under its approximate index. The knowledge base answers from among all its worlds.
"""

import asyncio
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import numpy as np
from rival_process import Item, Rival, write_folder
from scale_database import ScaleDatabase, open_as_service
from scale_measures import HYBRID, LIMIT, ONLY_VECTORS, Searcher, open_searcher
from story_corpus import Corpus, WorldPlan

from knowledge_base.adapters.database import decode_vector
from knowledge_base.adapters.postgres_memory import PostgresMemory
from knowledge_base.domain.memory import NewEvent
from knowledge_base.ports import RequestKey, TextCodes, Vector

__all__ = ["Comparison", "measure_rivals"]

_ROUNDS = 8
_SEARCHES_A_ROUND = 8
_STATEMENT_SECONDS = 600.0
_READ = """
SELECT event_id::text AS id, text, embedding FROM knowledge_base.story_events
WHERE world_id = $1 ORDER BY sequence
"""
_COPY = """
INSERT INTO langchain_documents (langchain_id, content, embedding, content_tsv, scope,
    langchain_metadata)
SELECT event_id::text, text, embedding, to_tsvector('english', text), world_id::text, '{}'
FROM knowledge_base.story_events WHERE world_id = ANY ($1::uuid[])
"""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Milliseconds (or seconds) of ours and a rival's, medians of searches in turn."""

    what: str
    rival: str
    own: float
    theirs: float
    unit: str = "ms"
    note: str = ""

    @property
    def ratio(self) -> float:
        """How many times as long the rival took."""
        return self.theirs / self.own

    def __str__(self) -> str:
        note = f"   ({self.note})" if self.note else ""
        return (
            f"{self.what:<30} {self.own:8.2f} {self.unit}   {self.rival} {self.theirs:8.2f} "
            f"{self.unit}: {self.ratio:.1f} times as long{note}"
        )


async def measure_rivals(
    scale: ScaleDatabase, corpus: Corpus, large: Sequence[WorldPlan], small: Sequence[WorldPlan]
) -> list[Comparison]:
    """Returns the comparisons; rivals and the knowledge base search in turn, round by round."""
    with (
        tempfile.TemporaryDirectory(prefix="gamekeeper-rivals-") as directory,
        ExitStack() as stack,
    ):
        first = large[0]
        folder, items, vectors = await _one_world(scale, corpus, first, Path(directory))
        langchain = stack.enter_context(Rival.started("langchain_store", scale.owner_url))
        txtai = stack.enter_context(Rival.started("txtai_index", scale.owner_url))
        own_seconds = await _store(scale, corpus, items, vectors)
        stored = f"storing {len(items):,} memories"
        compared = [
            Comparison(
                stored, rival, own_seconds, await asyncio.to_thread(process.load, folder), "s"
            )
            for rival, process in (("LangChain", langchain), ("txtai", txtai))
        ]
        await _copy(scale, [world for world in (*large, *small) if world is not first])
        async with open_searcher(scale, corpus) as searcher:
            for mode in ("vector", "hybrid"):
                for name, worlds in (("5,000", large), ("100", small)):
                    compared.append(
                        await _against_langchain(searcher, langchain, name, worlds, mode)
                    )
                compared.append(await _against_txtai(searcher, txtai, first, mode))
        await _drop(scale)
    return compared


async def _against_langchain(
    searcher: Searcher, rival: Rival, name: str, worlds: Sequence[WorldPlan], mode: str
) -> Comparison:
    own: list[float] = []
    theirs: list[float] = []
    for number in range(-1, _ROUNDS):
        world = worlds[number % len(worlds)]
        answer = await asyncio.to_thread(
            rival.search,
            range(_SEARCHES_A_ROUND),
            mode=mode,
            limit=LIMIT,
            scope=str(world.world_id),
        )
        each = await _own_round(searcher, world, mode)
        if number >= 0:  # the first round warms both up
            own += each
            theirs += answer.each_seconds
    return Comparison(
        f"{mode} in worlds of {name}", "LangChain", _median_ms(own), _median_ms(theirs)
    )


async def _against_txtai(
    searcher: Searcher, rival: Rival, world: WorldPlan, mode: str
) -> Comparison:
    own: list[float] = []
    theirs: list[float] = []
    for number in range(-1, _ROUNDS):
        answer = await asyncio.to_thread(
            rival.search, range(_SEARCHES_A_ROUND), mode=mode, limit=LIMIT
        )
        each = await _own_round(searcher, world, mode)
        if number >= 0:
            own += each
            theirs += answer.each_seconds
    return Comparison(
        f"{mode} in a world of {world.events:,}",
        "txtai",
        _median_ms(own),
        _median_ms(theirs),
        note="txtai holds this world alone, and is approximate",
    )


async def _own_round(searcher: Searcher, world: WorldPlan, mode: str) -> list[float]:
    weighing = ONLY_VECTORS if mode == "vector" else HYBRID
    each = []
    for question in range(_SEARCHES_A_ROUND):
        started = time.perf_counter()
        await searcher.search(world, question, weighing)
        each.append(time.perf_counter() - started)
    return each


def _median_ms(each: Sequence[float]) -> float:
    return float(np.median(each)) * 1e3


async def _one_world(
    scale: ScaleDatabase, corpus: Corpus, world: WorldPlan, directory: Path
) -> tuple[Path, list[Item], Vector]:
    connection = await _connect(scale)
    try:
        rows = await connection.fetch(_READ, world.world_id)
    finally:
        await connection.close()
    items = [Item(row["id"], row["text"], str(world.world_id)) for row in rows]
    vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
    asked = slice(_SEARCHES_A_ROUND)
    folder = write_folder(
        directory, items, vectors, corpus.questions[asked], corpus.question_vectors[asked]
    )
    return folder, items, vectors


async def _store(
    scale: ScaleDatabase, corpus: Corpus, items: Sequence[Item], vectors: Vector
) -> float:
    """Returns how long the knowledge base takes to record the same texts, 100 at a time."""
    async with open_as_service(scale.service_url) as database:
        memory = PostgresMemory(database)
        world_id = uuid.uuid4()
        await memory.create_world(_request(), world_id, f"Rival {world_id}", "")
        started = time.perf_counter()
        for start in range(0, len(items), 100):
            part = slice(start, start + 100)
            await memory.record_events(
                world_id,
                _request(),
                [(uuid.uuid4(), NewEvent.of(item.text)) for item in items[part]],
                corpus.model,
                vectors[part],
                codes=TextCodes(
                    corpus.readings.reranker, (corpus.readings.codes[0],) * len(items[part])
                ),
            )
        return time.perf_counter() - started


async def _copy(scale: ScaleDatabase, worlds: Sequence[WorldPlan]) -> None:
    connection = await _connect(scale)
    try:
        await connection.execute(
            _COPY, [world.world_id for world in worlds], timeout=_STATEMENT_SECONDS
        )
        await connection.execute("VACUUM ANALYZE langchain_documents")
    finally:
        await connection.close()


async def _drop(scale: ScaleDatabase) -> None:
    connection = await _connect(scale)
    try:
        # Rivals still hold transactions open on theirs; these tables are made anew each time.
        await connection.execute("TRUNCATE langchain_documents")
    finally:
        await connection.close()


async def _connect(scale: ScaleDatabase) -> asyncpg.Connection:
    connection = await asyncpg.connect(scale.owner_url, command_timeout=_STATEMENT_SECONDS)
    await connection.set_type_codec(
        "vector", schema="public", encoder=bytes, decoder=decode_vector, format="binary"
    )
    return connection


def _request() -> RequestKey:
    return RequestKey(uuid.uuid4(), b"\0" * 32, datetime.now(UTC))
