"""Admission to real services: who is too many is told so before any work is done for it."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import asyncpg
import grpc
import grpc.aio

from gaming.gpu_metrics.v1 import gpu_metrics_pb2
from gaming.knowledge_base.v1 import worlds_pb2
from gpu_metrics.testing import collector_for_test
from knowledge_base.testing import serve_knowledge_base
from servicekit.testing import details_of, failure_of, reason_of

TIMEOUT_SECONDS = 20.0
_BLOCKED = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND pid <> pg_backend_pid()
"""


def assert_overloaded(error: grpc.aio.AioRpcError) -> None:
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason_of(error) == "OVERLOADED"
    assert details_of(error)["RetryInfo"].retry_delay.ToMilliseconds() > 0


async def test_a_call_too_many_is_refused_before_it_reaches_the_database(
    knowledge_base_database: str,
) -> None:
    """All places are taken by calls that wait for a lock; further ones neither wait nor write."""

    def create(stub: Any, name: str) -> Any:
        request = worlds_pb2.CreateWorldRequest(name=name, request_id=str(uuid.uuid4()))
        return stub.CreateWorld(request, timeout=TIMEOUT_SECONDS)

    async def answer(call: Any) -> Any:
        return await call

    blocker = await asyncpg.connect(knowledge_base_database)
    try:
        async with serve_knowledge_base(
            knowledge_base_database, GAMEKEEPER_MAX_CONCURRENT_CALLS="3"
        ) as running:
            transaction = blocker.transaction()
            await transaction.start()
            await blocker.execute("LOCK TABLE knowledge_base.worlds IN ACCESS EXCLUSIVE MODE")
            admitted = [
                asyncio.ensure_future(answer(create(running.stub, f"admitted {number}")))
                for number in range(3)
            ]
            async with asyncio.timeout(TIMEOUT_SECONDS):
                # Once one waits in the database, the others, sent with it, have their places.
                while not await blocker.fetchval(_BLOCKED):  # noqa: ASYNC110  # in the database
                    await asyncio.sleep(0.02)
                for number in range(20):
                    assert_overloaded(await failure_of(create(running.stub, f"refused {number}")))
            assert not any(call.done() for call in admitted)
            await transaction.rollback()
            await asyncio.gather(*admitted)
            worlds = await running.stub.ListWorlds(
                worlds_pb2.ListWorldsRequest(), timeout=TIMEOUT_SECONDS
            )
    finally:
        await blocker.close()
    assert {world.name for world in worlds.worlds} == {f"admitted {number}" for number in range(3)}


async def test_streams_that_take_every_place_leave_calls_theirs() -> None:
    limits = {"GAMEKEEPER_MAX_CONCURRENT_CALLS": "1", "GAMEKEEPER_MAX_CONCURRENT_STREAMS": "30"}
    async with collector_for_test(server_environ=limits) as collector:
        streams = [
            collector.fleet.WatchFleet(gpu_metrics_pb2.WatchFleetRequest(), timeout=60)
            for _ in range(30)
        ]
        await asyncio.gather(*(stream.read() for stream in streams))
        for _ in range(5):
            assert_overloaded(
                await failure_of(
                    collector.fleet.WatchFleet(gpu_metrics_pb2.WatchFleetRequest(), timeout=5)
                )
            )
            await collector.fleet.GetFleet(gpu_metrics_pb2.GetFleetRequest(), timeout=5)
        streams.pop().cancel()
        async with asyncio.timeout(10):
            while True:  # the place is free once the handler has ended
                late = collector.fleet.WatchFleet(gpu_metrics_pb2.WatchFleetRequest(), timeout=5)
                try:
                    assert isinstance(await late.read(), gpu_metrics_pb2.WatchFleetResponse)
                    break
                except grpc.aio.AioRpcError as error:
                    assert_overloaded(error)
