"""The inbox: an event that arrives several times takes effect once.

    async with connection.transaction():
        if await first_time(connection, "weather_notes", event.event_id, schema="knowledge_base"):
            ...  # the effect, in this transaction
    # only now is the message deleted from the queue

Needs the `postgres` extra (asyncpg).
"""

from __future__ import annotations

import asyncpg

from messaging.store_schema import inbox_queries

__all__ = ["first_time"]


async def first_time(
    connection: asyncpg.Connection, consumer: str, event_id: str, *, schema: str
) -> bool:
    """Returns whether `consumer` meets this event for the first time, and notes that it did.

    The note and the caller's effect are one transaction: both are there or neither. While another
    transaction handles the same event, this call waits for its end, and returns True should that
    one roll back.

    Args:
        connection: in a transaction, in which the effect follows.
        consumer: what acts on the event; two of them act independently.
        event_id: of an event that `decode_event` returned, so at most 128 printable characters.
        schema: where the service's tables live.

    Raises:
        RuntimeError: outside a transaction, where the note would outlive a lost effect.
        OSError, asyncpg.PostgresError: as any statement of the transaction.
    """
    if not connection.is_in_transaction():
        raise RuntimeError("first_time needs the transaction in which the effect takes place")
    noted = await connection.fetchval(inbox_queries(schema).note_event, consumer, event_id)
    return noted is not None
