"""The consumer deletes after the commit, repeats what failed, and is never stopped by a message."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import pytest
from consumer_bench import THROTTLED, Bus, Passing, message

from gaming.events.events_pb2 import GameEvent
from messaging.codec import encode_event
from messaging.dead_letters import ATTRIBUTE_REASON, redriven
from messaging.errors import BusRefused, BusUnavailable, PoisonEvent, PoisonReason
from messaging.ports import ACCEPTED, EntryOutcome, OutgoingMessage, ReceivedMessage
from messaging.testing import MemoryQueue
from servicekit.errors import InvalidRequest, Unavailable


async def test_events_are_handled_and_deleted() -> None:
    bus = Bus()
    for number in range(25):
        bus.queue.add(message(number))
    async with bus.reading():
        await bus.clock.advance(1)
        assert len(bus.queue) == 0
    assert sorted(bus.handled) == sorted(f"event-{n}" for n in range(25))


async def test_a_message_is_not_deleted_before_its_handler_returned() -> None:
    bus, committed = Bus(), asyncio.Event()

    async def handle(event: GameEvent) -> None:
        await committed.wait()

    bus.queue.add(message())
    async with bus.reading(handle):
        await bus.clock.advance(20)
        assert len(bus.queue) == 1
        committed.set()
        await bus.clock.advance(1)
        assert len(bus.queue) == 0


async def test_a_message_stays_hidden_while_its_handler_works() -> None:
    bus, committed = Bus(VISIBILITY_SECONDS=30), asyncio.Event()
    starts = 0

    async def handle(event: GameEvent) -> None:
        nonlocal starts
        starts += 1
        await committed.wait()

    bus.queue.add(message())
    async with bus.reading(handle):
        # Three times its visibility timeout, with another reader waiting for it.
        for _ in range(90):
            await bus.clock.advance(1)
            assert bus.queue.visible == []
        committed.set()
        await bus.clock.advance(1)
    assert starts == 1


async def test_messages_that_wait_for_a_handler_stay_hidden_too() -> None:
    bus, committed = Bus(HANDLERS_AT_ONCE=1), asyncio.Event()

    async def handle(event: GameEvent) -> None:
        await committed.wait()

    for number in range(5):
        bus.queue.add(message(number))
    async with bus.reading(handle):
        for _ in range(90):
            await bus.clock.advance(1)
            assert bus.queue.visible == []
        committed.set()


async def test_a_failed_event_comes_again_later_each_time() -> None:
    bus = Bus(RETRY_DELAY_SECONDS=4)
    times: list[float] = []

    async def handle(event: GameEvent) -> None:
        times.append(bus.clock.monotonic())
        if len(times) < 4:
            raise InvalidRequest("not this time")

    bus.queue.add(message())
    async with bus.reading(handle):
        await bus.clock.advance(120)
    waits = [after - before for before, after in itertools.pairwise(times)]
    assert len(waits) == 3
    for wait, longest in zip(waits, (4, 8, 16), strict=True):
        assert longest / 2 <= wait <= longest + 1


@pytest.mark.parametrize("error", [ZeroDivisionError(), TimeoutError(), Unavailable("away")])
async def test_whatever_a_handler_raises_costs_only_its_own_event(error: Exception) -> None:
    bus = Bus()

    async def handle(event: GameEvent) -> None:
        if event.event_id == "event-1":
            raise error
        await bus.handle(event)

    for number in range(3):
        bus.queue.add(message(number))
    async with bus.reading(handle):
        await bus.clock.advance(5)
        assert len(bus.queue) == 1
    assert sorted(bus.handled) == ["event-0", "event-2"]


async def test_a_handler_that_hangs_is_ended_and_its_event_comes_again() -> None:
    bus, ended = Bus(HANDLER_TIMEOUT_SECONDS=0.1), asyncio.Event()

    async def handle(event: GameEvent) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    bus.queue.add(message())
    async with bus.reading(handle):
        await bus.clock.advance(1)
        await ended.wait()
        await bus.clock.settle()
        await bus.clock.advance(2)
        assert bus.queue._messages["message-1"].receive_count >= 1
        assert len(bus.queue) == 1


async def test_no_more_handlers_work_at_once_than_allowed() -> None:
    bus, release = Bus(HANDLERS_AT_ONCE=3), asyncio.Event()
    working = most = 0

    async def handle(event: GameEvent) -> None:
        nonlocal working, most
        working += 1
        most = max(most, working)
        await release.wait()
        working -= 1

    for number in range(40):
        bus.queue.add(message(number))
    async with bus.reading(handle):
        await bus.clock.advance(1)
        assert most == 3
        # At most a batch is in hand beside them, the rest is left to other readers.
        assert len(bus.queue.visible) >= 40 - 3 - 10
        release.set()
        await bus.clock.advance(5)
    assert most == 3


POISON = {
    "hello, there!": "not_hex_base64_or_json",
    "ffff": "not_a_game_event",
    encode_event(GameEvent(source="nobody")): "no_event_id",
    '{"event_type": "time.updated"}': "no_event_id",
}


@pytest.mark.parametrize(("body", "reason"), POISON.items())
async def test_poison_goes_to_the_dead_letters_with_its_reason_and_others_go_on(
    body: str, reason: str
) -> None:
    bus = Bus()
    poison = OutgoingMessage(body, {"event_type": "time.updated", "source": "x"})
    bus.queue.add(poison)
    bus.queue.add(message(1))
    async with bus.reading():
        await bus.clock.advance(1)
    assert bus.handled == ["event-1"]
    assert len(bus.queue) == 0
    (dead,) = bus.dead_letters.visible
    assert dead.body == body
    assert dead.attributes[ATTRIBUTE_REASON] == reason
    assert redriven(dead.body, dead.attributes) == poison


async def test_a_dead_letter_keeps_to_ten_attributes() -> None:
    bus = Bus()
    bus.queue.add(OutgoingMessage("hello, there!", {f"name-{n}": "v" for n in range(10)}))
    async with bus.reading():
        await bus.clock.advance(1)
    (dead,) = bus.dead_letters.visible
    assert len(dead.attributes) == 10
    assert dead.attributes[ATTRIBUTE_REASON] == "not_hex_base64_or_json"


async def test_a_handler_may_call_an_event_poison() -> None:
    bus = Bus()

    async def handle(event: GameEvent) -> None:
        raise PoisonEvent(PoisonReason.BAD_PAYLOAD)

    bus.queue.add(message())
    async with bus.reading(handle):
        await bus.clock.advance(1)
    (dead,) = bus.dead_letters.visible
    assert dead.attributes[ATTRIBUTE_REASON] == "bad_payload"


async def test_poison_is_kept_until_the_dead_letters_take_it() -> None:
    bus = Bus()

    class AwayForAWhile(Passing):
        failures = 2

        async def send_to_dead_letters(
            self, messages: Sequence[OutgoingMessage]
        ) -> list[EntryOutcome]:
            if self.failures:
                self.failures -= 1
                raise BusUnavailable("away")
            return await self.inner.send_to_dead_letters(messages)

    bus.queue.add(OutgoingMessage("hello, there!"))
    async with bus.reading(queue=AwayForAWhile(bus.queue)):
        await bus.clock.advance(20)
    assert len(bus.queue) == 0
    assert len(bus.dead_letters) == 1


async def test_without_dead_letters_poison_is_left_to_the_redrive_policy() -> None:
    bus = Bus()
    redriven_to = MemoryQueue(bus.clock)

    class OwnRedrive(Passing):
        has_dead_letters = False

    bus.queue = MemoryQueue(bus.clock, dead_letters=redriven_to, maximum_receives=3)
    bus.queue.add(OutgoingMessage("hello, there!"))
    async with bus.reading(queue=OwnRedrive(bus.queue)):
        await bus.clock.advance(60)
    assert (len(bus.queue), len(redriven_to)) == (0, 1)


async def test_deletions_that_failed_are_sent_again_entry_by_entry() -> None:
    bus = Bus()
    calls: list[int] = []

    class HalfDeleting(Passing):
        async def delete_batch(self, receipts: Sequence[str]) -> list[EntryOutcome]:
            calls.append(len(receipts))
            if len(calls) > 1:
                return await self.inner.delete_batch(receipts)
            await self.inner.delete_batch(receipts[::2])
            return [THROTTLED if n % 2 else ACCEPTED for n in range(len(receipts))]

    for number in range(10):
        bus.queue.add(message(number))
    async with bus.reading(queue=HalfDeleting(bus.queue)):
        await bus.clock.advance(5)
        assert len(bus.queue) == 0
    assert calls == [10, 5]
    assert len(bus.handled) == 10


@pytest.mark.parametrize("error", [BusUnavailable("away"), BusRefused("no such queue")])
async def test_a_queue_that_cannot_be_read_is_tried_again(
    error: BusUnavailable | BusRefused,
) -> None:
    bus = Bus()

    class AwayForAWhile(Passing):
        failures = 6

        async def receive(self, maximum: int, *, wait_seconds: float) -> list[ReceivedMessage]:
            if self.failures:
                self.failures -= 1
                raise error
            return await self.inner.receive(maximum, wait_seconds=wait_seconds)

    bus.queue.add(message())
    async with bus.reading(queue=AwayForAWhile(bus.queue)):
        await bus.clock.advance(60)
    assert bus.handled == ["event-0"]


async def test_while_what_the_handler_needs_is_away_deliveries_are_not_used_up() -> None:
    bus = Bus()

    async def handle(event: GameEvent) -> None:
        raise Unavailable("the database is away", retry_after_seconds=10)

    for number in range(100):
        bus.queue.add(message(number))
    async with bus.reading(handle):
        await bus.clock.advance(9)
        # What was in hand when the first one failed, and not a message more.
        assert sum(m.receive_count for m in bus.queue._messages.values()) <= 20
