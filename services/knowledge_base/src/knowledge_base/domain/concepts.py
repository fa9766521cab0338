"""What the story knows, version by version, and how it relates."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from knowledge_base.domain.story_time import ALWAYS, BelievedPeriod, Period
from knowledge_base.domain.text import SHARED_WORLD, check_text, normalise_name

__all__ = [
    "Concept",
    "ConceptVersion",
    "FieldChange",
    "NewConcept",
    "NewRelationship",
    "Relationship",
    "changes_between",
]


@dataclass(frozen=True, slots=True)
class NewConcept:
    """A version of a concept, as a caller tells it."""

    name: str
    kind: str
    description: str
    attributes: Mapping[str, str]
    period: Period = ALWAYS
    source: str = ""

    @classmethod
    def of(
        cls,
        name: str,
        kind: str,
        description: str,
        attributes: Mapping[str, str],
        *,
        period: Period = ALWAYS,
        source: str = "",
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
            period,
            check_text("source", source),
        )


@dataclass(frozen=True, slots=True)
class Concept:
    """A concept in one version; `version` counts from 1.

    `period` is when it holds in the story as of the moments asked for, or, of a version that was
    asked for by its number, as its writer said.
    """

    concept_id: uuid.UUID
    world_id: uuid.UUID
    name: str
    kind: str
    version: int
    description: str
    attributes: Mapping[str, str]
    record_time: datetime
    player_id: str = ""
    source: str = ""
    period: Period = ALWAYS


@dataclass(frozen=True, slots=True)
class ConceptVersion:
    """A version as it was recorded, and the periods in which it was believed to hold."""

    concept: Concept
    periods: tuple[BelievedPeriod, ...]


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A field in which two states differ; None where one has no value."""

    field: str
    before: str | None
    after: str | None


def changes_between(before: Concept, after: Concept) -> list[FieldChange]:
    """Returns the fields in which two states of a concept differ, attributes last and by name."""
    first, second = _fields(before), _fields(after)
    names = [*first, *(name for name in second if name not in first)]
    plain = [name for name in names if not name.startswith("attributes[")]
    attributes = sorted(name for name in names if name.startswith("attributes["))
    return [
        FieldChange(name, first.get(name), second.get(name))
        for name in (*plain, *attributes)
        if first.get(name) != second.get(name)
    ]


def _fields(concept: Concept) -> dict[str, str | None]:
    if concept.player_id:
        layer = "player"
    else:
        layer = "shared" if concept.world_id == SHARED_WORLD else "world"
    return {
        "layer": layer,
        "kind": concept.kind,
        "description": concept.description,
        "source": concept.source or None,
        "valid_from": _moment(concept.period.valid_from),
        "valid_until": _moment(concept.period.valid_until),
        **{f"attributes[{name}]": value for name, value in concept.attributes.items()},
    }


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class NewRelationship:
    """A directed tie between two concepts, by name; `strength` is 0..1."""

    from_concept: str
    to_concept: str
    kind: str
    strength: float
    period: Period = ALWAYS

    @classmethod
    def of(
        cls,
        from_concept: str,
        to_concept: str,
        kind: str,
        strength: float | None,
        *,
        period: Period = ALWAYS,
    ) -> "NewRelationship":
        """Returns the tie with its texts as they are stored; no strength means 1.

        Raises InvalidText when one cannot be stored.
        """
        return cls(
            normalise_name("from_concept", from_concept),
            normalise_name("to_concept", to_concept),
            check_text("kind", kind),
            1.0 if strength is None else strength,
            period,
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
    player_id: str = ""
    period: Period = ALWAYS
