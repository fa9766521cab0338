"""Ways through the graph of relationships, found by recursive SQL (migration 0023)."""

from typing import Any

from knowledge_base.adapters.database import Database
from knowledge_base.adapters.postgres_concepts import CONCEPT_QUERIES, relationship_of
from knowledge_base.domain.graph import (
    FoundPath,
    PathQuery,
    Surroundings,
    TieFilter,
    TraversalQuery,
)
from knowledge_base.domain.story_time import Layer

__all__ = ["PostgresGraph"]


class PostgresGraph:
    """The port `GraphStore` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def traverse(self, layer: Layer, query: TraversalQuery) -> Surroundings:
        """Returns what is around a concept. Raises WorldNotFound, ConceptNotFound."""
        rows = await self._database.fetch(
            CONCEPT_QUERIES.traverse,
            layer.world_id,
            layer.player_id,
            query.start_concept,
            query.maximum_depth,
            *_filter(query.ties),
            query.maximum_concepts,
            query.maximum_relationships,
        )
        names = [(row["name"], row["depth"]) for row in rows if row["name"] is not None]
        return Surroundings(
            tuple(sorted(names, key=lambda each: (each[1], each[0]))),
            tuple(relationship_of(row) for row in rows if row["name"] is None),
            bool(rows[0]["truncated"]),
        )

    async def find_path(self, layer: Layer, query: PathQuery) -> FoundPath:
        """Returns the best path. Raises WorldNotFound, ConceptNotFound."""
        rows = await self._database.fetch(
            CONCEPT_QUERIES.find_path,
            layer.world_id,
            layer.player_id,
            query.from_concept,
            query.to_concept,
            query.maximum_depth,
            *_filter(query.ties),
            query.shortest,
            query.maximum_width,
        )
        ties = sorted((row for row in rows if row["depth"]), key=lambda row: int(row["depth"]))
        return FoundPath(
            any(row["name"] is not None for row in rows),
            tuple(map(relationship_of, ties)),
            bool(rows[0]["truncated"]),
        )


def _filter(ties: TieFilter) -> tuple[Any, ...]:
    return (
        list(ties.kinds) or None,
        ties.minimum_strength,
        ties.direction.value,
        ties.as_of.valid,
        ties.as_of.recorded,
    )
