"""A consumer that stops finishes what is at work and keeps nothing from others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from consumer_bench import Bus, Passing, message

from gaming.events.events_pb2 import GameEvent
from messaging.errors import BusUnavailable
from messaging.ports import EntryOutcome


async def test_stopping_finishes_what_is_at_work_and_gives_the_rest_back() -> None:
    bus, committed = Bus(HANDLERS_AT_ONCE=2, STOP_TIMEOUT_SECONDS=30), asyncio.Event()

    async def handle(event: GameEvent) -> None:
        await committed.wait()
        await bus.handle(event)

    for number in range(8):
        bus.queue.add(message(number))
    async with bus.reading(handle):
        await bus.clock.settle()
        assert bus.queue.visible == []
        bus.stopping.set()
        await bus.clock.settle()
        # At once, not when their timeout ends.
        assert len(bus.queue.visible) == 6
        committed.set()
        await bus.stopped()
    assert len(bus.handled) == 2
    assert len(bus.queue) == 6


async def test_a_handler_that_outlasts_the_stop_is_cancelled_and_its_event_given_back() -> None:
    bus = Bus(STOP_TIMEOUT_SECONDS=0.05)
    cancelled = 0

    async def handle(event: GameEvent) -> None:
        nonlocal cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled += 1
            raise

    bus.queue.add(message())
    async with bus.reading(handle):
        await bus.clock.settle()
    assert cancelled == 1
    assert len(bus.queue.visible) == 1


async def test_stopping_ends_though_the_queue_is_away() -> None:
    bus = Bus(HANDLERS_AT_ONCE=1, CALL_TIMEOUT_SECONDS=0.2, STOP_TIMEOUT_SECONDS=0.05)

    class AwayAfterReceiving(Passing):
        async def extend_visibility(
            self, receipts: Sequence[str], *, seconds: Sequence[int]
        ) -> list[EntryOutcome]:
            raise BusUnavailable("away")

        async def delete_batch(self, receipts: Sequence[str]) -> list[EntryOutcome]:
            raise BusUnavailable("away")

    async def handle(event: GameEvent) -> None:
        if event.event_id != "event-0":
            await asyncio.Event().wait()

    for number in range(5):
        bus.queue.add(message(number))
    async with bus.reading(handle, queue=AwayAfterReceiving(bus.queue)):
        await bus.clock.settle()
    assert len(bus.queue) == 5


async def test_stopping_ends_an_idle_reader_at_once() -> None:
    bus = Bus()
    async with bus.reading():
        await bus.clock.settle()
        bus.stopping.set()
        await bus.clock.settle()
        assert bus.running is not None
        assert bus.running.done()


async def test_cancelling_the_reader_ends_it_and_deletes_nothing_more() -> None:
    bus = Bus()

    async def handle(event: GameEvent) -> None:
        await asyncio.Event().wait()

    bus.queue.add(message())
    async with bus.reading(handle):
        await bus.clock.settle()
        assert bus.running is not None
        bus.running.cancel()
        await bus.clock.settle()
        assert bus.running.cancelled()
    assert len(bus.queue) == 1
