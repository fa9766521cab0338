"""Deadlines at a real knowledge base: what waits for the database stops waiting with its caller."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import grpc
import grpc.aio
import pytest

from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc as pb_grpc
from gaming.knowledge_base.v1 import worlds_pb2
from knowledge_base.testing import RunningKnowledgeBase, serve_knowledge_base
from servicekit import method_policies
from servicekit.testing import failure_of

TIMEOUT_SECONDS = 20.0
POOL_SIZE = 4
_BLOCKED = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND pid <> pg_backend_pid()
"""


@pytest.fixture
async def running(knowledge_base_database: str) -> AsyncIterator[RunningKnowledgeBase]:
    async with serve_knowledge_base(
        knowledge_base_database, KNOWLEDGE_BASE_POOL_SIZE=str(POOL_SIZE)
    ) as running:
        yield running


class Lock:
    """Holds up every statement on worlds, as a migration or a long transaction would."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._connection = connection

    async def until_blocks(self, *, anything: bool = True) -> None:
        """Returns once a statement waits for the lock, or none does."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while bool(await self._connection.fetchval(_BLOCKED)) != anything:  # noqa: ASYNC110  # there
                await asyncio.sleep(0.02)


@asynccontextmanager
async def locked_worlds(database: str) -> AsyncIterator[Lock]:
    connection = await asyncpg.connect(database)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE knowledge_base.worlds IN ACCESS EXCLUSIVE MODE")
            yield Lock(connection)
    finally:
        await connection.close()


def create(running: RunningKnowledgeBase, name: str, timeout: float | None) -> object:
    request = worlds_pb2.CreateWorldRequest(name=name, request_id=str(uuid.uuid4()))
    return running.stub.CreateWorld(request, timeout=timeout)


async def names(running: RunningKnowledgeBase) -> set[str]:
    answer = await running.stub.ListWorlds(worlds_pb2.ListWorldsRequest(), timeout=TIMEOUT_SECONDS)
    return {world.name for world in answer.worlds}


async def test_a_statement_that_outlasts_its_caller_is_ended_in_the_database(
    running: RunningKnowledgeBase, knowledge_base_database: str
) -> None:
    async with locked_worlds(knowledge_base_database) as lock:
        late = asyncio.ensure_future(failure_of(create(running, "late", 1.5)))
        await lock.until_blocks()
        assert (await late).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await lock.until_blocks(anything=False)
    assert await names(running) == set()


async def test_a_call_that_waits_for_a_connection_leaves_the_line_at_its_deadline(
    running: RunningKnowledgeBase, knowledge_base_database: str
) -> None:
    """The calls before it have all connections; it never reaches the database."""
    patient = [f"patient {number}" for number in range(8)]
    async with locked_worlds(knowledge_base_database) as lock:
        calls = [
            asyncio.ensure_future(_answer(create(running, name, TIMEOUT_SECONDS)))
            for name in patient
        ]
        await lock.until_blocks()
        late = await failure_of(create(running, "late", 0.5))
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert not any(call.done() for call in calls)
    await asyncio.gather(*calls)
    assert await names(running) == set(patient)


async def test_a_caller_without_a_deadline_is_capped(
    running: RunningKnowledgeBase,
    knowledge_base_database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shortened = dict.fromkeys(method_policies.DEADLINE_SECONDS, 0.5)
    async with locked_worlds(knowledge_base_database) as lock:
        with monkeypatch.context() as patched:
            patched.setattr(method_policies, "DEADLINE_SECONDS", shortened)
            async with grpc.aio.insecure_channel(running.address) as bare:
                stub = pb_grpc.KnowledgeBaseServiceStub(bare)
                error = await failure_of(stub.ListWorlds(worlds_pb2.ListWorldsRequest()))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "set a deadline" in (error.details() or "")
        await lock.until_blocks(anything=False)
    assert await names(running) == set()


async def _answer(call: object) -> object:
    return await call  # type: ignore[misc]  # a grpc.aio call
