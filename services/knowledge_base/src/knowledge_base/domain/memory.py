"""Worlds, what happened in them, and what they remember first."""

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from knowledge_base.domain.query_clues import NamedTimes
from knowledge_base.domain.text import check_text, check_texts, normalise_name
from servicekit.errors import InvalidRequest

__all__ = [
    "DEFAULT_IMPORTANCE",
    "NewEvent",
    "RecallClues",
    "RecallParameters",
    "RecallQuery",
    "RecalledEvent",
    "StoryEvent",
    "World",
    "with_neighbours",
]

DEFAULT_IMPORTANCE = 0.5
_DEFAULT_KIND = "event"

# Park et al. 2023, "Generative Agents", section 4.1: recency decays by 0.995 an hour.
_HOURLY_DECAY = 0.995


@dataclass(frozen=True, slots=True)
class World:
    """A world with its own memory; it is read-only since `archive_time`, None: it is not."""

    world_id: uuid.UUID
    name: str
    description: str
    create_time: datetime
    event_count: int
    archive_time: datetime | None = None


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


class StoryEvent(NamedTuple):
    """An event that a world remembers; `sequence` counts the world's events from 1.

    A named tuple, since each recall makes ten, and a frozen dataclass takes four times as long.
    """

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
    `participants` took part in them. With `as_of_time` nothing later in story time counts and
    recency is measured from it; with `as_of_record_time` nothing that was recorded later counts.

    Attributes:
        weights: of relevance, recency and importance, in place of the settings'; see
            `RecallParameters`.
        neighbours: how many events before and after each one come with it.
        sure: how many of the first are known to be the first of the world; the others are the best
            of what was looked at for that. None: all.
    """

    text: str
    limit: int = 10
    start_time: datetime | None = None
    end_time: datetime | None = None
    kinds: tuple[str, ...] = ()
    participants: tuple[str, ...] = ()
    as_of_time: datetime | None = None
    as_of_record_time: datetime | None = None
    weights: tuple[float, float, float] | None = None
    neighbours: int = 0
    sure: int | None = None

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
        as_of_time: datetime | None = None,
        as_of_record_time: datetime | None = None,
        weights: tuple[float, float, float] | None = None,
        neighbours: int = 0,
    ) -> "RecallQuery":
        """Returns the query with texts as they are stored.

        Raises InvalidText when one cannot be stored, InvalidRequest when all weights are 0.
        """
        if weights is not None and not any(weights):
            raise InvalidRequest("weights must not all be 0; leave them out for the defaults.")
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
            as_of_time,
            as_of_record_time,
            weights,
            neighbours,
        )


@dataclass(frozen=True, slots=True)
class RecallClues:
    """What a query names: see `query_clues`.

    Attributes:
        text: what is left of it to look for.
        words: the same with other forms of its words, which are looked for as well; empty: the
            text's own.
    """

    text: str
    participants: tuple[str, ...] = ()
    times: NamedTimes = field(default_factory=NamedTimes)
    words: str = ""


class RecalledEvent(NamedTuple):
    """A memory with what speaks for it; all scores lie in 0..1 but the cosine, -1..1.

    Attributes:
        before, after: its neighbours in the order of recording, where they were asked for.
        reranker_score: what the reranker gave it; None: none took part, or nothing is kept of it.
        codes: what the reranker keeps of it, where that was asked for.
    """

    event: StoryEvent
    score: float
    relevance: float
    recency: float
    cosine: float = 0.0
    keyword_share: float = 0.0
    before: tuple[StoryEvent, ...] = ()
    after: tuple[StoryEvent, ...] = ()
    reranker_score: float | None = None
    codes: bytes | None = None


def with_neighbours(
    recalled: Sequence[RecalledEvent], around: Sequence[StoryEvent], steps: int
) -> list[RecalledEvent]:
    """Returns the memories with the events of `around` that stand at most `steps` from each."""
    by_sequence = {event.sequence: event for event in around}

    def at(sequences: range) -> tuple[StoryEvent, ...]:
        return tuple(by_sequence[number] for number in sequences if number in by_sequence)

    return [
        item._replace(
            before=at(range(item.event.sequence - steps, item.event.sequence)),
            after=at(range(item.event.sequence + 1, item.event.sequence + steps + 1)),
        )
        for item in recalled
    ]


@dataclass(frozen=True, slots=True)
class RecallParameters:
    """How relevance, recency and importance are weighed, and what makes an event relevant.

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
        k1: saturation of term frequency in BM25F; small, since in short texts one mention says it.
        before_weight, second_before_weight, after_weight: how much a word counts that stands in
            the event before, the one before that, or the one after: an answer shares few words
            with the question, the question that it answers does.
        participant_boost: added to relevance for the first participant that the query names.
        time_boost: added for an event in a time that the query names.
        question_penalty: taken off for an event that ends as a question, since it seldom holds
            what is asked.
        reranker_weight: how much of relevance the reranker's score takes over from the cosine,
            among the first memories; their relevance is then the former one
            + reranker_weight * (reranker's score - cosine).
        told_time_boost: added among the first memories for one that tells a time, when the query
            asks for one; see `told_times`.

    BM25F is that of Robertson, Zaragoza & Taylor 2004, "Simple BM25 Extension to Multiple Weighted
    Fields", without normalisation by length. The values were chosen on three long dialogues; see
    docs/retrieval.md for what each is worth.
    """

    relevance_weight: float = 0.9
    recency_weight: float = 0.05
    importance_weight: float = 0.05
    half_life_hours: float = math.log(0.5) / math.log(_HOURLY_DECAY)
    k1: float = 0.5
    before_weight: float = 0.5
    second_before_weight: float = 0.2
    after_weight: float = 0.2
    participant_boost: float = 0.1
    time_boost: float = 0.1
    question_penalty: float = 0.03
    reranker_weight: float = 0.3
    told_time_boost: float = 0.05

    @property
    def normalised_weights(self) -> tuple[float, float, float]:
        """The weights of relevance, recency and importance, with sum 1."""
        total = self.relevance_weight + self.recency_weight + self.importance_weight
        return (
            self.relevance_weight / total,
            self.recency_weight / total,
            self.importance_weight / total,
        )
