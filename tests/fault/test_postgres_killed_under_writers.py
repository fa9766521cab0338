"""PostgreSQL dies by SIGKILL under eight writers: what was acknowledged is there, once."""

import asyncio
import shutil
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc as pb_grpc
from gaming.knowledge_base.v1 import story_pb2, worlds_pb2
from knowledge_base.testing import RunningKnowledgeBase, serve_knowledge_base
from localsuite.postgres import EmbeddedPostgres

WRITERS = 8
KILLS = 3
WRITES_BETWEEN_KILLS = 60
CALL_TIMEOUT_SECONDS = 5
RECOVERY_SECONDS = 5.0
# Eight writers that are refused at once then stay well below their world's rate limit.
PAUSE_SECONDS = 0.1
RETRYABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


@pytest.fixture
def durable_server() -> Iterator[EmbeddedPostgres]:
    """A server that keeps its promises: with fsync, unlike the shared one of the tests."""
    directory = Path(tempfile.mkdtemp(prefix="gamekeeper-postgres-"))
    server = EmbeddedPostgres(directory)
    try:
        with server:
            yield server
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(server.location, ignore_errors=True)


class Writer:
    """Records one event after the other, repeating each with its request id until it is taken."""

    def __init__(
        self,
        number: int,
        stub: "pb_grpc.KnowledgeBaseServiceAsyncStub",
        world_id: str,
        progress: asyncio.Condition,
    ) -> None:
        self._number = number
        self._stub = stub
        self._world_id = world_id
        self._progress = progress
        self.acknowledged: list[tuple[str, str]] = []  # text, event id
        self.repeats = 0

    async def write(self, stopping: asyncio.Event) -> None:
        count = 0
        while not stopping.is_set():
            text = f"writer {self._number} event {count}"
            request = story_pb2.RecordEventsRequest(
                world_id=self._world_id,
                events=[story_pb2.StoryEvent(text=text)],
                request_id=str(uuid.uuid4()),
            )
            (event,) = (await self._until_taken(request)).events
            self.acknowledged.append((text, event.event_id))
            count += 1
            async with self._progress:
                self._progress.notify_all()

    async def _until_taken(
        self, request: story_pb2.RecordEventsRequest
    ) -> story_pb2.RecordEventsResponse:
        while True:
            try:
                return await self._stub.RecordEvents(request, timeout=CALL_TIMEOUT_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() not in RETRYABLE:
                    raise
                self.repeats += 1
                # Refused at once while the database is away: callers that did not pause here would
                # use up their world's rate limit instead, the sooner the faster the machine is.
                await asyncio.sleep(PAUSE_SECONDS)


async def test_no_acknowledged_write_is_lost_and_none_is_there_twice(
    durable_server: EmbeddedPostgres,
) -> None:
    durable_server.create_database("knowledge")
    async with (
        serve_knowledge_base(durable_server.url("knowledge")) as running,
        # Writers repeat by themselves here, so that each refusal is seen.
        grpc.aio.insecure_channel(running.address, options=[("grpc.enable_retries", 0)]) as channel,
    ):
        stub = pb_grpc.KnowledgeBaseServiceStub(channel)
        world = await running.stub.CreateWorld(
            worlds_pb2.CreateWorldRequest(name="a", request_id=str(uuid.uuid4())), timeout=20
        )
        progress = asyncio.Condition()
        writers = [Writer(n, stub, world.world.world_id, progress) for n in range(WRITERS)]
        stopping = asyncio.Event()
        recoveries = []

        def written() -> int:
            return sum(len(writer.acknowledged) for writer in writers)

        async def wait_until_written(count: int) -> None:
            async with asyncio.timeout(60), progress:
                await progress.wait_for(lambda: written() >= count)

        async with asyncio.TaskGroup() as group:
            for writer in writers:
                group.create_task(writer.write(stopping))
            for _ in range(KILLS):
                await wait_until_written(written() + WRITES_BETWEEN_KILLS)
                await asyncio.to_thread(durable_server.kill)
                await asyncio.to_thread(durable_server.start)
                back = time.monotonic()
                await wait_until_written(written() + 1)
                recoveries.append(time.monotonic() - back)
            stopping.set()

        stored = await _all_events(running, world.world.world_id)
        acknowledged = [item for writer in writers for item in writer.acknowledged]
        assert sum(writer.repeats for writer in writers) > 0, "no call met the dead server"
        assert not set(acknowledged) - {(event.text, event.event_id) for event in stored}
        assert max(Counter(event.text for event in stored).values()) == 1
        assert len(stored) == len(acknowledged)  # each call was repeated until it was answered
        assert max(recoveries) < RECOVERY_SECONDS, recoveries
        got = await running.stub.GetWorld(
            worlds_pb2.GetWorldRequest(world_id=world.world.world_id), timeout=20
        )
        assert got.world.event_count == len(stored)


async def _all_events(running: RunningKnowledgeBase, world_id: str) -> list[story_pb2.StoryEvent]:
    events: list[story_pb2.StoryEvent] = []
    token = ""
    while True:
        page = await running.stub.ListEvents(
            story_pb2.ListEventsRequest(world_id=world_id, page_size=1000, page_token=token),
            timeout=20,
        )
        events += page.events
        token = page.next_page_token
        if not token:
            return events
