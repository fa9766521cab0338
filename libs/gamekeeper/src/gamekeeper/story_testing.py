"""A memory and a narrator for tests, which keep the promises of the real ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from gamekeeper.story_ports import AlreadyRecorded, LorePassage, MemoryAway, StoryEvent
from gaming.ai_router.v1 import ai_router_pb2

__all__ = ["InMemoryStoryMemory", "ScriptedNarrator"]

_BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


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

    async def recall(self, world_id: str, query: str, limit: int) -> Sequence[StoryEvent]:
        """Returns the world's events that share words with the query, best first."""
        await self._be_there()
        events = [event for event in self.events.get(world_id, ()) if _shared(event.text, query)]
        return sorted(events, key=lambda event: -_shared(event.text, query))[:limit]

    async def recent(self, world_id: str, limit: int) -> Sequence[StoryEvent]:
        """Returns the world's latest events, newest first."""
        await self._be_there()
        return self.events.get(world_id, [])[::-1][:limit]

    async def search(self, query: str, limit: int) -> Sequence[LorePassage]:
        """Returns the passages that share words with the query, best first."""
        await self._be_there()
        found = [passage for passage in self.lore if _shared(passage.text, query)]
        return sorted(found, key=lambda passage: -_shared(passage.text, query))[:limit]

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


def _shared(text: str, query: str) -> int:
    return len(set(text.casefold().split()) & set(query.casefold().split()))
