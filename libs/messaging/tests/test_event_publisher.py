"""The publisher fills batches, limits itself, and answers for every event by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from gaming.events import events_pb2
from gaming.events.events_pb2 import GameEvent
from messaging.batch_sender import backoff_seconds
from messaging.claim_check import CLAIM_THRESHOLD_BYTES, MAXIMUM_CLAIM_BYTES
from messaging.codec import decode_event, encode_event
from messaging.errors import (
    BusRefused,
    BusUnavailable,
    EventTooLarge,
    InvalidEvent,
    PublisherClosed,
)
from messaging.ports import EntryOutcome, OutgoingMessage
from messaging.publisher import BATCH_BYTES, EventPublisher
from messaging.settings import MessagingSettings
from messaging.testing import MemoryClaimStore, MemoryTopic
from servicekit.settings import load_settings
from servicekit.testing import FakeClock

TAKEN = EntryOutcome(accepted=True)
THROTTLED = EntryOutcome(accepted=False, error_code="Throttled", retryable=True)
JITTER = Random(7)  # noqa: S311  # no secret
REFUSED = EntryOutcome(accepted=False, error_code="InvalidParameter")


def settings(**changes: Any) -> MessagingSettings:
    return load_settings(
        MessagingSettings, {f"GAMEKEEPER_EVENTS_{name}": str(v) for name, v in changes.items()}
    )


def event(number: int = 0, payload_bytes: int = 0) -> GameEvent:
    return GameEvent(
        event_id=f"event-{number}",
        event_type=events_pb2.TIME_UPDATED,
        source="time-manager",
        timestamp=number,
        payload=b"x" * payload_bytes,
    )


def publisher(topic: Any, clock: FakeClock, **changes: Any) -> EventPublisher:
    claims = changes.pop("claims", None)
    return EventPublisher(
        topic, settings=settings(**changes), clock=clock, claims=claims, random=JITTER
    )


def ids(messages: Sequence[OutgoingMessage]) -> list[str]:
    return [decode_event(m.body, m.attributes).event_id for m in messages]


async def test_events_published_together_share_calls_of_ten() -> None:
    topic = MemoryTopic()
    async with publisher(topic, FakeClock()) as out, asyncio.TaskGroup() as group:
        for number in range(30):
            group.create_task(out.publish(event(number)))
    assert topic.calls == [10, 10, 10]
    assert sorted(ids(topic.published)) == sorted(f"event-{n}" for n in range(30))


async def test_a_lone_event_waits_for_company_no_longer_than_the_linger() -> None:
    topic, clock = MemoryTopic(), FakeClock()
    async with publisher(topic, clock, PUBLISH_LINGER_SECONDS=0.5) as out:
        publishing = asyncio.create_task(out.publish(event()))
        await clock.advance(0.4)
        assert topic.calls == []
        await clock.advance(0.1)
        await publishing
    assert topic.calls == [1]


async def test_a_batch_is_never_larger_than_the_topic_takes() -> None:
    topic = MemoryTopic()
    async with publisher(topic, FakeClock(), PUBLISH_LINGER_SECONDS=0) as out:
        await asyncio.gather(*(out.publish(event(n, payload_bytes=45_000)) for n in range(10)))
    assert len(topic.published) == 10
    assert max(topic.calls) == BATCH_BYTES // topic.published[0].size_bytes


async def test_only_the_entries_that_failed_are_sent_again() -> None:
    topic, clock = MemoryTopic(), FakeClock()
    topic.fail_next = [THROTTLED if number in {2, 5} else TAKEN for number in range(10)]
    async with publisher(topic, clock) as out:
        sending = [asyncio.create_task(out.publish(event(number))) for number in range(10)]
        await clock.settle()
        assert [task.done() for task in sending].count(False) == 2
        await clock.advance(10)
        await asyncio.gather(*sending)
    assert topic.calls == [10, 2]
    assert len(set(ids(topic.published))) == len(topic.published) == 10


async def test_one_refused_event_fails_alone() -> None:
    topic = MemoryTopic()
    topic.fail_next = [TAKEN, REFUSED, TAKEN]
    async with publisher(topic, FakeClock(), PUBLISH_LINGER_SECONDS=0) as out:
        results = await asyncio.gather(
            *(out.publish(event(number)) for number in range(3)), return_exceptions=True
        )
    assert [type(result) for result in results] == [type(None), BusRefused, type(None)]
    assert ids(topic.published) == ["event-0", "event-2"]


class FussyTopic:
    """Refuses any call that holds the bad event, as SNS does with some mistakes."""

    def __init__(self) -> None:
        self.inner = MemoryTopic()

    async def publish_batch(self, messages: Sequence[OutgoingMessage]) -> list[EntryOutcome]:
        if "event-1" in ids(messages):
            raise BusRefused("InvalidParameter")
        return await self.inner.publish_batch(messages)


async def test_a_call_refused_for_one_event_still_publishes_its_others() -> None:
    topic = FussyTopic()
    async with publisher(topic, FakeClock(), PUBLISH_LINGER_SECONDS=0) as out:
        results = await asyncio.gather(
            *(out.publish(event(number)) for number in range(3)), return_exceptions=True
        )
    assert [type(result) for result in results] == [type(None), BusRefused, type(None)]
    assert ids(topic.inner.published) == ["event-0", "event-2"]


async def test_a_topic_that_is_away_for_a_while_loses_nothing() -> None:
    topic, clock = MemoryTopic(), FakeClock()
    topic.fail_next = [BusUnavailable("away")] * 3
    async with publisher(topic, clock) as out:
        publishing = asyncio.create_task(out.publish(event()))
        await clock.advance(30)
        await publishing
    assert ids(topic.published) == ["event-0"]


async def test_a_topic_that_stays_away_ends_as_unavailable() -> None:
    topic, clock = MemoryTopic(), FakeClock()
    topic.fail_next = [BusUnavailable("away")] * 100
    async with publisher(topic, clock) as out:
        publishing = asyncio.create_task(out.publish(event()))
        await clock.advance(60)
        with pytest.raises(BusUnavailable):
            await publishing
    assert topic.published == []


async def test_an_event_that_is_not_accepted_in_time_is_given_up() -> None:
    topic = MemoryTopic()
    topic.fail_next = [BusUnavailable("away")] * 100
    # The backoff's clock stands still; the time limit is real.
    async with publisher(topic, FakeClock(), PUBLISH_TIMEOUT_SECONDS=0.1) as out:
        with pytest.raises(BusUnavailable):
            await out.publish(event())


class SilentTopic:
    """Never answers, and counts what it was given."""

    def __init__(self) -> None:
        self.given = 0
        self.asked = asyncio.Event()

    async def publish_batch(self, messages: Sequence[OutgoingMessage]) -> list[EntryOutcome]:
        self.given += len(messages)
        self.asked.set()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")


async def test_a_full_publisher_makes_its_callers_wait() -> None:
    topic = SilentTopic()
    async with publisher(
        topic, FakeClock(), PUBLISH_PENDING_LIMIT=25, CLOSE_TIMEOUT_SECONDS=0
    ) as out:
        callers = [asyncio.create_task(out.publish(event(number))) for number in range(100)]
        await FakeClock().settle()
        held = topic.given + len(out._sender._waiting)
    failures = await asyncio.gather(*callers, return_exceptions=True)
    assert held == 25
    assert {type(failure) for failure in failures} == {PublisherClosed}


async def test_closing_sends_what_is_held() -> None:
    topic = MemoryTopic()
    async with publisher(topic, FakeClock(), PUBLISH_LINGER_SECONDS=5) as out:
        publishing = asyncio.create_task(out.publish(event()))
        await FakeClock().settle()
        assert topic.published == []
    await publishing
    assert ids(topic.published) == ["event-0"]


async def test_closing_gives_up_after_its_time_and_says_so() -> None:
    topic = SilentTopic()
    async with publisher(
        topic, FakeClock(), PUBLISH_LINGER_SECONDS=0, CLOSE_TIMEOUT_SECONDS=0.05
    ) as out:
        publishing = asyncio.create_task(out.publish(event()))
        await topic.asked.wait()
    with pytest.raises(PublisherClosed):
        await publishing


async def test_a_closed_publisher_takes_nothing() -> None:
    topic = MemoryTopic()
    async with publisher(topic, FakeClock()) as out:
        pass
    with pytest.raises(PublisherClosed):
        await out.publish(event())


async def test_a_cancelled_caller_takes_its_unsent_event_along() -> None:
    topic, clock = MemoryTopic(), FakeClock()
    async with publisher(topic, clock, PUBLISH_LINGER_SECONDS=5) as out:
        cancelled = asyncio.create_task(out.publish(event(1)))
        kept = asyncio.create_task(out.publish(event(2)))
        await clock.settle()
        cancelled.cancel()
        await clock.advance(5)
        await kept
    assert ids(topic.published) == ["event-2"]


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_is_cancelled_and_fails_the_others_are_published_once(seed: int) -> None:
    random, clock = Random(seed), FakeClock()  # noqa: S311  # repeatable, no secret
    topic = MemoryTopic()
    fates: list[EntryOutcome | BusUnavailable | BusRefused]
    fates = [TAKEN, TAKEN, THROTTLED, BusUnavailable("away")]
    topic.fail_next = random.choices(fates, k=60)
    async with publisher(topic, clock, PUBLISH_PENDING_LIMIT=15) as out:
        tasks = []
        for number in range(80):
            tasks.append(asyncio.create_task(out.publish(event(number))))
            if random.random() < 0.2:
                await asyncio.sleep(0)
            if random.random() < 0.2:
                random.choice(tasks).cancel()
        await clock.advance(120)
        results = await asyncio.gather(*tasks, return_exceptions=True)
    published = ids(topic.published)
    assert len(set(published)) == len(published)
    kept = [f"event-{number}" for number, result in enumerate(results) if result is None]
    assert set(kept) <= set(published)
    assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}


class BrokenTopic:
    """Fails as only a mistake in the program does, once."""

    def __init__(self) -> None:
        self.inner = MemoryTopic()
        self.broken = True

    async def publish_batch(self, messages: Sequence[OutgoingMessage]) -> list[EntryOutcome]:
        if self.broken:
            self.broken = False
            raise ZeroDivisionError
        return await self.inner.publish_batch(messages)


async def test_a_fault_in_the_adapter_does_not_end_the_publisher() -> None:
    topic, clock = BrokenTopic(), FakeClock()
    async with publisher(topic, clock) as out:
        publishing = asyncio.create_task(out.publish(event()))
        await clock.advance(5)
        await publishing
    assert ids(topic.inner.published) == ["event-0"]


async def test_a_large_event_travels_by_the_claim_store() -> None:
    topic, claims = MemoryTopic(), MemoryClaimStore()
    large = event(1, payload_bytes=150_000)
    async with publisher(topic, FakeClock(), claims=claims, PUBLISH_LINGER_SECONDS=0) as out:
        await out.publish(large)
    (message,) = topic.published
    assert message.size_bytes < 1000
    assert [GameEvent.FromString(content) for content in claims.contents.values()] == [large]


async def test_an_event_just_below_the_threshold_travels_by_itself() -> None:
    topic, claims = MemoryTopic(), MemoryClaimStore()
    async with publisher(topic, FakeClock(), claims=claims, PUBLISH_LINGER_SECONDS=0) as out:
        await out.publish(event(1, payload_bytes=(CLAIM_THRESHOLD_BYTES - 400) // 2))
    assert claims.contents == {}
    assert topic.published[0].size_bytes > CLAIM_THRESHOLD_BYTES * 0.99


@pytest.mark.parametrize(
    ("too_large", "claims"),
    [
        (event(payload_bytes=150_000), None),
        (event(payload_bytes=MAXIMUM_CLAIM_BYTES + 1), MemoryClaimStore()),
        (
            GameEvent(
                event_id="a",
                event_type=events_pb2.WEATHER_CHANGED,
                source="s",
                metadata={"k": "v" * 150_000},
            ),
            MemoryClaimStore(),
        ),
    ],
    ids=["without a claim store", "beyond the store's limit", "by its metadata"],
)
async def test_what_is_too_large_for_the_bus_is_refused(
    too_large: GameEvent, claims: MemoryClaimStore | None
) -> None:
    topic = MemoryTopic()
    async with publisher(topic, FakeClock(), claims=claims) as out:
        with pytest.raises(EventTooLarge):
            await out.publish(too_large)
    assert topic.published == []


async def test_an_event_is_not_changed_by_publishing_it() -> None:
    claims, large = MemoryClaimStore(), event(1, payload_bytes=150_000)
    before = encode_event(large)
    async with publisher(MemoryTopic(), FakeClock(), claims=claims, PUBLISH_LINGER_SECONDS=0) as o:
        await o.publish(large)
    assert encode_event(large) == before


async def test_more_than_ten_attributes_are_refused() -> None:
    async with publisher(MemoryTopic(), FakeClock()) as out:
        with pytest.raises(InvalidEvent):
            await out.publish(event(), attributes={f"a{n}": "v" for n in range(8)})


async def test_an_event_of_an_unknown_type_can_be_passed_on_with_its_text() -> None:
    topic = MemoryTopic()
    newer = GameEvent.FromString(bytes.fromhex("0a0161") + bytes.fromhex("1063") + b"\x1a\x01s")
    async with publisher(topic, FakeClock(), PUBLISH_LINGER_SECONDS=0) as out:
        await out.publish(newer, attributes={"event_type": "tide.turned"})
    (message,) = topic.published
    assert message.attributes["event_type"] == "tide.turned"
    assert decode_event(message.body, message.attributes) == newer


def test_backoff_doubles_to_its_maximum_and_differs_between_senders() -> None:
    delays = [
        backoff_seconds(n, JITTER, first_seconds=1, maximum_seconds=10) for n in range(1, 2000)
    ]
    assert all(
        min(10, 2.0 ** min(n, 60)) / 2 <= delay <= min(10, 2.0 ** min(n, 60))
        for n, delay in enumerate(delays)
    )
    assert len(set(delays)) == len(delays)
