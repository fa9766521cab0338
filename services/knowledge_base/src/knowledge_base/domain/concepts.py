"""What the story knows, version by version, and how it relates."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from knowledge_base.domain.text import check_text, normalise_name

__all__ = ["Concept", "NewConcept", "NewRelationship", "Relationship"]


@dataclass(frozen=True, slots=True)
class NewConcept:
    """A version of a concept, as a caller tells it."""

    name: str
    kind: str
    description: str
    attributes: Mapping[str, str]

    @classmethod
    def of(
        cls, name: str, kind: str, description: str, attributes: Mapping[str, str]
    ) -> "NewConcept":
        """Returns the version with its texts as they are stored.

        Raises InvalidText when one cannot be stored.
        """
        return cls(
            normalise_name("name", name),
            check_text("kind", kind),
            check_text("description", description),
            {
                check_text("attributes", key): check_text(f"attributes[{key}]", value)
                for key, value in attributes.items()
            },
        )


@dataclass(frozen=True, slots=True)
class Concept:
    """A concept in one version; `version` counts from 1."""

    concept_id: uuid.UUID
    world_id: uuid.UUID
    name: str
    kind: str
    version: int
    description: str
    attributes: Mapping[str, str]
    record_time: datetime


@dataclass(frozen=True, slots=True)
class NewRelationship:
    """A directed tie between two concepts, by name; `strength` is 0..1."""

    from_concept: str
    to_concept: str
    kind: str
    strength: float

    @classmethod
    def of(
        cls, from_concept: str, to_concept: str, kind: str, strength: float | None
    ) -> "NewRelationship":
        """Returns the tie with its texts as they are stored; no strength means 1.

        Raises InvalidText when one cannot be stored.
        """
        return cls(
            normalise_name("from_concept", from_concept),
            normalise_name("to_concept", to_concept),
            check_text("kind", kind),
            1.0 if strength is None else strength,
        )


@dataclass(frozen=True, slots=True)
class Relationship:
    """A tie that is recorded, in a world or in what all worlds share."""

    relationship_id: uuid.UUID
    world_id: uuid.UUID
    from_concept: str
    to_concept: str
    kind: str
    strength: float
    record_time: datetime
