"""Lore in PostgreSQL."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import asyncpg
import structlog

from knowledge_base.adapters.database import (
    QUERIES,
    RETRIEVAL_QUERIES,
    Database,
    caller_errors,
    encode_vector,
)
from knowledge_base.adapters.recent_codes import RecentCodes
from knowledge_base.domain.chunking import ChunkedDocument
from knowledge_base.domain.errors import IngestInProgress
from knowledge_base.domain.lore import (
    Citation,
    ConceptPassage,
    Document,
    RankingParameters,
    SearchQuery,
    SearchResult,
)
from knowledge_base.domain.text import words_apart
from knowledge_base.ports import DocumentVersion, IngestSession, TextCodes, Vector
from servicekit.clock import Clock
from servicekit.errors import ServiceError

__all__ = ["PostgresLore"]

log = structlog.get_logger(__name__)

# Storing a document of a megabyte takes longer than any statement that answers a player.
_INGEST_STATEMENT_SECONDS = 60.0
# Making the index of 100,000 passages takes a minute or two.
_INDEX_SECONDS = 600.0
# What is stored waits while another ingest makes the index.
_WRITE_SECONDS = _INDEX_SECONDS + _INGEST_STATEMENT_SECONDS
_LOCK_POLL_SECONDS = 0.1
# Of 2,000 passages and more. A search uses fifty, 0.7 MB: fetching them took longer than all else.
_REMEMBERED_CODES_BYTES = 32 * 1024 * 1024


class PostgresLore:
    """The port `LoreStore` on PostgreSQL.

    Ingests of one collection exclude each other by a session-level advisory lock; behind a
    connection pooler this needs session pooling.
    """

    def __init__(self, database: Database, clock: Clock, *, lock_wait_seconds: float) -> None:
        self._database = database
        self._clock = clock
        self._lock_wait_seconds = lock_wait_seconds
        self._codes = RecentCodes(_REMEMBERED_CODES_BYTES)

    @asynccontextmanager
    async def ingest_session(self, collection: str) -> AsyncIterator[IngestSession]:
        """Returns a session once no other one writes to the collection.

        The lock and the writes share one connection, so a session that lost its lock cannot write.

        Raises IngestInProgress when that takes too long.
        """
        async with self._database.connection() as connection:
            await self._lock(connection, collection)
            await connection.execute(f"SET statement_timeout TO {round(_WRITE_SECONDS * 1000)}")
            # The pool gives up the lock and the setting when the connection goes back to it.
            yield _PostgresIngestSession(connection, collection)

    async def list_documents(
        self, collection: str | None, after: tuple[str, str], limit: int
    ) -> list[Document]:
        """Returns documents in the order of (path, collection), after the one named."""
        rows = await self._database.fetch(QUERIES.list_documents, collection, *after, limit)
        return [_document(row) for row in rows]

    async def get_document(self, collection: str, path: str) -> Document | None:
        """Returns a document with the concepts it speaks of, None when there is none."""
        rows = await self._database.fetch(QUERIES.get_document, collection, path)
        return _document(rows[0]) if rows else None

    async def concept_passages(
        self, concept: str, collection: str | None, after: tuple[str, str, int], limit: int
    ) -> list[ConceptPassage]:
        """Returns the passages that speak of a concept, after (path, collection, ordinal)."""
        rows = await self._database.fetch(
            QUERIES.concept_passages, concept, collection, *after, limit
        )
        return [
            ConceptPassage(row["text"], _citation(row), row["ordinal"], tuple(row["concepts"]))
            for row in rows
        ]

    async def search(
        self,
        query: SearchQuery,
        embedding: Vector | None,
        parameters: RankingParameters,
        *,
        model: str,
    ) -> list[SearchResult]:
        """Returns passages, best first, in one round trip; `embedding` is None in mode keyword.

        Raises EmbeddingModelChanged when `model` is no longer the active one.
        """
        rows = await self._ranked(query, embedding, parameters, model)
        return [_result(row) for row in rows]

    async def search_with_codes(
        self,
        query: SearchQuery,
        embedding: Vector | None,
        parameters: RankingParameters,
        *,
        model: str,
        reranker: str,
    ) -> list[tuple[SearchResult, bytes | None]]:
        """Returns as `search`, each with what the reranker keeps of it; None: nothing is kept.

        Codes that were not read lately take another round trip.
        """
        rows = await self._ranked(query, embedding, parameters, model)
        hashes = [row["embedding_input_sha256"] for row in rows]
        codes = {sha: self._codes.get((reranker, sha)) for sha in hashes}
        unread = {
            row["chunk_id"]: sha for row, sha in zip(rows, hashes, strict=True) if not codes[sha]
        }
        if unread:
            for row in await self._database.fetch(
                RETRIEVAL_QUERIES.passage_codes, list(unread), reranker
            ):
                sha = unread[row["chunk_id"]]
                codes[sha] = row["codes"]
                self._codes.put((reranker, sha), row["codes"])
        return [(_result(row), codes[sha]) for row, sha in zip(rows, hashes, strict=True)]

    async def _ranked(
        self,
        query: SearchQuery,
        embedding: Vector | None,
        parameters: RankingParameters,
        model: str,
    ) -> list[Any]:
        return await self._database.fetch(
            RETRIEVAL_QUERIES.search_passages,
            words_apart(query.text),
            None if embedding is None else encode_vector(embedding),
            query.mode.value,
            list(query.collections) or None,
            query.limit,
            query.per_section,
            query.neighbours,
            parameters.vector_weight,
            parameters.k1,
            parameters.b,
            parameters.frequent_from,
            model,
        )

    async def _lock(self, connection: asyncpg.Connection, collection: str) -> None:
        deadline = self._clock.monotonic() + self._lock_wait_seconds
        while not await connection.fetchval(QUERIES.try_lock_collection, collection):
            if self._clock.monotonic() >= deadline:
                raise IngestInProgress(
                    f"Another ingest of the collection {collection!r} is running; repeat this one "
                    "when it has ended.",
                    metadata={"collection": collection},
                )
            await self._clock.sleep(_LOCK_POLL_SECONDS)


def _result(row: Any) -> SearchResult:
    return SearchResult(
        row["text"],
        _citation(row),
        row["score"],
        row["vector_score"],
        row["keyword_score"],
        tuple(row["concepts"]),
        row["keyword_share"],
        tuple(row["text_before"]),
        tuple(row["text_after"]),
    )


def _document(row: Any) -> Document:
    return Document(
        row["collection"],
        row["path"],
        row["title"],
        row["chunk_count"],
        row["ingest_time"],
        row["content_sha256"],
        json.loads(row["front_matter"]),
        tuple(row["concepts"]),
    )


def _citation(row: Any) -> Citation:
    return Citation(
        row["collection"],
        row["path"],
        tuple(row["heading_path"]),
        row["start_line"],
        row["end_line"],
    )


class _PostgresIngestSession:
    """Writes to one collection on the connection that holds its lock."""

    def __init__(self, connection: asyncpg.Connection, collection: str) -> None:
        self._connection = connection
        self._collection = collection

    async def versions(self) -> dict[str, DocumentVersion]:
        rows = await self._fetch(QUERIES.document_versions, self._collection)
        return {
            row["path"]: DocumentVersion(row["content_sha256"], row["recipe"], row["chunk_count"])
            for row in rows
        }

    async def known_embeddings(self, hashes: Sequence[bytes], recipe: str) -> dict[bytes, Vector]:
        rows = await self._fetch(QUERIES.known_embeddings, list(hashes), recipe)
        return {row["embedding_input_sha256"]: row["embedding"] for row in rows}

    async def known_codes(
        self, hashes: Sequence[bytes], recipe: str, reranker: str
    ) -> dict[bytes, bytes]:
        rows = await self._fetch(
            RETRIEVAL_QUERIES.known_passage_codes, list(hashes), recipe, reranker
        )
        return {row["embedding_input_sha256"]: row["codes"] for row in rows}

    async def replace_document(
        self,
        path: str,
        document: ChunkedDocument,
        version: DocumentVersion,
        embeddings: Vector,
        now: datetime,
        *,
        model: str,
        codes: TextCodes | None = None,
    ) -> None:
        chunks = [
            {
                "heading_path": chunk.heading_path,
                "start_line": chunk.start_line,
                "end_line": chunk.end_line,
                "text": chunk.text,
                "search_text": words_apart(chunk.search_text),
            }
            for chunk in document.chunks
        ]
        links = [
            (index + 1, concept.name) for concept in document.concepts for index in concept.passages
        ]
        async with self._connection.transaction():
            await self._fetch(
                QUERIES.replace_document,
                self._collection,
                path,
                document.title,
                json.dumps(dict(document.front_matter)),
                version.content_sha256,
                version.recipe,
                now,
                json.dumps(chunks),
                [chunk.search_text_sha256 for chunk in document.chunks],
                [encode_vector(embedding) for embedding in embeddings],
                model,
                seconds=_WRITE_SECONDS,
            )
            if codes is not None:
                await self._fetch(
                    RETRIEVAL_QUERIES.keep_passage_codes,
                    self._collection,
                    path,
                    codes.reranker,
                    list(codes.codes),
                )
            if links:
                await self._fetch(
                    QUERIES.link_concepts,
                    self._collection,
                    path,
                    [ordinal for ordinal, _ in links],
                    [name for _, name in links],
                )

    async def remove_missing(self, kept: Sequence[str]) -> list[str]:
        rows = await self._fetch(
            QUERIES.remove_missing_documents,
            self._collection,
            list(kept),
            seconds=_WRITE_SECONDS,
        )
        return [row["path"] for row in rows]

    async def settle(self) -> None:
        await self._fetch(RETRIEVAL_QUERIES.analyze_lore)
        try:
            rows = await self._fetch(RETRIEVAL_QUERIES.index_lore, seconds=_INDEX_SECONDS)
        except (ServiceError, asyncpg.PostgresError) as error:
            # Searches are exact without it, and what was ingested is stored.
            log.warning("lore_not_indexed", error=type(error).__name__, exc_info=True)
            return
        if rows[0][0]:
            log.info("lore_index", change=rows[0][0])

    async def chunk_count(self) -> int:
        return int((await self._fetch(QUERIES.chunk_count, self._collection))[0][0])

    async def _fetch(
        self, query: str, *arguments: Any, seconds: float = _INGEST_STATEMENT_SECONDS
    ) -> list[Any]:
        with caller_errors():
            rows: list[Any] = await self._connection.fetch(query, *arguments, timeout=seconds)
        return rows
