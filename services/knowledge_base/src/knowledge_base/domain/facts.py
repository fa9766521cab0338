"""Facts of the story, and contradictions in what is said."""

import uuid
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from knowledge_base.domain.story_time import AsOf, Period
from knowledge_base.domain.text import check_text, normalise_name

__all__ = [
    "Contradiction",
    "ContradictionKind",
    "ContradictionSide",
    "Fact",
    "FactQuery",
    "KnowledgeLayer",
    "NewFact",
]


@dataclass(frozen=True, slots=True)
class NewFact:
    """A fact as a caller tells it; `object` is a concept's name or a text."""

    subject: str
    predicate: str
    object: str
    object_is_concept: bool
    single_valued: bool
    period: Period
    source: str
    source_event_id: uuid.UUID | None

    @classmethod
    def of(
        cls,
        subject: str,
        predicate: str,
        told_object: str,
        *,
        object_is_concept: bool,
        single_valued: bool,
        period: Period,
        source: str,
        source_event_id: uuid.UUID | None,
        path: str,
    ) -> "NewFact":
        """Returns the fact with its texts as they are stored; `path` goes before a field's name.

        Raises InvalidText when one cannot be stored.
        """
        if object_is_concept:
            stored = normalise_name(f"{path}object_concept", told_object)
        else:
            stored = check_text(f"{path}text", told_object)
        return cls(
            normalise_name(f"{path}subject", subject),
            normalise_name(f"{path}predicate", predicate),
            stored,
            object_is_concept,
            single_valued,
            period,
            check_text(f"{path}source", source),
            source_event_id,
        )


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact in one period; `superseded_time` is None while it is believed.

    `fact_id` is that of its subject, predicate and object in one layer, through all periods.
    """

    fact_id: uuid.UUID
    world_id: uuid.UUID
    player_id: str
    subject: str
    predicate: str
    object: str
    object_is_concept: bool
    single_valued: bool
    period: Period
    source: str
    source_event_id: uuid.UUID | None
    record_time: datetime
    superseded_time: datetime | None


@dataclass(frozen=True, slots=True)
class FactQuery:
    """Which facts are wanted: of a subject, with a predicate (empty: any), as of two moments.

    With a moment of the story those that hold then, else those of all story time.
    """

    subject: str
    predicate: str
    as_of: AsOf

    @classmethod
    def of(cls, subject: str, predicate: str, as_of: AsOf) -> "FactQuery":
        """Returns the query with its texts as they are stored. Raises InvalidText."""
        return cls(
            normalise_name("subject", subject) if subject else "",
            normalise_name("predicate", predicate) if predicate else "",
            as_of,
        )


class ContradictionKind(StrEnum):
    """What contradicts what, as stored."""

    FACT = "fact"
    ATTRIBUTE = "attribute"
    CANON = "canon"


class KnowledgeLayer(StrEnum):
    """Where something is said, as stored."""

    SHARED = "shared"
    WORLD = "world"
    PLAYER = "player"


@dataclass(frozen=True, slots=True)
class ContradictionSide:
    """What one side says; `id` is a fact's or a concept's, `version` the concept's."""

    layer: KnowledgeLayer
    id: uuid.UUID
    version: int | None
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Two things that cannot both be so in `period`; `resolve_time` is None while it is open."""

    contradiction_id: uuid.UUID
    world_id: uuid.UUID
    player_id: str
    kind: ContradictionKind
    subject: str
    predicate: str
    earlier: ContradictionSide
    later: ContradictionSide
    period: Period
    record_time: datetime
    resolve_time: datetime | None
    resolution: str
