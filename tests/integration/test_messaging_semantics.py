"""What SNS and SQS do with our events: filters, raw and enveloped delivery, redrive, claims."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from gaming.events import events_pb2
from gaming.events.events_pb2 import GameEvent
from localsuite.aws.testing import LocalAws, local_aws
from messaging.adapters.aws_calls import open_client
from messaging.adapters.s3_claim_store import S3ClaimStore
from messaging.adapters.sns_topic import SnsTopic
from messaging.adapters.sqs_queue import SqsQueue
from messaging.codec import new_event
from messaging.consumer import EventConsumer
from messaging.publisher import EventPublisher
from messaging.settings import MessagingSettings
from servicekit.clock import SystemClock
from servicekit.settings import load_settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

_TIMEOUT_SECONDS = 20.0
_SOON_SECONDS = 60.0


@pytest.fixture(scope="module")
def module_aws() -> Iterator[LocalAws]:
    with local_aws() as running:
        yield running


@dataclass
class Game:
    """The topic of a game and whatever a test subscribes to it."""

    aws: LocalAws
    sns: Any
    sqs: Any
    topic_arn: str
    claims: S3ClaimStore

    async def subscribe(
        self,
        *,
        raw: bool = True,
        filter_policy: dict[str, list[str]] | None = None,
        maximum_receives: int = 50,
    ) -> Subscriber:
        name = uuid.uuid4().hex
        dead = (await self.sqs.create_queue(QueueName=f"{name}-dead"))["QueueUrl"]
        redrive = {
            "deadLetterTargetArn": await self.arn(dead),
            "maxReceiveCount": str(maximum_receives),
        }
        url = (
            await self.sqs.create_queue(
                QueueName=name, Attributes={"RedrivePolicy": json.dumps(redrive)}
            )
        )["QueueUrl"]
        attributes = {"RawMessageDelivery": str(raw).lower()}
        if filter_policy is not None:
            attributes["FilterPolicy"] = json.dumps(filter_policy)
        await self.sns.subscribe(
            TopicArn=self.topic_arn,
            Protocol="sqs",
            Endpoint=await self.arn(url),
            Attributes=attributes,
        )
        return Subscriber(self, url, dead)

    async def arn(self, url: str) -> str:
        answer = await self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
        return str(answer["Attributes"]["QueueArn"])

    async def publish(self, *events: GameEvent) -> None:
        topic = SnsTopic(self.sns, self.topic_arn, timeout_seconds=_TIMEOUT_SECONDS)
        async with EventPublisher(
            topic,
            settings=load_settings(MessagingSettings, {}),
            clock=SystemClock(),
            claims=self.claims,
        ) as out:
            await asyncio.gather(*(out.publish(event) for event in events))


@dataclass
class Subscriber:
    """A queue of the game's topic."""

    game: Game
    url: str
    dead_letter_url: str

    async def read(self, count: int, *, failing: bool = False) -> list[GameEvent]:
        """Returns what a consumer handled by the time it had seen `count` deliveries."""
        seen: list[GameEvent] = []
        stopping = asyncio.Event()

        async def handle(event: GameEvent) -> None:
            seen.append(event)
            if len(seen) == count:
                stopping.set()
            if failing:
                raise ValueError

        queue = SqsQueue(
            self.game.sqs,
            self.url,
            dead_letter_queue_url=self.dead_letter_url,
            timeout_seconds=_TIMEOUT_SECONDS,
        )
        settings = load_settings(
            MessagingSettings,
            {
                "GAMEKEEPER_EVENTS_RETRY_DELAY_SECONDS": "0",
                "GAMEKEEPER_EVENTS_RECEIVE_CALLS_AT_ONCE": "1",
            },
        )
        consumer = EventConsumer(
            queue, handle, settings=settings, clock=SystemClock(), claims=self.game.claims
        )
        async with asyncio.timeout(_SOON_SECONDS):
            await consumer.run(stopping)
        return seen

    async def waiting(self, url: str | None = None) -> list[Any]:
        answer = await self.game.sqs.receive_message(
            QueueUrl=url or self.url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
        )
        return list(answer.get("Messages", []))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def game(module_aws: LocalAws) -> AsyncIterator[Game]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "local")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "local")
        settings = load_settings(MessagingSettings, {"AWS_ENDPOINT_URL": module_aws.endpoint})
        async with AsyncExitStack() as stack:
            sns, sqs, s3 = [
                await stack.enter_async_context(open_client(service, settings, connections=8))
                for service in ("sns", "sqs", "s3")
            ]
            await s3.create_bucket(Bucket="claims-of-the-game")
            topic = await sns.create_topic(Name="game-events")
            claims = S3ClaimStore(s3, "claims-of-the-game", timeout_seconds=_TIMEOUT_SECONDS)
            yield Game(module_aws, sns, sqs, topic["TopicArn"], claims)


def weather(world_id: str, payload_text: str = "storm") -> GameEvent:
    return new_event(
        events_pb2.WEATHER_CHANGED,
        events_pb2.WeatherEvent(old_state="clear", new_state=payload_text),
        source="weather-manager",
        event_id=str(uuid.uuid4()),
        timestamp_milliseconds=1762560000123,
        metadata={"world_id": world_id},
    )


def night(world_id: str) -> GameEvent:
    return new_event(
        events_pb2.TIME_NIGHT_ACTIVATED,
        events_pb2.TimeEvent(old_state="day", new_state="night", hour=20),
        source="time-manager",
        event_id=str(uuid.uuid4()),
        timestamp_milliseconds=1762560000124,
        metadata={"world_id": world_id},
    )


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "enveloped"])
async def test_a_subscriber_reads_what_was_published(game: Game, raw: bool) -> None:
    subscriber = await game.subscribe(raw=raw)
    events = [weather("harbour"), night("harbour"), weather("tower")]
    await game.publish(*events)
    read = await subscriber.read(3)
    assert sorted(read, key=lambda e: e.event_id) == sorted(events, key=lambda e: e.event_id)
    assert await subscriber.waiting() == []


async def test_a_subscription_may_take_one_type_only(game: Game) -> None:
    subscriber = await game.subscribe(filter_policy={"event_type": ["weather.changed"]})
    wanted = weather("harbour")
    await game.publish(night("harbour"), wanted)
    assert await subscriber.read(1) == [wanted]
    assert await subscriber.waiting() == []


async def test_a_subscription_may_take_one_world_only(game: Game) -> None:
    subscriber = await game.subscribe(filter_policy={"world_id": ["tower"]}, raw=False)
    wanted = weather("tower")
    await game.publish(weather("harbour"), wanted, night("harbour"))
    assert await subscriber.read(1) == [wanted]
    assert await subscriber.waiting() == []


async def test_the_wire_is_what_the_games_services_read(game: Game) -> None:
    subscriber = await game.subscribe()
    event = weather("harbour")
    await game.publish(event)
    (message,) = await subscriber.waiting()
    assert message["Body"] == event.SerializeToString(deterministic=True).hex()
    values = {
        name: (attribute["DataType"], attribute["StringValue"])
        for name, attribute in message["MessageAttributes"].items()
    }
    assert values == {
        "event_type": ("String", "weather.changed"),
        "source": ("String", "weather-manager"),
        "content_type": ("String", "application/x-protobuf"),
        "world_id": ("String", "harbour"),
    }


async def test_an_event_that_fails_too_often_is_redriven(game: Game) -> None:
    subscriber = await game.subscribe(maximum_receives=3)
    event = weather("harbour")
    await game.publish(event)
    assert await subscriber.read(3, failing=True) == [event] * 3
    assert await subscriber.waiting() == []
    (dead,) = await subscriber.waiting(subscriber.dead_letter_url)
    assert GameEvent.FromString(bytes.fromhex(dead["Body"])) == event


async def test_poison_stands_in_the_dead_letters_with_its_reason(game: Game) -> None:
    subscriber = await game.subscribe(raw=False)
    await game.sns.publish(TopicArn=game.topic_arn, Message="hello, there!")
    event = weather("harbour")
    await game.publish(event)
    assert await subscriber.read(1) == [event]
    (dead,) = await subscriber.waiting(subscriber.dead_letter_url)
    assert json.loads(dead["Body"])["Message"] == "hello, there!"
    reason = dead["MessageAttributes"]["dead_letter_reason"]
    assert (reason["DataType"], reason["StringValue"]) == ("String", "not_hex_base64_or_json")


async def test_a_large_event_travels_by_the_bucket(game: Game) -> None:
    subscriber = await game.subscribe()
    large = weather("harbour", "storm" * 60_000)
    await game.publish(large)
    assert await subscriber.read(1) == [large]
