"""Finds what a storyteller should know and chooses from it within a budget."""

import asyncio
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from knowledge_base.domain.concepts import Concept
from knowledge_base.domain.context import (
    Context,
    ContextCandidate,
    ContextOptions,
    ContextSource,
    assemble_context,
)
from knowledge_base.domain.lore import SearchQuery, SearchResult
from knowledge_base.domain.memory import RecalledEvent, RecallQuery, StoryEvent
from knowledge_base.domain.text import check_text, normalise_name
from knowledge_base.memory import WorldMemory
from knowledge_base.ports_context import ContextConcepts, TokenCounter
from knowledge_base.search import LoreSearch

__all__ = ["BuiltContext", "ContextBuilder", "ContextRequest"]

_LONGEST_SEARCH_CHARACTERS = 2000
_LORE_LOOKED_AT = 30
_EVENTS_LOOKED_AT = 30
_CONCEPTS_LOOKED_AT = 24
# Passages further down say little about what the story is at.
_PASSAGES_THAT_NAME_CONCEPTS = 5

# Whom the caller names is told first; then what the query names; then what the passages are about.
_CHARACTER_SCORE = 1.0
_NAMED_SCORE = 0.9
_LINKED_SHARE = 0.8
# An event with somebody who is there matters so much more.
_PRESENCE_FACTOR = 1.25
# Of the latest events each one back counts so much less.
_RECENT_FACTOR = 0.9

Cited = SearchResult | StoryEvent | Concept


@dataclass(frozen=True, slots=True)
class ContextRequest:
    """What a context is for."""

    world_id: uuid.UUID
    query: str
    scene: str
    characters: tuple[str, ...]
    collections: tuple[str, ...]
    recent_events: int
    options: ContextOptions

    @classmethod
    def of(
        cls,
        world_id: uuid.UUID,
        query: str,
        *,
        scene: str,
        characters: Sequence[str],
        collections: Sequence[str],
        recent_events: int,
        options: ContextOptions,
    ) -> "ContextRequest":
        """Returns the request with its texts as they are stored. Raises InvalidText."""
        return cls(
            world_id,
            check_text("query", query),
            check_text("scene", scene),
            tuple(
                normalise_name(f"characters[{index}]", name)
                for index, name in enumerate(characters)
            ),
            tuple(collections),
            recent_events,
            options,
        )


@dataclass(frozen=True, slots=True)
class BuiltContext:
    """A context, what its parts cite by their keys, and by what its tokens were counted."""

    context: Context
    cited: Mapping[str, Cited]
    tokenizer: str


class ContextBuilder:
    """Builds contexts in two round trips: what the query finds, then the concepts it is about."""

    def __init__(
        self,
        search: LoreSearch,
        memory: WorldMemory,
        concepts: ContextConcepts,
        counter: TokenCounter,
    ) -> None:
        self._search = search
        self._memory = memory
        self._concepts = concepts
        self._counter = counter

    async def build(self, request: ContextRequest) -> BuiltContext:
        """Returns the context; on unchanged memory the same request gives the same bytes.

        Raises WorldNotFound, InvalidText, Unavailable.
        """
        lore, recalled, recent = await self._find(request)
        concepts = await self._find_concepts(request, lore)
        found = [
            *_lore_candidates(lore),
            *_memory_candidates(recalled, request.characters),
            *_recent_candidates(recent),
            *_concept_candidates(concepts, request, lore),
        ]
        context = await asyncio.to_thread(
            assemble_context,
            [candidate for candidate, _ in found],
            request.options,
            self._counter.count,
        )
        cited = {candidate.key: origin for candidate, origin in found}
        return BuiltContext(context, cited, self._counter.name)

    async def _find(
        self, request: ContextRequest
    ) -> tuple[Sequence[SearchResult], Sequence[RecalledEvent], Sequence[StoryEvent]]:
        about = " ".join(filter(None, [request.query, request.scene]))
        with_whom = ", ".join(request.characters)
        limits = request.options.limits
        async with asyncio.TaskGroup() as group:
            # Its events are always looked at, so that an unknown world is refused in any case.
            recalled = group.create_task(
                self._memory.recall(
                    request.world_id,
                    RecallQuery(
                        f"{about} {with_whom}".strip()[:_LONGEST_SEARCH_CHARACTERS],
                        _EVENTS_LOOKED_AT,
                    ),
                )
            )
            lore = recent = None
            if limits.get(ContextSource.LORE, 1.0) > 0:
                query = SearchQuery(
                    about[:_LONGEST_SEARCH_CHARACTERS],
                    limit=_LORE_LOOKED_AT,
                    collections=request.collections,
                )
                lore = group.create_task(self._search.search(query))
            if request.recent_events and limits.get(ContextSource.RECENT, 1.0) > 0:
                recent = group.create_task(
                    self._memory.list_events(request.world_id, request.recent_events, "")
                )
        return (
            lore.result().results if lore else (),
            recalled.result(),
            recent.result().items if recent else (),
        )

    async def _find_concepts(
        self, request: ContextRequest, lore: Sequence[SearchResult]
    ) -> Sequence[Concept]:
        if request.options.limits.get(ContextSource.CONCEPT, 1.0) <= 0:
            return ()
        linked = [name for result in _leading(lore) for name in result.concepts]
        return await self._concepts.concepts_named(
            request.world_id,
            sorted({*request.characters, *linked}),
            f"{request.query}\n{request.scene}",
            _CONCEPTS_LOOKED_AT,
        )


def _leading(lore: Sequence[SearchResult]) -> Sequence[SearchResult]:
    return lore[:_PASSAGES_THAT_NAME_CONCEPTS]


def _lore_candidates(
    results: Iterable[SearchResult],
) -> Iterator[tuple[ContextCandidate, Cited]]:
    for result in results:
        cited = result.citation
        section = " > ".join([f"{cited.collection}/{cited.path}", *cited.heading_path])
        lines = f"lines {cited.start_line}-{cited.end_line}"
        yield (
            ContextCandidate(
                ContextSource.LORE,
                # Two passages may stand on one line.
                f"lore:{cited.collection}/{cited.path}:{cited.start_line}:{result.text}",
                f"{section}, {lines}",
                " > ".join([cited.path, *cited.heading_path]) + f", {lines}",
                result.text,
                result.score,
                (cited.collection, cited.path, cited.start_line),
                result.score,
                section,
            ),
            result,
        )


def _memory_candidates(
    memories: Iterable[RecalledEvent], characters: Sequence[str]
) -> Iterator[tuple[ContextCandidate, Cited]]:
    present = {name.casefold() for name in characters}
    for memory in memories:
        there = present & {name.casefold() for name in memory.event.participants}
        score = min(1.0, memory.score * _PRESENCE_FACTOR) if there else memory.score
        yield _event(ContextSource.MEMORY, memory.event, score, memory.relevance), memory.event


def _recent_candidates(
    events: Iterable[StoryEvent],
) -> Iterator[tuple[ContextCandidate, Cited]]:
    for back, event in enumerate(events):
        yield _event(ContextSource.RECENT, event, _RECENT_FACTOR**back, None), event


def _event(
    source: ContextSource, event: StoryEvent, score: float, relevance: float | None
) -> ContextCandidate:
    who = f", {', '.join(event.participants)}" if event.participants else ""
    return ContextCandidate(
        source,
        f"event:{event.event_id}",
        str(event.event_id),
        f"{event.occur_time:%Y-%m-%d %H:%M}, {event.kind}{who}",
        event.text,
        score,
        (event.occur_time.timestamp(), event.sequence),
        relevance,
    )


def _concept_candidates(
    concepts: Iterable[Concept], request: ContextRequest, lore: Sequence[SearchResult]
) -> Iterator[tuple[ContextCandidate, Cited]]:
    linked: dict[str, float] = {}
    for result in reversed(_leading(lore)):
        linked.update(dict.fromkeys(result.concepts, result.score * _LINKED_SHARE))
    said = f"{request.query}\n{request.scene}"
    for concept in concepts:
        score = linked.get(concept.name, 0.0)
        if _names(said, concept.name):
            score = max(score, _NAMED_SCORE)
        if concept.name in request.characters:
            score = _CHARACTER_SCORE
        if score:
            yield (
                ContextCandidate(
                    ContextSource.CONCEPT,
                    f"concept:{concept.name}",
                    concept.name,
                    f"{concept.name} ({concept.kind})",
                    _described(concept),
                    score,
                    (concept.name,),
                ),
                concept,
            )


def _names(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name.casefold())}(?!\w)", text.casefold()) is not None


def _described(concept: Concept) -> str:
    facts = [f"{key}: {value}" for key, value in sorted(concept.attributes.items())]
    return "\n".join([concept.description, "; ".join(facts)] if facts else [concept.description])
