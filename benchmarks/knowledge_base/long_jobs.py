"""What the long jobs take, and what searches notice of them.

A world of 5,000 events is copied, exported, taken in again and erased, through the service. Then
the embedding model of 25,000 events changes from 384 to 1,024 dimensions while callers recall and
record: each answer is compared with the one before the change. The second model is an isometric
image of the first, so that all answers must stay; both hash words, as no model's speed is asked
here. The change goes as fast as it can, which the shipped setting does not.
"""

import asyncio
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from gaming.knowledge_base.v1 import (
    embedding_models_pb2,
    story_pb2,
    world_jobs_pb2,
    world_records_pb2,
    worlds_pb2,
)
from knowledge_base.testing import (
    HashEmbedder,
    IsometricEmbedder,
    RunningKnowledgeBase,
    serve_knowledge_base,
)
from localsuite.postgres import EmbeddedPostgres

LARGE_EVENTS, OTHER_WORLDS, OTHER_EVENTS = 5_000, 15, 1_000
BATCH = 100
TIMEOUT_SECONDS = 600.0
SCORE_TOLERANCE = 1e-4
QUERIES = ("Who lit a lamp at the mill?", "letter hidden in the orchard", "bell of the chapel")
PLACES = ("mill", "weir", "tollgate", "chapel", "ferry", "orchard", "quarry", "inn")
DEEDS = ("lit a lamp", "hid a letter", "paid the toll", "rang the bell", "mended a net")


async def new_world(running: RunningKnowledgeBase, events: int) -> str:
    """Makes a world with so many events and returns its id."""
    made = await running.stub.CreateWorld(
        worlds_pb2.CreateWorldRequest(name=f"world {uuid.uuid4()}", request_id=str(uuid.uuid4())),
        timeout=TIMEOUT_SECONDS,
    )
    for first in range(0, events, BATCH):
        await record(running, made.world.world_id, range(first, min(events, first + BATCH)))
    return str(made.world.world_id)


async def record(running: RunningKnowledgeBase, world_id: str, numbers: range) -> None:
    """Records one event for each number."""
    events = [
        story_pb2.StoryEvent(
            text=f"Warden {number} {DEEDS[number % 5]} at the {PLACES[number % 8]} that night.",
            occur_time=Timestamp(seconds=1_700_000_000 + number),
        )
        for number in numbers
    ]
    await running.stub.RecordEvents(
        story_pb2.RecordEventsRequest(
            world_id=world_id, request_id=str(uuid.uuid4()), events=events
        ),
        timeout=TIMEOUT_SECONDS,
    )


async def done(running: RunningKnowledgeBase, job: world_jobs_pb2.Job) -> world_jobs_pb2.Job:
    """Waits for a job and returns it as it ended."""
    while job.state in (world_jobs_pb2.JOB_STATE_RUNNING, world_jobs_pb2.JOB_STATE_UNDOING):
        await asyncio.sleep(0.02)
        answer = await running.stub.GetJob(world_jobs_pb2.GetJobRequest(job_id=job.job_id))
        job = answer.job
    if job.state != world_jobs_pb2.JOB_STATE_SUCCEEDED:
        raise RuntimeError(f"a job ended as {job.state}: {job.failure_reason}")
    return job


async def whole_worlds(running: RunningKnowledgeBase, world_id: str) -> None:
    """Copies, exports, takes in and erases a world, and prints what each took."""
    started = time.perf_counter()
    copying = await running.stub.ForkWorld(
        world_jobs_pb2.ForkWorldRequest(
            world_id=world_id, name="the copy", request_id=str(uuid.uuid4())
        ),
        timeout=TIMEOUT_SECONDS,
    )
    copy = await done(running, copying.job)
    tell("copied", copy.done_rows, time.perf_counter() - started)

    started = time.perf_counter()
    parts = [
        part
        async for part in running.stub.ExportWorld(
            world_records_pb2.ExportWorldRequest(world_id=world_id), timeout=TIMEOUT_SECONDS
        )
    ]
    seconds = time.perf_counter() - started
    size = sum(part.record.ByteSize() for part in parts)
    tell("exported", parts[-1].sent_rows, seconds, f", {size / 1e6:.1f} MB")

    def requests() -> list[world_records_pb2.ImportWorldRequest]:
        begin = world_records_pb2.ImportBegin(name="taken in", request_id=str(uuid.uuid4()))
        return [
            world_records_pb2.ImportWorldRequest(begin=begin),
            *(world_records_pb2.ImportWorldRequest(record=part.record) for part in parts),
        ]

    started = time.perf_counter()
    taking = await running.stub.ImportWorld(iter(requests()), timeout=TIMEOUT_SECONDS)
    tell("taken in", taking.imported_rows, time.perf_counter() - started)

    started = time.perf_counter()
    erasing = await running.stub.EraseWorld(
        world_jobs_pb2.EraseWorldRequest(
            world_id=copy.result_world_id, request_id=str(uuid.uuid4())
        ),
        timeout=TIMEOUT_SECONDS,
    )
    erased = await done(running, erasing.job)
    tell("erased", erased.done_rows, time.perf_counter() - started)


def tell(what: str, rows: int, seconds: float, more: str = "") -> None:
    """Prints how long a job took."""
    print(f"world of {LARGE_EVENTS} events {what}: {seconds:.2f} s, {rows} rows{more}", flush=True)


class Callers:
    """Recall and record without a pause; each answer is compared with the first of its query."""

    def __init__(self, running: RunningKnowledgeBase, world_id: str, other_world: str) -> None:
        self._running, self._world_id, self._other_world = running, world_id, other_world
        self._expected: dict[str, list[tuple[str, float]]] = {}
        self.times: list[float] = []
        self.recorded = self.failed = self.different = 0

    async def ask(self) -> None:
        """Recalls for ever."""
        turn = 0
        while True:
            query = QUERIES[turn % len(QUERIES)]
            turn, started = turn + 1, time.perf_counter()
            try:
                found = await self._running.stub.Recall(
                    story_pb2.RecallRequest(world_id=self._world_id, query=query, limit=10),
                    timeout=TIMEOUT_SECONDS,
                )
            except grpc.aio.AioRpcError:
                self.failed += 1
                continue
            self.times.append(time.perf_counter() - started)
            answer = [(each.event.text, each.score) for each in found.events]
            self.different += not alike(self._expected.setdefault(query, answer), answer)

    async def record(self) -> None:
        """Records in another world for ever."""
        number = 10 * LARGE_EVENTS
        while True:
            try:
                await record(self._running, self._other_world, range(number, number + 1))
            except grpc.aio.AioRpcError:
                self.failed += 1
            else:
                self.recorded += 1
            number += 1

    def tell(self, when: str) -> None:
        """Prints how long recalls took since the last time."""
        times, self.times = sorted(self.times), []
        print(
            f"recall {when}: p50 {statistics.median(times) * 1000:.1f} ms, "
            f"p95 {times[int(0.95 * len(times))] * 1000:.1f} ms, "
            f"longest {times[-1] * 1000:.0f} ms, of {len(times)}",
            flush=True,
        )

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Calls go on in the body."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.ask()), group.create_task(self.record())]
            yield
            for task in tasks:
                task.cancel()


def alike(expected: list[tuple[str, float]], answer: list[tuple[str, float]]) -> bool:
    """Whether scores agree, and the texts of all but the lowest score, where chance may choose."""
    last = min((score for _, score in expected), default=0.0) + 2 * SCORE_TOLERANCE
    return (
        len(expected) == len(answer)
        and all(
            abs(one - other) <= SCORE_TOLERANCE
            for (_, one), (_, other) in zip(expected, answer, strict=True)
        )
        and {text for text, score in expected if score > last}
        == {text for text, score in answer if score > last}
    )


async def change_of_model(running: RunningKnowledgeBase, world_id: str, model: str) -> int:
    """Changes the model under load, prints what it took; returns how many calls went wrong."""
    callers = Callers(running, world_id, await new_world(running, BATCH))
    stub = running.stub

    async def status() -> Any:
        answer = await stub.GetEmbeddingChange(
            embedding_models_pb2.GetEmbeddingChangeRequest(), timeout=TIMEOUT_SECONDS
        )
        return answer.change

    async with callers.at_work():
        await asyncio.sleep(10.0)
        callers.tell("before the change")
        await stub.StartEmbeddingChange(
            embedding_models_pb2.StartEmbeddingChangeRequest(
                model=model, request_id=str(uuid.uuid4())
            ),
            timeout=TIMEOUT_SECONDS,
        )
        async with beside(running.change.fill):
            while not (now := await status()).listed:  # noqa: ASYNC110  # the service works
                await asyncio.sleep(0.05)
            started, rows = time.perf_counter(), now.remaining_rows
            while (await status()).remaining_rows:  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.05)
            seconds = time.perf_counter() - started
            callers.tell("while vectors are made")
            print(f"{rows} rows made in {seconds:.1f} s, {rows / seconds:.0f} a second")
            started = time.perf_counter()
            await stub.FinishEmbeddingChange(
                embedding_models_pb2.FinishEmbeddingChangeRequest(request_id=str(uuid.uuid4())),
                timeout=TIMEOUT_SECONDS,
            )
            print(f"switched in {time.perf_counter() - started:.1f} s")
            callers.tell("during the switch")
            await asyncio.sleep(10.0)
            callers.tell("after the change")
    print(
        f"{callers.recorded} events recorded meanwhile; {callers.failed} calls failed, "
        f"{callers.different} answers differed"
    )
    return callers.failed + callers.different


@asynccontextmanager
async def beside(work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Runs work in the background of the body."""
    async with asyncio.TaskGroup() as group:

        async def begin() -> None:
            await work()

        task = group.create_task(begin())
        yield
        task.cancel()


async def run(server: EmbeddedPostgres) -> int:
    """Fills, measures and prints; returns how many calls went wrong during the change."""
    server.create_database("jobs")
    first, second = HashEmbedder(), IsometricEmbedder(HashEmbedder())
    async with serve_knowledge_base(
        server.url("jobs"),
        embedders=(first, second),
        KNOWLEDGE_BASE_FILLED_ROWS_PER_SECOND="100000",
    ) as running:
        world_id = await new_world(running, LARGE_EVENTS)
        for number in range(OTHER_WORLDS):
            await new_world(running, OTHER_EVENTS)
            print(f"\r{number + 1} of {OTHER_WORLDS} worlds filled", end="", flush=True)
        print()
        await whole_worlds(running, world_id)
        return await change_of_model(running, world_id, second.model)


def main() -> int:
    """Runs the benchmark on a server of its own."""
    directory = Path(tempfile.mkdtemp(prefix="gamekeeper-jobs-"))
    try:
        with EmbeddedPostgres(directory, durable=False) as server:
            return 1 if asyncio.run(run(server)) else 0
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
