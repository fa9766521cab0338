"""The knowledge base's schema as it was after any of its migrations, and who wrote to it then."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path

import asyncpg

from knowledge_base.testing import HashEmbedder

__all__ = [
    "FIRST_RELEASE",
    "apply_up_to",
    "connected",
    "migrations",
    "statements",
    "take_vectors",
    "vector",
]

#: The newest migration of the first release.
FIRST_RELEASE = 6
_STATEMENTS = Path(__file__).parents[1] / "knowledge_base_first_release.sql"


def migrations() -> dict[int, tuple[str, str]]:
    """Returns names and texts of all migrations by number, in order."""
    folder = resources.files("knowledge_base").joinpath("migrations")
    return {
        int(entry.name[:4]): (entry.name[:-4], entry.read_text(encoding="utf-8"))
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".sql")
    }


def statements() -> dict[str, str]:
    """Returns what the first release's service sends, by name."""
    parts = _STATEMENTS.read_text(encoding="utf-8").split("-- name: ")[1:]
    return {name.strip(): sql.strip() for name, _, sql in (p.partition("\n") for p in parts)}


async def apply_up_to(owner: asyncpg.Connection, newest: int) -> None:
    """Brings an empty database to the schema after the migration `newest`."""
    await owner.execute(
        "CREATE SCHEMA IF NOT EXISTS knowledge_base;"
        "CREATE TABLE knowledge_base.schema_migrations (number integer PRIMARY KEY,"
        " name text NOT NULL, sha256 text NOT NULL, apply_time timestamptz NOT NULL DEFAULT now())"
    )
    for number, (name, sql) in migrations().items():
        if number <= newest:
            async with owner.transaction():
                await owner.execute("SET LOCAL search_path TO knowledge_base, public")
                await owner.execute(sql)
                await owner.execute(
                    "INSERT INTO knowledge_base.schema_migrations VALUES ($1, $2, $3)",
                    number,
                    name,
                    hashlib.sha256(sql.encode()).hexdigest(),
                )


async def vector(text: str) -> str:
    """Returns a text's vector as PostgreSQL reads it."""
    return str((await HashEmbedder().embed_query(text)).tolist())


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection that takes vectors as text."""
    connection = await asyncpg.connect(url)
    try:
        if await connection.fetchval("SELECT to_regtype('vector') IS NOT NULL"):
            await take_vectors(connection)
        yield connection
    finally:
        await connection.close()


async def take_vectors(connection: asyncpg.Connection) -> None:
    """Makes a connection take vectors as text, once there is the type."""
    await connection.set_type_codec("vector", schema="public", encoder=str, decoder=str)
