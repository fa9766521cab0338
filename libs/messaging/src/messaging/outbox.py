"""The transactional outbox: an event leaves if, and only if, what it speaks about was committed.

    async with connection.transaction():
        await connection.execute("UPDATE …")
        await enqueue(connection, event, schema="autoscaler")

`OutboxRelay` publishes what was committed. Needs the `postgres` extra (asyncpg).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import asyncpg

from gaming.events.events_pb2 import GameEvent
from messaging.store_schema import outbox_queries

__all__ = ["ParkedEvent", "enqueue", "parked_events", "requeue_parked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedEvent:
    """An event that was set aside; `attempts` counts refusals while others were accepted."""

    event_id: str
    reason: str
    attempts: int
    park_time: datetime


async def enqueue(connection: asyncpg.Connection, *events: GameEvent, schema: str) -> None:
    """Puts events in line, in this order, as part of the caller's transaction.

    Each needs an `event_id` that names the fact, not the attempt: a caller that repeats a
    transaction whose answer was lost gives the same one, so that readers act once.

    Args:
        connection: in a transaction, with the changes that the events tell about.
        events: complete, as they are to be published.
        schema: where the service's tables live.

    Raises:
        RuntimeError: outside a transaction, where nothing would tie the event to the change.
        OSError, asyncpg.PostgresError: as any statement of the transaction.
    """
    if not connection.is_in_transaction():
        raise RuntimeError("enqueue needs the transaction of the change that the event tells about")
    if events:
        await connection.execute(
            outbox_queries(schema).enqueue_events,
            [event.SerializeToString(deterministic=True) for event in events],
        )


async def parked_events(
    connection: asyncpg.Connection, *, schema: str, limit: int = 1000
) -> list[ParkedEvent]:
    """Returns up to `limit` parked events, the oldest first."""
    rows = await connection.fetch(outbox_queries(schema).parked_events, limit)
    return [ParkedEvent(**dict(row)) for row in rows]


async def requeue_parked(connection: asyncpg.Connection, *, schema: str, limit: int = 1000) -> int:
    """Puts up to `limit` parked events back in line, the oldest first; returns how many.

    For an operator who has removed the cause: a topic's limit raised, a claim bucket configured.
    """
    status: str = await connection.execute(outbox_queries(schema).requeue_parked, limit)
    return int(status.rsplit(" ", 1)[-1])
