"""Watching what changes in a world, also through another replica, over real gRPC and PostgreSQL."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import asyncpg
import grpc.aio
import pytest

from gaming.knowledge_base.v1 import (
    concepts_pb2,
    story_pb2,
    world_changes_pb2,
    world_jobs_pb2,
    worlds_pb2,
)
from knowledge_base.testing import RunningKnowledgeBase, failure_of, serve_knowledge_base

TIMEOUT_SECONDS = 30
CANARY = "canaryquillon"
EVENT = world_changes_pb2.WORLD_CHANGE_KIND_EVENT
Watch = AsyncIterator[world_changes_pb2.WatchWorldResponse]


@pytest.fixture
async def running(knowledge_base_database: str) -> AsyncIterator[RunningKnowledgeBase]:
    async with serve_knowledge_base(knowledge_base_database) as running:
        yield running


@pytest.fixture
async def replica(
    running: RunningKnowledgeBase, knowledge_base_database: str
) -> AsyncIterator[RunningKnowledgeBase]:
    async with serve_knowledge_base(knowledge_base_database) as replica:
        yield replica


def new_id() -> str:
    return str(uuid.uuid4())


async def make_world(running: RunningKnowledgeBase, name: str = "Mauk") -> str:
    answer = await running.stub.CreateWorld(
        worlds_pb2.CreateWorldRequest(name=name, request_id=new_id()), timeout=TIMEOUT_SECONDS
    )
    return answer.world.world_id


async def record(running: RunningKnowledgeBase, world_id: str, *texts: str) -> list[str]:
    answer = await running.stub.RecordEvents(
        story_pb2.RecordEventsRequest(
            world_id=world_id,
            events=[story_pb2.StoryEvent(text=text) for text in texts],
            request_id=new_id(),
        ),
        timeout=TIMEOUT_SECONDS,
    )
    return [event.event_id for event in answer.events]


async def put_concept(running: RunningKnowledgeBase, world_id: str, name: str) -> None:
    await running.stub.PutConcept(
        concepts_pb2.PutConceptRequest(
            world_id=world_id, name=name, kind="k", description="d", request_id=new_id()
        ),
        timeout=TIMEOUT_SECONDS,
    )


def watch(running: RunningKnowledgeBase, world_id: str, token: str = "") -> Watch:
    call = running.stub.WatchWorld(
        world_changes_pb2.WatchWorldRequest(world_id=world_id, resume_token=token),
        timeout=TIMEOUT_SECONDS,
    )
    return aiter(call)


async def changes(steps: Watch, count: int) -> list[tuple[str, world_changes_pb2.WorldChange]]:
    found: list[tuple[str, world_changes_pb2.WorldChange]] = []
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while len(found) < count:
            step = await anext(steps)
            if step.HasField("change"):
                found.append((step.resume_token, step.change))
    return found


async def failed(steps: Watch) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _to_the_end(steps)
    told = failure_of(caught.value)
    return told.code, told.reason


async def _to_the_end(steps: Watch) -> None:
    async for _ in steps:
        pass


async def test_a_watcher_hears_of_changes_made_through_another_replica(
    running: RunningKnowledgeBase, replica: RunningKnowledgeBase
) -> None:
    world_id = await make_world(running)
    steps = watch(replica, world_id)
    first = await anext(steps)  # where the watch begins: nothing after it is missed
    assert not first.HasField("change")
    assert first.resume_token
    event_ids = await record(running, world_id, "one", "two")
    await put_concept(running, world_id, "Mira")
    await running.stub.ArchiveWorld(
        worlds_pb2.ArchiveWorldRequest(world_id=world_id, request_id=new_id()),
        timeout=TIMEOUT_SECONDS,
    )
    found = [change for _, change in await changes(steps, 4)]
    assert [change.kind for change in found] == [
        EVENT,
        EVENT,
        world_changes_pb2.WORLD_CHANGE_KIND_CONCEPT,
        world_changes_pb2.WORLD_CHANGE_KIND_ARCHIVED,
    ]
    assert [change.subject_id for change in found[:2]] == event_ids
    assert [change.number for change in found] == [1, 2, 3, 4]


async def test_a_watch_resumes_after_any_of_its_messages_at_any_replica(
    running: RunningKnowledgeBase, replica: RunningKnowledgeBase
) -> None:
    world_id = await make_world(running)
    steps = watch(running, world_id)
    start = (await anext(steps)).resume_token
    ids = await record(running, world_id, "one", "two", "three")
    seen = await changes(steps, 3)
    for token, missed in [(start, ids), (seen[0][0], ids[1:]), (seen[1][0], ids[2:])]:
        resumed = await changes(watch(replica, world_id, token), len(missed))
        assert [change.subject_id for _, change in resumed] == missed


async def test_a_watcher_hears_nothing_of_another_world(
    running: RunningKnowledgeBase, replica: RunningKnowledgeBase
) -> None:
    own, other = await make_world(running, "own"), await make_world(running, "other")
    watchers = [watch(running, own), watch(replica, own)]
    begun = [await anext(steps) for steps in watchers]
    # Somebody watches the other one too, so that its changes are told at all.
    other_steps = watch(running, other)
    await anext(other_steps)
    foreign = await record(running, other, CANARY, CANARY)
    await put_concept(running, other, CANARY)
    foreign += [change.subject_id for _, change in await changes(other_steps, 3)]
    last = await record(running, own, "one")
    for steps, first in zip(watchers, begun, strict=True):
        async with asyncio.timeout(TIMEOUT_SECONDS):
            heard = [first, await anext(steps)]
            while not heard[-1].HasField("change"):
                heard.append(await anext(steps))
        assert [(heard[-1].change.number, heard[-1].change.subject_id)] == [(1, last[0])]
        for each in heard:
            assert CANARY not in str(each)
            assert not [subject_id for subject_id in foreign if subject_id in str(each)]


@pytest.mark.endurance
async def test_changes_of_concurrent_writers_are_numbered_in_the_order_they_are_seen(
    running: RunningKnowledgeBase, replica: RunningKnowledgeBase
) -> None:
    """No number is seen after a higher one, whoever commits first; so no resume skips a change."""
    world_id = await make_world(running)
    steps = watch(replica, world_id)
    await anext(steps)
    writers = [
        record(each, world_id, f"event {number}")
        for number in range(20)
        for each in (running, replica)
    ]
    recorded = await asyncio.gather(*writers)
    found = [change for _, change in await changes(steps, 40)]
    assert [change.number for change in found] == list(range(1, 41))
    assert {change.subject_id for change in found} == {each for (each,) in recorded}


@pytest.mark.parametrize("token", ["not a token", f"{uuid.UUID(int=7).hex}.0"])
async def test_an_unknown_token_is_out_of_range(running: RunningKnowledgeBase, token: str) -> None:
    world_id = await make_world(running)
    assert (await failed(watch(running, world_id, token)))[0] is grpc.StatusCode.OUT_OF_RANGE


async def test_a_token_older_than_the_log_is_out_of_range(
    running: RunningKnowledgeBase, knowledge_base_database: str
) -> None:
    world_id = await make_world(running)
    steps = watch(running, world_id)
    start = (await anext(steps)).resume_token
    await record(running, world_id, "one", "two")
    await changes(steps, 2)
    owner = await asyncpg.connect(knowledge_base_database)
    try:
        forgotten = await owner.fetchval("SELECT knowledge_base.forget_changes('infinity')")
        assert forgotten == 1  # the last one is kept: the next number is counted from it
    finally:
        await owner.close()
    assert (await failed(watch(running, world_id, start)))[0] is grpc.StatusCode.OUT_OF_RANGE
    await record(running, world_id, "three")
    assert (await changes(steps, 1))[0][1].number == 3


@pytest.mark.endurance
async def test_the_log_of_a_busy_world_is_bounded(
    running: RunningKnowledgeBase, knowledge_base_database: str
) -> None:
    world_id = await make_world(running)
    owner = await asyncpg.connect(knowledge_base_database)
    try:
        for _ in range(4):
            await owner.execute(
                "SELECT knowledge_base.append_changes($1, 'event', array_agg(gen_random_uuid()))"
                " FROM generate_series(1, 3000)",
                world_id,
            )
        kept = await owner.fetchrow(
            "SELECT count(*) AS count, max(change_number) AS newest"
            " FROM knowledge_base.world_changes WHERE world_id = $1",
            world_id,
        )
        assert kept["newest"] == 12_000
        assert kept["count"] == await owner.fetchval("SELECT knowledge_base.kept_changes()")
    finally:
        await owner.close()


async def test_a_watch_of_an_erased_world_says_so_and_ends(
    running: RunningKnowledgeBase, replica: RunningKnowledgeBase
) -> None:
    world_id = await make_world(running)
    steps = watch(replica, world_id)
    await anext(steps)
    await running.stub.EraseWorld(
        world_jobs_pb2.EraseWorldRequest(world_id=world_id, request_id=new_id()),
        timeout=TIMEOUT_SECONDS,
    )
    ((_, change),) = await changes(steps, 1)
    assert change.kind == world_changes_pb2.WORLD_CHANGE_KIND_ERASED
    assert await failed(steps) == (grpc.StatusCode.NOT_FOUND, "WORLD_NOT_FOUND")


async def test_a_world_that_is_erased_while_a_watch_begins_is_not_found(
    running: RunningKnowledgeBase, knowledge_base_database: str
) -> None:
    world_id = await make_world(running)
    owner = await asyncpg.connect(knowledge_base_database, timeout=TIMEOUT_SECONDS)
    try:
        async with owner.transaction():
            await owner.execute(
                "UPDATE knowledge_base.worlds SET hidden = true WHERE world_id = $1",
                uuid.UUID(world_id),
            )
            beginning = asyncio.create_task(failed(watch(running, world_id)))
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while not await owner.fetchval(  # noqa: ASYNC110  # it happens in the server
                    "SELECT count(*) FROM pg_locks WHERE NOT granted"
                ):
                    await asyncio.sleep(0.01)
        assert await beginning == (grpc.StatusCode.NOT_FOUND, "WORLD_NOT_FOUND")
    finally:
        await owner.close()


@pytest.mark.endurance
async def test_what_all_worlds_share_is_watched_without_a_world(
    running: RunningKnowledgeBase,
) -> None:
    steps = watch(running, "")
    await anext(steps)
    world_id = await make_world(running)
    await put_concept(running, world_id, "Own")
    await put_concept(running, "", "Shared")
    ((_, change),) = await changes(steps, 1)
    assert change.kind == world_changes_pb2.WORLD_CHANGE_KIND_CONCEPT
    got = await running.stub.GetConcept(
        concepts_pb2.GetConceptRequest(name="Shared"), timeout=TIMEOUT_SECONDS
    )
    assert change.subject_id == got.concept.concept_id


async def test_a_watch_that_waits_beats_and_ends_with_its_server(
    running: RunningKnowledgeBase, knowledge_base_database: str
) -> None:
    world_id = await make_world(running)
    async with serve_knowledge_base(knowledge_base_database) as other:
        other.worlds.watch._heartbeat_seconds = 0.05  # so that the test is short
        steps = watch(other, world_id)
        for _ in range(3):
            assert not (await anext(steps)).HasField("change")
        other.worlds.watch.close()
        assert (await failed(steps))[0] is grpc.StatusCode.UNAVAILABLE
