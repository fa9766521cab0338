"""Questions to the graph of concepts and relationships, and their answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import prod

from knowledge_base.domain.concepts import Relationship
from knowledge_base.domain.story_time import AsOf

__all__ = [
    "FoundPath",
    "PathQuery",
    "Surroundings",
    "TieFilter",
    "TraversalDirection",
    "TraversalQuery",
    "names_along",
    "within_size",
]


class TraversalDirection(StrEnum):
    """Which way relationships are followed, as the database's functions call it."""

    OUT = "out"
    IN = "in"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class TieFilter:
    """Which relationships are followed; no kinds means any, `minimum_strength` is 0..1."""

    kinds: tuple[str, ...]
    minimum_strength: float
    direction: TraversalDirection
    as_of: AsOf


@dataclass(frozen=True, slots=True)
class TraversalQuery:
    """What is around a concept, within bounds."""

    start_concept: str
    maximum_depth: int
    ties: TieFilter
    maximum_concepts: int
    maximum_relationships: int


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The concepts reached, as (name, depth), and the relationships followed, nearest first."""

    concepts: tuple[tuple[str, int], ...]
    relationships: tuple[Relationship, ...]
    truncated: bool


@dataclass(frozen=True, slots=True)
class PathQuery:
    """The best path between two concepts, within bounds."""

    from_concept: str
    to_concept: str
    maximum_depth: int
    ties: TieFilter
    shortest: bool
    maximum_width: int


@dataclass(frozen=True, slots=True)
class FoundPath:
    """The relationships of the best path in order; `found` without any where both ends are one."""

    found: bool
    relationships: tuple[Relationship, ...]
    truncated: bool

    @property
    def strength(self) -> float:
        """The product of the relationships' strengths; 0 where there is no path."""
        return prod(tie.strength for tie in self.relationships) if self.found else 0.0


def names_along(start: str, relationships: Sequence[Relationship]) -> list[str]:
    """Returns the names of the concepts on a path, from its start to its end."""
    names = [start]
    for tie in relationships:
        names.append(tie.to_concept if tie.from_concept == names[-1] else tie.from_concept)
    return names


def within_size(surroundings: Surroundings, maximum_bytes: int) -> Surroundings:
    """Returns as much of an answer as fits, the nearest concepts and relationships first.

    Sizes are estimated from the texts' UTF-8 and a fixed share for the rest of a message.
    """
    left = maximum_bytes
    concepts: list[tuple[str, int]] = []
    for name, depth in surroundings.concepts:
        left -= len(name.encode()) + _CONCEPT_OVERHEAD_BYTES
        if left < 0:
            return Surroundings(tuple(concepts), (), truncated=True)
        concepts.append((name, depth))
    kept: list[Relationship] = []
    for tie in surroundings.relationships:
        texts = (tie.from_concept, tie.to_concept, tie.kind, tie.player_id)
        left -= sum(len(text.encode()) for text in texts) + _TIE_OVERHEAD_BYTES
        if left < 0:
            return Surroundings(tuple(concepts), tuple(kept), truncated=True)
        kept.append(tie)
    return surroundings


_CONCEPT_OVERHEAD_BYTES = 12
# Two ids as text (36 each), a strength, three moments and the fields' tags.
_TIE_OVERHEAD_BYTES = 150
