"""Which model's vectors PostgreSQL holds, and the change of it (see migrations 0015 and 0016)."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any

import asyncpg

from knowledge_base.adapters.database import QUERIES, Database, caller_errors, encode_vector
from knowledge_base.domain.chunking import Chunk
from knowledge_base.domain.embedding_models import EmbeddingModel, EmbeddingTablesBusy, ModelState
from knowledge_base.domain.memory import NewEvent
from knowledge_base.ports import RequestKey, Vector
from knowledge_base.ports_embedding import ChangeToFill, FillSession, UnfilledChunk, UnfilledEvent

__all__ = ["PostgresEmbeddingModels"]

# Reading the tables once, to list their rows, to index them or to check them.
_WHOLE_TABLE_SECONDS = 600.0
# Whoever waits to alter a table makes all others wait, so not for long.
_LOCK_SECONDS = 0.5
# A filler in another process ends its batch first.
_FILLER_LOCK_SECONDS = 10.0


class PostgresEmbeddingModels:
    """The port `EmbeddingModelStore` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def register(self, model: str, dimensions: int, now: datetime) -> None:
        """Makes the model the active one if there is none. Raises StoredVectorsDiffer."""
        await self._database.fetch(QUERIES.register_embedding_model, model, dimensions, now)

    async def active(self) -> str | None:
        """Returns the active model's name, None before one is registered."""
        name: str | None = await self._database.fetch_value(QUERIES.active_embedding_model)
        return name

    async def models(self) -> list[EmbeddingModel]:
        """Returns all models that are or were in use, one that is changed to first."""
        return [
            EmbeddingModel(
                row["name"],
                row["dimensions"],
                ModelState(row["state"]),
                row["start_time"],
                row["active_time"],
                row["listed"],
                row["filled_rows"],
                row["remaining_rows"],
            )
            for row in await self._database.fetch(QUERIES.list_embedding_models)
        ]

    async def start(self, key: RequestKey, model: str, dimensions: int) -> None:
        """Starts a change; nothing when the request did so before.

        Raises EmbeddingChangeInProgress, EmbeddingModelActive, EmbeddingTablesBusy.
        """
        async with self._altering() as connection:
            await connection.fetch(
                QUERIES.start_embedding_change, *_request(key), model, dimensions
            )

    async def set_state(self, key: RequestKey, state: ModelState) -> None:
        """Pauses the filling or goes on with it. Raises NoEmbeddingChange."""
        await self._database.fetch(QUERIES.set_embedding_change_state, *_request(key), state.value)

    async def cancel(self, key: RequestKey) -> None:
        """Gives the change up. Raises NoEmbeddingChange, EmbeddingTablesBusy."""
        async with self._altering() as connection:
            await connection.execute(_seconds("lock_timeout", _FILLER_LOCK_SECONDS))
            await connection.fetch(QUERIES.hold_embedding_filler)
            await connection.execute(_seconds("lock_timeout", _LOCK_SECONDS))
            await connection.fetch(
                QUERIES.cancel_embedding_change, *_request(key), timeout=_WHOLE_TABLE_SECONDS
            )

    async def change_to_fill(self) -> ChangeToFill | None:
        """Returns the change whose filling goes on, None when there is none or it is paused."""
        rows = await self._database.fetch(QUERIES.change_to_fill)
        return ChangeToFill(rows[0]["name"], rows[0]["listed"]) if rows else None

    @asynccontextmanager
    async def filling(self) -> AsyncIterator[FillSession | None]:
        """Returns a session, or None while another process has one.

        The lock goes with the connection, so a process that dies holds nobody up.
        """
        with _busy_tables():
            async with self._database.connection() as connection:
                if not await connection.fetchval(QUERIES.try_lock_embedding_filler):
                    yield None
                    return
                # The pool gives up the lock and the settings when the connection goes back to it.
                await connection.execute(
                    _seconds("statement_timeout", _WHOLE_TABLE_SECONDS, "SESSION")
                )
                await connection.execute(_seconds("lock_timeout", _LOCK_SECONDS, "SESSION"))
                yield _PostgresFillSession(connection)

    @asynccontextmanager
    async def finishing(self) -> AsyncIterator[FillSession]:
        """Returns a session in a transaction in which nobody stores vectors.

        Raises EmbeddingTablesBusy.
        """
        async with self._altering() as connection:
            await connection.execute(_seconds("lock_timeout", _FILLER_LOCK_SECONDS))
            await connection.fetch(
                QUERIES.hold_embedding_filler, timeout=_FILLER_LOCK_SECONDS + _LOCK_SECONDS
            )
            await connection.execute(_seconds("lock_timeout", _LOCK_SECONDS))
            await connection.fetch(QUERIES.hold_embedding_writers)
            yield _PostgresFillSession(connection)

    async def settle(self) -> None:
        """Declares that no vector is missing, if that is not declared yet."""
        async with self._altering() as connection:
            await connection.fetch(QUERIES.settle_embeddings, timeout=_WHOLE_TABLE_SECONDS)

    @asynccontextmanager
    async def _altering(self) -> AsyncIterator[asyncpg.Connection]:
        """Lends a connection in a transaction that waits for no lock for long."""
        with _busy_tables():
            async with self._database.connection() as connection, connection.transaction():
                await connection.execute(_seconds("statement_timeout", _WHOLE_TABLE_SECONDS))
                await connection.execute(_seconds("lock_timeout", _LOCK_SECONDS))
                yield connection


class _PostgresFillSession:
    """Fills vectors on the connection that holds the filler's lock."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def list_unfilled(self, model: str) -> None:
        await self._fetch(QUERIES.index_next_embedding)
        await self._fetch(QUERIES.list_unfilled_rows, model)

    async def unfilled_events(self, limit: int) -> list[UnfilledEvent]:
        return [
            UnfilledEvent(row["world_id"], row["sequence"], _event_text(row))
            for row in await self._fetch(QUERIES.unfilled_events, limit)
        ]

    async def unfilled_chunks(self, limit: int) -> list[UnfilledChunk]:
        return [
            UnfilledChunk(row["chunk_id"], _chunk_text(row))
            for row in await self._fetch(QUERIES.unfilled_chunks, limit)
        ]

    async def fill_events(
        self, model: str, events: Sequence[UnfilledEvent], vectors: Vector
    ) -> None:
        await self._fetch(
            QUERIES.fill_events,
            model,
            [event.world_id for event in events],
            [event.sequence for event in events],
            [encode_vector(vector) for vector in vectors],
        )

    async def fill_chunks(
        self, model: str, chunks: Sequence[UnfilledChunk], vectors: Vector
    ) -> None:
        await self._fetch(
            QUERIES.fill_chunks,
            model,
            [chunk.chunk_id for chunk in chunks],
            [encode_vector(vector) for vector in vectors],
        )

    async def finish(self, key: RequestKey, model: str) -> None:
        await self._fetch(QUERIES.finish_embedding_change, *_request(key), model)

    async def _fetch(self, query: str, *arguments: Any) -> list[Any]:
        with caller_errors():
            rows: list[Any] = await self._connection.fetch(
                query, *arguments, timeout=_WHOLE_TABLE_SECONDS
            )
        return rows


@contextmanager
def _busy_tables() -> Iterator[None]:
    try:
        yield
    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
        raise EmbeddingTablesBusy(
            "A long statement holds a table that must be altered; repeat the call."
        ) from error


def _request(key: RequestKey) -> tuple[Any, ...]:
    return key.request_id, key.fingerprint, key.now


def _seconds(setting: str, seconds: float, scope: str = "LOCAL") -> str:
    return f"SET {scope} {setting} TO {round(seconds * 1000)}"


def _event_text(row: Any) -> str:
    """What recording the event embedded."""
    if row["text"] is None:
        return ""
    return NewEvent(row["text"], "", tuple(row["participants"]), None, 0.0).search_text


def _chunk_text(row: Any) -> str:
    """What ingesting the passage embedded."""
    if row["text"] is None:
        return ""
    return Chunk(tuple(row["heading_path"]), 1, 1, row["text"]).search_text
