"""Worlds and their events in PostgreSQL; every statement names its world (see migration 0003)."""

import json
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from knowledge_base.adapters.database import QUERIES, Database, encode_vector
from knowledge_base.domain.errors import WorldNotFound
from knowledge_base.domain.lore import RankingParameters
from knowledge_base.domain.memory import (
    NewEvent,
    RecalledEvent,
    RecallParameters,
    RecallQuery,
    StoryEvent,
    World,
)
from knowledge_base.ports import RequestKey, Vector

__all__ = ["PostgresMemory"]

_SECONDS_PER_HOUR = 3600.0


class PostgresMemory:
    """The port `MemoryStore` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_world(
        self, key: RequestKey, world_id: uuid.UUID, name: str, description: str
    ) -> World:
        """Makes a world, or returns the one that this request made before.

        Raises WorldNameTaken, RequestIdReused.
        """
        rows = await self._database.fetch(
            QUERIES.create_world,
            key.request_id,
            key.fingerprint,
            key.now,
            world_id,
            name,
            description,
        )
        return _world(rows[0])

    async def get_world(self, world_id: uuid.UUID | None, name: str) -> World:
        """Returns a world by its id or else by its name. Raises WorldNotFound."""
        rows = await self._database.fetch(QUERIES.get_world, world_id, name)
        if not rows:
            raise WorldNotFound("There is no such world; see ListWorlds.")
        return _world(rows[0])

    async def list_worlds(self, after: str, limit: int) -> list[World]:
        """Returns worlds ordered by name, after the name given."""
        return [
            _world(row) for row in await self._database.fetch(QUERIES.list_worlds, after, limit)
        ]

    async def recorded_events(
        self, world_id: uuid.UUID, key: RequestKey
    ) -> list[StoryEvent] | None:
        """Returns what this request recorded before, None when it is new.

        Raises WorldNotFound, RequestIdReused.
        """
        rows = await self._database.fetch(
            QUERIES.recorded_events, world_id, key.request_id, key.fingerprint
        )
        return [_event(row) for row in rows] or None

    async def record_events(
        self,
        world_id: uuid.UUID,
        key: RequestKey,
        events: Sequence[tuple[uuid.UUID, NewEvent]],
        model: str,
        embeddings: Vector,
    ) -> list[StoryEvent]:
        """Appends events, all or none, or returns what this request recorded before.

        Raises WorldNotFound, RequestIdReused.
        """
        items = [
            {
                "event_id": str(event_id),
                "text": event.text,
                "kind": event.kind,
                "participants": event.participants,
                "occur_time": (event.occur_time or key.now).isoformat(),
                "importance": event.importance,
                "search_text": event.search_text,
            }
            for event_id, event in events
        ]
        rows = await self._database.fetch(
            QUERIES.record_events,
            world_id,
            key.request_id,
            key.fingerprint,
            key.now,
            json.dumps(items),
            model,
            [encode_vector(embedding) for embedding in embeddings],
        )
        return [_event(row) for row in rows]

    async def recall(
        self,
        world_id: uuid.UUID,
        query: RecallQuery,
        embedding: Vector,
        ranking: RankingParameters,
        parameters: RecallParameters,
    ) -> list[RecalledEvent]:
        """Returns the world's memories, best first, in one round trip. Raises WorldNotFound."""
        rows = await self._database.fetch(
            QUERIES.recall_events,
            world_id,
            query.text,
            encode_vector(embedding),
            query.limit,
            query.start_time,
            query.end_time,
            list(query.kinds) or None,
            list(query.participants) or None,
            ranking.vector_weight,
            ranking.k1,
            ranking.b,
            parameters.half_life_hours * _SECONDS_PER_HOUR,
            *parameters.normalised_weights,
        )
        return [
            RecalledEvent(_event(row), row["score"], row["relevance"], row["recency"])
            for row in rows
        ]

    async def list_events(
        self, world_id: uuid.UUID, before: tuple[datetime, int] | None, limit: int
    ) -> list[StoryEvent]:
        """Returns the world's events, the latest in story time first. Raises WorldNotFound."""
        time, sequence = before or (None, None)
        rows = await self._database.fetch(QUERIES.list_events, world_id, time, sequence, limit)
        return [_event(row) for row in rows]

    async def forget_requests(self, before: datetime) -> int:
        """Forgets the requests recorded before a moment; returns how many."""
        return int(await self._database.fetch_value(QUERIES.forget_requests, before))


def _world(row: Any) -> World:
    return World(
        row["world_id"], row["name"], row["description"], row["create_time"], row["event_count"]
    )


def _event(row: Any) -> StoryEvent:
    return StoryEvent(
        row["sequence"],
        row["event_id"],
        row["text"],
        row["kind"],
        tuple(row["participants"]),
        row["occur_time"],
        row["record_time"],
        row["importance"],
    )
