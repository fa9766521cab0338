"""Lore has an index of its vectors while there is much of it, and answers as without one."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import asyncpg
import pytest
from embedding_change_calls import (
    FAST,
    QUERIES,
    TIMEOUT_SECONDS,
    answers,
    fill_memory,
    filling,
    finish,
    owners_connection,
    start,
    two_models,
    until,
)

from gaming.knowledge_base.v1 import lore_pb2
from knowledge_base.adapters.database import RETRIEVAL_QUERIES, encode_vector
from knowledge_base.adapters.schema import migrate_schema
from knowledge_base.testing import (
    SERVICE_ROLE,
    HashEmbedder,
    RunningKnowledgeBase,
    serve_knowledge_base,
    service_url,
)

NEVER = 10**9
INDEX = "knowledge_base.document_chunks_nearest"
MODES = ("vector", "hybrid")


SHIPPED = ("lore_index_from", "lore_index_effort", "lore_index_possible", "nearest_passages")


@pytest.fixture
async def owner(knowledge_base_database: str) -> AsyncIterator[asyncpg.Connection]:
    """The owner, who may put other functions in the place of those that decide about the index."""
    await migrate_schema(
        knowledge_base_database, service_url(knowledge_base_database), SERVICE_ROLE
    )
    async with owners_connection(knowledge_base_database) as connection:
        await connection.execute(f"DROP INDEX IF EXISTS {INDEX}")
        shipped = [await definition(connection, name) for name in SHIPPED]
        yield connection
        for text in shipped:
            await connection.execute(text)


@pytest.fixture
async def running(
    knowledge_base_database: str, owner: asyncpg.Connection
) -> AsyncIterator[RunningKnowledgeBase]:
    async with serve_knowledge_base(knowledge_base_database) as running:
        yield running


async def definition(owner: asyncpg.Connection, function: str) -> str:
    text: str = await owner.fetchval(
        "SELECT pg_get_functiondef($1::regproc)", f"knowledge_base.{function}"
    )
    return text


async def index_from(owner: asyncpg.Connection, passages: int) -> None:
    """Gives the index another threshold, as a migration would."""
    await owner.execute(
        "CREATE OR REPLACE FUNCTION knowledge_base.lore_index_from() RETURNS bigint"
        f" LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN {passages}"
    )


async def weigh(owner: asyncpg.Connection, passages: int) -> None:
    """Has the index weigh at least so many passages."""
    await owner.execute(
        "CREATE OR REPLACE FUNCTION knowledge_base.lore_index_effort() RETURNS integer"
        f" LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN {passages}"
    )


async def index(owner: asyncpg.Connection) -> str | None:
    """What the index is of, None when there is none."""
    definition: str | None = await owner.fetchval(
        "SELECT pg_get_indexdef(to_regclass($1)) WHERE to_regclass($1) IS NOT NULL", INDEX
    )
    return definition


async def ingest(
    running: RunningKnowledgeBase, texts: Iterable[str], collection: str = "lore"
) -> None:
    """Makes one passage of each text and nothing else of the collection."""
    requests = [
        lore_pb2.IngestDocumentsRequest(
            begin=lore_pb2.IngestBegin(collection=collection, remove_missing=True)
        ),
        *(
            lore_pb2.IngestDocumentsRequest(
                document=lore_pb2.IngestDocument(path=f"{number}.md", content=text.encode())
            )
            for number, text in enumerate(texts)
        ),
    ]
    async for _ in running.stub.IngestDocuments(iter(requests), timeout=TIMEOUT_SECONDS):
        pass


async def found(
    running: RunningKnowledgeBase,
    query: str,
    mode: str,
    *,
    collections: Sequence[str] | None = None,
    limit: int = 5,
    per_section: int = 5,
) -> list[tuple[str, str, float, float | None]]:
    embedder = HashEmbedder()
    rows = await running.database.fetch(
        RETRIEVAL_QUERIES.search_passages,
        query,
        encode_vector(await embedder.embed_query(query)),
        mode,
        collections,
        limit,
        per_section,
        0,
        0.5,
        0.9,
        0.4,
        5000,
        embedder.model,
    )
    return [
        (
            row["collection"],
            row["path"],
            round(row["score"], 6),
            None if row["keyword_score"] is None else round(row["keyword_score"], 6),
        )
        for row in rows
    ]


async def asks_the_index(
    owner: asyncpg.Connection, query: str, collections: Sequence[str] | None = None
) -> bool:
    """Whether the index answers, so that the passages are not read one by one."""
    vector = encode_vector(await HashEmbedder().embed_query(query))
    await owner.set_type_codec(
        "vector", schema="public", encoder=bytes, decoder=bytes, format="binary"
    )
    rows = await owner.fetch(
        "SELECT FROM knowledge_base.ranked_passages_by_index("
        "$1, $2, 'vector', $3, 5, 5, 0, 0.5, 0.9, 0.4)",
        query,
        vector,
        collections,
    )
    return bool(rows)


def made_up(count: int, seed: int = 1) -> list[str]:
    """Texts in which few words are frequent and most are rare."""
    rng = random.Random(seed)  # noqa: S311  # repeatable, not secret
    vocabulary = [f"w{a}{b}x" for a in "bcdfghklmn" for b in "bcdfghklmn"]
    return [
        " ".join(vocabulary[int(100 * rng.random() ** 3)] for _ in range(rng.randint(3, 40)))
        for _ in range(count)
    ]


async def test_the_index_comes_and_goes_with_the_number_of_passages(
    running: RunningKnowledgeBase, owner: asyncpg.Connection
) -> None:
    await index_from(owner, 40)
    await ingest(running, made_up(39))
    assert await index(owner) is None
    await ingest(running, made_up(40))
    assert "hnsw (((embedding)::halfvec(384)) halfvec_ip_ops)" in (await index(owner) or "")
    await ingest(running, made_up(20))
    assert await index(owner) is not None  # kept, so that it does not come and go
    await ingest(running, made_up(19))
    assert await index(owner) is None


async def test_lore_of_a_usual_size_has_no_index(
    running: RunningKnowledgeBase, owner: asyncpg.Connection
) -> None:
    await ingest(running, made_up(400))
    assert await index(owner) is None


@pytest.mark.parametrize("effort", [400, 60])
async def test_answers_are_those_of_reading_everything(
    running: RunningKnowledgeBase, owner: asyncpg.Connection, effort: int
) -> None:
    """With 60 of 300 weighed, the words bring in what is not near."""
    await weigh(owner, effort)
    await index_from(owner, NEVER)
    await ingest(running, made_up(300))
    await ingest(running, made_up(60, seed=2), "other")
    queries = [(mode, query) for mode in MODES for query in made_up(12, seed=3)]
    options: list[dict[str, Any]] = [
        {},
        {"limit": 3, "per_section": 1},
        {"collections": ["lore"]},
        {"collections": ["other", "lore"], "limit": 20},
    ]
    exact = [
        await found(running, query, mode, **more) for mode, query in queries for more in options
    ]
    await index_from(owner, 100)
    await ingest(running, made_up(300))
    assert await asks_the_index(owner, queries[0][1])
    indexed = [
        await found(running, query, mode, **more) for mode, query in queries for more in options
    ]
    for one, other in zip(exact, indexed, strict=True):
        assert [score for *_, score, _ in one] == [score for *_, score, _ in other]
        # Among equals at the end of the list chance may choose.
        last = one[-1][2]
        assert [row for row in one if row[2] > last] == [row for row in other if row[2] > last]


async def test_a_filter_leaves_as_many_passages_as_match(
    running: RunningKnowledgeBase, owner: asyncpg.Connection
) -> None:
    await index_from(owner, 10)
    await weigh(owner, 10)
    await ingest(running, (f"lamp {text}" for text in made_up(300)))
    for collection, count in (("one", 1), ("few", 7), ("some", 40)):
        await ingest(running, (f"tollgate {number}" for number in range(count)), collection)
    for mode in MODES:
        for collections, matching in (
            (["one"], 1),
            (["few"], 7),
            (["some"], 40),
            (["one", "few", "some"], 48),
            (["lore"], 300),
            (None, 348),
        ):
            for limit in (1, 10, 50):
                for per_section in (1, 50):
                    rows = await found(
                        running,
                        "lamp",
                        mode,
                        collections=collections,
                        limit=limit,
                        per_section=per_section,
                    )
                    assert len(rows) == min(limit, matching)
                    assert {row[0] for row in rows} <= set(collections or [row[0] for row in rows])


async def test_where_the_index_stops_early_everything_is_read(
    running: RunningKnowledgeBase, owner: asyncpg.Connection
) -> None:
    await index_from(owner, 10)
    await weigh(owner, 10)
    await ingest(running, (f"lamp {text}" for text in made_up(300)))
    await ingest(running, (f"tollgate {number}" for number in range(40)), "far")
    for query in ("lamp", "tollgate"):
        assert await asks_the_index(owner, query)
    exact = [await found(running, "lamp", mode, limit=20) for mode in MODES]
    # As when the nearest 20,000 are all of other collections.
    given = await definition(owner, "nearest_passages")
    await owner.execute(given.replace("LIMIT $3", "LIMIT 9"))
    assert not await asks_the_index(owner, "lamp")
    assert [await found(running, "lamp", mode, limit=20) for mode in MODES] == exact


async def test_the_services_role_makes_no_index_of_its_own(
    knowledge_base_database: str, running: RunningKnowledgeBase, owner: asyncpg.Connection
) -> None:
    await index_from(owner, 40)
    await ingest(running, made_up(39))
    service = await asyncpg.connect(service_url(knowledge_base_database))
    try:
        for statement in (
            "CREATE INDEX mine ON knowledge_base.document_chunks (text)",
            "DROP FUNCTION knowledge_base.lore_index_from()",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await service.execute(statement)
        assert await service.fetchval("SELECT knowledge_base.index_lore()") is None
        assert await index(owner) is None
        await ingest(running, made_up(41))
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await service.execute(f"DROP INDEX {INDEX}")
    finally:
        await service.close()


async def test_the_model_changes_with_the_index_in_place(
    knowledge_base_database: str, owner: asyncpg.Connection
) -> None:
    first, second = two_models()
    async with serve_knowledge_base(
        knowledge_base_database, embedders=(first, second), **FAST
    ) as running:
        await index_from(owner, 10)
        world_id = await fill_memory(running)
        expected = {query: await answers(running, world_id, query) for query in QUERIES}
        assert "halfvec(384)" in (await index(owner) or "")
        await start(running, second.model)
        async with filling(running):
            await until(running, lambda change: change.listed and change.remaining_rows == 0)
            for query in QUERIES:
                assert await answers(running, world_id, query) == expected[query]
            await finish(running)
        assert "halfvec(1024)" in (await index(owner) or "")
        for query in QUERIES:
            assert await answers(running, world_id, query) == expected[query]
        await ingest(running, made_up(20), "more")
        assert "halfvec(1024)" in (await index(owner) or "")


async def test_a_model_too_long_for_an_index_has_none(
    knowledge_base_database: str, owner: asyncpg.Connection
) -> None:
    first, second = two_models()
    async with serve_knowledge_base(
        knowledge_base_database, embedders=(first, second), **FAST
    ) as running:
        await index_from(owner, 10)
        world_id = await fill_memory(running)
        expected = await answers(running, world_id, QUERIES[0])
        assert await owner.fetchval("SELECT knowledge_base.lore_index_possible(4000)")
        assert not await owner.fetchval("SELECT knowledge_base.lore_index_possible(4001)")
        # 1024 dimensions stand for 4001, which take long to fill in.
        possible = await definition(owner, "lore_index_possible")
        await owner.execute(possible.replace("<= 4000", "<= 1000"))
        await start(running, second.model)
        async with filling(running):
            await until(running, lambda change: change.listed and change.remaining_rows == 0)
            await finish(running)
        assert await answers(running, world_id, QUERIES[0]) == expected
        await ingest(running, made_up(1), "more")
        assert await index(owner) is None


async def test_an_older_pgvector_has_no_index(
    running: RunningKnowledgeBase, owner: asyncpg.Connection
) -> None:
    await index_from(owner, 10)
    version = await owner.fetchval("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
    try:
        for older in ("0.7.4", "0.5"):
            await owner.execute(
                "UPDATE pg_extension SET extversion = $1 WHERE extname = 'vector'", older
            )
            await ingest(running, made_up(20))
            assert await index(owner) is None
            assert len(await found(running, "lamp", "vector")) == 5
    finally:
        await owner.execute(
            "UPDATE pg_extension SET extversion = $1 WHERE extname = 'vector'", version
        )
    await ingest(running, made_up(20))
    assert await index(owner) is not None


async def test_while_the_index_is_made_searches_go_on_and_other_ingests_wait(
    running: RunningKnowledgeBase, owner: asyncpg.Connection
) -> None:
    await index_from(owner, NEVER)
    await ingest(running, made_up(60))
    await index_from(owner, 40)
    build = owner.transaction()
    await build.start()
    assert await owner.fetchval("SELECT knowledge_base.index_lore()") == "made"
    other = asyncio.create_task(ingest(running, ["The tollgate is shut at dusk."], "other"))
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not await owner.fetchval(  # noqa: ASYNC110  # what is waited for is in the server
            "SELECT count(*) FROM pg_locks WHERE NOT granted"
        ):
            await asyncio.sleep(0.01)
    assert len(await found(running, "tollgate", "hybrid")) == 5
    # Another replica that has ended an ingest does not wait for it either.
    assert await running.database.fetch_value(RETRIEVAL_QUERIES.index_lore) is None
    assert not other.done()
    await build.commit()
    await other
    best = (await found(running, "tollgate shut at dusk", "hybrid"))[0]
    assert best[0] == "other"
    assert await asks_the_index(owner, "tollgate")


async def test_a_build_that_failed_is_tried_again_by_the_next_ingest(
    running: RunningKnowledgeBase, owner: asyncpg.Connection
) -> None:
    await index_from(owner, NEVER)
    await ingest(running, made_up(60))
    await index_from(owner, 40)
    interrupted = owner.transaction()
    await interrupted.start()
    assert await owner.fetchval("SELECT knowledge_base.index_lore()") == "made"
    await interrupted.rollback()
    assert await index(owner) is None

    possible = await definition(owner, "lore_index_possible")
    await owner.execute(possible.replace("p_dimensions <= 4000", "1 / (p_dimensions - 384) = 0"))
    await ingest(running, made_up(61))  # succeeds all the same
    assert await index(owner) is None
    assert len(await found(running, "lamp", "vector")) == 5
    await owner.execute(possible)
    await ingest(running, made_up(61))  # nothing is new
    assert await index(owner) is not None
