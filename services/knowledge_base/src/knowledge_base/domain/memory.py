"""Worlds, what happened in them, and what they remember first."""

import math
import uuid
from dataclasses import dataclass
from datetime import datetime

from knowledge_base.domain.text import check_text, check_texts, normalise_name

__all__ = [
    "DEFAULT_IMPORTANCE",
    "NewEvent",
    "RecallParameters",
    "RecallQuery",
    "RecalledEvent",
    "StoryEvent",
    "World",
]

DEFAULT_IMPORTANCE = 0.5
_DEFAULT_KIND = "event"

# Park et al. 2023, "Generative Agents", section 4.1: recency decays by 0.995 an hour.
_HOURLY_DECAY = 0.995


@dataclass(frozen=True, slots=True)
class World:
    """A world with its own memory."""

    world_id: uuid.UUID
    name: str
    description: str
    create_time: datetime
    event_count: int


@dataclass(frozen=True, slots=True)
class NewEvent:
    """Something that happened, as a caller tells it; see `of` for what is left out."""

    text: str
    kind: str
    participants: tuple[str, ...]
    occur_time: datetime | None
    importance: float

    @classmethod
    def of(
        cls,
        text: str,
        *,
        kind: str = "",
        participants: tuple[str, ...] = (),
        occur_time: datetime | None = None,
        importance: float | None = None,
        field: str = "event",
    ) -> "NewEvent":
        """Returns the event with its defaults: kind `event`, importance 0.5.

        Raises InvalidText when a text cannot be stored, naming it below `field`.
        """
        return cls(
            check_text(f"{field}.text", text),
            check_text(f"{field}.kind", kind) or _DEFAULT_KIND,
            tuple(
                normalise_name(f"{field}.participants[{index}]", name)
                for index, name in enumerate(participants)
            ),
            occur_time,
            DEFAULT_IMPORTANCE if importance is None else importance,
        )

    @property
    def search_text(self) -> str:
        """What is embedded and indexed: who took part, then what happened."""
        names = ", ".join(name for name in self.participants if name not in self.text)
        return f"{names}: {self.text}" if names else self.text


@dataclass(frozen=True, slots=True)
class StoryEvent:
    """An event that a world remembers; `sequence` counts the world's events from 1."""

    sequence: int
    event_id: uuid.UUID
    text: str
    kind: str
    participants: tuple[str, ...]
    occur_time: datetime
    record_time: datetime
    importance: float


@dataclass(frozen=True, slots=True)
class RecallQuery:
    """What is to be remembered; empty filters let everything through.

    Events count from `start_time` on and before `end_time`, are of one of `kinds`, and all of
    `participants` took part in them.
    """

    text: str
    limit: int = 10
    start_time: datetime | None = None
    end_time: datetime | None = None
    kinds: tuple[str, ...] = ()
    participants: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        text: str,
        *,
        limit: int,
        start_time: datetime | None,
        end_time: datetime | None,
        kinds: tuple[str, ...],
        participants: tuple[str, ...],
    ) -> "RecallQuery":
        """Returns the query with texts as they are stored.

        Raises InvalidText when one cannot be stored.
        """
        return cls(
            check_text("query", text),
            limit,
            start_time,
            end_time,
            check_texts("kinds", kinds),
            tuple(
                normalise_name(f"participants[{index}]", name)
                for index, name in enumerate(participants)
            ),
        )


@dataclass(frozen=True, slots=True)
class RecalledEvent:
    """A memory with what speaks for it; all scores lie in 0..1."""

    event: StoryEvent
    score: float
    relevance: float
    recency: float


@dataclass(frozen=True, slots=True)
class RecallParameters:
    """How relevance, recency and importance are weighed.

    score = (w_relevance * relevance + w_recency * recency + w_importance * importance) / sum of w
    recency = 0.5 ^ (age / half-life)

    The sum of the three and the exponential decay are those of Park et al. 2023, "Generative
    Agents" (section 4.1). Two points differ. Recency is measured in story time back from the
    world's latest event, so that a world that rests does not forget. And the three are not
    stretched to 0..1 over the memories at hand, where one outlier moves all the others: each lies
    in 0..1 by itself, and the default weights, which let relevance lead, make up for its narrower
    range.

    Attributes:
        relevance_weight, recency_weight, importance_weight: not negative, not all 0.
        half_life_hours: default ln 0.5 / ln 0.995 = 138.3 hours, their decay.
    """

    relevance_weight: float = 0.7
    recency_weight: float = 0.15
    importance_weight: float = 0.15
    half_life_hours: float = math.log(0.5) / math.log(_HOURLY_DECAY)

    @property
    def normalised_weights(self) -> tuple[float, float, float]:
        """The weights of relevance, recency and importance, with sum 1."""
        total = self.relevance_weight + self.recency_weight + self.importance_weight
        return (
            self.relevance_weight / total,
            self.recency_weight / total,
            self.importance_weight / total,
        )
