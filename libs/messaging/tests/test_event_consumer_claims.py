"""Large events are read from the claim store, and only what the message points to."""

from __future__ import annotations

from consumer_bench import Bus

from gaming.events import events_pb2
from gaming.events.events_pb2 import GameEvent
from messaging.claim_check import stored_event
from messaging.codec import encode_event
from messaging.dead_letters import ATTRIBUTE_REASON
from messaging.ports import OutgoingMessage


async def test_a_large_event_is_read_from_the_claim_store() -> None:
    bus = Bus()
    large = GameEvent(
        event_id="large", event_type=events_pb2.WEATHER_CHANGED, source="s", payload=b"x" * 150_000
    )
    stored = stored_event(large)
    assert bus.claims is not None
    await bus.claims.put(stored.key, stored.content)
    seen: list[GameEvent] = []

    async def handle(event: GameEvent) -> None:
        seen.append(event)

    bus.queue.add(OutgoingMessage(encode_event(stored.pointer)))
    async with bus.reading(handle):
        await bus.clock.advance(1)
    assert seen == [large]


def forged(pointer: GameEvent, **changes: str) -> GameEvent:
    copy = GameEvent.FromString(pointer.SerializeToString())
    copy.event_id = changes.pop("event_id", copy.event_id)
    copy.metadata.update(changes)
    return copy


async def test_a_pointer_to_something_else_is_poison() -> None:
    bus = Bus()
    stored = stored_event(
        GameEvent(event_id="large", event_type=events_pb2.WEATHER_CHANGED, source="s")
    )
    not_an_event = stored_event(GameEvent(event_id="other"))
    assert bus.claims is not None
    await bus.claims.put(stored.key, stored.content)
    await bus.claims.put(not_an_event.key, b"something else")
    pointers = [
        forged(stored.pointer, claim_sha256="../../secrets"),
        forged(stored.pointer, claim_sha256="0" * 64),
        forged(stored.pointer, event_id="another"),
        not_an_event.pointer,
    ]
    for pointer in pointers:
        bus.queue.add(OutgoingMessage(encode_event(pointer)))
    async with bus.reading():
        await bus.clock.advance(1)
    assert bus.handled == []
    reasons = [dead.attributes[ATTRIBUTE_REASON] for dead in bus.dead_letters.visible]
    assert reasons == ["bad_claim"] * len(pointers)


async def test_a_claim_that_cannot_be_read_now_comes_again() -> None:
    bus = Bus()
    stored = stored_event(
        GameEvent(event_id="large", event_type=events_pb2.WEATHER_CHANGED, source="s")
    )
    bus.claims = None
    bus.queue.add(OutgoingMessage(encode_event(stored.pointer)))
    async with bus.reading():
        await bus.clock.advance(1)
    assert len(bus.dead_letters) == 0
    assert len(bus.queue) == 1
