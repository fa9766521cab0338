"""The tables of outbox and inbox in a service's own schema, and the statements on them.

Needs the `postgres` extra (asyncpg).
"""

from __future__ import annotations

from functools import cache

import asyncpg

from servicekit.postgres import Queries, load_queries, migrate

__all__ = ["grant_stores", "inbox_queries", "migrate_stores", "outbox_queries"]

_HISTORY = "messaging_schema_migrations"


async def migrate_stores(connection: asyncpg.Connection, *, schema: str) -> list[str]:
    """Makes the tables of outbox and inbox in `schema`, or brings them to this version.

    Returns and raises what `servicekit.postgres.migrate` does; run it as the schema's owner, beside
    the service's own migrations.
    """
    return await migrate(connection, "messaging", schema=schema, history=_HISTORY)


async def grant_stores(connection: asyncpg.Connection, *, schema: str, role: str) -> None:
    """Lets a role that does not own the tables use outbox, relay, inbox and retention.

    Run it as the owner after `migrate_stores`; repeats are harmless. Access to the schema itself is
    the service's own grant.
    """
    names = {"schema": schema, "role": role}
    grants = load_queries("messaging", "stores.sql", substitutions=names)
    async with connection.transaction():
        for name in grants:
            await connection.execute(getattr(grants, name))


@cache
def outbox_queries(schema: str) -> Queries:
    """Returns the outbox's statements for the tables in `schema`."""
    return load_queries("messaging", "outbox.sql", substitutions={"schema": schema})


@cache
def inbox_queries(schema: str) -> Queries:
    """Returns the inbox's statements for the tables in `schema`."""
    return load_queries("messaging", "inbox.sql", substitutions={"schema": schema})
