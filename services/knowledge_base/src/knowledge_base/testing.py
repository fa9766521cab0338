"""What tests use: an embedder without a model, and the whole service on a test's database."""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg
import grpc
import grpc.aio
import numpy as np
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc as pb_grpc
from knowledge_base.__main__ import compose, compose_listener, connect
from knowledge_base.adapters.database import Database
from knowledge_base.adapters.postgres_embedding_models import PostgresEmbeddingModels
from knowledge_base.adapters.schema import migrate_schema
from knowledge_base.config import (
    DatabaseSettings,
    EmbeddingSettings,
    NarrationSettings,
    RankingSettings,
)
from knowledge_base.embedding_change import EmbeddingChange
from knowledge_base.embedding_models import EmbeddingModels, OfferedModel
from knowledge_base.memory import WorldMemory
from knowledge_base.ports import Embedder, Vector
from knowledge_base.ports_reranker import NO_RERANKERS, PreparedPassages, Rerankers
from knowledge_base.whole_worlds import WholeWorlds, open_whole_worlds
from messaging.consumer import Handler
from servicekit.clock import Clock, SystemClock
from servicekit.settings import load_settings
from servicekit.testing import serve_for_test

__all__ = [
    "SERVICE_ROLE",
    "Failure",
    "HashEmbedder",
    "HashReranker",
    "IsometricEmbedder",
    "RunningKnowledgeBase",
    "empty_database",
    "failure_of",
    "serve_knowledge_base",
    "service_url",
]

SERVICE_ROLE = "knowledge_base_service"
_SERVICE_PASSWORD = "for tests: /@:%"  # noqa: S105  # of a database that lives as long as a test

_EMPTY = """
DO $$
DECLARE
    v_tables text;
BEGIN
    SELECT string_agg(format('knowledge_base.%I', tablename), ', ') INTO v_tables
    FROM pg_tables WHERE schemaname = 'knowledge_base' AND tablename NOT LIKE '%schema_migrations';
    IF v_tables IS NOT NULL THEN
        CREATE TEMPORARY TABLE shared_world ON COMMIT DROP AS
            SELECT * FROM knowledge_base.worlds WHERE name = '';
        EXECUTE 'TRUNCATE ' || v_tables;
        INSERT INTO knowledge_base.worlds SELECT * FROM shared_world;
    END IF;
END $$
"""

_WORD = re.compile(r"\w+")
_TURN_SEED = 20260501


class HashEmbedder:
    """An `Embedder` for tests: texts that share words are similar, nothing more.

    No setting selects it. `embedded` lists the documents it was asked for.
    """

    model = "hash-for-tests"
    dimensions = 384

    def __init__(self) -> None:
        self.embedded: list[str] = []

    async def embed_query(self, text: str) -> Vector:
        """Returns a unit vector of the text's words."""
        return self._vector(text)

    async def embed_documents(self, texts: Sequence[str]) -> Vector:
        """Returns unit vectors, shape [len(texts), 384]."""
        self.embedded.extend(texts)
        vectors = [self._vector(text) for text in texts]
        return np.array(vectors, dtype=np.float32).reshape(len(texts), self.dimensions)

    def _vector(self, text: str) -> Vector:
        vector = np.zeros(self.dimensions, dtype=np.float32)
        vector[0] = 0.1  # a text without words is a vector too
        for word in _WORD.findall(text.lower()):
            digest = hashlib.sha256(word.encode()).digest()
            vector[1 + int.from_bytes(digest[:4], "big") % (self.dimensions - 1)] += 1.0
        return vector / np.float32(np.linalg.norm(vector))


class HashReranker:
    """A `Reranker` for tests: the share of a query's words that a passage has.

    No setting selects it. `prepared` lists the passages it was asked for; `asked` the queries that
    it has not been told to forget, as the local model's reranker remembers some.
    """

    name = "hash-for-tests"
    embedding_model = ""

    def __init__(self) -> None:
        self.prepared: list[str] = []
        self.asked: list[str] = []

    async def prepare(self, texts: Sequence[str]) -> PreparedPassages:
        """Keeps the first four bytes of a digest of each word."""
        self.prepared.extend(texts)
        return PreparedPassages(tuple(b"".join(sorted(_digests(text))) for text in texts), None)

    async def score(self, query: str, passages: Sequence[bytes]) -> list[float]:
        """Returns the share of the query's words that each passage has."""
        self.asked.append(query)
        asked = _digests(query)
        return [
            len(asked & {codes[at : at + 4] for at in range(0, len(codes), 4)}) / max(1, len(asked))
            for codes in passages
        ]

    def forget_texts(self) -> None:
        """Forgets the queries."""
        self.asked.clear()


def _digests(text: str) -> set[bytes]:
    return {hashlib.sha256(word.encode()).digest()[:4] for word in _WORD.findall(text.lower())}


class IsometricEmbedder:
    """An `Embedder` for tests that is the exact image of another one in more dimensions.

    The map has orthonormal columns, so all inner products stay as they were: whatever is ranked by
    them is ranked the same, and a change of the model can be told from one of the quality.
    `embedded` counts the documents it was asked for.

    Args:
        inner: whose vectors are turned.
        dimensions: of the new space, at least as many as the inner one has.
    """

    def __init__(self, inner: Embedder, dimensions: int = 1024) -> None:
        self._inner = inner
        self.model = f"image-of-{inner.model}/{dimensions}"
        self.dimensions = dimensions
        shape = (dimensions, inner.dimensions)
        self._turn = np.linalg.qr(np.random.default_rng(_TURN_SEED).standard_normal(shape))[0]
        self.embedded = 0

    async def embed_query(self, text: str) -> Vector:
        """Returns the turned vector of one text."""
        return self._turned(await self._inner.embed_query(text))

    async def embed_documents(self, texts: Sequence[str]) -> Vector:
        """Returns the turned vectors, shape [len(texts), dimensions]."""
        self.embedded += len(texts)
        return self._turned(await self._inner.embed_documents(texts))

    def _turned(self, vectors: Vector) -> Vector:
        return np.asarray(vectors.astype(np.float64) @ self._turn.T, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class RunningKnowledgeBase:
    """A service that serves on a free port.

    Attributes:
        stub: calls it.
        channel: the stub's channel.
        database: the connection as the service's role.
        memory, change: the parts of the service with a background task, which is not running.
        take: takes an event of the bus.
        worlds: works on whole worlds; its tasks run.
        address: `host:port`.
    """

    stub: "pb_grpc.KnowledgeBaseServiceAsyncStub"
    channel: grpc.aio.Channel
    database: Database
    memory: WorldMemory
    change: EmbeddingChange
    take: Handler
    worlds: WholeWorlds
    address: str


@dataclass(frozen=True, slots=True)
class Failure:
    """What a failed call told its caller; `retry_seconds` is None where it told none."""

    code: grpc.StatusCode
    reason: str
    metadata: dict[str, str]
    retry_seconds: float | None
    text: str


def failure_of(error: grpc.aio.AioRpcError) -> Failure:
    """Returns what a failed call told, from its status details."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it has what is read of it
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    retry_seconds = None
    for detail in status.details if status else ():
        detail.Unpack(info)
        if detail.Unpack(retry):
            retry_seconds = retry.retry_delay.ToTimedelta().total_seconds()
    return Failure(error.code(), info.reason, dict(info.metadata), retry_seconds, str(status))


def service_url(owner_url: str) -> str:
    """Returns the owner's address with the service's role and password in it."""
    parts = urlsplit(owner_url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(
        parts._replace(netloc=f"{SERVICE_ROLE}:{quote(_SERVICE_PASSWORD, safe='')}@{host}")
    )


async def empty_database(owner_url: str) -> None:
    """Removes all contents of a database, so that tests share one that is migrated already."""
    connection = await asyncpg.connect(owner_url)
    try:
        await connection.execute(_EMPTY)
    finally:
        await connection.close()


@asynccontextmanager
async def _running(*tasks: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Runs tasks beside the service until the end."""
    async with asyncio.TaskGroup() as group:
        started = [group.create_task(task()) for task in tasks]
        yield
        for each in started:
            each.cancel()


@asynccontextmanager
async def serve_knowledge_base(
    owner_url: str,
    *,
    embedder: Embedder | None = None,
    embedders: Sequence[Embedder] = (),
    clock: Clock | None = None,
    announces: bool = False,
    runs_jobs: bool = True,
    rerankers: Rerankers = NO_RERANKERS,
    **environ: str,
) -> AsyncIterator[RunningKnowledgeBase]:
    """Migrates the database, then serves from it on a free port, as the role without privileges.

    Args:
        owner_url: an address of the database as its owner.
        embedder: default: a `HashEmbedder`.
        embedders: several, in place of `embedder`; a new database is filled with the first.
        clock: the service's time.
        announces: whether recorded story events are put into the outbox.
        runs_jobs: whether it works on whole worlds; otherwise it only takes the orders.
        rerankers: default: none.
        environ: settings of the service and its server as environment variables.
    """
    await migrate_schema(owner_url, service_url(owner_url), SERVICE_ROLE)
    settings = load_settings(
        DatabaseSettings, {**environ, "KNOWLEDGE_BASE_DATABASE_URL": service_url(owner_url)}
    )
    clock = clock or SystemClock()
    embedders = embedders or (embedder or HashEmbedder(),)
    async with (
        connect(settings) as database,
        EmbeddingModels(
            [OfferedModel.of(offered) for offered in embedders],
            PostgresEmbeddingModels(database),
            clock,
        ) as models,
        open_whole_worlds(connect, settings, models, clock) as worlds,
        _running(*(worlds.tasks if runs_jobs else ())),
    ):
        await models.open()
        servicer, memory, change = compose(
            database,
            models,
            clock,
            settings,
            load_settings(RankingSettings, environ),
            announces=announces,
            filled_rows_per_second=load_settings(EmbeddingSettings, environ).filled_rows_per_second,
            worlds=worlds,
            rerankers=rerankers,
        )
        take = compose_listener(
            database,
            models,
            clock,
            load_settings(NarrationSettings, environ),
            announces=announces,
            rerankers=rerankers,
        )
        async with serve_for_test([servicer.registration()], **environ) as (server, channel):
            yield RunningKnowledgeBase(
                pb_grpc.KnowledgeBaseServiceStub(channel),
                channel,
                database,
                memory,
                change,
                take,
                worlds,
                server.address,
            )
            worlds.watch.close()
