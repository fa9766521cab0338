"""Worlds and their events in PostgreSQL; every statement names its world (see migration 0003)."""

import json
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import asyncpg

from knowledge_base.adapters.bus_events import SOURCE, recorded_message
from knowledge_base.adapters.database import (
    QUERIES,
    RETRIEVAL_QUERIES,
    Database,
    encode_vector,
)
from knowledge_base.adapters.schema import SCHEMA
from knowledge_base.domain.errors import WorldNotFound
from knowledge_base.domain.lore import RankingParameters
from knowledge_base.domain.memory import (
    NewEvent,
    RecallClues,
    RecalledEvent,
    RecallParameters,
    RecallQuery,
    StoryEvent,
    World,
)
from knowledge_base.domain.text import words_apart
from knowledge_base.ports import RequestKey, TextCodes, Vector
from messaging.inbox import first_time
from messaging.outbox import enqueue

__all__ = ["PostgresMemory", "world_of"]

_SECONDS_PER_HOUR = 3600.0


class PostgresMemory:
    """The port `MemoryStore` on PostgreSQL.

    Args:
        announces: whether the bus is told of recorded events, in the transaction that records.
    """

    def __init__(self, database: Database, *, announces: bool = False) -> None:
        self._database = database
        self._announces = announces

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
        return world_of(rows[0])

    async def get_world(self, world_id: uuid.UUID | None, name: str) -> World:
        """Returns a world by its id or else by its name. Raises WorldNotFound."""
        rows = await self._database.fetch(QUERIES.get_world, world_id, name)
        if not rows:
            raise WorldNotFound("There is no such world; see ListWorlds.")
        return world_of(rows[0])

    async def list_worlds(self, after: str, limit: int) -> list[World]:
        """Returns worlds ordered by name, after the name given."""
        return [
            world_of(row) for row in await self._database.fetch(QUERIES.list_worlds, after, limit)
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
        *,
        codes: TextCodes | None = None,
    ) -> list[StoryEvent]:
        """Appends events, all or none, or returns what this request recorded before.

        Raises WorldNotFound, RequestIdReused.
        """
        async with self._database.connection() as connection:
            # Without an announcement one statement is the whole transaction: one round trip.
            if not self._announces:
                return await _append(
                    connection,
                    world_id,
                    key,
                    events,
                    model=model,
                    embeddings=embeddings,
                    codes=codes,
                )
            async with connection.transaction():
                recorded = await _append(
                    connection,
                    world_id,
                    key,
                    events,
                    model=model,
                    embeddings=embeddings,
                    codes=codes,
                )
                # A repeat returns the events of the first time, which are announced already.
                if recorded[0].event_id == events[0][0]:
                    messages = [recorded_message(world_id, event) for event in recorded]
                    await enqueue(connection, *messages, schema=SCHEMA)
                return recorded

    async def record_bus_event(
        self,
        world_id: uuid.UUID,
        key: RequestKey,
        bus_event_id: str,
        event: tuple[uuid.UUID, NewEvent],
        *,
        model: str,
        embedding: Vector,
        codes: TextCodes | None = None,
    ) -> bool:
        """Appends the story event that a bus event became; False when the world has it already.

        Raises WorldNotFound.
        """
        async with self._database.connection() as connection, connection.transaction():
            if not await first_time(
                connection, f"{SOURCE}/{world_id}", bus_event_id, schema=SCHEMA
            ):
                return False
            (recorded,) = await _append(
                connection,
                world_id,
                key,
                [event],
                model=model,
                embeddings=embedding[None, :],
                codes=codes,
            )
            if recorded.event_id != event[0]:  # the request remembers longer than the inbox
                return False
            if self._announces:
                message = recorded_message(world_id, recorded, cause_event_id=bus_event_id)
                await enqueue(connection, message, schema=SCHEMA)
            return True

    async def participants_named(self, world_id: uuid.UUID, words: Sequence[str]) -> list[str]:
        """Returns the world's participants whose names hold one of the words."""
        rows = await self._database.fetch(
            RETRIEVAL_QUERIES.participants_named, world_id, list(words)
        )
        return [row["name"] for row in rows]

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
        """Returns the world's memories, best first, in one round trip; without their neighbours.

        Each comes with what the reranker of this name keeps of it, if it keeps anything.

        Raises WorldNotFound, EmbeddingModelChanged.
        """
        clues = clues or RecallClues(query.text)
        if not reranker and _only_vectors_count(query, ranking, parameters, clues):
            return await self._nearest(world_id, embedding, query.limit, parameters, model)
        return await self._weighed(
            world_id,
            query,
            embedding,
            ranking,
            parameters,
            model=model,
            clues=clues,
            reranker=reranker,
        )

    async def events_around(
        self, world_id: uuid.UUID, sequences: Sequence[int], query: RecallQuery
    ) -> list[StoryEvent]:
        """Returns the events at most `query.neighbours` from those, as of the query's moments."""
        rows = await self._database.fetch(
            RETRIEVAL_QUERIES.events_around,
            world_id,
            list(sequences),
            query.neighbours,
            query.as_of_time,
            query.as_of_record_time,
        )
        return [_event(row) for row in rows]

    async def _nearest(
        self,
        world_id: uuid.UUID,
        embedding: Vector,
        limit: int,
        parameters: RecallParameters,
        model: str,
    ) -> list[RecalledEvent]:
        rows = await self._database.fetch(
            RETRIEVAL_QUERIES.nearest_story_events,
            world_id,
            encode_vector(embedding),
            limit,
            parameters.half_life_hours * _SECONDS_PER_HOUR,
            model,
        )
        recalled = []
        for row in rows:
            recency, cosine = row[8:10]
            relevance = max(0.0, min(1.0, cosine))
            recalled.append(RecalledEvent(_event(row), relevance, relevance, recency, cosine, 0.0))
        return recalled

    async def _weighed(
        self,
        world_id: uuid.UUID,
        query: RecallQuery,
        embedding: Vector,
        ranking: RankingParameters,
        parameters: RecallParameters,
        *,
        model: str,
        clues: RecallClues,
        reranker: str,
    ) -> list[RecalledEvent]:
        times = clues.times
        rows = await self._database.fetch(
            RETRIEVAL_QUERIES.recall_story_events,
            world_id,
            words_apart(clues.words or clues.text),
            encode_vector(embedding),
            query.limit,
            query.start_time,
            query.end_time,
            list(query.kinds) or None,
            list(query.participants) or None,
            query.as_of_time,
            query.as_of_record_time,
            list(clues.participants) or None,
            [start for start, _ in times.spans] or None,
            [end for _, end in times.spans] or None,
            list(times.months) or None,
            ranking.vector_weight,
            parameters.k1,
            parameters.before_weight,
            parameters.second_before_weight,
            parameters.after_weight,
            parameters.participant_boost,
            parameters.time_boost,
            parameters.question_penalty,
            parameters.half_life_hours * _SECONDS_PER_HOUR,
            *parameters.normalised_weights,
            model,
            reranker,
            query.limit if query.sure is None else query.sure,
        )
        return [_recalled(row) for row in rows]

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


def _only_vectors_count(
    query: RecallQuery,
    ranking: RankingParameters,
    parameters: RecallParameters,
    clues: RecallClues,
) -> bool:
    """Whether nothing but the vectors bears on the order, and no event is left out."""
    filters = (
        query.start_time,
        query.end_time,
        query.as_of_time,
        query.as_of_record_time,
        query.kinds,
        query.participants,
    )
    return (
        ranking.vector_weight == 1.0
        and parameters.normalised_weights == (1.0, 0.0, 0.0)
        and parameters.question_penalty == 0.0
        and not (clues.participants or clues.times.spans or clues.times.months)
        and not any(filters)
    )


async def _append(
    connection: asyncpg.Connection,
    world_id: uuid.UUID,
    key: RequestKey,
    events: Sequence[tuple[uuid.UUID, NewEvent]],
    *,
    model: str,
    embeddings: Vector,
    codes: TextCodes | None,
) -> list[StoryEvent]:
    items = [
        {
            "event_id": str(event_id),
            "text": event.text,
            "kind": event.kind,
            "participants": event.participants,
            "occur_time": (event.occur_time or key.now).isoformat(),
            "importance": event.importance,
            "search_text": words_apart(event.search_text),
        }
        for event_id, event in events
    ]
    rows = await connection.fetch(
        QUERIES.record_events,
        world_id,
        key.request_id,
        key.fingerprint,
        key.now,
        json.dumps(items),
        model,
        [encode_vector(embedding) for embedding in embeddings],
        codes.reranker if codes else "",
        list(codes.codes) if codes else [],
    )
    return [_event(row) for row in rows]


def world_of(row: Any) -> World:
    """Returns a world from its row."""
    return World(
        row["world_id"],
        row["name"],
        row["description"],
        row["create_time"],
        row["event_count"],
        row["archive_time"],
    )


def _recalled(row: Any) -> RecalledEvent:
    score, relevance, recency, cosine, keyword_share, codes = row[8:14]
    return RecalledEvent(_event(row), score, relevance, recency, cosine, keyword_share, codes=codes)


def _event(row: Any) -> StoryEvent:
    """Returns an event from its row, whose first columns it is; by name takes twice as long."""
    sequence, event_id, text, kind, participants, occur_time, record_time, importance = row[:8]
    return StoryEvent(
        sequence, event_id, text, kind, tuple(participants), occur_time, record_time, importance
    )
