"""What operators see of the bus: every event is counted, by what became of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from gaming.events import events_pb2
from gaming.events.events_pb2 import GameEvent
from messaging import metric_names
from messaging.codec import encode_event
from messaging.consumer import EventConsumer
from messaging.errors import EventTooLarge
from messaging.ports import OutgoingMessage
from messaging.publisher import EventPublisher
from messaging.settings import MessagingSettings
from messaging.testing import MemoryClaimStore, MemoryQueue, MemoryTopic
from servicekit.settings import load_settings
from servicekit.telemetry import Telemetry
from servicekit.testing import FakeClock

SETTINGS = load_settings(MessagingSettings, {"GAMEKEEPER_EVENTS_PUBLISH_LINGER_SECONDS": "0"})


class Instrument:
    def __init__(self, name: str, counts: Counter[tuple[str, ...]]) -> None:
        self._name = name
        self._counts = counts

    def add(self, amount: int, attributes: Mapping[str, str] | None = None) -> None:
        self._counts[self._name, *(attributes or {}).values()] += amount

    def record(self, amount: float) -> None:
        self._counts[(self._name,)] += 1


class CountingTelemetry(Telemetry):
    """Counts instead of exporting."""

    def __init__(self) -> None:
        super().__init__("test")
        self.counts: Counter[tuple[str, ...]] = Counter()

    def counter(self, name: str, **_: str) -> Any:
        return Instrument(name, self.counts)

    histogram = counter


def event(event_type: int = events_pb2.TIME_UPDATED, payload: bytes = b"") -> GameEvent:
    return GameEvent(event_id="a", event_type=event_type, source="s", payload=payload)  # type: ignore[arg-type]  # any number may travel


async def test_published_events_are_counted_by_type_and_failures_by_reason() -> None:
    telemetry, topic = CountingTelemetry(), MemoryTopic()
    async with EventPublisher(
        topic, settings=SETTINGS, clock=FakeClock(), telemetry=telemetry
    ) as out:
        await out.publish(event())
        await out.publish(event(4711), attributes={"event_type": "tide.turned"})
        with pytest.raises(EventTooLarge):
            await out.publish(event(payload=b"x" * 150_000))
    assert telemetry.counts == {
        (metric_names.EVENTS_PUBLISHED, "time.updated"): 1,
        (metric_names.EVENTS_PUBLISHED, "other"): 1,
        (metric_names.PUBLISH_FAILURES, "EVENT_TOO_LARGE"): 1,
    }


async def test_a_large_event_is_counted_as_stored() -> None:
    telemetry = CountingTelemetry()
    async with EventPublisher(
        MemoryTopic(),
        settings=SETTINGS,
        clock=FakeClock(),
        claims=MemoryClaimStore(),
        telemetry=telemetry,
    ) as out:
        await out.publish(event(payload=b"x" * 150_000))
    assert telemetry.counts[(metric_names.CLAIMS_STORED,)] == 1


async def test_read_messages_are_counted_by_what_became_of_them() -> None:
    telemetry, clock, stopping = CountingTelemetry(), FakeClock(), asyncio.Event()
    queue = MemoryQueue(clock, dead_letters=MemoryQueue(clock))
    for body in (encode_event(event()), encode_event(event(4711)), "hello, there!", "1001"):
        queue.add(OutgoingMessage(body))
    failures = iter([ValueError()])

    async def handle(event: GameEvent) -> None:
        if event.event_type == 4711:
            for failure in failures:
                raise failure

    consumer = EventConsumer(queue, handle, settings=SETTINGS, clock=clock, telemetry=telemetry)
    async with asyncio.TaskGroup() as group:
        group.create_task(consumer.run(stopping))
        await clock.advance(5)
        stopping.set()
        await clock.advance(1)
    assert telemetry.counts == {
        (metric_names.EVENTS_HANDLED, "time.updated"): 1,
        (metric_names.EVENTS_HANDLED, "other"): 1,
        (metric_names.EVENTS_FAILED, "INTERNAL"): 1,
        (metric_names.EVENTS_POISON, "not_hex_base64_or_json"): 1,
        (metric_names.EVENTS_POISON, "no_event_id"): 1,
        (metric_names.HANDLER_DURATION,): 2,
    }
