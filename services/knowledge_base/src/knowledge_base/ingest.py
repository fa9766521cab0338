"""Takes documents in, embedding only what is new."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from functools import partial

import numpy as np
import structlog

from knowledge_base.declarations import ConceptDeclarations
from knowledge_base.domain.chunking import CHUNKING, ChunkedDocument, chunk_document
from knowledge_base.domain.errors import InvalidDocument, TooManyIngests
from knowledge_base.domain.lore import (
    IngestedDocument,
    IngestProgress,
    IngestState,
    IngestSummary,
    check_path,
)
from knowledge_base.embedding_models import EmbeddingModels
from knowledge_base.ports import (
    DocumentVersion,
    Embedder,
    IngestSession,
    LoreStore,
    TextCodes,
    Vector,
)
from knowledge_base.ports_reranker import Reranker
from knowledge_base.reading import read_texts
from servicekit.clock import Clock
from servicekit.errors import DeadlineExceeded

__all__ = ["LoreIngest"]

log = structlog.get_logger(__name__)

# Each ingest holds a connection while it lasts; the rest of the pool answers players.
_MAXIMUM_INGESTS = 3
# So often the caller hears how far a document is.
_EMBEDDED_AT_ONCE = 32
# A client that stops sending must not hold the collection's lock for ever.
_SILENCE_SECONDS = 60.0


class LoreIngest:
    """Ingests collections of Markdown documents.

    With a reranker, what it keeps of each passage is stored beside the passage's vector.
    """

    def __init__(
        self,
        store: LoreStore,
        models: EmbeddingModels,
        declarations: ConceptDeclarations,
        clock: Clock,
        *,
        reranker: Reranker | None = None,
    ) -> None:
        self._store = store
        self._models = models
        self._declarations = declarations
        self._clock = clock
        self._reranker = reranker
        self._running = 0

    async def ingest(
        self,
        collection: str,
        documents: AsyncIterator[tuple[str, bytes]],
        *,
        remove_missing: bool,
    ) -> AsyncGenerator[IngestedDocument | IngestProgress | IngestSummary, None]:
        """Stores documents (path, content) as they come, yielding what became of each.

        While the passages of one are embedded, its progress is yielded.

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
                    steps = self._models.steps_with_one_model(
                        partial(
                            self._ingest_one,
                            session,
                            path,
                            content,
                            known=known.get(path),
                            source=f"{collection}/{path}",
                        )
                    )
                    async with aclosing(steps):
                        async for step in steps:
                            if isinstance(step, IngestedDocument):
                                done[path] = step
                            yield step
                removed = await session.remove_missing(list(done)) if remove_missing else []
                for path in removed:
                    yield IngestedDocument(path, IngestState.REMOVED)
                summary = _summary(done, len(removed), await session.chunk_count())
                # Where nothing changed, too: what an ingest before could not settle is tried again.
                await session.settle()
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
        self,
        session: IngestSession,
        path: str,
        content: bytes,
        embedder: Embedder,
        *,
        known: DocumentVersion | None,
        source: str,
    ) -> AsyncGenerator[IngestProgress | IngestedDocument, None]:
        # The model comes last: a change of it relies on that.
        recipe = f"{self._way_of_reading()}/{embedder.model}"
        sha256 = hashlib.sha256(content).digest()
        if known and known.content_sha256 == sha256 and known.recipe == recipe:
            yield IngestedDocument(path, IngestState.UNCHANGED, known.chunks)
            return
        document = await asyncio.to_thread(chunk_document, path, content)
        count = len(document.chunks)
        hashes = [chunk.search_text_sha256 for chunk in document.chunks]
        vectors = await session.known_embeddings(hashes, recipe)
        codes = await self._known_codes(session, hashes, recipe, vectors)
        missing = _missing(document, hashes, vectors)
        for start in range(0, len(missing), _EMBEDDED_AT_ONCE):
            yield IngestProgress(path, count, len(missing), start)
            batch = missing[start : start + _EMBEDDED_AT_ONCE]
            computed, kept = await read_texts([text for _, text in batch], embedder, self._reranker)
            vectors.update(zip((sha for sha, _ in batch), computed, strict=True))
            if kept is not None:
                codes.update(zip((sha for sha, _ in batch), kept.codes, strict=True))
        await self._declarations.record(document.concepts, source)
        rows = [vectors[sha] for sha in hashes]
        await session.replace_document(
            path,
            document,
            DocumentVersion(sha256, recipe, count),
            np.array(rows, dtype=np.float32).reshape(len(rows), -1),
            self._clock.now(),
            model=embedder.model,
            codes=None
            if self._reranker is None
            else TextCodes(self._reranker.name, tuple(codes[sha] for sha in hashes)),
        )
        yield IngestedDocument(path, IngestState.STORED, count, len(missing))

    def _way_of_reading(self) -> str:
        """Names all that decides what is stored of a text, but for the embedding model."""
        return CHUNKING if self._reranker is None else f"{CHUNKING}+{self._reranker.name}"

    async def _known_codes(
        self,
        session: IngestSession,
        hashes: Sequence[bytes],
        recipe: str,
        vectors: dict[bytes, Vector],
    ) -> dict[bytes, bytes]:
        """Returns the codes that are stored; a vector without its codes is known no more."""
        if self._reranker is None or not vectors:
            return {}
        codes = await session.known_codes(hashes, recipe, self._reranker.name)
        for sha in vectors.keys() - codes.keys():
            del vectors[sha]
        return codes

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


def _missing(
    document: ChunkedDocument, hashes: Sequence[bytes], vectors: Mapping[bytes, Vector]
) -> list[tuple[bytes, str]]:
    """Returns what must be embedded, with its hash; texts of like length stand together.

    The model reads the texts of a run padded to the longest of them.
    """
    texts = {
        sha: chunk.search_text
        for sha, chunk in zip(hashes, document.chunks, strict=True)
        if sha not in vectors
    }
    return sorted(texts.items(), key=lambda item: (len(item[1]), item[0]))


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
