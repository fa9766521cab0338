"""The database itself keeps anything from being believed twice, whatever writers do at once."""

import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg
import pytest

from gaming.knowledge_base.v1 import concepts_pb2, facts_pb2, worlds_pb2
from knowledge_base.testing import RunningKnowledgeBase, serve_knowledge_base

TIMEOUT_SECONDS = 30
PLAYER = "mira"


@dataclass(frozen=True)
class Table:
    """A table of what is believed: its key, its unique index, and what says what is believed."""

    name: str
    key: str
    index: str
    says: str


TABLES = [
    Table("story_facts", "fact_id", "story_facts_believed", "predicate"),
    Table("concept_relationships", "relationship_id", "concept_relationships_believed", "kind"),
]


@pytest.fixture
async def running(knowledge_base_database: str) -> AsyncIterator[RunningKnowledgeBase]:
    async with serve_knowledge_base(knowledge_base_database) as running:
        yield running


@pytest.fixture
async def owner(knowledge_base_database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(knowledge_base_database)
    yield connection
    await connection.close()


def new_id() -> str:
    return str(uuid.uuid4())


async def fill(running: RunningKnowledgeBase, player_id: str) -> uuid.UUID:
    """A world with one fact and one relationship, as they are for `player_id` ('': everybody)."""
    stub = running.stub
    world = await stub.CreateWorld(
        worlds_pb2.CreateWorldRequest(name=new_id(), request_id=new_id()), timeout=TIMEOUT_SECONDS
    )
    world_id = world.world.world_id
    for name in ("gate", "tower"):
        await stub.PutConcept(
            concepts_pb2.PutConceptRequest(
                world_id=world_id, name=name, kind="k", description="d", request_id=new_id()
            ),
            timeout=TIMEOUT_SECONDS,
        )
    await stub.AssertFacts(
        facts_pb2.AssertFactsRequest(
            world_id=world_id,
            player_id=player_id,
            facts=[facts_pb2.Fact(subject="gate", predicate="is", text="shut")],
            request_id=new_id(),
        ),
        timeout=TIMEOUT_SECONDS,
    )
    await stub.RelateConcepts(
        concepts_pb2.RelateConceptsRequest(
            world_id=world_id,
            player_id=player_id,
            from_concept="gate",
            to_concept="tower",
            kind="of",
            request_id=new_id(),
        ),
        timeout=TIMEOUT_SECONDS,
    )
    return uuid.UUID(world_id)


async def write_again(
    owner: asyncpg.Connection, table: Table, world_id: uuid.UUID, /, **changed: str
) -> None:
    """Writes the world's row once more under a new id, as the owner, whom no function checks."""
    await owner.execute(
        f"INSERT INTO knowledge_base.{table.name}"  # noqa: S608  # names of this file
        f" SELECT (jsonb_populate_record(t, $2::jsonb)).* FROM knowledge_base.{table.name} t"
        " WHERE world_id = $1",
        world_id,
        json.dumps({table.key: new_id(), **changed}),
    )


@pytest.mark.parametrize("player_id", ["", PLAYER], ids=["for everybody", "for a player"])
@pytest.mark.parametrize("table", TABLES, ids=[table.name for table in TABLES])
async def test_nothing_is_believed_twice_of_one_period(
    running: RunningKnowledgeBase, owner: asyncpg.Connection, table: Table, player_id: str
) -> None:
    world_id = await fill(running, player_id)
    with pytest.raises(asyncpg.UniqueViolationError) as refused:
        await write_again(owner, table, world_id)
    assert refused.value.constraint_name == table.index


@pytest.mark.parametrize("table", TABLES, ids=[table.name for table in TABLES])
async def test_what_differs_stands_beside_it(
    running: RunningKnowledgeBase, owner: asyncpg.Connection, table: Table
) -> None:
    """Another layer's, another period's, what was believed before, and something else."""
    for changed in (
        {"player_id": "tesh"},
        {"valid_from": "1300-01-01T00:00:00Z"},
        {"superseded_time": "9000-01-01T00:00:00Z"},
        {table.says: "another"},
    ):
        await write_again(owner, table, await fill(running, PLAYER), **changed)
