"""Concepts and relationships in PostgreSQL; every statement names its world (from 0020 on)."""

import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from knowledge_base.adapters.database import Database
from knowledge_base.domain.concepts import (
    Concept,
    ConceptVersion,
    NewConcept,
    NewRelationship,
    Relationship,
)
from knowledge_base.domain.story_time import AsOf, BelievedPeriod, Layer, Period
from knowledge_base.ports import RequestKey
from servicekit.postgres import load_queries

__all__ = ["CONCEPT_QUERIES", "PostgresConcepts", "concept_of", "relationship_of"]

CONCEPT_QUERIES = load_queries("knowledge_base", "concept_queries.sql")


class PostgresConcepts:
    """The port `ConceptStore` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put_concept(
        self, layer: Layer, key: RequestKey, concept_id: uuid.UUID, concept: NewConcept
    ) -> Concept:
        """Records a version. Raises WorldNotFound, RequestIdReused."""
        rows = await self._database.fetch(
            CONCEPT_QUERIES.put_concept,
            layer.world_id,
            layer.player_id,
            key.request_id,
            key.fingerprint,
            key.now,
            concept_id,
            concept.name,
            concept.kind,
            concept.description,
            json.dumps(dict(concept.attributes)),
            concept.source,
            concept.period.valid_from,
            concept.period.valid_until,
        )
        return concept_of(rows[0])

    async def get_concept(self, layer: Layer, name: str, as_of: AsOf) -> Concept | None:
        """Returns a concept as seen from a layer. Raises WorldNotFound."""
        rows = await self._database.fetch(
            CONCEPT_QUERIES.get_concept_at,
            layer.world_id,
            layer.player_id,
            name,
            as_of.valid,
            as_of.recorded,
        )
        return concept_of(rows[0]) if rows else None

    async def get_concepts(self, layer: Layer, names: Sequence[str], as_of: AsOf) -> list[Concept]:
        """Returns those of these concepts that a layer sees. Raises WorldNotFound."""
        rows = await self._database.fetch(
            CONCEPT_QUERIES.get_concepts_at,
            layer.world_id,
            layer.player_id,
            list(names),
            as_of.valid,
            as_of.recorded,
        )
        return [concept_of(row) for row in rows]

    async def get_concept_version(self, layer: Layer, name: str, version: int) -> Concept | None:
        """Returns a version of the narrowest layer's concept. Raises WorldNotFound."""
        rows = await self._database.fetch(
            CONCEPT_QUERIES.get_concept_version, layer.world_id, layer.player_id, name, version
        )
        return concept_of(rows[0]) if rows else None

    async def list_concept_versions(
        self, layer: Layer, name: str, before: int | None, limit: int
    ) -> list[ConceptVersion]:
        """Returns the versions of the narrowest layer's concept. Raises WorldNotFound."""
        rows = await self._database.fetch(
            CONCEPT_QUERIES.list_concept_versions,
            layer.world_id,
            layer.player_id,
            name,
            before,
            limit,
        )
        return [
            ConceptVersion(concept_of(row), tuple(map(_believed, json.loads(row["periods"]))))
            for row in rows
        ]

    async def list_concepts(
        self, layer: Layer, kind: str | None, as_of: AsOf, after: str, limit: int
    ) -> list[Concept]:
        """Returns the concepts seen from a layer, by name. Raises WorldNotFound."""
        rows = await self._database.fetch(
            CONCEPT_QUERIES.list_concepts,
            layer.world_id,
            layer.player_id,
            kind,
            as_of.valid,
            as_of.recorded,
            after,
            limit,
        )
        return [concept_of(row) for row in rows]

    async def relate(
        self,
        layer: Layer,
        key: RequestKey,
        relationship_id: uuid.UUID,
        relationship: NewRelationship,
    ) -> Relationship:
        """Records a tie. Raises WorldNotFound, ConceptNotFound, RequestIdReused."""
        rows = await self._database.fetch(
            CONCEPT_QUERIES.relate_concepts,
            layer.world_id,
            layer.player_id,
            key.request_id,
            key.fingerprint,
            key.now,
            relationship_id,
            relationship.from_concept,
            relationship.to_concept,
            relationship.kind,
            relationship.strength,
            relationship.period.valid_from,
            relationship.period.valid_until,
        )
        return relationship_of(rows[0])

    async def end_relationship(
        self,
        layer: Layer,
        key: RequestKey,
        *,
        from_concept: str,
        to_concept: str,
        kind: str,
        valid_until: datetime | None,
    ) -> list[Relationship]:
        """Ends a tie. Raises WorldNotFound, RelationshipNotFound, RequestIdReused."""
        rows = await self._database.fetch(
            CONCEPT_QUERIES.end_relationship,
            layer.world_id,
            layer.player_id,
            key.request_id,
            key.fingerprint,
            key.now,
            from_concept,
            to_concept,
            kind,
            valid_until,
        )
        return [relationship_of(row) for row in rows]

    async def list_relationships(
        self,
        layer: Layer,
        concept: str,
        as_of: AsOf,
        after: tuple[int, str, str] | None,
        limit: int,
    ) -> list[Relationship]:
        """Returns a concept's ties, those from it first. Raises WorldNotFound, ConceptNotFound."""
        rows = await self._database.fetch(
            CONCEPT_QUERIES.list_relationships,
            layer.world_id,
            layer.player_id,
            concept,
            as_of.valid,
            as_of.recorded,
            *(after or (None, None, None)),
            limit,
        )
        return [relationship_of(row) for row in rows]


def relationship_of(row: Any) -> Relationship:
    """Returns the tie of a row with the columns of the type `tie_row`."""
    return Relationship(
        row["relationship_id"],
        row["world_id"],
        row["from_name"],
        row["to_name"],
        row["kind"],
        row["strength"],
        row["record_time"],
        row["player_id"],
        Period(row["valid_from"], row["valid_until"]),
    )


def concept_of(row: Any) -> Concept:
    """Returns the concept of a `layered_concept_row`."""
    return Concept(
        row["concept_id"],
        row["world_id"],
        row["name"],
        row["kind"],
        row["version"],
        row["description"],
        json.loads(row["attributes"]),
        row["record_time"],
        row["player_id"],
        row["source"],
        Period(row["valid_from"], row["valid_until"]),
    )


def _believed(period: Mapping[str, str | None]) -> BelievedPeriod:
    moments = {name: text and datetime.fromisoformat(text) for name, text in period.items()}
    record_time = moments["record_time"]
    if not record_time:
        raise AssertionError("a period has no record time")  # the column is NOT NULL
    return BelievedPeriod(
        Period(moments["valid_from"] or None, moments["valid_until"] or None),
        record_time,
        moments["superseded_time"] or None,
    )
