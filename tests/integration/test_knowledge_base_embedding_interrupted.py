"""A change of the embedding model that is paused, killed, shared or given up."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator

import asyncpg
import pytest
from embedding_change_calls import (
    EVENTS,
    FAST,
    QUERIES,
    TIMEOUT_SECONDS,
    WORKER,
    answers,
    fill_memory,
    filling,
    finish,
    new_id,
    owners_connection,
    refusal,
    start,
    status,
    two_models,
    until,
    vector_columns,
)

from gaming.knowledge_base.v1 import embedding_models_pb2 as change_pb
from knowledge_base.testing import (
    serve_knowledge_base,
    service_url,
)


@pytest.fixture(autouse=True)
async def owner(knowledge_base_database: str) -> AsyncIterator[asyncpg.Connection]:
    async with owners_connection(knowledge_base_database) as connection:
        yield connection


@pytest.mark.endurance
async def test_a_paused_change_fills_nothing_and_goes_on_where_it_was(
    knowledge_base_database: str,
) -> None:
    first, second = two_models()
    async with serve_knowledge_base(
        knowledge_base_database, embedders=(first, second), **FAST
    ) as running:
        await fill_memory(running)
        await start(running, second.model)
        await running.stub.PauseEmbeddingChange(
            change_pb.PauseEmbeddingChangeRequest(request_id=new_id())
        )
        async with filling(running):
            for _ in range(20):
                await asyncio.sleep(0)
            paused = (await status(running)).change
            assert paused.state == change_pb.EMBEDDING_MODEL_STATE_PAUSED
            assert (paused.listed, paused.filled_rows) == (False, 0)
            assert await refusal(finish(running)) == "EMBEDDING_CHANGE_NOT_READY"
            await running.stub.ResumeEmbeddingChange(
                change_pb.ResumeEmbeddingChangeRequest(request_id=new_id())
            )
            change = await until(running, lambda c: c.listed and c.remaining_rows == 0)
            assert change.filled_rows == EVENTS + 40


@pytest.mark.endurance
async def test_a_killed_filler_loses_no_more_than_its_batch(
    knowledge_base_database: str, owner: asyncpg.Connection
) -> None:
    first, second = two_models()
    async with serve_knowledge_base(
        knowledge_base_database, embedders=(first, second), **FAST
    ) as running:
        world_id = await fill_memory(running)
        expected = await answers(running, world_id, QUERIES[1])
        await start(running, second.model)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(WORKER),
            env={**os.environ, "WORKER_DATABASE_URL": service_url(knowledge_base_database)},
        )
        try:
            await until(running, lambda change: change.filled_rows >= 64)
        finally:
            process.send_signal(signal.SIGKILL)
            await asyncio.wait_for(process.wait(), TIMEOUT_SECONDS)
        done = (await status(running)).change.filled_rows
        assert done < EVENTS + 40, "the filler was to be killed in the middle"
        async with filling(running):
            change = await until(running, lambda c: c.listed and c.remaining_rows == 0)
        # Counted with its vectors: the batch that was lost was not counted, and no row twice.
        assert change.filled_rows == EVENTS + 40
        assert second.embedded <= EVENTS + 40 - done + 1  # and the probe of the start
        await finish(running)
        assert await answers(running, world_id, QUERIES[1]) == expected


@pytest.mark.endurance
async def test_two_fillers_share_the_work(
    knowledge_base_database: str,
) -> None:
    models, others = two_models(), two_models()
    async with (
        serve_knowledge_base(knowledge_base_database, embedders=models, **FAST) as running,
        serve_knowledge_base(knowledge_base_database, embedders=others, **FAST) as replica,
    ):
        await fill_memory(running)
        await start(running, models[1].model)
        async with filling(running), filling(replica):
            change = await until(running, lambda c: c.listed and c.remaining_rows == 0)
        assert change.filled_rows == EVENTS + 40
        assert models[1].embedded + others[1].embedded == EVENTS + 40 + 1


@pytest.mark.endurance
async def test_a_cancelled_change_leaves_no_trace(
    knowledge_base_database: str, owner: asyncpg.Connection
) -> None:
    first, second = two_models()
    async with serve_knowledge_base(
        knowledge_base_database, embedders=(first, second), **FAST
    ) as running:
        world_id = await fill_memory(running)
        before = await vector_columns(owner)
        expected = await answers(running, world_id, QUERIES[2])
        await start(running, second.model)
        async with filling(running):
            await until(running, lambda change: change.filled_rows > 0)
            await running.stub.CancelEmbeddingChange(
                change_pb.CancelEmbeddingChangeRequest(request_id=new_id())
            )
        assert await vector_columns(owner) == before
        assert await owner.fetchval("SELECT count(*) FROM knowledge_base.story_event_backlog") == 0
        assert not (await status(running)).HasField("change")
        assert await answers(running, world_id, QUERIES[2]) == expected
        await start(running, second.model)
