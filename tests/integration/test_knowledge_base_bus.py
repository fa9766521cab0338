"""Events of the game's bus become memories of the worlds that take them, and memories events."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from gaming.events import events_pb2
from gaming.knowledge_base.v1 import story_pb2, subscriptions_pb2, worlds_pb2
from knowledge_base.adapters.schema import SCHEMA
from knowledge_base.ports_reranker import Rerankers
from knowledge_base.testing import (
    HashEmbedder,
    HashReranker,
    RunningKnowledgeBase,
    failure_of,
    serve_knowledge_base,
)
from messaging.codec import new_event
from messaging.outbox_relay import OutboxRelay
from messaging.outbox_settings import StoreSettings
from servicekit.settings import load_settings
from servicekit.testing import FakeClock

TIMEOUT_SECONDS = 30
WEATHER = [events_pb2.WEATHER_CHANGED, events_pb2.WEATHER_SEVERE]


@pytest.fixture
def embedder() -> HashEmbedder:
    return HashEmbedder()


@pytest.fixture
async def running(
    knowledge_base_database: str, embedder: HashEmbedder
) -> AsyncIterator[RunningKnowledgeBase]:
    async with serve_knowledge_base(
        knowledge_base_database,
        embedder=embedder,
        announces=True,
        rerankers=Rerankers(memory=HashReranker()),
    ) as running:
        yield running


def new_id() -> str:
    return str(uuid.uuid4())


async def create_world(running: RunningKnowledgeBase, name: str) -> str:
    request = worlds_pb2.CreateWorldRequest(name=name, request_id=new_id())
    return (await running.stub.CreateWorld(request, timeout=TIMEOUT_SECONDS)).world.world_id


async def subscribe(
    running: RunningKnowledgeBase,
    world_id: str,
    types: list[events_pb2.EventType.ValueType],
    *sources: str,
    request_id: str = "",
) -> subscriptions_pb2.EventSubscription:
    request = subscriptions_pb2.SetEventSubscriptionRequest(
        world_id=world_id,
        subscription=subscriptions_pb2.EventSubscription(event_types=types, sources=sources),
        request_id=request_id or new_id(),
    )
    response = await running.stub.SetEventSubscription(request, timeout=TIMEOUT_SECONDS)
    return response.subscription


async def memories(running: RunningKnowledgeBase, world_id: str) -> list[story_pb2.StoryEvent]:
    request = story_pb2.ListEventsRequest(world_id=world_id)
    return list((await running.stub.ListEvents(request, timeout=TIMEOUT_SECONDS)).events)


def storm(*, world_id: str = "", source: str = "weather-manager") -> events_pb2.GameEvent:
    return new_event(
        events_pb2.WEATHER_CHANGED,
        events_pb2.WeatherEvent(old_state="clear", new_state="storm", intensity=0.75),
        source=source,
        event_id=new_id(),
        timestamp_milliseconds=1_762_560_000_123,
        metadata={"world_id": world_id} if world_id else {},
    )


async def announced(running: RunningKnowledgeBase) -> list[events_pb2.GameEvent]:
    """What the relay publishes of the outbox now."""
    published: list[events_pb2.GameEvent] = []

    class Collector:
        async def publish(self, event: events_pb2.GameEvent) -> None:
            published.append(event)

    relay = OutboxRelay(
        running.database.pool,
        Collector(),
        schema=SCHEMA,
        settings=load_settings(StoreSettings, {}),
        clock=FakeClock(),
        rng=random.Random(1),  # noqa: S311  # jitter, no secret
    )
    while await relay.relay_batch():
        pass
    return published


async def test_a_world_remembers_what_it_takes_and_finds_it_again(
    running: RunningKnowledgeBase,
) -> None:
    taking, other = await create_world(running, "taking"), await create_world(running, "other")
    await subscribe(running, taking, WEATHER)
    event = storm()

    await running.take(event)

    (memory,) = await memories(running, taking)
    assert memory.text == "The weather turned from clear to storm, intensity 75%."
    assert (memory.kind, memory.occur_time.ToMilliseconds()) == ("weather", event.timestamp)
    assert await memories(running, other) == []
    recalled = await running.stub.Recall(
        story_pb2.RecallRequest(world_id=taking, query="was there a storm?"),
        timeout=TIMEOUT_SECONDS,
    )
    assert [found.event.event_id for found in recalled.events] == [memory.event_id]
    # What the reranker reads is kept of it, as of an event that a caller records.
    assert recalled.events[0].HasField("reranker_score")


async def test_an_event_that_comes_again_is_remembered_once(
    running: RunningKnowledgeBase,
) -> None:
    world = await create_world(running, "world")
    await subscribe(running, world, WEATHER)
    event = storm()
    await asyncio.gather(*(running.take(event) for _ in range(4)))
    await running.take(event)
    assert len(await memories(running, world)) == 1
    assert len(await announced(running)) == 1


async def test_a_redelivery_reaches_only_the_worlds_that_missed_the_first(
    running: RunningKnowledgeBase,
) -> None:
    first, second = await create_world(running, "a"), await create_world(running, "b")
    await subscribe(running, first, WEATHER)
    event = storm()
    await running.take(event)
    await subscribe(running, second, WEATHER)
    await running.take(event)
    assert len(await memories(running, first)) == 1
    assert len(await memories(running, second)) == 1


async def test_an_event_for_one_world_reaches_no_other_and_not_even_it_unasked(
    running: RunningKnowledgeBase,
) -> None:
    meant, bystander = await create_world(running, "meant"), await create_world(running, "by")
    await subscribe(running, bystander, WEATHER)
    await running.take(storm(world_id=meant))
    assert await memories(running, meant) == []
    await subscribe(running, meant, WEATHER)
    await running.take(storm(world_id=meant))
    assert len(await memories(running, meant)) == 1
    assert await memories(running, bystander) == []


async def test_types_and_sources_a_world_did_not_ask_for_do_not_reach_it(
    running: RunningKnowledgeBase, embedder: HashEmbedder
) -> None:
    world = await create_world(running, "world")
    await subscribe(running, world, WEATHER, "weather-manager")
    await running.take(storm(source="somebody-else"))
    night = storm()
    night.event_type = events_pb2.TIME_NIGHT_ACTIVATED
    await running.take(night)
    assert await memories(running, world) == []
    assert embedder.embedded == []  # nobody wanted them, so they cost nothing
    await running.take(storm())
    assert len(await memories(running, world)) == 1


async def test_a_callers_request_with_the_events_id_meets_no_request_of_ours(
    running: RunningKnowledgeBase,
) -> None:
    world = await create_world(running, "world")
    await subscribe(running, world, WEATHER)
    event = storm()
    await running.stub.RecordEvents(
        story_pb2.RecordEventsRequest(
            world_id=world,
            events=[story_pb2.StoryEvent(text="Mira saw the storm come.")],
            request_id=event.event_id,
        ),
        timeout=TIMEOUT_SECONDS,
    )
    await running.take(event)
    assert len(await memories(running, world)) == 2


async def test_what_is_recorded_is_announced_once_with_its_cause_and_without_its_text(
    running: RunningKnowledgeBase,
) -> None:
    world = await create_world(running, "world")
    await subscribe(running, world, WEATHER)
    request = story_pb2.RecordEventsRequest(
        world_id=world,
        events=[
            story_pb2.StoryEvent(text="Mira stole the bell.", kind="theft"),
            story_pb2.StoryEvent(text="x"),
        ],
        request_id=new_id(),
    )
    for _ in range(2):  # the second is a repeat
        recorded = await running.stub.RecordEvents(request, timeout=TIMEOUT_SECONDS)
    weather = storm()
    await running.take(weather)

    events = await announced(running)

    payloads = [events_pb2.StoryEventRecordedEvent.FromString(e.payload) for e in events]
    assert [(p.sequence, p.kind, p.cause_event_id) for p in payloads] == [
        (1, "theft", ""),
        (2, "event", ""),
        (3, "weather", weather.event_id),
    ]
    assert [e.event_id for e in events[:2]] == [e.event_id for e in recorded.events]
    assert all(dict(event.metadata) == {"world_id": world} for event in events)
    assert not any(b"Mira" in event.SerializeToString() for event in events)


async def test_a_refused_recording_announces_nothing(running: RunningKnowledgeBase) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await running.stub.RecordEvents(
            story_pb2.RecordEventsRequest(
                world_id=new_id(), events=[story_pb2.StoryEvent(text="x")], request_id=new_id()
            ),
            timeout=TIMEOUT_SECONDS,
        )
    assert await announced(running) == []


async def test_a_subscription_is_set_shown_replaced_and_ended(
    running: RunningKnowledgeBase,
) -> None:
    world = await create_world(running, "world")

    async def shown() -> subscriptions_pb2.GetEventSubscriptionResponse:
        request = subscriptions_pb2.GetEventSubscriptionRequest(world_id=world)
        return await running.stub.GetEventSubscription(request, timeout=TIMEOUT_SECONDS)

    assert not (await shown()).HasField("subscription")
    first_request, ending = new_id(), new_id()
    first = await subscribe(running, world, WEATHER, "b", "a", request_id=first_request)
    assert (list(first.event_types), list(first.sources)) == (WEATHER, ["a", "b"])
    assert (await shown()).subscription == first
    second = await subscribe(running, world, [events_pb2.TIME_CHANGED])
    # A repeat of the first request changes nothing and answers as it did.
    assert await subscribe(running, world, WEATHER, "a", "b", request_id=first_request) == first
    assert (await shown()).subscription == second
    end = subscriptions_pb2.DeleteEventSubscriptionRequest(world_id=world, request_id=ending)
    for _ in range(2):
        ended = await running.stub.DeleteEventSubscription(end, timeout=TIMEOUT_SECONDS)
        assert ended.subscription == second
    assert not (await shown()).HasField("subscription")
    await running.take(storm())
    assert await memories(running, world) == []


async def test_a_subscription_to_what_no_world_can_take_is_refused(
    running: RunningKnowledgeBase,
) -> None:
    world = await create_world(running, "world")
    for types in ([], [events_pb2.STORY_EVENT_RECORDED], [events_pb2.WEATHER_CHANGED] * 2):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await subscribe(running, world, types)
        assert failure_of(refused.value).code is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await subscribe(running, new_id(), WEATHER)
    assert failure_of(refused.value).reason == "WORLD_NOT_FOUND"
