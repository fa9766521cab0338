"""What a cluster holds at one moment, as row counts and checksums."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

import asyncpg

from gamekeeper.backup.errors import BackupError
from gamekeeper.backup.repository import TableContents
from gamekeeper.backup.server import ServerAddress

__all__ = ["MarkedContents", "contents_of", "mark_contents"]

_ATTEMPTS = 5
_LOCK_TIMEOUT = "3s"
_CONNECT_SECONDS = 10.0

_DATABASES = """
SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY datname
"""
# What a crash empties (unlogged) is not part of a backup.
_TABLES = """
SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'p'
    AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
ORDER BY 1
"""
# In binary, so that the sum depends neither on settings of the session nor on rows' order.
_CHECKSUM = """
SELECT count(*),
    coalesce(sum(('x' || left(md5(record_send(t)), 16))::bit(64)::bigint::numeric), 0)::text
FROM ONLY {table} t
"""


@dataclass(frozen=True, slots=True)
class MarkedContents:
    """The contents at a moment that is marked in the WAL at `lsn` under a name."""

    lsn: str
    contents: Mapping[str, TableContents]


async def mark_contents(server: ServerAddress, restore_point: str) -> MarkedContents:
    """Names the present moment in the WAL and returns what the cluster holds at it.

    All tables are locked against writers while the moment is named and the snapshots are taken: for
    milliseconds. The tables are read afterwards, in those snapshots.

    Raises:
        BackupError: the tables could not be locked because of long transactions.
        OSError, asyncpg.PostgresError: the server is not reached, or the role may not do this.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return await _mark(server, restore_point)
        except asyncpg.LockNotAvailableError:
            if attempt == _ATTEMPTS:
                raise BackupError(
                    "long transactions keep the tables from being read at one moment; see "
                    "pg_stat_activity, and repeat the backup when they are done"
                ) from None
    raise AssertionError("unreachable")


async def _mark(server: ServerAddress, restore_point: str) -> MarkedContents:
    async with AsyncExitStack() as reading:
        readers: dict[str, asyncpg.Connection] = {}
        async with AsyncExitStack() as locking:
            lockers: dict[str, asyncpg.Connection] = {}
            for database in await _databases(server):
                connection = await _connect(locking, server, database)
                tables = await _tables(connection)
                await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
                if tables:
                    # The names come quoted from PostgreSQL itself.
                    every = ", ".join(f"ONLY {table}" for table in tables)
                    await connection.execute(f"LOCK TABLE {every} IN SHARE MODE")
                lockers[database] = connection
            # Where the role may do this is the database it names itself.
            lsn = await lockers[server.database].fetchval(
                "SELECT pg_create_restore_point($1)::text", restore_point
            )
            for database, connection in lockers.items():
                snapshot = await connection.fetchval("SELECT pg_export_snapshot()")
                reader = await _connect(reading, server, database)
                await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                await reader.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
                readers[database] = reader
        contents: dict[str, TableContents] = {}
        for database, reader in readers.items():
            contents |= await _read(reader, database)
        return MarkedContents(lsn, contents)


async def contents_of(server: ServerAddress) -> Mapping[str, TableContents]:
    """Returns what the cluster holds, each database at a moment of its own."""
    contents: dict[str, TableContents] = {}
    async with AsyncExitStack() as stack:
        for database in await _databases(server):
            connection = await _connect(stack, server, database)
            await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            contents |= await _read(connection, database)
    return contents


async def _databases(server: ServerAddress) -> list[str]:
    async with AsyncExitStack() as stack:
        connection = await _connect(stack, server, server.database)
        return [row["datname"] for row in await connection.fetch(_DATABASES)]


async def _tables(connection: asyncpg.Connection) -> list[str]:
    return [row[0] for row in await connection.fetch(_TABLES)]


async def _read(connection: asyncpg.Connection, database: str) -> dict[str, TableContents]:
    contents = {}
    for table in await _tables(connection):
        rows, checksum = await connection.fetchrow(_CHECKSUM.format(table=table))
        contents[f"{database}/{table}"] = TableContents(rows, checksum)
    return contents


async def _connect(
    stack: AsyncExitStack, server: ServerAddress, database: str
) -> asyncpg.Connection:
    connection = await asyncpg.connect(
        host=server.host,
        port=server.port,
        user=server.user,
        password=server.password or None,
        database=database,
        timeout=_CONNECT_SECONDS,
        server_settings={"application_name": "gamekeeper_backup", "search_path": ""},
    )
    stack.push_async_callback(connection.close)
    return connection
