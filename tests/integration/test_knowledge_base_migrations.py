"""Every earlier schema with data in it becomes the present one, and the first release works on it.

What the last part proves: each statement that the first release's service sends still has the same
parameters and result columns, and those that write and read do so as its role. It does not prove
what the first release makes of a behaviour that changed behind the same columns.
"""

import asyncio
import hashlib
import json
import uuid
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from schema_history import (
    FIRST_RELEASE,
    apply_up_to,
    connected,
    migrations,
    statements,
    take_vectors,
    vector,
)

from gaming.knowledge_base.v1 import concepts_pb2, lore_pb2, story_pb2, worlds_pb2
from knowledge_base.adapters.schema import migrate_schema
from knowledge_base.testing import (
    SERVICE_ROLE,
    HashEmbedder,
    serve_knowledge_base,
    service_url,
)

TIMEOUT_SECONDS = 60
NOW = datetime(2026, 5, 1, tzinfo=UTC)
PASSAGE = "The tollgate at Hollowmere is shut at dusk."
DEED = "Mira stole the bell of the widow."
CONCEPT = "Mira"
MODEL = HashEmbedder.model
NUMBERS = sorted(migrations())
QUICK = {1, FIRST_RELEASE}
# Within a release: 0020 takes from concepts and their ties what 0021 and 0023 give them again.
WITHOUT_CONCEPTS = {20}
WITHOUT_RELATIONSHIPS = {20, 21, 22}


async def insert_rows(owner: asyncpg.Connection) -> uuid.UUID:
    """Data as the tables of the first migrations take it, before there were functions for all."""
    world_id = uuid.uuid4()
    await owner.execute("SET search_path TO knowledge_base, public")
    document_id = await owner.fetchval(
        "INSERT INTO narrative_documents (collection, path, title, front_matter, content_sha256,"
        " recipe, chunk_count, ingest_time) VALUES ('lore', 'toll.md', 'Toll', '{}', $1, $2, 1, $3)"
        " RETURNING document_id",
        bytes(32),
        f"chunks-1/{MODEL}",
        NOW,
    )
    await owner.execute(
        "WITH chunk AS (INSERT INTO document_chunks (document_id, ordinal, collection,"
        " heading_path, start_line, end_line, text, embedding_input_sha256, recipe, term_count,"
        " embedding) VALUES ($1, 1, 'lore', '{Toll}', 1, 3, $2, $3, $4, 4, $5)"
        " RETURNING chunk_id), counted AS (INSERT INTO lore_statistics VALUES ('lore', 1, 4))"
        " INSERT INTO chunk_terms SELECT lexeme, chunk_id, 'lore', cardinality(positions), 4"
        " FROM chunk, unnest(to_tsvector('english', $2))",
        document_id,
        PASSAGE,
        hashlib.sha256(PASSAGE.encode()).digest(),
        f"chunks-1/{MODEL}",
        await vector(PASSAGE),
    )
    await owner.execute(
        "INSERT INTO worlds (world_id, name, description, create_time, event_count,"
        " event_term_count) VALUES ($1, 'old', '', $2, 1, 4)",
        world_id,
        NOW,
    )
    await owner.execute(
        "INSERT INTO story_events (world_id, sequence, event_id, text, kind, participants,"
        " occur_time, record_time, importance, embedding_model, embedding)"
        " VALUES ($1, 1, $2, $3, 'event', '{Mira}', $4, $4, 0.5, $5, $6)",
        world_id,
        uuid.uuid4(),
        DEED,
        NOW,
        MODEL,
        await vector(DEED),
    )
    await owner.execute(
        "INSERT INTO story_event_terms SELECT $1, lexeme, 1, cardinality(positions), 4"
        " FROM unnest(to_tsvector('english', $2))",
        world_id,
        DEED,
    )
    await owner.execute(
        "WITH concept AS (INSERT INTO narrative_concepts (world_id, concept_id, name,"
        " latest_version) VALUES ($1, $2, $3, 1))"
        " INSERT INTO concept_versions (world_id, concept_id, version, kind, description,"
        " attributes, record_time) VALUES ($1, $2, 1, 'character', 'A thief.', '{}', $4)",
        world_id,
        uuid.uuid4(),
        CONCEPT,
        NOW,
    )
    await owner.execute("RESET search_path")
    return world_id


async def use_statements(
    connection: asyncpg.Connection, *, knows: bool = True, relates: bool = True
) -> uuid.UUID:
    """Data by the statements of the first release; reads it back, and returns the world's id."""
    sql = statements()
    world_id = uuid.uuid4()

    def request() -> tuple[Any, ...]:
        return uuid.uuid4(), hashlib.sha256(uuid.uuid4().bytes).digest(), NOW

    async def run(name: str, *arguments: Any) -> list[Any]:
        rows: list[Any] = await connection.fetch(sql[name], *arguments)
        return rows

    (world,) = await run("create_world", *request(), world_id, f"old {world_id}", "")
    assert world["world_id"] == world_id
    chunk = {
        "heading_path": ["Toll"],
        "start_line": 1,
        "end_line": 3,
        "text": PASSAGE,
        "search_text": PASSAGE,
    }
    sha256, recipe = hashlib.sha256(PASSAGE.encode()).digest(), f"chunks-1/{MODEL}"
    await run(
        "replace_document",
        *("lore", "toll.md", "Toll", "{}", bytes(32), recipe, NOW, json.dumps([chunk])),
        [sha256],
        [await vector(PASSAGE)],
    )
    assert [row["path"] for row in await run("document_versions", "lore")] == ["toll.md"]
    assert len(await run("known_embeddings", [sha256], recipe)) == 1
    assert (await run("chunk_count", "lore"))[0][0] == 1
    assert len(await run("list_documents", None, "", "", 10)) == 1
    found = await run(
        "search_lore", "tollgate", await vector("tollgate"), "hybrid", None, 5, 0.5, 1.2, 0.75
    )
    assert [row["text"] for row in found] == [PASSAGE]
    event = {
        "event_id": str(uuid.uuid4()),
        "text": DEED,
        "kind": "event",
        "participants": ["Mira"],
        "occur_time": NOW.isoformat(),
        "importance": 0.5,
        "search_text": DEED,
    }
    key = request()
    await run("record_events", world_id, *key, json.dumps([event]), MODEL, [await vector(DEED)])
    assert len(await run("recorded_events", world_id, *key[:2])) == 1
    recalled = await run(
        "recall_events",
        *(world_id, "bell", await vector("bell"), 5, None, None, None, None),
        *(0.5, 1.2, 0.75, 500_000.0, 0.7, 0.15, 0.15),
    )
    assert [row["text"] for row in recalled] == [DEED]
    assert [row["text"] for row in await run("list_events", world_id, None, None, 5)] == [DEED]
    if knows:
        for name in (CONCEPT, "The widow"):
            await run(
                "put_concept",
                *(world_id, *request(), uuid.uuid4(), name, "character", "A thief.", "{}"),
            )
        (concept,) = await run("get_concept", world_id, CONCEPT, None)
        assert (concept["description"], concept["version"]) == ("A thief.", 1)
        assert len(await run("list_concepts", world_id, None, "", 10)) == 2
    if relates:
        await run(
            "relate_concepts",
            *(world_id, *request(), uuid.uuid4(), CONCEPT, "The widow", "robbed", 0.8),
        )
        assert len(await run("list_relationships", world_id, CONCEPT, None, None, None, 10)) == 1
    await run("set_event_subscription", world_id, *request(), [1], [])
    assert len(await run("get_event_subscription", world_id)) == 1
    assert len(await run("subscribed_worlds", 1, "any", None)) == 1
    assert len(await run("get_world", world_id, "")) == 1
    assert world_id in [row["world_id"] for row in await run("list_worlds", "", 10)]
    return world_id


@pytest.mark.parametrize(
    "newest",
    [
        pytest.param(number, marks=[] if number in QUICK else pytest.mark.endurance)
        for number in NUMBERS
    ],
)
async def test_a_schema_with_data_becomes_the_present_one(
    postgres_database: str, newest: int
) -> None:
    async with connected(postgres_database) as owner:
        await apply_up_to(owner, newest)
        await take_vectors(owner)
        if newest < FIRST_RELEASE:
            world_id = await insert_rows(owner)
        else:
            world_id = await use_statements(
                owner,
                knows=newest not in WITHOUT_CONCEPTS,
                relates=newest not in WITHOUT_RELATIONSHIPS,
            )
    async with serve_knowledge_base(postgres_database) as running:
        stub = running.stub
        world = await stub.GetWorld(worlds_pb2.GetWorldRequest(world_id=str(world_id)))
        assert world.world.event_count == 1
        found = await stub.Search(lore_pb2.SearchRequest(query="the tollgate at dusk"))
        assert [result.text for result in found.results] == [PASSAGE]
        recalled = await stub.Recall(
            story_pb2.RecallRequest(world_id=str(world_id), query="Who stole the bell?")
        )
        assert [memory.event.text for memory in recalled.events] == [DEED]
        if newest not in WITHOUT_CONCEPTS:
            concept = await stub.GetConcept(
                concepts_pb2.GetConceptRequest(world_id=str(world_id), name=CONCEPT)
            )
            assert concept.concept.description == "A thief."
        await stub.RecordEvents(
            story_pb2.RecordEventsRequest(
                world_id=str(world_id),
                request_id=str(uuid.uuid4()),
                events=[story_pb2.StoryEvent(text="The widow wept.")],
            )
        )


async def test_what_chooses_its_plans_is_never_compiled(postgres_database: str) -> None:
    # A way that is switched off costs 10^10 before PostgreSQL 18, so all of it would be compiled.
    async with serve_knowledge_base(postgres_database), connected(postgres_database) as owner:
        chosen = await owner.fetch(
            "SELECT p.proname, 'jit=off' = ANY (p.proconfig) AS never_compiled FROM pg_proc p"
            " WHERE p.pronamespace = 'knowledge_base'::regnamespace AND EXISTS ("
            "  SELECT FROM unnest(p.proconfig) AS c (setting)"
            "  WHERE c.setting LIKE 'enable\\_%' OR c.setting LIKE 'plan\\_cache\\_mode=%')"
        )
        assert "recall_from_segments" in [row["proname"] for row in chosen]
        assert [row["proname"] for row in chosen if not row["never_compiled"]] == []


async def test_replicas_that_start_together_migrate_once(postgres_database: str) -> None:
    url = service_url(postgres_database)
    applied = await asyncio.gather(
        *(migrate_schema(postgres_database, url, SERVICE_ROLE) for _ in range(3))
    )
    names = [name for each in applied for name in each]
    assert len(names) == len(set(names))
    assert [name for number, (name, _) in migrations().items() if name not in names] == []


async def test_the_first_release_works_on_the_present_schema(
    module_database: str, postgres_database: str
) -> None:
    await migrate_schema(postgres_database, service_url(postgres_database), SERVICE_ROLE)
    async with connected(service_url(postgres_database)) as service:
        await use_statements(service)
        async with connected(module_database) as first:
            await apply_up_to(first, FIRST_RELEASE)
            for name, sql in statements().items():
                then, now = await first.prepare(sql), await service.prepare(sql)
                assert [parameter.name for parameter in then.get_parameters()] == [
                    parameter.name for parameter in now.get_parameters()
                ], name
                columns = {column.name: column.type.name for column in then.get_attributes()}
                assert (
                    columns.items()
                    <= {column.name: column.type.name for column in now.get_attributes()}.items()
                ), name
