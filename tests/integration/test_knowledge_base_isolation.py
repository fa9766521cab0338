"""The database itself keeps worlds apart, whatever a statement of the service asks for."""

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import asyncpg
import pytest

from gaming.events.events_pb2 import WEATHER_CHANGED
from gaming.knowledge_base.v1 import (
    concepts_pb2,
    facts_pb2,
    lore_pb2,
    story_pb2,
    subscriptions_pb2,
    worlds_pb2,
)
from knowledge_base.__main__ import connect
from knowledge_base.adapters.postgres_memory import PostgresMemory
from knowledge_base.adapters.schema import migrate_schema
from knowledge_base.config import DatabaseSettings
from knowledge_base.ports import RequestKey
from knowledge_base.ports_reranker import Rerankers
from knowledge_base.testing import (
    SERVICE_ROLE,
    HashReranker,
    RunningKnowledgeBase,
    serve_knowledge_base,
    service_url,
)
from localsuite.postgres import EmbeddedPostgres
from servicekit.settings import SettingsError, load_settings

TIMEOUT_SECONDS = 20
CANARY = "the-canary-sings-at-dawn"
WORLD_TABLES = (
    "event_subscriptions",
    "worlds",
    "story_events",
    "story_event_terms",
    "story_event_codes",
    "narrative_concepts",
    "concept_versions",
    "concept_periods",
    "concept_relationships",
    "story_facts",
    "contradictions",
    "requests",
    "world_changes",
)
# Hold rows only while the embedding model is being changed, or of worlds with many events.
SELDOM_FILLED_TABLES = (
    "story_event_backlog",
    "story_event_blocks",
    "next_story_event_blocks",
    "story_event_words",
    "story_event_participants",
)


@pytest.fixture
async def running(knowledge_base_database: str) -> AsyncIterator[RunningKnowledgeBase]:
    async with serve_knowledge_base(
        knowledge_base_database, rerankers=Rerankers(memory=HashReranker())
    ) as running:
        yield running


@pytest.fixture
async def service(
    running: RunningKnowledgeBase, knowledge_base_database: str
) -> AsyncIterator[asyncpg.Connection]:
    """A connection with the service's rights and nothing of its code."""
    connection = await asyncpg.connect(service_url(knowledge_base_database))
    yield connection
    await connection.close()


async def make_world(running: RunningKnowledgeBase, name: str, word: str) -> str:
    """A world in which every table holds `word`."""
    stub = running.stub
    world = await stub.CreateWorld(
        worlds_pb2.CreateWorldRequest(name=name, description=word, request_id=str(uuid.uuid4())),
        timeout=TIMEOUT_SECONDS,
    )
    world_id = world.world.world_id
    await stub.RecordEvents(
        story_pb2.RecordEventsRequest(
            world_id=world_id,
            events=[story_pb2.StoryEvent(text=word, participants=[word], kind=word)],
            request_id=str(uuid.uuid4()),
        ),
        timeout=TIMEOUT_SECONDS,
    )
    await stub.SetEventSubscription(
        subscriptions_pb2.SetEventSubscriptionRequest(
            world_id=world_id,
            subscription=subscriptions_pb2.EventSubscription(
                event_types=[WEATHER_CHANGED], sources=[word]
            ),
            request_id=str(uuid.uuid4()),
        ),
        timeout=TIMEOUT_SECONDS,
    )
    for concept in (word, "plain"):
        await stub.PutConcept(
            concepts_pb2.PutConceptRequest(
                world_id=world_id,
                name=concept,
                kind=word,
                description=word,
                attributes={word: word},
                request_id=str(uuid.uuid4()),
            ),
            timeout=TIMEOUT_SECONDS,
        )
    await stub.RelateConcepts(
        concepts_pb2.RelateConceptsRequest(
            world_id=world_id,
            from_concept=word,
            to_concept="plain",
            kind=word,
            request_id=str(uuid.uuid4()),
        ),
        timeout=TIMEOUT_SECONDS,
    )
    await stub.AssertFacts(
        facts_pb2.AssertFactsRequest(
            world_id=world_id,
            facts=[
                facts_pb2.Fact(subject=word, predicate=word, text=text, single_valued=True)
                for text in (word, f"not {word}")
            ],
            request_id=str(uuid.uuid4()),
        ),
        timeout=TIMEOUT_SECONDS,
    )
    return world_id


async def test_a_query_without_a_predicate_sees_the_named_world_only(
    running: RunningKnowledgeBase, service: asyncpg.Connection
) -> None:
    own = await make_world(running, "own", "mine")
    other = await make_world(running, "other", CANARY)
    shared = str(uuid.UUID(int=0))
    for table in WORLD_TABLES:
        async with service.transaction():
            await service.execute("SELECT set_config('knowledge_base.world_id', $1, true)", own)
            rows = await service.fetch(f"SELECT * FROM knowledge_base.{table}")  # noqa: S608  # own list
        assert rows, table
        assert {str(row["world_id"]) for row in rows} <= {own, shared}
        assert CANARY not in str(rows)
        async with service.transaction():
            await service.execute("SELECT set_config('knowledge_base.world_id', $1, true)", other)
            rows = await service.fetch(f"SELECT * FROM knowledge_base.{table}")  # noqa: S608  # own list
        assert other in {str(row["world_id"]) for row in rows}, table


@pytest.mark.parametrize(
    "world", [None, "", str(uuid.uuid4())], ids=["unset", "empty", "one that is not there"]
)
async def test_without_a_world_nothing_is_seen(
    running: RunningKnowledgeBase, service: asyncpg.Connection, world: str | None
) -> None:
    await make_world(running, "other", CANARY)
    if world is not None:
        await service.execute("SELECT set_config('knowledge_base.world_id', $1, false)", world)
    for table in WORLD_TABLES:
        rows = await service.fetch(f"SELECT * FROM knowledge_base.{table}")  # noqa: S608  # own list
        assert rows == []


async def test_the_world_does_not_outlive_its_statement(running: RunningKnowledgeBase) -> None:
    own = await make_world(running, "own", "mine")
    async with running.database.connection() as connection:
        await connection.fetch("SELECT * FROM knowledge_base.list_events($1, NULL, NULL, 10)", own)
        await connection.fetch("SELECT * FROM knowledge_base.list_worlds('', 10)")
        for table in WORLD_TABLES:
            assert await connection.fetch(f"SELECT * FROM knowledge_base.{table}") == []  # noqa: S608  # own list


OWN_EVENTS_ELSEWHERE = """
INSERT INTO knowledge_base.story_events
SELECT $1, sequence + 1, gen_random_uuid(), text, kind, participants, occur_time, record_time,
    importance, embedding_model, embedding
FROM knowledge_base.story_events"""
OWN_REQUESTS_ELSEWHERE = """
INSERT INTO knowledge_base.requests
SELECT $1, gen_random_uuid(), fingerprint, response, record_time FROM knowledge_base.requests"""
A_CONCEPT = "INSERT INTO knowledge_base.narrative_concepts VALUES ($1, gen_random_uuid(), 'x', 1)"


@pytest.mark.parametrize(
    ("statement", "target"),
    [
        (OWN_EVENTS_ELSEWHERE, "other"),
        (OWN_REQUESTS_ELSEWHERE, "other"),
        (A_CONCEPT, "other"),
        (A_CONCEPT, "shared"),
    ],
)
async def test_writing_into_another_world_is_refused(
    running: RunningKnowledgeBase, service: asyncpg.Connection, statement: str, target: str
) -> None:
    own = await make_world(running, "own", "mine")
    other = await make_world(running, "other", CANARY)
    await service.execute("SELECT set_config('knowledge_base.world_id', $1, false)", own)
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
        await service.execute(statement, other if target == "other" else str(uuid.UUID(int=0)))


async def test_updates_without_a_predicate_change_the_named_world_only(
    running: RunningKnowledgeBase, service: asyncpg.Connection
) -> None:
    own = await make_world(running, "own", "mine")
    other = await make_world(running, "other", CANARY)
    async with service.transaction():
        await service.execute("SELECT set_config('knowledge_base.world_id', $1, true)", own)
        await service.execute("UPDATE knowledge_base.worlds SET event_count = 99")
    counts = await service.fetch("SELECT * FROM knowledge_base.list_worlds('', 10)")
    assert {str(row["world_id"]): row["event_count"] for row in counts} == {own: 99, other: 1}


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("DELETE FROM knowledge_base.story_events", asyncpg.InsufficientPrivilegeError),
        ("UPDATE knowledge_base.story_events SET text = ''", asyncpg.InsufficientPrivilegeError),
        ("TRUNCATE knowledge_base.story_events", asyncpg.InsufficientPrivilegeError),
        ("UPDATE knowledge_base.worlds SET name = 'x'", asyncpg.InsufficientPrivilegeError),
        (
            "ALTER TABLE knowledge_base.story_events DISABLE ROW LEVEL SECURITY",
            asyncpg.InsufficientPrivilegeError,
        ),
        (
            "CREATE POLICY mine ON knowledge_base.story_events USING (true)",
            asyncpg.InsufficientPrivilegeError,
        ),
        (
            "ALTER ROLE knowledge_base_service BYPASSRLS",
            asyncpg.InsufficientPrivilegeError,
        ),
        ("SET ROLE postgres", asyncpg.InsufficientPrivilegeError),
        ("CREATE TABLE knowledge_base.mine (x int)", asyncpg.InsufficientPrivilegeError),
        (
            "SELECT knowledge_base.provision_service_role('knowledge_base_service', NULL)",
            asyncpg.InsufficientPrivilegeError,
        ),
        (
            "SET row_security = off; SELECT * FROM knowledge_base.story_events",
            asyncpg.InsufficientPrivilegeError,
        ),
    ],
)
async def test_the_services_role_cannot_lift_the_isolation(
    service: asyncpg.Connection, statement: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await service.execute(statement)


async def test_every_table_of_a_world_is_protected_and_not_the_services(
    service: asyncpg.Connection,
) -> None:
    rows = await service.fetch(
        "SELECT c.relname, c.relrowsecurity, c.relowner = r.oid AS owns, r.rolsuper, r.rolbypassrls"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,"
        " (SELECT * FROM pg_roles WHERE rolname = current_user) r"
        " WHERE n.nspname = 'knowledge_base' AND c.relkind = 'r'"
    )
    assert {row["relname"] for row in rows if row["relrowsecurity"]} == {
        *WORLD_TABLES,
        *SELDOM_FILLED_TABLES,
    }
    for row in rows:
        assert not any((row["owns"], row["rolsuper"], row["rolbypassrls"]))
    # A table with a world in it that somebody adds later must be protected too.
    with_world = await service.fetch(
        "SELECT c.relname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
        " WHERE a.attname = 'world_id' AND c.relkind = 'r'"
        " AND c.relnamespace = 'knowledge_base'::regnamespace"
    )
    assert {row["relname"] for row in with_world} == {*WORLD_TABLES, *SELDOM_FILLED_TABLES}


async def test_every_unique_key_of_a_world_table_begins_with_the_world(
    service: asyncpg.Connection,
) -> None:
    """Else a refused insert would tell one world what another one holds."""
    rows = await service.fetch(
        "SELECT c.relname, pg_get_indexdef(i.indexrelid) AS definition FROM pg_index i"
        " JOIN pg_class c ON c.oid = i.indrelid WHERE i.indisunique AND c.relrowsecurity"
        " AND c.relname <> 'worlds'"
    )
    assert len(rows) >= len(WORLD_TABLES) - 1
    for row in rows:
        assert "(world_id" in row["definition"], row["definition"]


async def test_the_service_refuses_to_work_as_an_owner(knowledge_base_database: str) -> None:
    await migrate_schema(
        knowledge_base_database, service_url(knowledge_base_database), "knowledge_base_service"
    )
    settings = load_settings(
        DatabaseSettings, {"KNOWLEDGE_BASE_DATABASE_URL": knowledge_base_database}
    )
    with pytest.raises(SettingsError, match="superuser"):
        async with connect(settings):
            pass


async def test_the_service_refuses_a_database_without_its_schema(
    knowledge_base_database: str,
) -> None:
    # The role is made with the schema, and stays.
    await migrate_schema(
        knowledge_base_database, service_url(knowledge_base_database), SERVICE_ROLE
    )
    owner = await asyncpg.connect(knowledge_base_database)
    await owner.execute("DROP SCHEMA knowledge_base CASCADE")
    await owner.close()
    settings = load_settings(
        DatabaseSettings, {"KNOWLEDGE_BASE_DATABASE_URL": service_url(knowledge_base_database)}
    )
    with pytest.raises(SettingsError, match="migrate"):
        async with connect(settings):
            pass


async def test_a_canary_of_one_world_reaches_no_answer_for_another(
    running: RunningKnowledgeBase,
) -> None:
    own = await make_world(running, "own", "mine")
    await make_world(running, "other", CANARY)
    stub = running.stub
    answers = [
        await stub.Recall(
            story_pb2.RecallRequest(world_id=own, query=f"{CANARY} ' OR true --", limit=100),
            timeout=TIMEOUT_SECONDS,
        ),
        await stub.Recall(
            story_pb2.RecallRequest(
                world_id=own, query=CANARY, participants=[CANARY], kinds=[CANARY]
            ),
            timeout=TIMEOUT_SECONDS,
        ),
        await stub.ListEvents(story_pb2.ListEventsRequest(world_id=own), timeout=TIMEOUT_SECONDS),
        await stub.ListConcepts(
            concepts_pb2.ListConceptsRequest(world_id=own), timeout=TIMEOUT_SECONDS
        ),
        await stub.ListRelationships(
            concepts_pb2.ListRelationshipsRequest(world_id=own, concept="mine"),
            timeout=TIMEOUT_SECONDS,
        ),
        await stub.Search(lore_pb2.SearchRequest(query=CANARY), timeout=TIMEOUT_SECONDS),
    ]
    assert all(CANARY not in str(answer) for answer in answers)


async def test_the_owner_need_not_be_a_superuser(postgres_server: EmbeddedPostgres) -> None:
    """As on a managed PostgreSQL, where nobody is one; the extension is there already."""
    name = "knowledge_base_managed"
    postgres_server.create_database(name)
    try:
        postgres_server.execute(
            "CREATE EXTENSION vector; CREATE ROLE managed_owner LOGIN CREATEROLE PASSWORD 'owner';"
            " GRANT ALL ON DATABASE knowledge_base_managed TO managed_owner",
            database=name,
        )
        service = postgres_server.url(name, user="managed_service", password="service")
        for _ in range(2):  # the second time the role exists
            await migrate_schema(
                postgres_server.url(name, user="managed_owner", password="owner"),
                service,
                "managed_service",
            )
        settings = load_settings(DatabaseSettings, {"KNOWLEDGE_BASE_DATABASE_URL": service})
        async with connect(settings) as database:
            memory = PostgresMemory(database)
            key = RequestKey(uuid.uuid4(), bytes(32), datetime.now(UTC))
            world = await memory.create_world(key, uuid.uuid4(), "a", "")
            assert await memory.list_worlds("", 10) == [world]
            # This runs as the owner, whom the policies do not bind.
            assert await memory.forget_requests(datetime.max.replace(tzinfo=UTC)) == 1
    finally:
        postgres_server.drop_database(name)
        postgres_server.execute("DROP ROLE IF EXISTS managed_service, managed_owner")
