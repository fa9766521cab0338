"""What the stores raise when the database cannot serve them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

from servicekit.postgres import DatabaseAway, database_errors

__all__ = ["store_errors"]


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn an unreachable database, and one whose schema is not there yet, into DatabaseAway."""
    try:
        with database_errors():
            yield
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError) as error:
        raise DatabaseAway(
            "The journal is still being set up; try again in a moment.", retry_after_seconds=1.0
        ) from error
