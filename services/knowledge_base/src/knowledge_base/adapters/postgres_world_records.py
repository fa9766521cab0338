"""Whole worlds in PostgreSQL: reading one at an instant, making one from records."""

import json
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg
import numpy as np

from knowledge_base.adapters.database import QUERIES, Database, decode_vector
from knowledge_base.adapters.postgres_memory import world_of
from knowledge_base.adapters.postgres_worlds import LEASE, WORLD_QUERIES
from knowledge_base.domain.memory import World
from knowledge_base.domain.world_errors import InvalidWorldRecords
from knowledge_base.domain.world_records import WorldHeader, WorldRow
from knowledge_base.domain.worlds import WorldLog
from knowledge_base.ports import RequestKey, Vector

__all__ = ["PostgresWorldRecords"]

_VECTOR = np.dtype("<f4")
# An import sends the next rows within this time, or it is taken for broken off.
_IMPORT_LEASE = LEASE * 4

_REFUSALS = {
    "UNKNOWN_TABLE": "The export holds a table that this version does not know.",
    "UNKNOWN_COLUMN": "The export holds a column that this version does not know.",
    "FOREIGN_WORLD": "The export holds a row of another world than its own.",
    "EVENTS_NOT_NUMBERED": "The export's events are not numbered from 1 without gaps.",
}


class PostgresWorldRecords:
    """The port `WorldRecordStore` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def exporting(self, world_id: uuid.UUID) -> AsyncIterator["PostgresWorldExport"]:
        """Returns a world as it is now; all that is read of it is of this instant.

        Raises WorldNotFound.
        """
        async with (
            self._database.connection() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            log = await connection.fetchrow(WORLD_QUERIES.world_log, world_id, False)
            yield PostgresWorldExport(
                connection,
                world_of(await connection.fetchrow(QUERIES.get_world, world_id, "")),
                WorldLog(log["incarnation"], log["oldest"], log["newest"]),
                {
                    row["concept_id"]: row["name"]
                    for row in await connection.fetch(WORLD_QUERIES.shared_concepts_of, world_id)
                },
                [
                    (row["table_name"], row["row_count"])
                    for row in await connection.fetch(WORLD_QUERIES.export_plan, world_id)
                ],
            )

    async def imported(self, key: RequestKey) -> tuple[uuid.UUID, uuid.UUID, int, int] | None:
        """Returns world, job, rows and embedded texts of an import that succeeded before.

        None when this request has not. Raises RequestIdReused.
        """
        rows = await self._database.fetch(
            WORLD_QUERIES.imported_world, key.request_id, key.fingerprint
        )
        return tuple(rows[0]) if rows else None

    async def begin_import(
        self,
        key: RequestKey,
        job_id: uuid.UUID,
        world_id: uuid.UUID,
        header: WorldHeader,
        *,
        name: str,
    ) -> "PostgresWorldImport":
        """Makes a hidden, empty world. Raises WorldNameTaken, WorldIdTaken, InvalidWorldRecords."""
        here = {
            row["name"]: row["concept_id"]
            for row in await self._database.fetch(
                WORLD_QUERIES.shared_concepts_named, list(header.shared_concepts.values())
            )
        }
        missing = [name for name in header.shared_concepts.values() if name not in here]
        if missing:
            raise InvalidWorldRecords(
                f"The export refers to {len(missing)} concepts of all worlds that are not here; "
                "record them with PutConcept first, without a world.",
                metadata={"first_missing_concept": missing[0]},
            )
        holder = uuid.uuid4()
        with _refusals():
            await self._database.fetch(
                WORLD_QUERIES.begin_import,
                key.request_id,
                key.fingerprint,
                key.now,
                job_id,
                holder,
                _IMPORT_LEASE,
                world_id,
                name,
                header.description,
                header.create_time,
                header.row_count,
            )
        shared = {str(there): str(here[name]) for there, name in header.shared_concepts.items()}
        return PostgresWorldImport(
            self._database,
            job_id,
            holder=holder,
            world_id=world_id,
            source_id=header.world_id,
            shared=shared,
        )


class PostgresWorldExport:
    """The port `WorldExport`: one transaction's sight of one world."""

    def __init__(
        self,
        connection: asyncpg.Connection,
        world: World,
        log: WorldLog,
        shared_concepts: dict[uuid.UUID, str],
        tables: list[tuple[str, int]],
    ) -> None:
        self._connection = connection
        self.world = world
        self.log = log
        self.shared_concepts = shared_concepts
        self.tables = tables

    async def rows(self, table: str, after: str | None, limit: int) -> list[tuple[str, WorldRow]]:
        """Returns rows of a table with their keys, in order, after a key."""
        found = await self._connection.fetch(
            WORLD_QUERIES.export_rows, self.world.world_id, table, after, limit
        )
        return [
            (
                row["row_key"],
                WorldRow(
                    row["row_columns"],
                    {
                        name: decode_vector(vector).astype(_VECTOR).tobytes()
                        for name, vector in zip(row["vector_names"], row["vectors"], strict=True)
                        if vector is not None
                    },
                ),
            )
            for row in found
        ]


class PostgresWorldImport:
    """The port `WorldImport`."""

    def __init__(
        self,
        database: Database,
        job_id: uuid.UUID,
        *,
        holder: uuid.UUID,
        world_id: uuid.UUID,
        source_id: uuid.UUID,
        shared: dict[str, str],
    ) -> None:
        self._database = database
        self._holder = holder
        self._source_id = source_id
        self._shared = shared
        self.job_id = job_id
        self.world_id = world_id

    async def add(self, table: str, rows: Sequence[WorldRow], model: str) -> int:
        """Takes rows in. Raises InvalidWorldRecords, JobTakenAway."""
        columns = [self._columns(row) for row in rows]
        if any(each.keys() != columns[0].keys() for each in columns):
            raise InvalidWorldRecords("The rows of a table do not all have the same columns.")
        with _refusals():
            count: int = await self._database.fetch_value(
                WORLD_QUERIES.import_rows,
                self.job_id,
                self._holder,
                _IMPORT_LEASE,
                table,
                self._source_id,
                json.dumps(columns),
                model,
            )
        return count

    async def finish(self, key: RequestKey, embedded_texts: int) -> None:
        """Shows the world. Raises InvalidWorldRecords, JobTakenAway."""
        with _refusals():
            await self._database.fetch(
                WORLD_QUERIES.end_import,
                self.job_id,
                self._holder,
                key.request_id,
                key.fingerprint,
                key.now,
                embedded_texts,
            )

    async def give_up(self, reason: str) -> None:
        """Has everything removed."""
        await self._database.fetch(WORLD_QUERIES.give_up_import, self.job_id, self._holder, reason)

    def _columns(self, row: WorldRow) -> dict[str, Any]:
        try:
            columns = json.loads(row.columns_json)
        except (ValueError, RecursionError):
            columns = None
        if not isinstance(columns, dict):
            raise InvalidWorldRecords("A row's columns are not a JSON object.")
        # Concepts of all worlds have other ids here; they were found by their names.
        for name, value in columns.items():
            if isinstance(value, str) and value in self._shared:
                columns[name] = self._shared[value]
        for name, data in row.vectors.items():
            if len(data) % _VECTOR.itemsize:
                raise InvalidWorldRecords("A row's vector is cut.")
            columns[name] = _vector_text(np.frombuffer(data, dtype=_VECTOR).astype(np.float32))
        return columns


def _vector_text(vector: Vector) -> str:
    """Returns pgvector's text form; read again it is the same float32 values."""
    return "[" + ",".join(map(repr, vector.tolist())) + "]"


@contextmanager
def _refusals() -> Iterator[None]:
    """Turns what PostgreSQL says of rows that do not fit into InvalidWorldRecords."""
    try:
        yield
    except asyncpg.PostgresError as error:
        if error.sqlstate == "KB034":
            raise InvalidWorldRecords(
                _REFUSALS[str(error.detail)], metadata={"problem": str(error.detail)}
            ) from error
        if isinstance(error, asyncpg.IntegrityConstraintViolationError | asyncpg.DataError):
            raise InvalidWorldRecords(
                "A row of the export does not fit into its table; it was made by other means or "
                "changed."
            ) from error
        raise
