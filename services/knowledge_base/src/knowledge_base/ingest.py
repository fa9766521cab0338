"""Takes documents in, embedding only what is new."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager

import numpy as np
import structlog

from knowledge_base.domain.chunking import CHUNKING, ChunkedDocument, chunk_document
from knowledge_base.domain.errors import InvalidDocument, TooManyIngests
from knowledge_base.domain.lore import (
    IngestedDocument,
    IngestState,
    IngestSummary,
    check_path,
)
from knowledge_base.ports import DocumentVersion, Embedder, IngestSession, LoreStore, Vector
from servicekit.clock import Clock
from servicekit.errors import DeadlineExceeded

__all__ = ["LoreIngest"]

log = structlog.get_logger(__name__)

# Each ingest holds a connection while it lasts; the rest of the pool answers players.
_MAXIMUM_INGESTS = 3
# A client that stops sending must not hold the collection's lock for ever.
_SILENCE_SECONDS = 60.0


class LoreIngest:
    """Ingests collections of Markdown documents."""

    def __init__(self, store: LoreStore, embedder: Embedder, clock: Clock) -> None:
        self._store = store
        self._embedder = embedder
        self._clock = clock
        self._recipe = f"{CHUNKING}/{embedder.model}"
        self._running = 0

    async def ingest(
        self,
        collection: str,
        documents: AsyncIterator[tuple[str, bytes]],
        *,
        remove_missing: bool,
    ) -> AsyncGenerator[IngestedDocument | IngestSummary, None]:
        """Stores documents (path, content) as they come, yielding what became of each.

        Each document is replaced whole or not at all; one that fails ends the ingest and leaves its
        old content and the documents done before it. With `remove_missing`, the collection's
        documents that did not come are removed at the end. The summary comes last.

        Raises:
            InvalidDocument: a path or content that cannot be ingested, or a path sent twice.
            IngestInProgress: another ingest of the collection takes too long.
            TooManyIngests: this process runs as many as it takes.
            DeadlineExceeded: no document came for a minute.
        """
        with self._admitted():
            async with self._store.ingest_session(collection) as session:
                known = await session.versions()
                done: dict[str, IngestedDocument] = {}
                async for path, content in _without_silence(documents):
                    if check_path(path) in done:
                        raise InvalidDocument(
                            f"The document {path!r} was sent twice in one ingest.",
                            metadata={"path": path},
                        )
                    done[path] = await self._ingest_one(session, path, content, known.get(path))
                    yield done[path]
                removed = await session.remove_missing(list(done)) if remove_missing else []
                for path in removed:
                    yield IngestedDocument(path, IngestState.REMOVED)
                summary = _summary(done, len(removed), await session.chunk_count())
        log.info(
            "collection_ingested",
            collection=collection,
            stored=summary.stored_documents,
            unchanged=summary.unchanged_documents,
            removed=summary.removed_documents,
            embedded_chunks=summary.embedded_chunks,
        )
        yield summary

    async def _ingest_one(
        self, session: IngestSession, path: str, content: bytes, known: DocumentVersion | None
    ) -> IngestedDocument:
        sha256 = hashlib.sha256(content).digest()
        if known and known.content_sha256 == sha256 and known.recipe == self._recipe:
            return IngestedDocument(path, IngestState.UNCHANGED, known.chunks)
        document = await asyncio.to_thread(chunk_document, path, content)
        embeddings, embedded = await self._embed(session, document)
        version = DocumentVersion(sha256, self._recipe, len(document.chunks))
        await session.replace_document(path, document, version, embeddings, self._clock.now())
        return IngestedDocument(path, IngestState.STORED, len(document.chunks), embedded)

    async def _embed(self, session: IngestSession, document: ChunkedDocument) -> tuple[Vector, int]:
        """Returns the chunks' vectors and how many of them had to be computed."""
        hashes = [chunk.search_text_sha256 for chunk in document.chunks]
        vectors = await session.known_embeddings(hashes, self._recipe)
        missing = {
            sha256: chunk.search_text
            for sha256, chunk in zip(hashes, document.chunks, strict=True)
            if sha256 not in vectors
        }
        if missing:
            computed = await self._embedder.embed_documents(list(missing.values()))
            vectors.update(zip(missing, computed, strict=True))
        rows = [vectors[sha256] for sha256 in hashes]
        return np.array(rows, dtype=np.float32).reshape(len(rows), -1), len(missing)

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self._running >= _MAXIMUM_INGESTS:
            raise TooManyIngests(
                f"{_MAXIMUM_INGESTS} ingests are running; repeat this one when one has ended."
            )
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1


async def _without_silence(
    documents: AsyncIterator[tuple[str, bytes]],
) -> AsyncIterator[tuple[str, bytes]]:
    iterator = aiter(documents)
    while True:
        try:
            async with asyncio.timeout(_SILENCE_SECONDS):
                item = await anext(iterator)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise DeadlineExceeded(
                f"No document came for {_SILENCE_SECONDS:.0f} seconds; the ingest has ended and "
                "the documents reported so far are stored."
            ) from None
        yield item


def _summary(done: dict[str, IngestedDocument], removed: int, chunks: int) -> IngestSummary:
    stored = sum(document.state is IngestState.STORED for document in done.values())
    return IngestSummary(
        stored_documents=stored,
        unchanged_documents=len(done) - stored,
        removed_documents=removed,
        chunks=chunks,
        embedded_chunks=sum(document.embedded_chunks for document in done.values()),
    )
