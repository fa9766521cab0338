"""Concepts and relationships in PostgreSQL; every statement names its world (migration 0004)."""

import json
import uuid
from typing import Any

from knowledge_base.adapters.database import QUERIES, Database
from knowledge_base.domain.concepts import Concept, NewConcept, NewRelationship, Relationship
from knowledge_base.ports import RequestKey

__all__ = ["PostgresConcepts"]


class PostgresConcepts:
    """The port `ConceptStore` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put_concept(
        self, world_id: uuid.UUID, key: RequestKey, concept_id: uuid.UUID, concept: NewConcept
    ) -> Concept:
        """Records a version. Raises WorldNotFound, RequestIdReused."""
        rows = await self._database.fetch(
            QUERIES.put_concept,
            world_id,
            key.request_id,
            key.fingerprint,
            key.now,
            concept_id,
            concept.name,
            concept.kind,
            concept.description,
            json.dumps(dict(concept.attributes)),
        )
        return _concept(rows[0])

    async def get_concept(
        self, world_id: uuid.UUID, name: str, version: int | None
    ) -> Concept | None:
        """Returns a concept as the world sees it, None when there is none.

        Raises WorldNotFound.
        """
        rows = await self._database.fetch(QUERIES.get_concept, world_id, name, version)
        return _concept(rows[0]) if rows else None

    async def list_concepts(
        self, world_id: uuid.UUID, kind: str | None, after: str, limit: int
    ) -> list[Concept]:
        """Returns the concepts the world sees, by name. Raises WorldNotFound."""
        rows = await self._database.fetch(QUERIES.list_concepts, world_id, kind, after, limit)
        return [_concept(row) for row in rows]

    async def relate(
        self,
        world_id: uuid.UUID,
        key: RequestKey,
        relationship_id: uuid.UUID,
        relationship: NewRelationship,
    ) -> Relationship:
        """Records a tie. Raises WorldNotFound, ConceptNotFound, RequestIdReused."""
        rows = await self._database.fetch(
            QUERIES.relate_concepts,
            world_id,
            key.request_id,
            key.fingerprint,
            key.now,
            relationship_id,
            relationship.from_concept,
            relationship.to_concept,
            relationship.kind,
            relationship.strength,
        )
        return _relationship(rows[0])

    async def list_relationships(
        self,
        world_id: uuid.UUID,
        concept: str,
        after: tuple[int, str, str] | None,
        limit: int,
    ) -> list[Relationship]:
        """Returns a concept's ties, those from it first, after (direction, other name, kind).

        Raises WorldNotFound, ConceptNotFound.
        """
        rows = await self._database.fetch(
            QUERIES.list_relationships, world_id, concept, *(after or (None, None, None)), limit
        )
        return [_relationship(row) for row in rows]


def _concept(row: Any) -> Concept:
    return Concept(
        row["concept_id"],
        row["world_id"],
        row["name"],
        row["kind"],
        row["version"],
        row["description"],
        json.loads(row["attributes"]),
        row["record_time"],
    )


def _relationship(row: Any) -> Relationship:
    return Relationship(
        row["relationship_id"],
        row["world_id"],
        row["from_name"],
        row["to_name"],
        row["kind"],
        row["strength"],
        row["record_time"],
    )
