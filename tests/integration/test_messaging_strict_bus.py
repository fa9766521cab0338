"""Publisher and consumer over real sockets against a bus that fails in every way AWS may."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from gaming.events import events_pb2
from gaming.events.events_pb2 import GameEvent
from messaging.adapters.aws_calls import open_client
from messaging.adapters.sns_topic import SnsTopic
from messaging.adapters.sqs_queue import SqsQueue
from messaging.consumer import EventConsumer, Handler
from messaging.dead_letters import ATTRIBUTE_REASON
from messaging.errors import BusRefused, BusUnavailable, InvalidEvent
from messaging.ports import OutgoingMessage
from messaging.publisher import EventPublisher
from messaging.settings import MessagingSettings
from messaging.testing.faults import Fault, FaultPlan
from messaging.testing.strict_aws import StrictAws
from servicekit.clock import SystemClock
from servicekit.settings import load_settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

_SOON_SECONDS = 60.0


@pytest.fixture(scope="module", autouse=True)
def credentials() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "local")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "local")
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(credentials: None) -> AsyncIterator[tuple[StrictAws, Any, Any]]:
    """One bus for the module: the SDK's clients take longer to make than a test."""
    async with StrictAws() as aws:
        settings = load_settings(MessagingSettings, {"AWS_ENDPOINT_URL": aws.endpoint})
        async with (
            open_client("sns", settings, connections=4) as sns,
            open_client("sqs", settings, connections=8) as sqs,
        ):
            yield aws, sns, sqs


class Bus:
    """The strict bus with one raw queue and its dead letters, new for each test."""

    def __init__(self, aws: StrictAws, sns: Any, sqs: Any) -> None:
        self.aws = aws
        aws.reset()
        self._sns, self._sqs = sns, sqs
        self.dead_letters = aws.add_queue("dead")
        self.queue = aws.add_queue("events", dead_letters=self.dead_letters, maximum_receives=50)
        aws.subscribe(self.queue)
        self.handled: list[str] = []

    def settings(self, **values: Any) -> MessagingSettings:
        return load_settings(
            MessagingSettings,
            {
                "GAMEKEEPER_EVENTS_RETRY_DELAY_SECONDS": "0",
                **{f"GAMEKEEPER_EVENTS_{name}": str(value) for name, value in values.items()},
            },
        )

    def topic(self, timeout_seconds: float = 10.0) -> SnsTopic:
        return SnsTopic(self._sns, self.aws.topic_arn, timeout_seconds=timeout_seconds)

    def publisher(self, *, timeout_seconds: float = 10.0, **values: Any) -> EventPublisher:
        return EventPublisher(
            self.topic(timeout_seconds), settings=self.settings(**values), clock=SystemClock()
        )

    async def handle(self, event: GameEvent) -> None:
        self.handled.append(event.event_id)

    @asynccontextmanager
    async def reading(self, handler: Handler | None = None, **values: Any) -> AsyncIterator[None]:
        stopping, settings = asyncio.Event(), self.settings(**values)
        queue = SqsQueue(
            self._sqs,
            self.queue.url,
            dead_letter_queue_url=self.dead_letters.url,
            visibility_seconds=settings.visibility_seconds,
            timeout_seconds=settings.call_timeout_seconds,
        )
        consumer = EventConsumer(
            queue, handler or self.handle, settings=settings, clock=SystemClock()
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(consumer.run(stopping))
            try:
                yield
            finally:
                stopping.set()


@pytest_asyncio.fixture(loop_scope="module")
async def bus(server: tuple[StrictAws, Any, Any]) -> Bus:
    return Bus(*server)


def event(number: int, payload: bytes = b"") -> GameEvent:
    return GameEvent(
        event_id=f"event-{number}",
        event_type=events_pb2.TIME_UPDATED,
        source="time-manager",
        payload=payload,
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_SOON_SECONDS):
        while not condition():  # noqa: ASYNC110  # what changes is beyond a socket
            await asyncio.sleep(0.01)


async def publish(out: EventPublisher, count: int, payload: bytes = b"") -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(out.publish(event(number, payload)))


async def test_events_go_from_the_publisher_to_the_handler(bus: Bus) -> None:
    async with bus.reading(), bus.publisher() as out:
        await publish(out, 100)
        await until(lambda: len(bus.queue.state) == 0)
    assert Counter(bus.handled) == Counter(f"event-{n}" for n in range(100))
    assert bus.aws.topic.calls == [10] * 10
    assert bus.aws.dropped == 0


async def test_publishing_uses_no_more_calls_at_once_than_allowed(bus: Bus) -> None:
    bus.aws.faults.plan("PublishBatch", *[Fault.SLOW] * 20)
    bus.aws.faults.slow_seconds = 0.05
    async with bus.publisher(PUBLISH_CALLS_AT_ONCE=3) as out:
        await publish(out, 200)
    assert bus.aws.most_calls_at_once == 3


@pytest.mark.parametrize("fault", [Fault.PARTIAL, Fault.PARTIAL_THROTTLED])
async def test_only_the_entries_that_failed_are_published_again(bus: Bus, fault: Fault) -> None:
    bus.aws.faults.plan("PublishBatch", fault)
    async with bus.publisher() as out:
        await publish(out, 10)
    assert bus.aws.topic.calls == [5, 5]
    assert len(bus.queue.state) == 10


@pytest.mark.parametrize("fault", [Fault.PARTIAL, Fault.PARTIAL_THROTTLED])
async def test_only_the_entries_that_failed_are_deleted_again(bus: Bus, fault: Fault) -> None:
    async with bus.publisher() as out:
        await publish(out, 10)
    bus.aws.faults.plan("DeleteMessageBatch", fault)
    async with bus.reading():
        await until(lambda: len(bus.queue.state) == 0)
    assert len(bus.handled) == 10
    assert bus.aws.faults.met["DeleteMessageBatch", fault] == 1


async def test_an_event_that_readers_would_never_see_is_refused_instead(bus: Bus) -> None:
    eleven = {f"name-{n}": "value" for n in range(11)}
    await bus.topic().publish_batch([OutgoingMessage("00", eleven)])
    assert (bus.aws.dropped, len(bus.queue.state)) == (1, 0)
    async with bus.publisher() as out:
        with pytest.raises(InvalidEvent):
            await out.publish(event(1), attributes={f"name-{n}": "value" for n in range(8)})


async def test_large_events_are_spread_over_calls_that_the_topic_takes(bus: Bus) -> None:
    async with bus.publisher() as out:
        await publish(out, 10, payload=b"x" * 60_000)
    assert sum(bus.aws.topic.calls) == 10
    assert max(bus.aws.topic.calls) == 2


async def test_an_event_that_comes_twice_reaches_the_handler_with_one_id(bus: Bus) -> None:
    bus.aws.duplicate_share = 1.0
    async with bus.reading(), bus.publisher() as out:
        await publish(out, 10)
        await until(lambda: len(bus.queue.state) == 0)
    assert Counter(bus.handled) == Counter({f"event-{n}": 2 for n in range(10)})


@pytest.mark.parametrize("fault", [Fault.ANSWER_LOST, Fault.DISCONNECTED, Fault.GARBLED])
async def test_an_answer_that_is_lost_loses_no_event(bus: Bus, fault: Fault) -> None:
    bus.aws.faults.plan("PublishBatch", fault)
    async with bus.publisher() as out:
        await publish(out, 10)
    # Twice, as the first call took effect: readers know the ids.
    assert len(bus.queue.state) == 20


async def test_a_call_that_takes_too_long_is_made_again(bus: Bus) -> None:
    bus.aws.faults.plan("PublishBatch", Fault.SLOW)
    bus.aws.faults.slow_seconds = 30.0
    # Well before the SDK's own limit of ten seconds.
    async with asyncio.timeout(8), bus.publisher(timeout_seconds=0.3) as out:
        await out.publish(event(1))
    assert bus.aws.topic.calls[-1] == 1


async def test_a_failure_that_will_pass_says_so(bus: Bus) -> None:
    # As often as the SDK itself tries.
    bus.aws.faults.plan("PublishBatch", *[Fault.THROTTLED] * 3)
    with pytest.raises(BusUnavailable):
        await bus.topic().publish_batch([OutgoingMessage("00")])


async def test_a_failure_that_will_not_pass_says_so(bus: Bus) -> None:
    with pytest.raises(BusRefused):
        await bus.topic().publish_batch([OutgoingMessage("\x00")])


async def test_a_long_handler_keeps_its_message_from_other_readers(bus: Bus) -> None:
    committed = asyncio.Event()
    began: list[str] = []

    async def handle(event: GameEvent) -> None:
        began.append(event.event_id)
        await committed.wait()

    async with bus.publisher() as out:
        await out.publish(event(1))
    async with bus.reading(handle, VISIBILITY_SECONDS=1), bus.reading(VISIBILITY_SECONDS=1):
        await asyncio.sleep(2.5)  # more than two visibility timeouts, by the queue's clock
        committed.set()
        await until(lambda: len(bus.queue.state) == 0)
    assert began + bus.handled == ["event-1"]


async def test_stopping_finishes_what_is_at_work_and_gives_the_rest_back(bus: Bus) -> None:
    working, committed = asyncio.Event(), asyncio.Event()

    async def handle(event: GameEvent) -> None:
        working.set()
        await committed.wait()
        await bus.handle(event)

    async with bus.publisher() as out:
        await publish(out, 5)

    async def commit_once_the_others_are_back() -> None:
        await until(lambda: len(bus.queue.state.visible) == 4)
        committed.set()

    async with asyncio.TaskGroup() as group, bus.reading(handle, HANDLERS_AT_ONCE=1):
        await working.wait()
        await until(lambda: not bus.queue.state.visible)
        group.create_task(commit_once_the_others_are_back())
    assert len(bus.handled) == 1
    assert len(bus.queue.state) == 4


async def test_poison_reaches_the_dead_letters_and_events_the_handler(bus: Bus) -> None:
    bus.queue.state.add(OutgoingMessage("hello, there!", {"source": "x"}))
    async with bus.reading(), bus.publisher() as out:
        await out.publish(event(1))
        await until(lambda: len(bus.queue.state) == 0)
    (dead,) = bus.dead_letters.state.visible
    assert (dead.body, dead.attributes[ATTRIBUTE_REASON]) == (
        "hello, there!",
        "not_hex_base64_or_json",
    )
    assert bus.handled == ["event-1"]


async def storm(bus: Bus, *, events: int, share: float, seed: int) -> None:
    """Publishes and reads while every kind of call fails in every way; nothing may be lost."""
    bus.aws.faults = FaultPlan(dict.fromkeys(Fault, share / len(Fault)), seed=seed)
    bus.aws.faults.slow_seconds = 0.05
    bus.aws.duplicate_share = 0.1
    failures = iter(range(10**6))

    async def handle(event: GameEvent) -> None:
        if next(failures) % 10 == 0:
            raise ValueError
        await bus.handle(event)

    async with bus.reading(handle, VISIBILITY_SECONDS=5), bus.publisher() as out:
        await publish(out, events)
        await until(lambda: len(set(bus.handled)) == events)
        bus.aws.faults.clear()
        await until(lambda: len(bus.queue.state) == 0)
    assert set(bus.handled) == {f"event-{n}" for n in range(events)}
    assert len(bus.dead_letters.state) == 0


async def test_no_event_is_lost_while_calls_fail(bus: Bus) -> None:
    await storm(bus, events=40, share=0.1, seed=1)


@pytest.mark.endurance
@pytest.mark.parametrize("seed", [2, 3])
async def test_no_event_is_lost_while_a_third_of_all_calls_fail(bus: Bus, seed: int) -> None:
    await storm(bus, events=300, share=0.33, seed=seed)
