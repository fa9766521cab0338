"""What the knowledge base needs from outside."""

import uuid
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from knowledge_base.domain.chunking import ChunkedDocument
from knowledge_base.domain.lore import (
    ConceptPassage,
    Document,
    RankingParameters,
    SearchQuery,
    SearchResult,
)
from knowledge_base.domain.memory import (
    NewEvent,
    RecallClues,
    RecalledEvent,
    RecallParameters,
    RecallQuery,
    StoryEvent,
    World,
)
from knowledge_base.domain.subscriptions import EventSubscription, NewSubscription

__all__ = [
    "DocumentVersion",
    "Embedder",
    "IngestSession",
    "LoreStore",
    "MemoryStore",
    "RequestKey",
    "SubscriptionStore",
    "Vector",
]

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RequestKey:
    """Recognises a repeated request, and when it came first."""

    request_id: uuid.UUID
    fingerprint: bytes
    now: datetime


@dataclass(frozen=True, slots=True)
class DocumentVersion:
    """Which content of a document is stored, and how it was made."""

    content_sha256: bytes
    recipe: str
    chunks: int


@dataclass(frozen=True, slots=True)
class TextCodes:
    """What the reranker of this name keeps of texts, in their order."""

    reranker: str
    codes: tuple[bytes, ...]


class Embedder(Protocol):
    """Turns texts into unit vectors whose inner product is their similarity in meaning."""

    @property
    def model(self) -> str:
        """Names the model; vectors of different models are not compared."""
        ...

    @property
    def dimensions(self) -> int:
        """The length of a vector."""
        ...

    async def embed_query(self, text: str) -> Vector:
        """Returns the vector of one text, ahead of documents.

        Raises ResourceExhausted when too many wait.
        """
        ...

    async def embed_documents(self, texts: Sequence[str]) -> Vector:
        """Returns the vectors of the texts, shape [len(texts), dimensions]."""
        ...


class IngestSession(Protocol):
    """Writes to one collection, which nobody else writes to meanwhile."""

    async def versions(self) -> dict[str, DocumentVersion]:
        """Returns the documents that are stored, by path."""
        ...

    async def known_embeddings(self, hashes: Sequence[bytes], recipe: str) -> dict[bytes, Vector]:
        """Returns the vectors that are stored for these hashes of embedded text."""
        ...

    async def known_codes(
        self, hashes: Sequence[bytes], recipe: str, reranker: str
    ) -> dict[bytes, bytes]:
        """Returns what a reranker keeps of the texts with these hashes, as far as it is stored."""
        ...

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
        """Puts the document, linked to its concepts, in place of what its path held.

        All or nothing.

        Raises EmbeddingModelChanged when `model` is no longer the active one.
        """
        ...

    async def remove_missing(self, kept: Sequence[str]) -> list[str]:
        """Removes the documents whose path is not in `kept`; returns their paths in order."""
        ...

    async def settle(self) -> None:
        """Sees to it that searches are as fast with what is stored now as they can be."""
        ...

    async def chunk_count(self) -> int:
        """Returns how many chunks the collection has."""
        ...


class LoreStore(Protocol):
    """Keeps the documents and finds their passages. Raises Unavailable when it is away."""

    def ingest_session(self, collection: str) -> AbstractAsyncContextManager[IngestSession]:
        """Returns a session once no other one writes to the collection.

        Raises IngestInProgress when that takes too long.
        """
        ...

    async def list_documents(
        self, collection: str | None, after: tuple[str, str], limit: int
    ) -> list[Document]:
        """Returns documents in the order of (path, collection), after the one named."""
        ...

    async def get_document(self, collection: str, path: str) -> Document | None:
        """Returns a document with the concepts it speaks of, None when there is none."""
        ...

    async def concept_passages(
        self, concept: str, collection: str | None, after: tuple[str, str, int], limit: int
    ) -> list[ConceptPassage]:
        """Returns the passages that speak of a concept, after (path, collection, ordinal)."""
        ...

    async def search(
        self,
        query: SearchQuery,
        embedding: Vector | None,
        parameters: RankingParameters,
        *,
        model: str,
    ) -> list[SearchResult]:
        """Returns passages, best first; `embedding` is None in mode keyword.

        Raises EmbeddingModelChanged when `model` is no longer the active one.
        """
        ...

    async def search_with_codes(
        self,
        query: SearchQuery,
        embedding: Vector | None,
        parameters: RankingParameters,
        *,
        model: str,
        reranker: str,
    ) -> list[tuple[SearchResult, bytes | None]]:
        """Returns as `search`, each with what the reranker keeps of it; None: nothing is kept."""
        ...


class MemoryStore(Protocol):
    """Keeps worlds and their events. Raises Unavailable when it is away."""

    async def create_world(
        self, key: RequestKey, world_id: uuid.UUID, name: str, description: str
    ) -> World:
        """Makes a world, or returns the one that this request made before.

        Raises WorldNameTaken, RequestIdReused.
        """
        ...

    async def get_world(self, world_id: uuid.UUID | None, name: str) -> World:
        """Returns a world by its id or else by its name. Raises WorldNotFound."""
        ...

    async def list_worlds(self, after: str, limit: int) -> list[World]:
        """Returns worlds ordered by name, after the name given."""
        ...

    async def recorded_events(
        self, world_id: uuid.UUID, key: RequestKey
    ) -> list[StoryEvent] | None:
        """Returns what this request recorded before, None when it is new.

        Raises WorldNotFound, RequestIdReused.
        """
        ...

    async def record_events(
        self,
        world_id: uuid.UUID,
        key: RequestKey,
        events: Sequence[tuple[uuid.UUID, NewEvent]],
        model: str,
        embeddings: Vector,
        *,
        codes: TextCodes | None = None,
    ) -> list[StoryEvent]:
        """Appends events, all or none, or returns what this request recorded before.

        Raises WorldNotFound, RequestIdReused, EmbeddingModelChanged.
        """
        ...

    async def record_bus_event(
        self,
        world_id: uuid.UUID,
        key: RequestKey,
        bus_event_id: str,
        event: tuple[uuid.UUID, NewEvent],
        *,
        model: str,
        embedding: Vector,
        codes: TextCodes | None = None,
    ) -> bool:
        """Appends the story event that a bus event became; False when the world has it already.

        Raises WorldNotFound.
        """
        ...

    async def recall(
        self,
        world_id: uuid.UUID,
        query: RecallQuery,
        embedding: Vector,
        ranking: RankingParameters,
        parameters: RecallParameters,
        *,
        model: str,
        clues: RecallClues | None = None,
        reranker: str = "",
    ) -> list[RecalledEvent]:
        """Returns the world's memories, best first, without their neighbours.

        `clues` says what the query names. Each memory comes with what the reranker of this name
        keeps of it.

        Raises WorldNotFound, EmbeddingModelChanged.
        """
        ...

    async def events_around(
        self, world_id: uuid.UUID, sequences: Sequence[int], query: RecallQuery
    ) -> list[StoryEvent]:
        """Returns the events at most `query.neighbours` from those, as of the query's moments."""
        ...

    async def participants_named(self, world_id: uuid.UUID, words: Sequence[str]) -> list[str]:
        """Returns the world's participants whose names hold one of the words."""
        ...

    async def list_events(
        self, world_id: uuid.UUID, before: tuple[datetime, int] | None, limit: int
    ) -> list[StoryEvent]:
        """Returns the world's events, the latest in story time first. Raises WorldNotFound."""
        ...

    async def forget_requests(self, before: datetime) -> int:
        """Forgets the requests recorded before a moment; returns how many."""
        ...


class SubscriptionStore(Protocol):
    """Keeps what worlds take from the bus. Raises Unavailable when it is away."""

    async def set_subscription(
        self, world_id: uuid.UUID, key: RequestKey, subscription: NewSubscription
    ) -> EventSubscription:
        """Sets what the world takes; a repeat returns what the request set.

        Raises WorldNotFound, RequestIdReused.
        """
        ...

    async def get_subscription(self, world_id: uuid.UUID) -> EventSubscription | None:
        """Returns what the world takes, None when nothing. Raises WorldNotFound."""
        ...

    async def delete_subscription(
        self, world_id: uuid.UUID, key: RequestKey
    ) -> EventSubscription | None:
        """Ends what the world takes and returns it; a repeat returns what the request ended.

        Raises WorldNotFound, RequestIdReused.
        """
        ...

    async def subscribed_worlds(
        self, event_type: int, source: str, world_id: uuid.UUID | None
    ) -> list[uuid.UUID]:
        """Returns the worlds that take such an event, only `world_id` unless it is None."""
        ...
