"""Topic, queue and claim store keep one contract: in memory, on moto and on the strict bus."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from localsuite.aws.testing import LocalAws, local_aws
from messaging.adapters.aws_calls import open_client
from messaging.adapters.s3_claim_store import open_s3_claim_store
from messaging.adapters.sns_topic import SnsTopic
from messaging.adapters.sqs_queue import SqsQueue
from messaging.codec import unwrapped
from messaging.errors import BusRefused, ClaimMissing
from messaging.ports import ACCEPTED, ClaimStore, OutgoingMessage, Queue, ReceivedMessage, Topic
from messaging.settings import MessagingSettings
from messaging.testing import MemoryClaimStore, MemoryQueue, MemoryTopic
from messaging.testing.strict_aws import StrictAws
from servicekit.clock import SystemClock
from servicekit.settings import load_settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What "soon" may take on a machine with other work; every wait ends early when it can.
_SOON_SECONDS = 30.0
_VISIBILITY_SECONDS = 1


@dataclass
class Bus:
    """A topic with a raw and an enveloped subscriber, and a queue that gives up after two tries."""

    topic: Topic
    raw: Queue
    enveloped: Queue
    dead_letters: Queue


def in_memory() -> Bus:
    clock = SystemClock()
    dead_letters = MemoryQueue(clock, visibility_seconds=_VISIBILITY_SECONDS)
    raw, enveloped = (
        MemoryQueue(
            clock,
            visibility_seconds=_VISIBILITY_SECONDS,
            dead_letters=dead_letters,
            maximum_receives=2,
        )
        for _ in range(2)
    )
    topic = MemoryTopic()
    topic.subscribe(raw, raw=True)
    topic.subscribe(enveloped, raw=False)
    return Bus(topic, raw, enveloped, dead_letters)


def settings_for(endpoint: str, **values: str) -> MessagingSettings:
    return load_settings(
        MessagingSettings,
        {
            "AWS_ENDPOINT_URL": endpoint,
            **{f"GAMEKEEPER_EVENTS_{name}": value for name, value in values.items()},
        },
    )


@dataclass
class Clients:
    """The SDK's clients of one AWS; making them takes longer than a test."""

    sns: Any
    sqs: Any

    def bus(self, topic_arn: str, raw: str, enveloped: str, dead: str) -> Bus:
        def queue(url: str, dead_letter_queue_url: str = "") -> SqsQueue:
            return SqsQueue(
                self.sqs,
                url,
                dead_letter_queue_url=dead_letter_queue_url,
                visibility_seconds=_VISIBILITY_SECONDS,
                timeout_seconds=_SOON_SECONDS,
            )

        topic = SnsTopic(self.sns, topic_arn, timeout_seconds=_SOON_SECONDS)
        return Bus(topic, queue(raw, dead), queue(enveloped), queue(dead))


@asynccontextmanager
async def clients_of(endpoint: str) -> AsyncIterator[Clients]:
    settings = settings_for(endpoint)
    async with (
        open_client("sns", settings, connections=2) as sns,
        open_client("sqs", settings, connections=8, read_timeout_seconds=30) as sqs,
    ):
        yield Clients(sns, sqs)


@pytest.fixture(scope="module")
def module_aws() -> Iterator[LocalAws]:
    with local_aws() as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def credentials() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "local")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "local")
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["memory", "strict", "moto"])
async def make_bus(
    request: pytest.FixtureRequest, credentials: None
) -> AsyncIterator[Callable[[], Awaitable[Bus]]]:
    async def memory() -> Bus:
        return in_memory()

    if request.param == "memory":
        yield memory
    elif request.param == "strict":
        async with StrictAws() as strict, clients_of(strict.endpoint) as clients:
            yield lambda: on_the_strict_bus(strict, clients)
    else:
        aws = request.getfixturevalue("module_aws")
        async with clients_of(aws.endpoint) as clients:
            yield lambda: on_moto(aws, clients)


@pytest_asyncio.fixture(loop_scope="module")
async def bus(make_bus: Callable[[], Awaitable[Bus]]) -> Bus:
    return await make_bus()


async def on_the_strict_bus(aws: StrictAws, clients: Clients) -> Bus:
    name = uuid.uuid4().hex
    dead = aws.add_queue(f"{name}-dead")
    raw, enveloped = (
        aws.add_queue(f"{name}-{kind}", dead_letters=dead, maximum_receives=2)
        for kind in ("raw", "enveloped")
    )
    aws.subscribe(raw, raw=True)
    aws.subscribe(enveloped, raw=False)
    return clients.bus(aws.topic_arn, raw.url, enveloped.url, dead.url)


async def on_moto(aws: LocalAws, clients: Clients) -> Bus:
    names = [f"{kind}-{uuid.uuid4().hex[:8]}" for kind in ("raw", "enveloped", "dead", "topic")]
    (raw, enveloped, dead), topic_arn = await asyncio.to_thread(bus_on_moto, aws, names)
    return clients.bus(topic_arn, raw, enveloped, dead)


def bus_on_moto(aws: LocalAws, names: Sequence[str]) -> tuple[list[str], str]:
    raw, enveloped, dead, topic = names
    sqs, sns = aws.client("sqs"), aws.client("sns")
    dead_url = sqs.create_queue(QueueName=dead)["QueueUrl"]
    dead_arn = queue_arn(sqs, dead_url)
    policy = f'{{"deadLetterTargetArn": "{dead_arn}", "maxReceiveCount": "2"}}'
    topic_arn = sns.create_topic(Name=topic)["TopicArn"]
    urls = []
    for name in (raw, enveloped):
        url = sqs.create_queue(QueueName=name, Attributes={"RedrivePolicy": policy})["QueueUrl"]
        attributes = {"RawMessageDelivery": "true" if name == raw else "false"}
        sns.subscribe(
            TopicArn=topic_arn,
            Protocol="sqs",
            Endpoint=queue_arn(sqs, url),
            Attributes=attributes,
        )
        urls.append(url)
    return [*urls, dead_url], topic_arn


def queue_arn(sqs: Any, url: str) -> str:
    answer = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
    return str(answer["Attributes"]["QueueArn"])


async def received(queue: Queue, count: int) -> list[ReceivedMessage]:
    """Returns `count` messages; standard queues may give them out over several calls."""
    messages: list[ReceivedMessage] = []
    async with asyncio.timeout(_SOON_SECONDS):
        while len(messages) < count:
            messages += await queue.receive(min(10, count - len(messages)), wait_seconds=2)
    return messages


def some_messages(count: int) -> list[OutgoingMessage]:
    return [OutgoingMessage(f"body-{n}", {"event_type": "time.updated"}) for n in range(count)]


async def test_a_batch_reaches_raw_and_enveloped_subscribers(bus: Bus) -> None:
    assert await bus.topic.publish_batch(some_messages(10)) == [ACCEPTED] * 10
    for queue in (bus.raw, bus.enveloped):
        got = [unwrapped(m.body, m.attributes) for m in await received(queue, 10)]
        assert sorted(body for body, _ in got) == [f"body-{n}" for n in range(10)]
        assert all(attributes["event_type"] == "time.updated" for _, attributes in got)


async def test_text_arrives_as_it_was_published(bus: Bus) -> None:
    text = 'a b&c=d+e%20/"ä€😀"\n{}'
    message = OutgoingMessage(text, {"source": "Nachtwächter & Söhne", "world_id": "a+b=c"})
    assert await bus.topic.publish_batch([message]) == [ACCEPTED]
    (got,) = await received(bus.raw, 1)
    assert (got.body, dict(got.attributes)) == (text, dict(message.attributes))


async def test_a_long_poll_returns_when_a_message_arrives(bus: Bus) -> None:
    async with asyncio.TaskGroup() as group:
        polling = group.create_task(bus.raw.receive(10, wait_seconds=20))
        await asyncio.sleep(0)
        await bus.raw.send_batch(some_messages(1))
        async with asyncio.timeout(_SOON_SECONDS):
            (message,) = await polling
    assert message.body == "body-0"


async def test_a_message_given_back_comes_at_once(bus: Bus) -> None:
    await bus.raw.send_batch(some_messages(1))
    (first,) = await received(bus.raw, 1)
    assert await bus.raw.extend_visibility([first.receipt], seconds=[0]) == [ACCEPTED]
    (second,) = await received(bus.raw, 1)
    assert second.receive_count == 2


async def test_when_its_time_ends_a_message_comes_again_unless_held_or_deleted(bus: Bus) -> None:
    await bus.raw.send_batch(some_messages(3))
    held, deleted, left = await received(bus.raw, 3)
    assert await bus.raw.extend_visibility([held.receipt], seconds=[600]) == [ACCEPTED]
    assert await bus.raw.delete_batch([deleted.receipt]) == [ACCEPTED]
    (again,) = await received(bus.raw, 1)
    assert (again.message_id, again.receive_count) == (left.message_id, 2)
    assert await bus.raw.receive(10, wait_seconds=0) == []


async def test_a_message_tried_too_often_becomes_a_dead_letter(bus: Bus) -> None:
    await bus.raw.send_batch(some_messages(1))
    for _ in range(2):
        (message,) = await received(bus.raw, 1)
        await bus.raw.extend_visibility([message.receipt], seconds=[0])
    assert await bus.raw.receive(1, wait_seconds=0) == []
    (dead,) = await received(bus.dead_letters, 1)
    assert dead.body == "body-0"
    assert dead.attributes == {"event_type": "time.updated"}


async def test_a_message_is_sent_to_the_dead_letters_with_its_attributes(bus: Bus) -> None:
    letter = OutgoingMessage("not an event", {"dead_letter_reason": "empty_body"})
    assert bus.raw.has_dead_letters
    assert await bus.raw.send_to_dead_letters([letter]) == [ACCEPTED]
    (dead,) = await received(bus.dead_letters, 1)
    assert (dead.body, dict(dead.attributes)) == (letter.body, dict(letter.attributes))


@pytest.mark.parametrize("make_bus", ["memory", "strict"], indirect=True)  # moto takes any size
async def test_a_batch_beyond_its_size_is_refused_as_a_whole(bus: Bus) -> None:
    large = [OutgoingMessage("x" * 50_000) for _ in range(6)]
    with pytest.raises(BusRefused):
        await bus.topic.publish_batch(large)


async def test_more_than_ten_entries_are_refused(bus: Bus) -> None:
    with pytest.raises(BusRefused):
        await bus.topic.publish_batch(some_messages(11))


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["memory", "s3"])
async def claims(request: pytest.FixtureRequest, credentials: None) -> AsyncIterator[ClaimStore]:
    if request.param == "memory":
        yield MemoryClaimStore()
        return
    aws: LocalAws = request.getfixturevalue("module_aws")
    await asyncio.to_thread(lambda: aws.client("s3").create_bucket(Bucket="claims"))
    async with open_s3_claim_store(settings_for(aws.endpoint, CLAIM_BUCKET="claims")) as store:
        assert store is not None
        yield store


async def test_what_is_stored_is_read_back(claims: ClaimStore) -> None:
    content = bytes(range(256)) * 1200
    await claims.put("events/a", content)
    assert await claims.get("events/a", maximum_bytes=len(content)) == content


async def test_storing_twice_changes_nothing(claims: ClaimStore) -> None:
    for _ in range(2):
        await claims.put("events/a", b"content")
    assert await claims.get("events/a", maximum_bytes=100) == b"content"


async def test_what_is_not_stored_is_missing(claims: ClaimStore) -> None:
    with pytest.raises(ClaimMissing):
        await claims.get("events/none", maximum_bytes=100)


async def test_what_is_larger_than_asked_for_is_not_read(claims: ClaimStore) -> None:
    await claims.put("events/a", b"x" * 101)
    with pytest.raises(ClaimMissing):
        await claims.get("events/a", maximum_bytes=100)
