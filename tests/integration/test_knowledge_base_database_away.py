"""With the database away, reads and writes say so at once, and all is well when it is back."""

import time
import uuid

import asyncpg
import grpc
import grpc.aio
import pytest

from gaming.knowledge_base.v1 import lore_pb2, story_pb2, worlds_pb2
from knowledge_base.__main__ import connect
from knowledge_base.config import DatabaseSettings
from knowledge_base.servicers.lore import AGE_METADATA_KEY
from knowledge_base.testing import (
    RunningKnowledgeBase,
    failure_of,
    serve_knowledge_base,
    service_url,
)
from localsuite.postgres import EmbeddedPostgres
from servicekit.settings import load_settings
from servicekit.testing import FakeClock

# Below the channel's own retries of what is unavailable.
TIMEOUT_SECONDS = 20
RECOVERY_SECONDS = 5


async def ingest(running: RunningKnowledgeBase) -> None:
    requests = [
        lore_pb2.IngestDocumentsRequest(begin=lore_pb2.IngestBegin(collection="lore")),
        lore_pb2.IngestDocumentsRequest(
            document=lore_pb2.IngestDocument(path="a.md", content=b"# A\n\nThe bell rang.")
        ),
    ]
    async for _ in running.stub.IngestDocuments(iter(requests), timeout=TIMEOUT_SECONDS):
        pass


async def test_unavailable_with_retry_then_recovery_by_itself(
    postgres_database: str, postgres_server: EmbeddedPostgres
) -> None:
    clock = FakeClock()
    async with serve_knowledge_base(
        postgres_database, clock=clock, KNOWLEDGE_BASE_STALE_ANSWER_SECONDS="60"
    ) as running:
        await ingest(running)
        known = await running.stub.Search(
            lore_pb2.SearchRequest(query="bell"), timeout=TIMEOUT_SECONDS
        )
        world = await running.stub.CreateWorld(
            worlds_pb2.CreateWorldRequest(name="a", request_id=str(uuid.uuid4())),
            timeout=TIMEOUT_SECONDS,
        )
        postgres_server.kill()
        try:
            await clock.advance(7)
            calls = {
                "Search": lore_pb2.SearchRequest(query="never asked before"),
                "ListWorlds": worlds_pb2.ListWorldsRequest(),
                "ListEvents": story_pb2.ListEventsRequest(world_id=world.world.world_id),
                "Recall": story_pb2.RecallRequest(world_id=world.world.world_id, query="bell"),
                "RecordEvents": story_pb2.RecordEventsRequest(
                    world_id=world.world.world_id,
                    events=[story_pb2.StoryEvent(text="x")],
                    request_id=str(uuid.uuid4()),
                ),
            }
            for method, request in calls.items():
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await getattr(running.stub, method)(request, timeout=TIMEOUT_SECONDS)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE, method
                assert (failure_of(caught.value).retry_seconds or 0) > 0
                assert "postgres" not in str(caught.value.details()).lower()
            # The same search as before is answered as before, and marked with its age.
            call = running.stub.Search(
                lore_pb2.SearchRequest(query="bell"), timeout=TIMEOUT_SECONDS
            )
            assert await call == known
            assert dict(await call.trailing_metadata())[AGE_METADATA_KEY] == "7"
            await clock.advance(60)
            with pytest.raises(grpc.aio.AioRpcError):
                await running.stub.Search(
                    lore_pb2.SearchRequest(query="bell"), timeout=TIMEOUT_SECONDS
                )
        finally:
            postgres_server.start()
        # The service looks for its database now and then; until it did, calls are refused.
        back = time.monotonic()
        found = None
        while found is None:
            call = running.stub.Search(
                lore_pb2.SearchRequest(query="bell"), timeout=TIMEOUT_SECONDS
            )
            try:
                found = await call
            except grpc.aio.AioRpcError as error:
                late = time.monotonic() - back >= RECOVERY_SECONDS
                if late or error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
        assert found == known
        assert AGE_METADATA_KEY not in dict(await call.trailing_metadata())
        assert time.monotonic() - back < RECOVERY_SECONDS


async def test_a_statement_that_hangs_is_given_up(postgres_database: str) -> None:
    async with serve_knowledge_base(
        postgres_database, KNOWLEDGE_BASE_STATEMENT_TIMEOUT_SECONDS="0.5"
    ) as running:
        world = await running.stub.CreateWorld(
            worlds_pb2.CreateWorldRequest(name="a", request_id=str(uuid.uuid4())),
            timeout=TIMEOUT_SECONDS,
        )
        request = story_pb2.RecordEventsRequest(
            world_id=world.world.world_id,
            events=[story_pb2.StoryEvent(text="x")],
            request_id=str(uuid.uuid4()),
        )
        owner = await asyncpg.connect(postgres_database)
        async with owner.transaction():
            await owner.execute("LOCK TABLE knowledge_base.story_events")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await running.stub.RecordEvents(request, timeout=TIMEOUT_SECONDS)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await owner.close()
        recorded = await running.stub.RecordEvents(request, timeout=TIMEOUT_SECONDS)
        assert len(recorded.events) == 1


async def test_connections_that_were_cut_are_replaced(postgres_database: str) -> None:
    async with serve_knowledge_base(postgres_database) as running:
        await ingest(running)
        owner = await asyncpg.connect(postgres_database)
        cut = await owner.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE usename = 'knowledge_base_service' AND datname = current_database()"
        )
        await owner.close()
        assert cut > 0
        found = await running.stub.Search(
            lore_pb2.SearchRequest(query="bell"), timeout=TIMEOUT_SECONDS
        )
        assert len(found.results) == 1


async def test_it_starts_while_the_database_is_away(
    postgres_database: str, postgres_server: EmbeddedPostgres
) -> None:
    async with serve_knowledge_base(postgres_database) as running:
        await ingest(running)

    settings = load_settings(
        DatabaseSettings, {"KNOWLEDGE_BASE_DATABASE_URL": service_url(postgres_database)}
    )
    postgres_server.kill()
    try:
        async with connect(settings) as database:
            postgres_server.start()
            assert await database.fetch_value("SELECT 1") == 1
    finally:
        postgres_server.start()
