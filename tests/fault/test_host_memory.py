"""One of two workers runs out of memory: it ends, the other goes on, nothing kept is lost."""

from __future__ import annotations

import asyncio
import resource
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import grpc.aio
import psutil
import pytest
from service_processes import ServiceProcess, service_process

from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc, story_pb2, worlds_pb2
from knowledge_base.testing import service_url

pytestmark = pytest.mark.endurance

SPARE_BYTES = 4 * 1024 * 1024
GREEDY_CALLS = 30
WRITERS = 8
CALL_SECONDS = 5.0
END_SECONDS = 40.0
FAILED_CHECKS = 4
"""So many unanswered questions in a row and a process counts as hung, as for a supervisor."""


def limit_memory(service: ServiceProcess) -> None:
    """Leaves the running service next to nothing beyond what it has (RLIMIT_AS)."""
    pid = service.process.pid
    limit = psutil.Process(pid).memory_info().vms + SPARE_BYTES
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))


def request(world_id: str, texts: list[str]) -> story_pb2.RecordEventsRequest:
    return story_pb2.RecordEventsRequest(
        world_id=world_id,
        events=[story_pb2.StoryEvent(text=text) for text in texts],
        request_id=str(uuid.uuid4()),
    )


async def ended(service: ServiceProcess, stub: Any, world_id: str) -> str:
    """Returns how the service ended; one that answers no more is killed, as supervisors do."""
    unanswered = 0
    while service.process.returncode is None:
        try:
            await stub.GetWorld(worlds_pb2.GetWorldRequest(world_id=world_id), timeout=1.0)
            unanswered = 0
        except grpc.aio.AioRpcError:
            unanswered += 1
        if unanswered == FAILED_CHECKS:
            await service.kill()
            return "hung, and was killed"
        await asyncio.sleep(0.2)
    return f"exit code {service.process.returncode}"


@asynccontextmanager
async def worker(database: str, log_file: Path) -> AsyncIterator[tuple[ServiceProcess, Any]]:
    """One of the workers, and a stub that repeats nothing by itself."""
    async with (
        service_process(
            ("knowledge_base",),
            log_file,
            KNOWLEDGE_BASE_DATABASE_URL=service_url(database),
            KNOWLEDGE_BASE_MIGRATION_DATABASE_URL=database,
        ) as service,
        grpc.aio.insecure_channel(service.address, options=[("grpc.enable_retries", 0)]) as channel,
    ):
        yield service, knowledge_base_pb2_grpc.KnowledgeBaseServiceStub(channel)


class Chronicle:
    """Writers that try the starved worker first, and the healthy one with the same request id."""

    def __init__(self, world_id: str, stubs: tuple[Any, Any]) -> None:
        self._world_id = world_id
        self._stubs = stubs
        self.kept: list[str] = []
        self.failures: Counter[str] = Counter()

    async def write(self, number: int, stopping: asyncio.Event) -> None:
        count = 0
        while not stopping.is_set():
            text = f"writer {number} event {count}"
            message = request(self._world_id, [text])
            for stub in self._stubs:
                try:
                    await stub.RecordEvents(message, timeout=CALL_SECONDS)
                except grpc.aio.AioRpcError as error:
                    if stub is self._stubs[-1]:
                        self.failures[error.code().name] += 1
                else:
                    self.kept.append(text)
                    break
            count += 1
            await asyncio.sleep(0.1)


async def assert_kept_once(database: str, kept: list[str]) -> None:
    connection = await asyncpg.connect(database)
    try:
        rows = await connection.fetch(
            "SELECT text FROM knowledge_base.story_events WHERE text LIKE 'writer %'"
        )
    finally:
        await connection.close()
    assert Counter(row["text"] for row in rows) == Counter(kept)


async def test_a_worker_out_of_memory_ends_and_the_other_takes_its_calls(
    postgres_database: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    async with (
        worker(postgres_database, tmp_path / "starved.log") as (starved, starved_stub),
        worker(postgres_database, tmp_path / "healthy.log") as (healthy, healthy_stub),
    ):
        created = await healthy_stub.CreateWorld(
            worlds_pb2.CreateWorldRequest(name="a", request_id=str(uuid.uuid4())), timeout=20
        )
        world_id = created.world.world_id
        chronicle = Chronicle(world_id, (starved_stub, healthy_stub))

        async def be_greedy(number: int) -> str:
            texts = [f"greedy {number} {event} " + "word " * 380 for event in range(100)]
            try:
                await starved_stub.RecordEvents(request(world_id, texts), timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return "OK"

        stopping = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(WRITERS):
                group.create_task(chronicle.write(number, stopping))
            await asyncio.sleep(1.0)
            limit_memory(starved)
            fates = await asyncio.gather(*(be_greedy(number) for number in range(GREEDY_CALLS)))
            async with asyncio.timeout(END_SECONDS):
                how = await ended(starved, starved_stub, world_id)
            await asyncio.sleep(1.0)
            stopping.set()
        figures = {
            "the starved worker": how,
            "told": dict(Counter(fates)),
            "kept": len(chronicle.kept),
        }
        record_property("figures", figures)
        print(figures)
        assert healthy.process.returncode is None
        assert chronicle.failures == {}
        # That there was no memory for them is no fault of the calls; some handlers fail in ways of
        # their own before it is known.
        assert "INVALID_ARGUMENT" not in fates
        assert fates.count("INTERNAL") <= GREEDY_CALLS / 2

    await assert_kept_once(postgres_database, chronicle.kept)
