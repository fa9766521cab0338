"""The concepts that a context is about, in PostgreSQL (migration 0041)."""

import uuid
from collections.abc import Sequence

from knowledge_base.adapters.database import Database
from knowledge_base.adapters.postgres_concepts import concept_of
from knowledge_base.domain.concepts import Concept
from servicekit.postgres import load_queries

__all__ = ["PostgresContextConcepts"]

_QUERIES = load_queries("knowledge_base", "context_queries.sql")


class PostgresContextConcepts:
    """The port `ContextConcepts` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def concepts_named(
        self, world_id: uuid.UUID, names: Sequence[str], text: str, limit: int
    ) -> list[Concept]:
        """Returns the concepts of these names and those the text may name. Raises WorldNotFound."""
        rows = await self._database.fetch(
            _QUERIES.context_concepts, world_id, list(names), text, limit
        )
        return [concept_of(row) for row in rows]
