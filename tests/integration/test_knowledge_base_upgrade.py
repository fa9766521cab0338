"""What an earlier schema held is there after the upgrade, and the version before works on."""

import uuid
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from gaming.knowledge_base.v1 import concepts_pb2
from knowledge_base.adapters.schema import migrate_schema
from knowledge_base.testing import SERVICE_ROLE, serve_knowledge_base, service_url
from servicekit import postgres

TIMEOUT_SECONDS = 20
LAST_BEFORE = 6
RECORDED = datetime(2026, 1, 1, tzinfo=UTC)

PUT = "SELECT * FROM knowledge_base.put_concept($1, $2, $3, $4, $5, $6, $7, $8, $9::jsonb)"
GET = "SELECT * FROM knowledge_base.get_concept($1, $2, $3)"
LIST = "SELECT * FROM knowledge_base.list_concepts($1, $2, $3, $4)"
RELATE = "SELECT * FROM knowledge_base.relate_concepts($1, $2, $3, $4, $5, $6, $7, $8, $9)"
TIES = "SELECT * FROM knowledge_base.list_relationships($1, $2, $3, $4, $5, $6)"
SHARED = uuid.UUID(int=0)


class VersionBefore:
    """Calls the database as the version before does."""

    def __init__(self, connection: asyncpg.Connection, world: uuid.UUID) -> None:
        self.connection = connection
        self.world = world

    async def put(
        self, name: str, description: str, recorded: datetime, world: uuid.UUID | None = None
    ) -> uuid.UUID:
        request = uuid.uuid4()
        await self.connection.fetch(
            PUT,
            *(self.world if world is None else world, request, bytes(32), recorded, uuid.uuid4()),
            *(name, "character", description, "{}"),
        )
        return request

    async def relate(self, start: str, end: str, strength: float, recorded: datetime) -> None:
        await self.connection.fetch(
            RELATE,
            *(self.world, uuid.uuid4(), bytes(32), recorded, uuid.uuid4()),
            *(start, end, "ally_of", strength),
        )

    async def descriptions(self) -> list[tuple[str, int, str]]:
        rows = await self.connection.fetch(LIST, self.world, None, "", 10)
        return [(row["name"], row["version"], row["description"]) for row in rows]

    async def ties(self, name: str) -> list[tuple[str, str, float]]:
        rows = await self.connection.fetch(TIES, self.world, name, None, None, None, 10)
        return [(row["from_name"], row["to_name"], row["strength"]) for row in rows]


async def test_concepts_and_ties_of_the_first_schema_live_on_in_two_times(
    postgres_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = postgres._migrations  # an earlier release had fewer of them
    monkeypatch.setattr(
        postgres,
        "_migrations",
        lambda package: [
            each
            for each in find(package)
            if package != "knowledge_base" or each.number <= LAST_BEFORE
        ],
    )
    service = service_url(postgres_database)
    await migrate_schema(postgres_database, service, SERVICE_ROLE)
    world = uuid.uuid4()
    connection = await asyncpg.connect(service)
    try:
        await connection.fetch(
            "SELECT * FROM knowledge_base.create_world($1, $2, $3, $4, $5, $6)",
            *(uuid.uuid4(), bytes(32), RECORDED, world, "Mauk", ""),
        )
        before = VersionBefore(connection, world)
        # The third version's writer had a clock that was behind.
        for number, seconds in enumerate((0, 10, 5)):
            request = await before.put(
                "Nerrit", f"Text {number}.", RECORDED + timedelta(seconds=seconds)
            )
        await before.put("Bell", "Bronze.", RECORDED, SHARED)
        await before.relate("Nerrit", "Bell", 0.25, RECORDED)
        # The world then has a Bell of its own, and a second tie of the same names.
        await before.put("Bell", "Mine.", RECORDED)
        await before.relate("Nerrit", "Bell", 0.75, RECORDED + timedelta(seconds=1))
        ties = await before.ties("Nerrit")
        assert ties == [("Nerrit", "Bell", 0.75)]
        listed = await before.descriptions()

        monkeypatch.undo()
        async with serve_knowledge_base(postgres_database) as running:
            # The version before still runs, on the connection it has.
            assert await before.ties("Nerrit") == ties
            assert await before.descriptions() == listed
            again = await connection.fetch(
                PUT,
                *(world, request, bytes(32), RECORDED, uuid.uuid4()),
                *("Nerrit", "character", "Text 2.", "{}"),
            )
            assert [row["version"] for row in again] == [3]
            await before.put("Nerrit", "Text 3.", RECORDED + timedelta(seconds=60))
            (row,) = await connection.fetch(GET, world, "Nerrit", None)
            assert (row["version"], row["description"]) == (4, "Text 3.")

            stub = running.stub
            history = await stub.ListConceptVersions(
                concepts_pb2.ListConceptVersionsRequest(world_id=str(world), name="Nerrit"),
                timeout=TIMEOUT_SECONDS,
            )
            assert [each.concept.description for each in history.versions] == [
                f"Text {number}." for number in (3, 2, 1, 0)
            ]
            for version in history.versions:
                then = await stub.GetConcept(
                    concepts_pb2.GetConceptRequest(
                        world_id=str(world),
                        name="Nerrit",
                        as_of_recorded=version.concept.record_time,
                    ),
                    timeout=TIMEOUT_SECONDS,
                )
                assert then.concept == version.concept
            request_then = concepts_pb2.ListRelationshipsRequest(
                world_id=str(world), concept="Nerrit"
            )
            request_then.as_of_recorded.FromDatetime(RECORDED)
            ties_then = await stub.ListRelationships(request_then, timeout=TIMEOUT_SECONDS)
            assert [tie.strength for tie in ties_then.relationships] == [0.25]
    finally:
        await connection.close()
