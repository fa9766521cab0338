"""What tests of outbox and inbox share: a schema with the tables, events, a publisher in memory.

Needs the `postgres` extra (asyncpg).
"""

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import asyncpg

from gaming.events import events_pb2
from gaming.events.events_pb2 import GameEvent
from messaging.codec import new_event
from messaging.outbox import enqueue
from messaging.outbox_relay import OutboxRelay, Publisher
from messaging.outbox_settings import StoreSettings
from messaging.store_schema import migrate_stores
from servicekit.clock import SystemClock
from servicekit.errors import ServiceError
from servicekit.postgres import open_pool
from servicekit.settings import load_settings
from servicekit.telemetry import Telemetry

__all__ = ["SCHEMA", "RecordingPublisher", "event", "fill", "open_stores", "relay_on", "settings"]

SCHEMA = "game"


def event(number: int = 0, *, payload_bytes: int = 0) -> GameEvent:
    """Returns an event with an id of its own that carries its number."""
    return new_event(
        events_pb2.WORLD_STATE_UPDATED,
        events_pb2.StateUpdate(state={"filler": "x" * payload_bytes}),
        source="test",
        event_id=str(uuid.uuid4()),
        timestamp_milliseconds=1_767_225_600_000,
        metadata={"number": str(number)},
    )


def settings(**changed: str) -> StoreSettings:
    """Returns settings for tests: by variable without the common prefix, in lower case."""
    changed = {"outbox_poll_seconds": "0.02", **changed}
    variables = {f"GAMEKEEPER_EVENTS_{name.upper()}": value for name, value in changed.items()}
    return load_settings(StoreSettings, variables)


@asynccontextmanager
async def open_stores(
    url: str, *, command_timeout_seconds: float = 5.0
) -> AsyncIterator[asyncpg.Pool]:
    """Opens a pool on a database that has outbox and inbox."""
    async with open_pool(
        url, application_name="test", command_timeout_seconds=command_timeout_seconds
    ) as pool:
        async with pool.acquire() as connection:
            await migrate_stores(connection, schema=SCHEMA)
        yield pool


async def fill(pool: asyncpg.Pool, *events: GameEvent) -> None:
    """Enqueues events in a transaction of their own."""
    async with pool.acquire() as connection, connection.transaction():
        await enqueue(connection, *events, schema=SCHEMA)


def relay_on(
    pool: asyncpg.Pool,
    publisher: Publisher,
    *,
    telemetry: Telemetry | None = None,
    **changed: str,
) -> OutboxRelay:
    """Returns a relay of the tests' schema."""
    return OutboxRelay(
        pool,
        publisher,
        schema=SCHEMA,
        settings=settings(**changed),
        clock=SystemClock(),
        rng=random.Random(7),  # noqa: S311  # spreads pauses, guards nothing
        telemetry=telemetry,
    )


class RecordingPublisher:
    """A publisher that remembers what it accepted.

    Attributes:
        accepted: the events, in the order of acceptance.
        refusal: called for each event; an error it returns is raised instead of accepting.
        held: while it is clear, publishing waits.
    """

    def __init__(self, refusal: Callable[[GameEvent], ServiceError | None] | None = None) -> None:
        self.accepted: list[GameEvent] = []
        self.refusal = refusal
        self.held = asyncio.Event()
        self.held.set()
        self.waiting = 0
        self.most_waiting = 0
        self._changed = asyncio.Condition()

    async def publish(self, event: GameEvent) -> None:
        """Accepts the event, or raises what `refusal` says."""
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        async with self._changed:
            self._changed.notify_all()
        try:
            await self.held.wait()
        finally:
            self.waiting -= 1
        error = self.refusal(event) if self.refusal else None
        if error is not None:
            raise error
        self.accepted.append(event)
        async with self._changed:
            self._changed.notify_all()

    async def until(self, reached: Callable[[], bool], *, seconds: float = 30.0) -> None:
        """Returns once `reached` holds after something arrived."""
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(reached)

    @property
    def times(self) -> Counter[str]:
        """How often each event was accepted, by id."""
        return Counter(event.event_id for event in self.accepted)
