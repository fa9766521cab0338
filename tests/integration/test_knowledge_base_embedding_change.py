"""The embedding model changes while the service answers, and nobody notices."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import asyncpg
import pytest
from embedding_change_calls import (
    FAST,
    QUERIES,
    TIMEOUT_SECONDS,
    Load,
    answers,
    fill_memory,
    filling,
    finish,
    lore_page,
    new_id,
    owners_connection,
    record,
    refusal,
    start,
    status,
    status_of,
    two_models,
    until,
    vector_columns,
)

from gaming.knowledge_base.v1 import embedding_models_pb2 as change_pb
from gaming.knowledge_base.v1 import lore_pb2, story_pb2
from knowledge_base.testing import (
    HashEmbedder,
    IsometricEmbedder,
    serve_knowledge_base,
    service_url,
)


@pytest.fixture(autouse=True)
async def owner(knowledge_base_database: str) -> AsyncIterator[asyncpg.Connection]:
    async with owners_connection(knowledge_base_database) as connection:
        yield connection


async def test_every_answer_stays_the_same_before_during_and_after_a_change(
    knowledge_base_database: str, owner: asyncpg.Connection
) -> None:
    first, second = two_models()
    async with serve_knowledge_base(
        knowledge_base_database, embedders=(first, second), **FAST
    ) as running:
        world_id = await fill_memory(running)
        expected = {query: await answers(running, world_id, query) for query in QUERIES}
        assert all(answer.texts for found in expected.values() for answer in found)
        load = Load(running, world_id, expected)
        async with load.going_on():
            await load.more(3)
            started = await start(running, second.model)
            assert started.active.name == first.model
            assert started.change.name == second.model
            await load.more(3)
            async with filling(running):
                await running.stub.PauseEmbeddingChange(
                    change_pb.PauseEmbeddingChangeRequest(request_id=new_id())
                )
                await running.stub.ResumeEmbeddingChange(
                    change_pb.ResumeEmbeddingChangeRequest(request_id=new_id())
                )
                await until(running, lambda change: change.listed and change.remaining_rows < 32)
                await load.more(3)
                finished = await finish(running)
                assert finished.active.name == second.model
                assert not finished.HasField("change")
                await load.more(10)
        assert load.failures == []
        for query in QUERIES:
            assert await answers(running, world_id, query) == expected[query]
        # What was recorded under way is remembered, and found by its meaning.
        listed = await running.stub.ListEvents(
            story_pb2.ListEventsRequest(world_id=load.other_world, page_size=1000),
        )
        assert {event.text for event in listed.events} == set(load.recorded)
    assert await vector_columns(owner) == [
        "document_chunks.embedding vector(1024) not null",
        "story_events.embedding vector(1024) not null",
    ]
    models = await owner.fetch(
        "SELECT DISTINCT embedding_model AS name FROM knowledge_base.story_events"
        " UNION SELECT DISTINCT substr(recipe, strpos(recipe, '/') + 1)"
        " FROM knowledge_base.document_chunks"
        " UNION SELECT DISTINCT substr(recipe, strpos(recipe, '/') + 1)"
        " FROM knowledge_base.narrative_documents"
    )
    assert [row["name"] for row in models] == [second.model]


@pytest.mark.endurance
async def test_unchanged_documents_are_not_embedded_again_after_a_change(
    knowledge_base_database: str,
) -> None:
    first, second = two_models()
    async with serve_knowledge_base(
        knowledge_base_database, embedders=(first, second), **FAST
    ) as running:
        await fill_memory(running)
        await start(running, second.model)
        async with filling(running):
            await until(running, lambda change: change.listed and change.remaining_rows == 0)
            await finish(running)
        embedded = second.embedded
        requests = [
            lore_pb2.IngestDocumentsRequest(begin=lore_pb2.IngestBegin(collection="other")),
            lore_pb2.IngestDocumentsRequest(
                document=lore_pb2.IngestDocument(
                    path="mill.md",
                    content=lore_page("mill", 0, rules=1).encode(),
                )
            ),
        ]
        async for _ in running.stub.IngestDocuments(iter(requests), timeout=TIMEOUT_SECONDS):
            pass
        assert second.embedded == embedded


@pytest.mark.endurance
async def test_a_replica_that_knows_only_the_former_model_says_so_and_harms_nothing(
    knowledge_base_database: str,
) -> None:
    first, second = two_models()
    async with (
        serve_knowledge_base(knowledge_base_database, embedders=(first, second), **FAST) as running,
        serve_knowledge_base(knowledge_base_database, embedder=HashEmbedder()) as former,
        serve_knowledge_base(knowledge_base_database, embedders=two_models()) as replica,
    ):
        world_id = await fill_memory(running)
        expected = await answers(running, world_id, QUERIES[0])
        await start(running, second.model)
        async with filling(running):
            await until(running, lambda change: change.listed and change.remaining_rows == 0)
        await finish(running)
        # The other replica learns of it from the database's refusal, not from its callers.
        assert await answers(replica, world_id, QUERIES[0]) == expected
        await record(replica, world_id, "A heron stood on the weir.")
        assert await refusal(answers(former, world_id, QUERIES[0])) == "EMBEDDING_UNAVAILABLE"
        assert await refusal(record(former, world_id, "An owl.")) == "EMBEDDING_UNAVAILABLE"


@pytest.mark.endurance
async def test_a_change_to_vectors_of_the_same_length_mixes_none(
    knowledge_base_database: str, owner: asyncpg.Connection
) -> None:
    """No length tells them apart: only the name that comes with each vector does."""
    first, second = HashEmbedder(), IsometricEmbedder(HashEmbedder(), 384)
    async with (
        serve_knowledge_base(knowledge_base_database, embedders=(first, second), **FAST) as running,
        serve_knowledge_base(knowledge_base_database, embedders=(first, second)) as replica,
    ):
        world_id = await fill_memory(running)
        expected = await answers(running, world_id, QUERIES[0])
        await start(running, second.model)
        async with filling(running):
            await until(running, lambda change: change.listed and change.remaining_rows == 0)
        await finish(running)
        assert await answers(replica, world_id, QUERIES[0]) == expected
        await record(replica, world_id, "A heron stood on the weir.")
        (vector,) = await second.embed_documents(["A heron stood on the weir."])
        stored = await owner.fetchval(
            "SELECT embedding::text FROM knowledge_base.story_events WHERE text LIKE 'A heron%'"
        )
        assert [float(x) for x in stored.strip("[]").split(",")] == pytest.approx(
            vector.tolist(), abs=1e-6
        )


@pytest.mark.endurance
async def test_a_statement_with_a_vector_keeps_its_model_active_until_it_ends(
    knowledge_base_database: str, owner: asyncpg.Connection
) -> None:
    first, second = two_models()
    async with serve_knowledge_base(
        knowledge_base_database, embedders=(first, second), **FAST
    ) as running:
        await start(running, second.model)
        async with filling(running):
            await until(running, lambda change: change.listed)
        service = await asyncpg.connect(service_url(knowledge_base_database))
        try:
            reading = service.transaction()
            await reading.start()
            await service.fetchval(
                "SELECT knowledge_base.embedded_with($1, '[1,2]'::vector)::text", first.model
            )
            finishing = asyncio.create_task(finish(running))
            waiting = (
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND"
                " relation = 'knowledge_base.embedding_models'::regclass"
            )
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while not await owner.fetchval(waiting):  # noqa: ASYNC110  # a lock of the server's
                    await asyncio.sleep(0.01)
            assert (await status_of(owner, first.model)) == "active"
            await reading.rollback()
            assert (await finishing).active.name == second.model
            with pytest.raises(asyncpg.PostgresError) as refused:
                await service.fetchval(
                    "SELECT knowledge_base.embedded_with($1, '[1,2]'::vector)::text", first.model
                )
            assert refused.value.sqlstate == "KB010"
        finally:
            await service.close()


async def test_what_cannot_be_done_is_refused_with_its_reason(
    knowledge_base_database: str,
) -> None:
    first, second = two_models()
    async with serve_knowledge_base(
        knowledge_base_database, embedders=(first, second), **FAST
    ) as running:
        assert list((await status(running)).offered_models) == [first.model, second.model]
        assert await refusal(finish(running)) == "NO_EMBEDDING_CHANGE"
        assert await refusal(start(running, "word2vec")) == "UNKNOWN_EMBEDDING_MODEL"
        assert await refusal(start(running, first.model)) == "EMBEDDING_MODEL_ACTIVE"
        request_id = new_id()
        await start(running, second.model, request_id)
        again = await start(running, second.model, request_id)
        assert again.change.name == second.model
        assert await refusal(start(running, second.model)) == "EMBEDDING_CHANGE_IN_PROGRESS"
        assert await refusal(start(running, first.model, request_id)) == "REQUEST_ID_REUSED"
        async with filling(running):
            await until(running, lambda change: change.listed)
        finished = new_id()
        assert (await finish(running, finished)).active.name == second.model
        assert (await finish(running, finished)).active.name == second.model


@pytest.mark.endurance
async def test_the_indexes_of_the_vectors_are_there_again_at_the_switch(
    knowledge_base_database: str, owner: asyncpg.Connection
) -> None:
    first, second = two_models()
    await_indexes = (
        "SELECT indexdef FROM pg_indexes WHERE schemaname = 'knowledge_base'"
        " AND tablename = 'document_chunks' ORDER BY indexname"
    )
    async with serve_knowledge_base(
        knowledge_base_database, embedders=(first, second), **FAST
    ) as running:
        with suppress(asyncpg.DuplicateTableError):
            await owner.execute(
                "CREATE INDEX chunks_near ON knowledge_base.document_chunks"
                " USING hnsw ((embedding::halfvec(384)) halfvec_ip_ops)"
            )
        try:
            before = [row["indexdef"] for row in await owner.fetch(await_indexes)]
            await fill_memory(running)
            await start(running, second.model)
            async with filling(running):
                await until(running, lambda c: c.listed and c.remaining_rows == 0)
            await finish(running)
            after = [row["indexdef"] for row in await owner.fetch(await_indexes)]
            assert after == [line.replace("(384)", "(1024)") for line in before]
        finally:
            await owner.execute("DROP INDEX IF EXISTS knowledge_base.chunks_near")
