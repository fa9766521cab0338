"""Everything the database keeps, opened together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from autoscaler.adapters.postgres_holds import PostgresOverrides, PostgresPlayers
from autoscaler.adapters.postgres_journal import SCHEMA, PostgresDrains, PostgresJournal
from autoscaler.adapters.postgres_lease import PostgresLease
from autoscaler.ports import Stores
from messaging.store_schema import migrate_stores
from servicekit.postgres import database_errors, load_queries, migrate, open_pool

__all__ = ["SCHEMA", "PostgresStores", "open_postgres_stores"]

_MIGRATION_TIMEOUT_SECONDS = 60.0


class PostgresStores:
    """The stores and what brings their schema up to date."""

    def __init__(
        self, pool: asyncpg.Pool, *, announces: bool, players_stale_seconds: float
    ) -> None:
        queries = load_queries("autoscaler")
        self.pool = pool
        self.stores = Stores(
            journal=PostgresJournal(pool, queries, announces=announces),
            drains=PostgresDrains(pool, queries),
            overrides=PostgresOverrides(pool, queries),
            players=PostgresPlayers(pool, queries, stale_seconds=players_stale_seconds),
            lease=PostgresLease(pool, queries),
        )

    async def migrate(self) -> None:
        """Bring the schema up to date; several replicas may try at once.

        Raises DatabaseAway, or MigrationMismatch when the schema is newer than this version.
        """
        with database_errors():
            async with self.pool.acquire(timeout=_MIGRATION_TIMEOUT_SECONDS) as connection:
                await migrate(connection, "autoscaler", schema=SCHEMA)
                await migrate_stores(connection, schema=SCHEMA)


@asynccontextmanager
async def open_postgres_stores(
    url: str,
    *,
    application_name: str = "autoscaler",
    maximum_connections: int = 6,
    command_timeout_seconds: float = 5.0,
    announces: bool = False,
    players_stale_seconds: float = 120.0,
) -> AsyncIterator[PostgresStores]:
    """Open the stores; the database may be away, calls then raise DatabaseAway until it is back.

    `announces` says whether changes of capacity are put into the outbox.
    """
    async with open_pool(
        url,
        application_name=application_name,
        minimum=1,
        maximum=maximum_connections,
        command_timeout_seconds=command_timeout_seconds,
    ) as pool:
        yield PostgresStores(pool, announces=announces, players_stale_seconds=players_stale_seconds)
