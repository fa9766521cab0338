"""Measures the knowledge base's own searches in a database of many worlds."""

import asyncio
import itertools
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import grpc.aio
import numpy as np
import psutil
from scale_database import ScaleDatabase, database_cpu_seconds, open_as_service
from story_corpus import Corpus, WorldPlan

from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc as pb_grpc
from gaming.knowledge_base.v1 import lore_pb2, story_pb2
from knowledge_base.adapters.postgres_memory import PostgresMemory
from knowledge_base.domain.lore import RankingParameters
from knowledge_base.domain.memory import RecallParameters, RecallQuery
from knowledge_base.domain.memory_reranking import recall_candidates, rerank_memories
from servicekit.channels import open_channel

__all__ = [
    "HYBRID",
    "LIMIT",
    "ONLY_VECTORS",
    "Latency",
    "Searcher",
    "Throughput",
    "measure_rpc",
    "open_searcher",
]

LIMIT = 10
Weighing = tuple[RankingParameters, RecallParameters]
#: What a recall weighs unless told otherwise: words, meaning, recency and importance.
HYBRID: Weighing = (RankingParameters(), RecallParameters())
#: Nothing but the vectors.
ONLY_VECTORS: Weighing = (
    RankingParameters(vector_weight=1.0),
    RecallParameters(
        relevance_weight=1.0, recency_weight=0.0, importance_weight=0.0, question_penalty=0.0
    ),
)
_LORE = Path(__file__).resolve().parents[2] / "services" / "knowledge_base" / "lore"
_LORE_TABLES = (
    "narrative_documents",
    "document_chunks",
    "chunk_terms",
    "chunk_concepts",
    "passage_codes",
    "lore_statistics",
)
_START_SECONDS = 60.0
_CALL_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds that searches took, one client at a time.

    `cpu_seconds` is what one search costs the database's processes and this one together.
    """

    each: Sequence[float]
    cpu_seconds: float = float("nan")

    def percentile(self, share: float) -> float:
        """Returns the milliseconds within which this share (0..100) of the searches ended."""
        return float(np.percentile(self.each, share)) * 1e3

    def __str__(self) -> str:
        text = f"p50 {self.percentile(50):7.2f} ms   p95 {self.percentile(95):7.2f} ms"
        if self.cpu_seconds == self.cpu_seconds:
            text += f"   CPU {self.cpu_seconds * 1e3:6.2f} ms a search"
        return text


@dataclass(frozen=True, slots=True)
class Throughput:
    """Searches in a second of wall time, several clients at once, and the CPU that one costs."""

    per_second: float
    cpu_seconds: float

    def __str__(self) -> str:
        return f"{self.per_second:7.0f} a second   CPU {self.cpu_seconds * 1e3:6.2f} ms a search"


class Searcher:
    """Recalls memories as the service does, without its RPC and its model."""

    def __init__(self, memory: PostgresMemory, corpus: Corpus, scale: ScaleDatabase) -> None:
        self._memory = memory
        self._corpus = corpus
        self._scale = scale

    async def search(self, world: WorldPlan, question: int, weighing: Weighing) -> None:
        """Recalls once; the world must give as many memories as it has, up to the limit.

        But for vectors alone, which the service never asks for, the first ones are read once more.
        """
        asked = question % len(self._corpus.questions)
        query = RecallQuery(self._corpus.questions[asked], LIMIT)
        vector = self._corpus.question_vectors[asked]
        if weighing is ONLY_VECTORS:
            found = await self._memory.recall(
                world.world_id, query, vector, *weighing, model=self._corpus.model
            )
        else:
            found = await self._memory.recall(
                world.world_id,
                recall_candidates(query),
                vector,
                *weighing,
                model=self._corpus.model,
                reranker=self._corpus.readings.reranker,
            )
            codes = [item.codes for item in found if item.codes is not None]
            found = rerank_memories(found, self._corpus.met(asked, codes), query, weighing[1])
        assert len(found) == min(LIMIT, world.events)

    async def latency(
        self, worlds: Sequence[WorldPlan], searches: int, *, vectors_only: bool = False
    ) -> Latency:
        """Searches the worlds in turn, one search after another."""
        weighing = ONLY_VECTORS if vectors_only else HYBRID
        for number in range(min(searches, 2 * len(worlds), 60)):  # plans, caches, page tables
            await self.search(worlds[number % len(worlds)], number, weighing)
        each = []
        used = self._cpu_seconds()
        for number in range(searches):
            started = time.perf_counter()
            await self.search(worlds[number % len(worlds)], number * 7, weighing)
            each.append(time.perf_counter() - started)
        return Latency(each, (self._cpu_seconds() - used) / searches)

    async def throughput(
        self, worlds: Sequence[WorldPlan], searches: int, *, clients: int, vectors_only: bool
    ) -> Throughput:
        """Searches the worlds, `clients` at a time."""
        weighing = ONLY_VECTORS if vectors_only else HYBRID

        async def client(numbers: Sequence[int]) -> None:
            for number in numbers:
                await self.search(worlds[number % len(worlds)], number * 7, weighing)

        async def all_clients(count: int) -> None:
            async with asyncio.TaskGroup() as group:
                for start in range(clients):
                    group.create_task(client(range(start, count, clients)))

        await all_clients(min(searches, max(2 * len(worlds), 20 * clients)))
        used, started = self._cpu_seconds(), time.perf_counter()
        await all_clients(searches)
        seconds = time.perf_counter() - started
        return Throughput(searches / seconds, (self._cpu_seconds() - used) / searches)

    def _cpu_seconds(self) -> float:
        return database_cpu_seconds(self._scale.server) + time.process_time()


@asynccontextmanager
async def open_searcher(
    scale: ScaleDatabase, corpus: Corpus, *, clients: int = 4
) -> AsyncIterator[Searcher]:
    """Opens the database as the service does."""
    async with open_as_service(scale.service_url, pool_size=max(4, clients)) as database:
        yield Searcher(PostgresMemory(database), corpus, scale)


async def measure_rpc(
    scale: ScaleDatabase, corpus: Corpus, worlds: Sequence[WorldPlan], calls: int
) -> tuple[Latency, Latency, float]:
    """Runs the service as an operator does and calls it as one client.

    Returns how long `Recall` and `Search` took, each with a question never asked before, and the
    seconds that ingest of the lore took.
    """
    async with _service(scale) as stub:
        await _forget_lore(stub)
        started = time.perf_counter()
        async for _ in stub.IngestDocuments(iter(_lore()), timeout=10 * _CALL_SECONDS):
            pass
        ingest_seconds = time.perf_counter() - started
        await _vacuum_lore(scale)
        # Names are taken out of what is embedded, and without them many questions are the same.
        asked = (
            f"{question} Tell of day {day}."
            for day, question in enumerate(itertools.cycle(corpus.questions))
        )

        async def recall(number: int) -> None:
            world = worlds[number % len(worlds)]
            await stub.Recall(
                story_pb2.RecallRequest(world_id=str(world.world_id), query=next(asked)),
                timeout=_CALL_SECONDS,
            )

        async def search(number: int) -> None:
            await stub.Search(lore_pb2.SearchRequest(query=next(asked)), timeout=_CALL_SECONDS)

        recalled = await _timed(recall, calls, warm_up=2 * len(worlds))
        searched = await _timed(search, calls, warm_up=10)
    return recalled, searched, ingest_seconds


async def _timed(call: Callable[[int], Awaitable[None]], calls: int, *, warm_up: int) -> Latency:
    for number in range(warm_up):
        await call(number)
    each = []
    for number in range(calls):
        started = time.perf_counter()
        await call(number)
        each.append(time.perf_counter() - started)
    return Latency(each)


@asynccontextmanager
async def _service(
    scale: ScaleDatabase,
) -> "AsyncIterator[pb_grpc.KnowledgeBaseServiceAsyncStub]":
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "knowledge_base"),
        env={
            **os.environ,
            "GAMEKEEPER_LISTEN_ADDRESS": address,
            "GAMEKEEPER_ADMIN_ADDRESS": "127.0.0.1:0",
            "GAMEKEEPER_LOG_LEVEL": "warning",
            "KNOWLEDGE_BASE_DATABASE_URL": scale.service_url,
        },
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        async with open_channel(address) as channel:
            await _until_ready(channel)
            yield pb_grpc.KnowledgeBaseServiceStub(channel)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(_START_SECONDS):
            await process.wait()


async def _until_ready(channel: grpc.aio.Channel) -> None:
    stub = pb_grpc.KnowledgeBaseServiceStub(channel)
    await stub.Search(
        lore_pb2.SearchRequest(query="ready"), timeout=_START_SECONDS, wait_for_ready=True
    )


async def _forget_lore(stub: "pb_grpc.KnowledgeBaseServiceAsyncStub") -> None:
    """Removes what earlier runs ingested: a passage that is known is not embedded again."""
    listed = await stub.ListDocuments(
        lore_pb2.ListDocumentsRequest(page_size=1_000), timeout=_CALL_SECONDS
    )
    for collection in sorted({document.collection for document in listed.documents}):
        begin = lore_pb2.IngestBegin(collection=collection, remove_missing=True)
        request = lore_pb2.IngestDocumentsRequest(begin=begin)
        async for _ in stub.IngestDocuments(iter([request]), timeout=_CALL_SECONDS):
            pass


async def _vacuum_lore(scale: ScaleDatabase) -> None:
    """Does what autovacuum, which is off here, does within a minute or two of an ingest.

    Else each run would leave its passages to the next one as dead rows, and searches would be
    measured among those of all runs.
    """
    connection = await asyncpg.connect(scale.owner_url, timeout=_START_SECONDS)
    try:
        for table in _LORE_TABLES:
            await connection.execute(f"VACUUM (ANALYZE) knowledge_base.{table}")
    finally:
        await connection.close(timeout=_START_SECONDS)


def _lore() -> list[lore_pb2.IngestDocumentsRequest]:
    begin = lore_pb2.IngestBegin(collection=f"lore-{psutil.Process().pid}-{time.time_ns()}")
    return [
        lore_pb2.IngestDocumentsRequest(begin=begin),
        *(
            lore_pb2.IngestDocumentsRequest(
                document=lore_pb2.IngestDocument(path=path.name, content=path.read_bytes())
            )
            for path in sorted(_LORE.glob("*.md"))
        ),
    ]
