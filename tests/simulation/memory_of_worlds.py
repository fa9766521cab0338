"""The knowledge base's memory store in memory: what worlds recorded, kept by world."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from knowledge_base.domain.errors import RequestIdReused, WorldNotFound
from knowledge_base.domain.lore import RankingParameters
from knowledge_base.domain.memory import (
    NewEvent,
    RecallClues,
    RecalledEvent,
    RecallParameters,
    RecallQuery,
    StoryEvent,
)
from knowledge_base.ports import RequestKey, TextCodes, Vector

__all__ = ["PlainEmbedder", "WorldEvents"]


class PlainEmbedder:
    """An `Embedder` without a model: all texts mean the same."""

    model = "plain"
    dimensions = 1

    async def embed_query(self, text: str) -> Vector:
        """Return the one vector there is."""
        del text
        return np.ones(1, dtype=np.float32)

    async def embed_documents(self, texts: Sequence[str]) -> Vector:
        """Return it once for each text."""
        return np.ones((len(texts), 1), dtype=np.float32)


@dataclass(slots=True)
class _World:
    events: list[tuple[StoryEvent, Vector]] = field(default_factory=list)
    answers: dict[uuid.UUID, tuple[bytes, list[StoryEvent]]] = field(default_factory=dict)
    codes: dict[tuple[str, int], bytes] = field(default_factory=dict)


class WorldEvents:
    """The part of the port `MemoryStore` that records and recalls."""

    def __init__(self, worlds: Sequence[uuid.UUID]) -> None:
        self._worlds = {world_id: _World() for world_id in worlds}

    async def recorded_events(
        self, world_id: uuid.UUID, key: RequestKey
    ) -> list[StoryEvent] | None:
        """Return what this request recorded before, None when it is new."""
        answer = self._world(world_id).answers.get(key.request_id)
        if answer is None:
            return None
        if answer[0] != key.fingerprint:
            raise RequestIdReused("The request id was used for another request.")
        return answer[1]

    async def record_events(
        self,
        world_id: uuid.UUID,
        key: RequestKey,
        events: Sequence[tuple[uuid.UUID, NewEvent]],
        model: str,
        embeddings: Vector,
        *,
        codes: TextCodes | None = None,
    ) -> list[StoryEvent]:
        """Append events, or return what this request recorded before."""
        del model
        world = self._world(world_id)
        recorded = await self.recorded_events(world_id, key)
        if recorded is not None:
            return recorded
        recorded = [
            StoryEvent(
                sequence=len(world.events) + position + 1,
                event_id=event_id,
                text=event.text,
                kind=event.kind,
                participants=event.participants,
                occur_time=event.occur_time or key.now,
                record_time=key.now,
                importance=event.importance,
            )
            for position, (event_id, event) in enumerate(events)
        ]
        world.events.extend(zip(recorded, embeddings, strict=True))
        if codes is not None:
            world.codes.update(
                ((codes.reranker, event.sequence), each)
                for event, each in zip(recorded, codes.codes, strict=True)
            )
        world.answers[key.request_id] = (key.fingerprint, recorded)
        return recorded

    async def recall(
        self,
        world_id: uuid.UUID,
        query: RecallQuery,
        embedding: Vector,
        ranking: RankingParameters,
        parameters: RecallParameters,
        *,
        model: str,
        clues: RecallClues | None = None,
        reranker: str = "",
    ) -> list[RecalledEvent]:
        """Return the world's events by similarity alone, the best first."""
        del ranking, parameters, model, clues
        world = self._world(world_id)
        found = [
            RecalledEvent(
                event,
                relevance,
                relevance,
                0.0,
                cosine=relevance,
                codes=world.codes.get((reranker, event.sequence)),
            )
            for event, vector in world.events
            if (relevance := max(0.0, float(np.dot(vector, embedding)))) >= 0.0
        ]
        found.sort(key=lambda memory: (-memory.score, memory.event.sequence))
        return found[: query.limit]

    async def events_around(
        self, world_id: uuid.UUID, sequences: Sequence[int], query: RecallQuery
    ) -> list[StoryEvent]:
        """Return the events at most `query.neighbours` from those."""
        return [
            event
            for event, _ in self._world(world_id).events
            if any(0 < abs(event.sequence - other) <= query.neighbours for other in sequences)
        ]

    async def participants_named(self, world_id: uuid.UUID, words: Sequence[str]) -> list[str]:
        """Return the participants whose names hold one of the words."""
        wanted = set(words)
        events = [event for event, _ in self._world(world_id).events]
        names = {name for event in events for name in event.participants}
        return sorted(name for name in names if wanted & set(name.split()))

    async def list_events(
        self, world_id: uuid.UUID, before: tuple[datetime, int] | None, limit: int
    ) -> list[StoryEvent]:
        """Return the world's events, the latest in story time first."""
        events = [event for event, _ in self._world(world_id).events]
        events.sort(key=lambda event: (event.occur_time, event.sequence), reverse=True)
        if before is not None:
            events = [event for event in events if (event.occur_time, event.sequence) < before]
        return events[:limit]

    def _world(self, world_id: uuid.UUID) -> _World:
        world = self._worlds.get(world_id)
        if world is None:
            raise WorldNotFound("There is no such world; see ListWorlds.")
        return world
