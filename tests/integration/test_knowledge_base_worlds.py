"""Worlds and their memory over real gRPC and a real PostgreSQL."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import grpc
import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from gaming.knowledge_base.v1 import story_pb2, worlds_pb2
from knowledge_base.testing import (
    HashEmbedder,
    RunningKnowledgeBase,
    failure_of,
    serve_knowledge_base,
)
from servicekit.testing import FakeClock

TIMEOUT_SECONDS = 20


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def embedder() -> HashEmbedder:
    return HashEmbedder()


@pytest.fixture
async def running(
    knowledge_base_database: str, embedder: HashEmbedder, clock: FakeClock
) -> AsyncIterator[RunningKnowledgeBase]:
    async with serve_knowledge_base(
        knowledge_base_database, embedder=embedder, clock=clock
    ) as running:
        yield running


def new_request_id() -> str:
    return str(uuid.uuid4())


def stamp(moment: datetime) -> Timestamp:
    result = Timestamp()
    result.FromDatetime(moment)
    return result


async def create_world(
    running: RunningKnowledgeBase, name: str, *, request_id: str = "", description: str = ""
) -> worlds_pb2.World:
    request = worlds_pb2.CreateWorldRequest(
        name=name, description=description, request_id=request_id or new_request_id()
    )
    return (await running.stub.CreateWorld(request, timeout=TIMEOUT_SECONDS)).world


async def record(
    running: RunningKnowledgeBase,
    world: worlds_pb2.World,
    *events: story_pb2.StoryEvent,
    request_id: str = "",
) -> list[story_pb2.StoryEvent]:
    request = story_pb2.RecordEventsRequest(
        world_id=world.world_id, events=events, request_id=request_id or new_request_id()
    )
    return list((await running.stub.RecordEvents(request, timeout=TIMEOUT_SECONDS)).events)


async def recall(
    running: RunningKnowledgeBase, world: worlds_pb2.World, query: str, **options: Any
) -> list[story_pb2.RecalledEvent]:
    request = story_pb2.RecallRequest(world_id=world.world_id, query=query, **options)
    return list((await running.stub.Recall(request, timeout=TIMEOUT_SECONDS)).events)


async def list_events(
    running: RunningKnowledgeBase, world: worlds_pb2.World, page_size: int
) -> list[story_pb2.StoryEvent]:
    events: list[story_pb2.StoryEvent] = []
    token = ""
    while True:
        page = await running.stub.ListEvents(
            story_pb2.ListEventsRequest(
                world_id=world.world_id, page_size=page_size, page_token=token
            ),
            timeout=TIMEOUT_SECONDS,
        )
        events += page.events
        token = page.next_page_token
        if not token:
            return events
        assert len(page.events) == page_size


def failure(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str]:
    told = failure_of(error)
    return told.code, told.reason


async def test_a_world_is_made_once_per_request(
    running: RunningKnowledgeBase, clock: FakeClock
) -> None:
    request_id = new_request_id()
    first = await create_world(running, "Odrelle", request_id=request_id, description="Water.")
    again = await create_world(running, "Odrelle", request_id=request_id, description="Water.")
    assert first == again
    assert (first.name, first.description, first.event_count) == ("Odrelle", "Water.", 0)
    assert first.create_time.ToDatetime(tzinfo=UTC) == clock.now()
    for request in (
        worlds_pb2.GetWorldRequest(world_id=first.world_id),
        worlds_pb2.GetWorldRequest(name=" Odrelle "),
    ):
        got = await running.stub.GetWorld(request, timeout=TIMEOUT_SECONDS)
        assert got.world == first


async def test_a_worlds_name_is_taken_once_even_at_once(running: RunningKnowledgeBase) -> None:
    results = await asyncio.gather(
        *(create_world(running, "Mauk") for _ in range(5)), return_exceptions=True
    )
    assert sum(isinstance(result, worlds_pb2.World) for result in results) == 1
    for result in results:
        if isinstance(result, grpc.aio.AioRpcError):
            assert failure(result) == (grpc.StatusCode.ALREADY_EXISTS, "WORLD_NAME_TAKEN")


async def test_one_request_at_once_many_times_makes_one_world(
    running: RunningKnowledgeBase,
) -> None:
    request_id = new_request_id()
    worlds = await asyncio.gather(
        *(create_world(running, "Mauk", request_id=request_id) for _ in range(5))
    )
    assert len({world.world_id for world in worlds}) == 1


async def test_a_request_id_is_not_used_for_something_else(running: RunningKnowledgeBase) -> None:
    request_id = new_request_id()
    world = await create_world(running, "Mauk", request_id=request_id)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await create_world(running, "Odrelle", request_id=request_id)
    assert failure(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
    await record(running, world, story_pb2.StoryEvent(text="a"), request_id=request_id)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await record(running, world, story_pb2.StoryEvent(text="b"), request_id=request_id)
    assert failure(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
    assert len(await list_events(running, world, 10)) == 1


async def test_worlds_are_listed_by_name(running: RunningKnowledgeBase) -> None:
    for name in ("c", "a", "\u00e4", "b", "Z"):
        await create_world(running, name)
    names, token = [], ""
    while True:
        page = await running.stub.ListWorlds(
            worlds_pb2.ListWorldsRequest(page_size=2, page_token=token), timeout=TIMEOUT_SECONDS
        )
        names += [world.name for world in page.worlds]
        token = page.next_page_token
        if not token:
            break
    assert names == ["Z", "a", "b", "c", "\u00e4"]


@pytest.mark.parametrize(
    "request_",
    [
        worlds_pb2.GetWorldRequest(name="none"),
        worlds_pb2.GetWorldRequest(world_id=str(uuid.uuid4())),
    ],
)
async def test_an_unknown_world_is_not_found(
    running: RunningKnowledgeBase, request_: worlds_pb2.GetWorldRequest
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.stub.GetWorld(request_, timeout=TIMEOUT_SECONDS)
    assert failure(caught.value) == (grpc.StatusCode.NOT_FOUND, "WORLD_NOT_FOUND")


async def test_every_method_of_a_world_says_when_it_does_not_exist(
    running: RunningKnowledgeBase,
) -> None:
    nowhere = worlds_pb2.World(world_id=str(uuid.uuid4()))
    calls = [
        record(running, nowhere, story_pb2.StoryEvent(text="x")),
        recall(running, nowhere, "x"),
        list_events(running, nowhere, 5),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert failure(caught.value) == (grpc.StatusCode.NOT_FOUND, "WORLD_NOT_FOUND")


async def test_recorded_events_come_back_whole(
    running: RunningKnowledgeBase, clock: FakeClock
) -> None:
    world = await create_world(running, "Mauk")
    long_ago = datetime(2, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)
    events = await record(
        running,
        world,
        story_pb2.StoryEvent(
            text="Kites \U0001fa81 landed.\nAll of them.",
            kind="battle",
            participants=["Dauro Tesh", "Nerrit"],
            occur_time=stamp(long_ago),
            importance=0.0,
            event_id="ignored",
        ),
        story_pb2.StoryEvent(text="It was hot."),
    )
    assert [event.text for event in events] == [
        "Kites \U0001fa81 landed.\nAll of them.",
        "It was hot.",
    ]
    first, second = events
    assert uuid.UUID(first.event_id) != uuid.UUID(second.event_id)
    assert first.occur_time.ToDatetime(tzinfo=UTC) == long_ago
    assert (first.kind, list(first.participants)) == ("battle", ["Dauro Tesh", "Nerrit"])
    assert (first.importance, second.importance, second.kind) == (0.0, 0.5, "event")
    assert second.occur_time.ToDatetime(tzinfo=UTC) == clock.now()
    assert second.record_time == first.record_time
    assert await list_events(running, world, 10) == [second, first]
    got = await running.stub.GetWorld(
        worlds_pb2.GetWorldRequest(world_id=world.world_id), timeout=TIMEOUT_SECONDS
    )
    assert got.world.event_count == 2


async def test_a_repeated_request_returns_the_same_events_without_embedding(
    running: RunningKnowledgeBase, embedder: HashEmbedder, clock: FakeClock
) -> None:
    world = await create_world(running, "Mauk")
    request_id = new_request_id()
    events = [story_pb2.StoryEvent(text="one"), story_pb2.StoryEvent(text="two")]
    first = await record(running, world, *events, request_id=request_id)
    await record(running, world, story_pb2.StoryEvent(text="three"))
    embedder.embedded.clear()
    await clock.advance(3600)
    assert await record(running, world, *events, request_id=request_id) == first
    assert embedder.embedded == []
    assert len(await list_events(running, world, 10)) == 3


async def test_one_request_at_once_many_times_records_once(running: RunningKnowledgeBase) -> None:
    world = await create_world(running, "Mauk")
    request_id = new_request_id()
    answers = await asyncio.gather(
        *(
            record(running, world, story_pb2.StoryEvent(text="one"), request_id=request_id)
            for _ in range(8)
        )
    )
    assert all(answer == answers[0] for answer in answers)
    assert len(await list_events(running, world, 10)) == 1


async def test_writers_of_one_world_all_get_in(running: RunningKnowledgeBase) -> None:
    world = await create_world(running, "Mauk")
    await asyncio.gather(
        *(
            record(running, world, *(story_pb2.StoryEvent(text=f"w{n} e{i}") for i in range(5)))
            for n in range(12)
        )
    )
    events = await list_events(running, world, 7)
    assert len({event.event_id for event in events}) == 60
    (counted,) = await running.database.fetch(
        "SELECT event_count, event_term_count FROM knowledge_base.get_world(NULL, 'Mauk')"
    )
    assert counted["event_count"] == 60
    assert counted["event_term_count"] == 120


async def test_events_are_recorded_all_or_none(running: RunningKnowledgeBase) -> None:
    world = await create_world(running, "Mauk")
    bad_time = Timestamp(seconds=2**50)
    for bad in (
        story_pb2.StoryEvent(text="nul \0 inside"),
        story_pb2.StoryEvent(text="when?", occur_time=bad_time),
        story_pb2.StoryEvent(text="x", importance=float("nan")),
        story_pb2.StoryEvent(text="x", participants=[" "]),
        story_pb2.StoryEvent(text=""),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await record(running, world, story_pb2.StoryEvent(text="good"), bad)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "events[1]" in failure_of(caught.value).text
    assert await list_events(running, world, 10) == []


async def test_events_are_listed_newest_first_page_by_page(running: RunningKnowledgeBase) -> None:
    world = await create_world(running, "Mauk")
    day = datetime(300, 1, 1, tzinfo=UTC)
    days = [3, 1, 2, 2, 2, 5, 4]
    await record(
        running,
        world,
        *(
            story_pb2.StoryEvent(text=f"{n}", occur_time=stamp(day + timedelta(days=days[n])))
            for n in range(7)
        ),
    )
    texts = [event.text for event in await list_events(running, world, 2)]
    assert texts == ["5", "6", "0", "4", "3", "2", "1"]


async def test_recall_finds_what_fits(running: RunningKnowledgeBase) -> None:
    world = await create_world(running, "Mauk")
    await record(
        running,
        world,
        story_pb2.StoryEvent(text="The kites landed on the shelf."),
        story_pb2.StoryEvent(text="A goat ate the map.", participants=["Old Argument"]),
        story_pb2.StoryEvent(text="Rain fell."),
    )
    assert (await recall(running, world, "which kite landed"))[0].event.text.startswith("The kites")
    # Who took part is found although the text does not say it.
    assert (await recall(running, world, "Old Argument"))[0].event.text == "A goat ate the map."
    assert len(await recall(running, world, "goat", limit=1)) == 1


async def test_recency_counts_in_story_time_and_importance_counts(
    knowledge_base_database: str, clock: FakeClock
) -> None:
    async with serve_knowledge_base(
        knowledge_base_database, clock=clock, KNOWLEDGE_BASE_RECENCY_HALF_LIFE_HOURS="24"
    ) as running:
        world = await create_world(running, "Mauk")
        latest = datetime(462, 5, 1, tzinfo=UTC)
        await record(
            running,
            world,
            story_pb2.StoryEvent(text="same", occur_time=stamp(latest - timedelta(days=2))),
            story_pb2.StoryEvent(text="same", occur_time=stamp(latest)),
            story_pb2.StoryEvent(
                text="same", occur_time=stamp(latest - timedelta(days=2)), importance=1.0
            ),
        )
        await clock.advance(365 * 24 * 3600)  # the world rests; it forgets nothing
        found = await recall(running, world, "same")
        assert [item.recency for item in found] == pytest.approx([1.0, 0.25, 0.25])
        assert [item.event.importance for item in found] == [0.5, 1.0, 0.5]
        for item in found:
            assert item.score == pytest.approx(
                0.9 * item.relevance + 0.05 * item.recency + 0.05 * item.event.importance
            )
        # Seen from an earlier moment, that moment's latest event is the present.
        earlier = await recall(running, world, "same", end_time=stamp(latest))
        assert [item.recency for item in earlier] == pytest.approx([1.0, 1.0])


async def test_recall_filters_never_return_too_few(running: RunningKnowledgeBase) -> None:
    world = await create_world(running, "Mauk")
    day = datetime(300, 1, 1, tzinfo=UTC)
    await record(
        running,
        world,
        *(
            story_pb2.StoryEvent(
                text=f"event number {n}",
                kind="rare" if n % 25 == 0 else "common",
                participants=["Ann", "Bo"] if n % 10 == 0 else ["Ann"],
                occur_time=stamp(day + timedelta(days=n)),
            )
            for n in range(100)
        ),
    )

    async def numbers(**options: Any) -> set[int]:
        found = await recall(running, world, "event number", limit=100, **options)
        return {int(item.event.text.split()[-1]) for item in found}

    assert await numbers() == set(range(100))
    assert await numbers(kinds=["rare"]) == {0, 25, 50, 75}
    assert await numbers(kinds=["rare", "common"]) == set(range(100))
    assert await numbers(participants=["Bo", "Ann"]) == set(range(0, 100, 10))
    assert await numbers(participants=["Nobody"]) == set()
    window = {
        "start_time": stamp(day + timedelta(days=10)),
        "end_time": stamp(day + timedelta(days=20)),
    }
    assert await numbers(**window) == set(range(10, 20))
    assert await numbers(kinds=["rare"], participants=["Bo"], **window) == set()


async def test_recall_in_an_empty_world_is_empty(running: RunningKnowledgeBase) -> None:
    world = await create_world(running, "Mauk")
    assert await recall(running, world, "anything at all") == []


async def test_request_ids_are_forgotten_after_their_time_in_all_worlds(
    running: RunningKnowledgeBase, clock: FakeClock
) -> None:
    request_id = new_request_id()
    worlds = [await create_world(running, name) for name in ("a", "b")]
    for world in worlds:
        await record(running, world, story_pb2.StoryEvent(text="x"), request_id=request_id)
    async with asyncio.TaskGroup() as group:
        forgetting = group.create_task(running.memory.forget_requests())
        await clock.advance(3600)
        for world in worlds:  # known still
            await record(running, world, story_pb2.StoryEvent(text="x"), request_id=request_id)
            assert len(await list_events(running, world, 10)) == 1
        await clock.advance(8 * 24 * 3600)
        while await _requests_known(running, worlds):
            await clock.advance(3600)
        forgetting.cancel()


async def _requests_known(running: RunningKnowledgeBase, worlds: list[worlds_pb2.World]) -> bool:
    for world in worlds:
        async with running.database.connection() as connection, connection.transaction():
            await connection.execute(
                "SELECT set_config('knowledge_base.world_id', $1, true)", world.world_id
            )
            if await connection.fetchval("SELECT count(*) FROM knowledge_base.requests"):
                return True
    return False


LARGE_AND_SMALL_WORLDS = """
SET search_path TO knowledge_base, public;
INSERT INTO worlds
SELECT gen_random_uuid(), CASE i WHEN 1 THEN 'large' ELSE 'small ' || i END, '', now(),
    CASE i WHEN 1 THEN 5000 ELSE 30 END, CASE i WHEN 1 THEN 15000 ELSE 90 END
FROM generate_series(1, 300) i;
INSERT INTO story_events
SELECT w.world_id, n, gen_random_uuid(), 'entry ' || n, 'event', '{}', now(), now(), 0.5, 'none',
    array_fill(0.05::real, ARRAY[384])::vector
FROM worlds w, generate_series(1, w.event_count) n;
INSERT INTO story_event_terms
SELECT world_id, term, sequence, 1, 3
FROM story_events, unnest(ARRAY['tide', 'wall', 'number' || sequence]) term;
ANALYZE;
"""


async def test_words_that_every_event_holds_do_not_slow_a_large_world_down(
    running: RunningKnowledgeBase, knowledge_base_database: str
) -> None:
    """A plan kept from small worlds takes them for rare; followed here, it took more than 20 s."""
    owner = await asyncpg.connect(knowledge_base_database)
    await owner.execute(LARGE_AND_SMALL_WORLDS)
    await owner.close()
    large, small = [
        await running.stub.GetWorld(worlds_pb2.GetWorldRequest(name=name), timeout=TIMEOUT_SECONDS)
        for name in ("large", "small 2")
    ]
    for _ in range(12):  # PostgreSQL settles on one plan after some runs
        assert len(await recall(running, small.world, "tide", limit=100)) == 30
    async with asyncio.timeout(3):
        found = await recall(running, large.world, "the tide at the wall, number1234")
    assert found[0].event.text == "entry 1234"
