"""What the knowledge base needs from outside to keep concepts, facts and relationships.

Everything here belongs to a `Layer` and is seen from one: what a narrower layer says hides what a
wider one says. Every method raises Unavailable when the store is away, and WorldNotFound; those
with a `RequestKey` raise RequestIdReused and give a repeated request the answer of its first time.
"""

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from knowledge_base.domain.concepts import (
    Concept,
    ConceptVersion,
    NewConcept,
    NewRelationship,
    Relationship,
)
from knowledge_base.domain.facts import Contradiction, Fact, FactQuery, NewFact
from knowledge_base.domain.graph import FoundPath, PathQuery, Surroundings, TraversalQuery
from knowledge_base.domain.story_time import AsOf, Layer
from knowledge_base.ports import RequestKey

__all__ = ["ConceptStore", "FactStore", "GraphStore"]


class ConceptStore(Protocol):
    """Keeps concepts and relationships."""

    async def put_concept(
        self, layer: Layer, key: RequestKey, concept_id: uuid.UUID, concept: NewConcept
    ) -> Concept:
        """Records a version, which supersedes what the layer says of its story time."""
        ...

    async def get_concept(self, layer: Layer, name: str, as_of: AsOf) -> Concept | None:
        """Returns a concept as seen from a layer, None when it sees none then."""
        ...

    async def get_concepts(self, layer: Layer, names: Sequence[str], as_of: AsOf) -> list[Concept]:
        """Returns those of these concepts that a layer sees then, in one round trip."""
        ...

    async def get_concept_version(self, layer: Layer, name: str, version: int) -> Concept | None:
        """Returns a version from the narrowest layer that has the concept, None without one."""
        ...

    async def list_concept_versions(
        self, layer: Layer, name: str, before: int | None, limit: int
    ) -> list[ConceptVersion]:
        """Returns the versions of the narrowest layer that has the concept, the newest first."""
        ...

    async def list_concepts(
        self, layer: Layer, kind: str | None, as_of: AsOf, after: str, limit: int
    ) -> list[Concept]:
        """Returns the concepts seen from a layer, by name."""
        ...

    async def relate(
        self,
        layer: Layer,
        key: RequestKey,
        relationship_id: uuid.UUID,
        relationship: NewRelationship,
    ) -> Relationship:
        """Records a tie, which supersedes what the layer says of its story time.

        Raises ConceptNotFound.
        """
        ...

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
        """Ends a tie of this very layer; returns what remains. Raises RelationshipNotFound."""
        ...

    async def list_relationships(
        self,
        layer: Layer,
        concept: str,
        as_of: AsOf,
        after: tuple[int, str, str] | None,
        limit: int,
    ) -> list[Relationship]:
        """Returns a concept's ties, those from it first, after (direction, other name, kind).

        Raises ConceptNotFound.
        """
        ...


class FactStore(Protocol):
    """Keeps facts and contradictions."""

    async def assert_facts(
        self, layer: Layer, key: RequestKey, facts: Sequence[tuple[uuid.UUID, NewFact]]
    ) -> list[Fact]:
        """Records facts, all or none; the ids are for those that are new.

        Raises ConceptNotFound, EventNotFound.
        """
        ...

    async def list_facts(
        self,
        layer: Layer,
        query: FactQuery,
        after: tuple[str, str, datetime | None, uuid.UUID] | None,
        limit: int,
    ) -> list[Fact]:
        """Returns facts after (subject, predicate, valid_from, id); None is since ever."""
        ...

    async def retract_fact(
        self, layer: Layer, key: RequestKey, fact_id: uuid.UUID, valid_until: datetime | None
    ) -> list[Fact]:
        """Ends a fact of this very layer; returns what remains of it. Raises FactNotFound."""
        ...

    async def list_contradictions(
        self,
        layer: Layer,
        is_open: bool | None,
        subject: str | None,
        before: tuple[datetime, uuid.UUID] | None,
        limit: int,
    ) -> list[Contradiction]:
        """Returns contradictions, the newest first, before (record time, id)."""
        ...

    async def resolve_contradiction(
        self, layer: Layer, key: RequestKey, contradiction_id: uuid.UUID, resolution: str
    ) -> Contradiction:
        """Marks a contradiction as resolved. Raises ContradictionNotFound."""
        ...


class GraphStore(Protocol):
    """Finds ways through the graph of relationships, each in one round trip."""

    async def traverse(self, layer: Layer, query: TraversalQuery) -> Surroundings:
        """Returns what is around a concept. Raises ConceptNotFound."""
        ...

    async def find_path(self, layer: Layer, query: PathQuery) -> FoundPath:
        """Returns the best path between two concepts. Raises ConceptNotFound."""
        ...
