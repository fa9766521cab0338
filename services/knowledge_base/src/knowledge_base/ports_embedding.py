"""What the choice and the change of the embedding model need from outside."""

import uuid
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from knowledge_base.domain.embedding_models import EmbeddingModel, ModelState
from knowledge_base.ports import RequestKey, Vector

__all__ = [
    "ChangeToFill",
    "EmbeddingModelStore",
    "FillSession",
    "UnfilledChunk",
    "UnfilledEvent",
]


@dataclass(frozen=True, slots=True)
class UnfilledEvent:
    """A story event that lacks the new vector; `text` is embedded, empty when it is gone."""

    world_id: uuid.UUID
    sequence: int
    text: str


@dataclass(frozen=True, slots=True)
class UnfilledChunk:
    """A passage that lacks the new vector; `text` is embedded, empty when it is gone."""

    chunk_id: int
    text: str


@dataclass(frozen=True, slots=True)
class ChangeToFill:
    """A change whose filling goes on; `listed` once the rows to fill are known."""

    model: str
    listed: bool


class FillSession(Protocol):
    """Fills the vectors of the model that is changed to; nobody else does meanwhile.

    Its methods raise NoEmbeddingChange when the change is no more.
    """

    async def list_unfilled(self, model: str) -> None:
        """Makes the new vectors' indexes and finds the rows to fill."""
        ...

    async def unfilled_events(self, limit: int) -> list[UnfilledEvent]:
        """Returns some events to fill."""
        ...

    async def unfilled_chunks(self, limit: int) -> list[UnfilledChunk]:
        """Returns some passages to fill."""
        ...

    async def fill_events(
        self, model: str, events: Sequence[UnfilledEvent], vectors: Vector
    ) -> None:
        """Stores the events' vectors."""
        ...

    async def fill_chunks(
        self, model: str, chunks: Sequence[UnfilledChunk], vectors: Vector
    ) -> None:
        """Stores the passages' vectors."""
        ...

    async def finish(self, key: RequestKey, model: str) -> None:
        """Makes the model the active one, when the session is committed.

        Raises EmbeddingChangeNotReady when a row lacks its vector.
        """
        ...


class EmbeddingModelStore(Protocol):
    """Keeps which model's vectors are stored. Raises Unavailable when it is away."""

    async def register(self, model: str, dimensions: int, now: datetime) -> None:
        """Makes the model the active one if there is none. Raises StoredVectorsDiffer."""
        ...

    async def active(self) -> str | None:
        """Returns the active model's name, None before one is registered."""
        ...

    async def models(self) -> list[EmbeddingModel]:
        """Returns all models that are or were in use, one that is changed to first."""
        ...

    async def start(self, key: RequestKey, model: str, dimensions: int) -> None:
        """Starts a change; nothing when the request did so before.

        Raises EmbeddingChangeInProgress, EmbeddingModelActive, EmbeddingTablesBusy.
        """
        ...

    async def set_state(self, key: RequestKey, state: ModelState) -> None:
        """Pauses the filling or goes on with it. Raises NoEmbeddingChange."""
        ...

    async def cancel(self, key: RequestKey) -> None:
        """Gives the change up. Raises NoEmbeddingChange, EmbeddingTablesBusy."""
        ...

    async def change_to_fill(self) -> ChangeToFill | None:
        """Returns the change whose filling goes on, None when there is none or it is paused."""
        ...

    def filling(self) -> AbstractAsyncContextManager[FillSession | None]:
        """Returns a session, or None while another process has one."""
        ...

    def finishing(self) -> AbstractAsyncContextManager[FillSession]:
        """Returns a session in a transaction in which nobody stores vectors.

        Raises EmbeddingTablesBusy.
        """
        ...

    async def settle(self) -> None:
        """Declares that no vector is missing, if that is not declared yet."""
        ...
