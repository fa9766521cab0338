"""What worlds take from the game's event bus, and taking it."""

import uuid
from collections.abc import Callable, Collection

import structlog

from knowledge_base.domain.narration import BusEvent, narrate
from knowledge_base.domain.requests import Json, fingerprint
from knowledge_base.domain.subscriptions import EventSubscription, NewSubscription
from knowledge_base.ports import Embedder, MemoryStore, RequestKey, SubscriptionStore
from knowledge_base.ports_reranker import Reranker
from knowledge_base.reading import read_texts
from servicekit.clock import Clock

__all__ = ["BusListener", "Subscriptions"]

log = structlog.get_logger(__name__)

# Request ids of bus events are made below this one, so that a caller whose request id is an
# event's id meets no request of ours. Made up once: uuid5 needs some namespace that is ours.
_BUS_REQUESTS = uuid.UUID("5f0c7a52-2b0e-4a39-9d0e-6a3f6d1f4b77")


class Subscriptions:
    """Which world takes what."""

    def __init__(self, store: SubscriptionStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def set(
        self, request_id: uuid.UUID, world_id: uuid.UUID, wanted: NewSubscription
    ) -> EventSubscription:
        """Sets what a world takes; the same request again returns the same answer.

        Raises WorldNotFound, RequestIdReused.
        """
        content: dict[str, Json] = {
            "world": str(world_id),
            "event_types": list(wanted.event_types),
            "sources": list(wanted.sources),
        }
        key = RequestKey(
            request_id, fingerprint("SetEventSubscription", content), self._clock.now()
        )
        return await self._store.set_subscription(world_id, key, wanted)

    async def get(self, world_id: uuid.UUID) -> EventSubscription | None:
        """Returns what a world takes, None when nothing. Raises WorldNotFound."""
        return await self._store.get_subscription(world_id)

    async def delete(self, request_id: uuid.UUID, world_id: uuid.UUID) -> EventSubscription | None:
        """Ends what a world takes; the same request again returns the same answer.

        Raises WorldNotFound, RequestIdReused.
        """
        content: dict[str, Json] = {"world": str(world_id)}
        key = RequestKey(
            request_id, fingerprint("DeleteEventSubscription", content), self._clock.now()
        )
        return await self._store.delete_subscription(world_id, key)


class BusListener:
    """Turns events of the bus into story events of the worlds that take them.

    Each world takes an event in a transaction of its own: an event that comes again after half of
    the worlds had it reaches the other half only, and no world waits for another one's writers.

    Args:
        ignored_state_keys: keys of the world's state that are for machines, not for stories.
        reranker: of recalls; what it keeps of an event is recorded with it.
        new_id: makes the ids of story events.
    """

    def __init__(
        self,
        subscriptions: SubscriptionStore,
        memory: MemoryStore,
        embedder: Embedder,
        clock: Clock,
        *,
        ignored_state_keys: Collection[str] = (),
        reranker: Reranker | None = None,
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        self._subscriptions = subscriptions
        self._memory = memory
        self._embedder = embedder
        self._reranker = reranker
        self._clock = clock
        self._ignored_state_keys = frozenset(ignored_state_keys)
        self._new_id = new_id

    async def take(self, event: BusEvent) -> int:
        """Records the event in every world that takes it and returns how many did so now.

        It is committed when this returns. Raises Unavailable when the database is away,
        ResourceExhausted when too many texts wait for the embedding model.
        """
        told = narrate(event, self._ignored_state_keys)
        if told is None:
            return 0
        worlds = await self._subscriptions.subscribed_worlds(
            event.event_type, event.source, event.world_id
        )
        if not worlds:
            return 0
        (vector,), codes = await read_texts([told.search_text], self._embedder, self._reranker)
        key = RequestKey(
            uuid.uuid5(_BUS_REQUESTS, event.event_id),
            fingerprint("BusEvent", {"event": event.event_id}),
            self._clock.now(),
        )
        recorded = 0
        for world_id in worlds:
            recorded += await self._memory.record_bus_event(
                world_id,
                key,
                event.event_id,
                (self._new_id(), told),
                model=self._embedder.model,
                embedding=vector,
                codes=codes,
            )
        log.info("bus_event_taken", event_id=event.event_id, kind=told.kind, worlds=recorded)
        return recorded
