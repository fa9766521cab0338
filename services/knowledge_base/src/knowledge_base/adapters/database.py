"""The connection to PostgreSQL: vectors on the wire, the role's limits, errors that callers see."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from importlib import resources
from typing import Any

import asyncpg
import numpy as np
from numpy.typing import NDArray

from knowledge_base.adapters.embedding_error_codes import embedding_error
from knowledge_base.adapters.world_error_codes import world_error
from knowledge_base.domain.errors import (
    ConceptNotFound,
    ContradictionNotFound,
    EventNotFound,
    FactNotFound,
    RelationshipNotFound,
    RequestIdReused,
    WorldNameTaken,
    WorldNotFound,
)
from servicekit.errors import ServiceError
from servicekit.postgres import database_errors, load_queries, open_pool

__all__ = [
    "QUERIES",
    "RETRIEVAL_QUERIES",
    "Database",
    "UnsafeDatabaseError",
    "caller_errors",
    "decode_vector",
    "encode_vector",
    "open_database",
]

QUERIES = load_queries("knowledge_base")
RETRIEVAL_QUERIES = load_queries("knowledge_base", "retrieval_queries.sql")

_NEWEST_MIGRATION = max(
    int(entry.name[:4])
    for entry in resources.files("knowledge_base").joinpath("migrations").iterdir()
    if entry.name.endswith(".sql")
)
_APPLICATION_NAME = "knowledge_base"
_ACQUIRE_TIMEOUT_SECONDS = 3.0

# pgvector's binary form: dimensions and an unused word, both uint16, then float32; big-endian.
_VECTOR_HEADER = np.dtype(">u2")
_VECTOR_ELEMENT = np.dtype(">f4")
_VECTOR_HEADER_BYTES = 4


class UnsafeDatabaseError(Exception):
    """The connection would not be bound by the isolation of worlds, or the schema is missing.

    The message tells the operator what to change.
    """


class Database:
    """Runs statements, each as one transaction in one round trip.

    What is set for a statement, the world it works for above all, ends with its transaction, so the
    session needs no reset before somebody else uses it.

    Raises DatabaseAway when the database cannot be reached or does not answer in time, and the
    domain's errors for the SQLSTATEs the schema raises.
    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool

    async def fetch(self, query: str, *arguments: Any) -> list[Any]:
        """Returns all rows."""
        try:
            rows: list[Any] = await self.pool.fetch_leaving_nothing(
                query, *arguments, wait_seconds=_ACQUIRE_TIMEOUT_SECONDS
            )
        except Exception:
            with caller_errors():  # only here: entering it each time costs a tenth of a statement
                raise
        return rows

    async def fetch_value(self, query: str, *arguments: Any) -> Any:
        """Returns the first column of the first row, None when there is no row."""
        rows = await self.fetch(query, *arguments)
        return rows[0][0] if rows else None

    def connection(self) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """Lends a connection; errors inside become those of this class."""
        return self._lent(leaves_nothing=False)

    @asynccontextmanager
    async def _lent(self, *, leaves_nothing: bool) -> AsyncIterator[asyncpg.Connection]:
        with caller_errors():
            async with self.pool.acquire(
                timeout=_ACQUIRE_TIMEOUT_SECONDS, leaves_nothing=leaves_nothing
            ) as connection:
                yield connection


def open_database(
    url: str, *, pool_size: int, statement_timeout_seconds: float
) -> AbstractAsyncContextManager[asyncpg.Pool]:
    """Opens the pool whose connections `Database` uses; it recovers by itself.

    Raises UnsafeDatabaseError when the database answers and the role or the schema is not right.
    """
    return open_pool(
        url,
        application_name=_APPLICATION_NAME,
        maximum=pool_size,
        command_timeout_seconds=statement_timeout_seconds,
        init=_prepare_connection,
    )


async def _prepare_connection(connection: asyncpg.Connection) -> None:
    """Checks every new connection, so also those after a failover to another server."""
    session = await connection.fetchrow(QUERIES.check_session)
    if session["bypasses"] or session["owns"]:
        raise UnsafeDatabaseError(
            f"the role {session['role']!r} of KNOWLEDGE_BASE_DATABASE_URL is a superuser, bypasses "
            "row-level security or owns the tables, so worlds would not be kept apart; use the "
            "role that `python -m knowledge_base migrate` makes (KNOWLEDGE_BASE_SERVICE_ROLE)"
        )
    # A newer schema is fine: the version before works on while this one is rolled out.
    applied = await connection.fetchval(QUERIES.newest_migration) if session["has_schema"] else 0
    if applied < _NEWEST_MIGRATION:
        raise UnsafeDatabaseError(
            f"the database has migration {applied} of the schema knowledge_base, this version "
            f"needs {_NEWEST_MIGRATION}; run `python -m knowledge_base migrate`"
        )
    await connection.set_type_codec(
        "vector",
        schema=await connection.fetchval(QUERIES.vector_schema),
        # Callers encode vectors themselves: asyncpg takes a numpy array inside a list of vectors
        # for another dimension of the list.
        encoder=bytes,
        decoder=decode_vector,
        format="binary",
    )


def encode_vector(vector: NDArray[np.float32]) -> bytes:
    """Returns pgvector's binary form of a vector, as statements take it."""
    header = np.array([vector.shape[0], 0], dtype=_VECTOR_HEADER)
    return header.tobytes() + vector.astype(_VECTOR_ELEMENT).tobytes()


def decode_vector(data: bytes) -> NDArray[np.float32]:
    """Returns the vector of pgvector's binary form."""
    return np.frombuffer(data, dtype=_VECTOR_ELEMENT, offset=_VECTOR_HEADER_BYTES).astype(
        np.float32
    )


@contextmanager
def caller_errors() -> Iterator[None]:
    """Turns the SQLSTATEs that the schema raises into the domain's errors (see migration 0003).

    Raises DatabaseAway as `database_errors` does.
    """
    try:
        with database_errors():
            yield
    except asyncpg.PostgresError as error:
        raise _domain_error(error) or error from error


def _domain_error(error: asyncpg.PostgresError) -> ServiceError | None:
    match error.sqlstate:
        case "KB001":
            return WorldNotFound("There is no world with this world_id; see ListWorlds.")
        case "KB002":
            return RequestIdReused(
                "This request_id was used for another request; use a new UUID for each request "
                "and the same one only to repeat it."
            )
        case "KB003":
            return WorldNameTaken("A world of this name exists; choose another name.")
        case "KB004":
            return ConceptNotFound(
                "The world sees no concept of this name; record it with PutConcept first.",
                metadata={"field": str(error.detail)},
            )
        case "KB021":
            return FactNotFound("There is no such fact in this world; see ListFacts.")
        case "KB022":
            return ContradictionNotFound("There is no such contradiction; see ListContradictions.")
        case "KB023":
            return EventNotFound(
                "The world has no such story event; see ListEvents.",
                metadata={"field": str(error.detail)},
            )
        case "KB024":
            return RelationshipNotFound(
                "There is no such relationship in this world; see ListRelationships."
            )
    return embedding_error(error.sqlstate) or world_error(error.sqlstate)
