"""What worlds take from the bus, in PostgreSQL (see migration 0005)."""

import uuid
from typing import Any

from knowledge_base.adapters.database import QUERIES, Database
from knowledge_base.domain.subscriptions import EventSubscription, NewSubscription
from knowledge_base.ports import RequestKey

__all__ = ["PostgresSubscriptions"]


class PostgresSubscriptions:
    """The port `SubscriptionStore` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def set_subscription(
        self, world_id: uuid.UUID, key: RequestKey, subscription: NewSubscription
    ) -> EventSubscription:
        """Sets what the world takes; a repeat returns what the request set.

        Raises WorldNotFound, RequestIdReused.
        """
        rows = await self._database.fetch(
            QUERIES.set_event_subscription,
            world_id,
            key.request_id,
            key.fingerprint,
            key.now,
            list(subscription.event_types),
            list(subscription.sources),
        )
        return _subscription(rows[0])

    async def get_subscription(self, world_id: uuid.UUID) -> EventSubscription | None:
        """Returns what the world takes, None when nothing. Raises WorldNotFound."""
        rows = await self._database.fetch(QUERIES.get_event_subscription, world_id)
        return _subscription(rows[0]) if rows else None

    async def delete_subscription(
        self, world_id: uuid.UUID, key: RequestKey
    ) -> EventSubscription | None:
        """Ends what the world takes and returns it; a repeat returns what the request ended.

        Raises WorldNotFound, RequestIdReused.
        """
        rows = await self._database.fetch(
            QUERIES.delete_event_subscription, world_id, key.request_id, key.fingerprint, key.now
        )
        return _subscription(rows[0]) if rows else None

    async def subscribed_worlds(
        self, event_type: int, source: str, world_id: uuid.UUID | None
    ) -> list[uuid.UUID]:
        """Returns the worlds that take such an event, only `world_id` unless it is None."""
        rows = await self._database.fetch(QUERIES.subscribed_worlds, event_type, source, world_id)
        return [row["world_id"] for row in rows]


def _subscription(row: Any) -> EventSubscription:
    return EventSubscription(
        row["world_id"], tuple(row["event_types"]), tuple(row["sources"]), row["update_time"]
    )
