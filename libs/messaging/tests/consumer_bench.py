"""A consumer on a queue in memory, for the tests of what it does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from gaming.events import events_pb2
from gaming.events.events_pb2 import GameEvent
from messaging.codec import encode_event
from messaging.consumer import EventConsumer
from messaging.ports import EntryOutcome, OutgoingMessage
from messaging.settings import MessagingSettings
from messaging.testing import MemoryClaimStore, MemoryQueue
from servicekit.settings import load_settings
from servicekit.testing import FakeClock

__all__ = ["JITTER", "THROTTLED", "Bus", "Passing", "event", "message"]

JITTER = Random(7)  # noqa: S311  # no secret
THROTTLED = EntryOutcome(accepted=False, error_code="Throttled", retryable=True)


def event(number: int = 0) -> GameEvent:
    return GameEvent(
        event_id=f"event-{number}", event_type=events_pb2.TIME_UPDATED, source="time-manager"
    )


def message(number: int = 0) -> OutgoingMessage:
    return OutgoingMessage(encode_event(event(number)), {"event_type": "time.updated"})


class Bus:
    """A consumer on a queue in memory, and what its handler saw."""

    def __init__(self, **changes: Any) -> None:
        self.clock = FakeClock()
        self.dead_letters = MemoryQueue(self.clock)
        self.queue = MemoryQueue(self.clock, visibility_seconds=30, dead_letters=self.dead_letters)
        self.claims: MemoryClaimStore | None = MemoryClaimStore()
        self.settings = load_settings(
            MessagingSettings,
            {f"GAMEKEEPER_EVENTS_{name}": str(value) for name, value in changes.items()},
        )
        self.handled: list[str] = []
        self.stopping = asyncio.Event()
        self.running: asyncio.Task[None] | None = None

    async def handle(self, event: GameEvent) -> None:
        self.handled.append(event.event_id)

    @asynccontextmanager
    async def reading(
        self, handler: Callable[[GameEvent], Awaitable[None]] | None = None, queue: Any = None
    ) -> AsyncIterator[None]:
        consumer = EventConsumer(
            queue or self.queue,
            handler or self.handle,
            settings=self.settings,
            clock=self.clock,
            claims=self.claims,
            random=JITTER,
        )
        async with asyncio.TaskGroup() as group:
            self.running = group.create_task(consumer.run(self.stopping))
            try:
                yield
            finally:
                self.stopping.set()
                await self.stopped()

    async def stopped(self) -> None:
        """Lets the consumer end, moving the clock for whatever it still waits for."""
        self.stopping.set()
        assert self.running is not None
        while not self.running.done():
            await self.clock.advance(0.1)


class Passing:
    """A queue in front of another, for tests to change one method of."""

    def __init__(self, inner: MemoryQueue) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)
