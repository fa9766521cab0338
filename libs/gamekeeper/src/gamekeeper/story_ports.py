"""What the storyteller needs: a memory and a narrator; and what both speak of."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from gamekeeper.story_context import StoryContext
from gaming.ai_router.v1 import ai_router_pb2

__all__ = [
    "AlreadyRecorded",
    "MemoryAway",
    "Narrator",
    "StoryEvent",
    "StoryMemory",
]


class MemoryAway(Exception):
    """The memory is unreachable, too slow or too busy; the story can go on without it."""


class AlreadyRecorded(Exception):
    """Other events were recorded under this request id before; those stand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoryEvent:
    """Something that happened in a world; `event_id` and `occur_time` are the memory's to give."""

    text: str
    kind: str = "event"
    participants: tuple[str, ...] = ()
    event_id: str = ""
    occur_time: datetime | None = None


class StoryMemory(Protocol):
    """Remembers what happened in worlds, and the lore that all worlds share.

    Every method raises MemoryAway when the memory cannot be had, and CallFailed when it refuses.
    """

    async def context(
        self,
        world_id: str,
        query: str,
        *,
        characters: Sequence[str],
        token_budget: int,
        recent_events: int,
    ) -> StoryContext:
        """Returns what a narrator should know of the world and its lore, each thing once.

        Args:
            world_id: names the world.
            query: what the player does or says.
            characters: who is there; what they took part in matters more.
            token_budget: most tokens of the text.
            recent_events: how many of the latest events are looked at, whatever they are about.
        """
        ...

    async def record(
        self, world_id: str, events: Sequence[StoryEvent], request_id: str
    ) -> Sequence[StoryEvent]:
        """Appends events and returns them as they are remembered; a repeat appends nothing.

        Raises:
            AlreadyRecorded: the request id stands for other events.
        """
        ...


class Narrator(Protocol):
    """Turns a prompt into text."""

    def generate(
        self, request_id: str, spec: ai_router_pb2.GenerationSpec, timeout_seconds: float
    ) -> AsyncGenerator[ai_router_pb2.GenerateResponse, None]:
        """Yields the route, the text piece by piece, and the end.

        Raises:
            CallFailed: the router refuses, or the answer broke off.
        """
        ...
