"""A memory and a narrator for tests, which keep the promises of the real ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from gamekeeper.story_context import Citation, CitationKind, StoryContext
from gamekeeper.story_ports import AlreadyRecorded, MemoryAway, StoryEvent
from gaming.ai_router.v1 import ai_router_pb2

__all__ = ["InMemoryStoryMemory", "LorePassage", "ScriptedNarrator"]

_BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class LorePassage:
    """A passage of lore; `source` is its `path > heading > line`."""

    text: str
    source: str


@dataclass(slots=True)
class InMemoryStoryMemory:
    """Remembers in a dictionary; what shares more words with a query comes first.

    Attributes:
        lore: passages that all worlds share.
        away: while it is True every method raises MemoryAway.
        silent: while it is True no method ever answers.
    """

    lore: list[LorePassage] = field(default_factory=list)
    away: bool = False
    silent: bool = False
    events: dict[str, list[StoryEvent]] = field(default_factory=dict)
    _requests: dict[tuple[str, str], list[StoryEvent]] = field(default_factory=dict)

    async def context(
        self,
        world_id: str,
        query: str,
        *,
        characters: Sequence[str],
        token_budget: int,
        recent_events: int,
    ) -> StoryContext:
        """Returns lore and events that share words with the query, then the latest, each once."""
        await self._be_there()
        events = self.events.get(world_id, [])
        recent = events[len(events) - min(recent_events, len(events)) :]
        past = _best([event for event in events if event not in recent], query)
        found = [
            *(("L", CitationKind.LORE, each.source, each.text) for each in _best(self.lore, query)),
            *(("M", CitationKind.MEMORY, each.event_id, each.text) for each in past),
            *(("R", CitationKind.MEMORY, each.event_id, each.text) for each in recent),
        ]
        citations: list[Citation] = []
        lines: list[str] = []
        for letter, kind, source, text in found:
            label = f"{letter}{1 + sum(each.label.startswith(letter) for each in citations)}"
            line = f"[{label}] {text}"
            if _tokens([*lines, line]) <= token_budget:
                lines.append(line)
                citations.append(Citation(label=label, kind=kind, text=text, source=source))
        return StoryContext(
            text="\n".join(lines), citations=tuple(citations), tokens=_tokens(lines)
        )

    async def record(
        self, world_id: str, events: Sequence[StoryEvent], request_id: str
    ) -> Sequence[StoryEvent]:
        """Appends events, once per request id."""
        await self._be_there()
        key = (world_id, request_id)
        if key not in self._requests:
            kept = self.events.setdefault(world_id, [])
            stored = [
                replace(
                    event,
                    event_id=f"{world_id}-{len(kept) + number}",
                    occur_time=_BEGINNING + timedelta(seconds=len(kept) + number),
                )
                for number, event in enumerate(events)
            ]
            kept.extend(stored)
            self._requests[key] = stored
        known = self._requests[key]
        if [event.text for event in known] != [event.text for event in events]:
            raise AlreadyRecorded
        return known

    async def _be_there(self) -> None:
        if self.silent:
            await asyncio.Event().wait()
        if self.away:
            raise MemoryAway("the memory is away")


@dataclass(slots=True)
class ScriptedNarrator:
    """Tells the given pieces, then fails with `failure` if there is one, else ends."""

    pieces: Sequence[str] = ("The lamp ", "burns.")
    failure: Exception | None = None
    specs: list[ai_router_pb2.GenerationSpec] = field(default_factory=list)
    closed_early: int = 0

    async def generate(
        self, request_id: str, spec: ai_router_pb2.GenerationSpec, timeout_seconds: float
    ) -> AsyncGenerator[ai_router_pb2.GenerateResponse, None]:
        """Yields the route, the pieces, and the end."""
        self.specs.append(spec)
        done = False
        try:
            route = ai_router_pb2.RouteTaken(request_id=request_id, server_id="scripted")
            yield ai_router_pb2.GenerateResponse(route=route)
            for piece in self.pieces:
                yield ai_router_pb2.GenerateResponse(delta=ai_router_pb2.TextDelta(text=piece))
            done = True
            if self.failure is not None:
                raise self.failure
            end = ai_router_pb2.GenerationEnd(output_tokens=len(self.pieces))
            yield ai_router_pb2.GenerateResponse(end=end)
        finally:
            self.closed_early += not done


Found = TypeVar("Found", StoryEvent, LorePassage)


def _best(offered: Sequence[Found], query: str) -> list[Found]:
    found = [each for each in offered if _shared(each.text, query)]
    return sorted(found, key=lambda each: -_shared(each.text, query))


def _tokens(lines: Sequence[str]) -> int:
    # Four bytes a token: the usual rule of thumb for byte-pair vocabularies.
    return -(-len("\n".join(lines).encode()) // 4)


def _shared(text: str, query: str) -> int:
    return len(set(text.casefold().split()) & set(query.casefold().split()))
