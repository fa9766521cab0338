"""Versions, histories and layers of concepts over real gRPC and a real PostgreSQL."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import grpc
import grpc.aio
import pytest
from bitemporal_calls import (
    CANARY,
    TIMEOUT_SECONDS,
    contradictions,
    facts,
    get,
    home,
    new_world,
    put,
    refused,
    say,
    year,
)
from google.protobuf.timestamp_pb2 import Timestamp

from gaming.knowledge_base.v1 import concepts_pb2, facts_pb2, graph_pb2
from knowledge_base.testing import (
    RunningKnowledgeBase,
    serve_knowledge_base,
    service_url,
)


@pytest.fixture
async def running(knowledge_base_database: str) -> AsyncIterator[RunningKnowledgeBase]:
    async with serve_knowledge_base(knowledge_base_database) as running:
        yield running


@pytest.fixture
async def world(running: RunningKnowledgeBase) -> str:
    world = await new_world(running)
    await put(running, "Nerrit", world_id=world)
    return world


async def test_a_version_from_a_year_on_leaves_the_years_before(
    running: RunningKnowledgeBase, world: str
) -> None:
    first = await put(running, "Mira", world_id=world, description="A thief.")
    second = await put(
        running, "Mira", world_id=world, description="A mayor.", valid_from=year(1310)
    )
    now = await get(running, "Mira", world_id=world)
    assert (now.description, now.valid_from) == ("A mayor.", year(1310))
    then = await get(running, "Mira", world_id=world, as_of_valid=year(1309))
    assert (then.description, then.valid_until) == ("A thief.", year(1310))
    assert not then.HasField("valid_from")
    believed = await get(
        running,
        "Mira",
        world_id=world,
        as_of_valid=year(1320),
        as_of_recorded=first.record_time,
    )
    assert believed.description == "A thief."
    assert (first.version, second.version) == (1, 2)


async def test_a_history_tells_what_was_believed_when(
    running: RunningKnowledgeBase, world: str
) -> None:
    first = await put(running, "Mira", world_id=world, source="song")
    second = await put(running, "Mira", world_id=world, valid_from=year(1310), source="song")
    request = concepts_pb2.ListConceptVersionsRequest(world_id=world, name="Mira", page_size=1)
    newest = await running.stub.ListConceptVersions(request, timeout=TIMEOUT_SECONDS)
    request.page_token = newest.next_page_token
    oldest = await running.stub.ListConceptVersions(request, timeout=TIMEOUT_SECONDS)
    assert oldest.next_page_token == ""
    assert newest.versions[0].concept == second
    assert oldest.versions[0].concept == first
    believed = [
        (period.record_time, period.superseded_time, period.valid_until)
        for period in oldest.versions[0].periods
    ]
    assert believed == [
        (first.record_time, second.record_time, Timestamp()),
        (second.record_time, Timestamp(), year(1310)),
    ]
    missing = concepts_pb2.ListConceptVersionsRequest(world_id=world, name="Nobody")
    assert await refused(running.stub.ListConceptVersions(missing, timeout=TIMEOUT_SECONDS)) == (
        grpc.StatusCode.NOT_FOUND,
        "CONCEPT_NOT_FOUND",
    )


async def test_a_diff_names_each_field_that_changed(
    running: RunningKnowledgeBase, world: str
) -> None:
    await put(running, "Mira", world_id=world, attributes={"age": "30", "hair": "red"})
    await put(
        running,
        "Mira",
        world_id=world,
        kind="mayor",
        attributes={"age": "40", "eyes": "grey"},
        valid_from=year(1310),
    )
    request = concepts_pb2.DiffConceptRequest(
        world_id=world, name="Mira", before=concepts_pb2.ConceptPoint(as_of_valid=year(1300))
    )
    diff = await running.stub.DiffConcept(request, timeout=TIMEOUT_SECONDS)
    assert [
        (each.field, each.before if each.HasField("before") else None, each.after or None)
        for each in diff.changes
    ] == [
        ("kind", "character", "mayor"),
        ("valid_from", None, "1310-01-01T00:00:00Z"),
        ("valid_until", "1310-01-01T00:00:00Z", None),
        ("attributes[age]", "30", "40"),
        ("attributes[eyes]", None, "grey"),
        ("attributes[hair]", "red", None),
    ]
    request.after.version = 1
    alike = await running.stub.DiffConcept(request, timeout=TIMEOUT_SECONDS)
    assert [each.field for each in alike.changes] == ["valid_until"]
    request.after.as_of_valid.CopyFrom(year(1300))
    assert (await refused(running.stub.DiffConcept(request, timeout=TIMEOUT_SECONDS)))[0] is (
        grpc.StatusCode.INVALID_ARGUMENT
    )


async def test_a_period_that_holds_no_moment_is_refused(
    running: RunningKnowledgeBase, world: str
) -> None:
    for until in (1310, 1300):
        call = put(running, "Mira", world_id=world, valid_from=year(1310), valid_until=year(until))
        assert (await refused(call))[0] is grpc.StatusCode.INVALID_ARGUMENT


# --- layers ----------------------------------------------------------------------------------


async def test_a_players_layer_hides_the_worlds_and_that_the_shared_one(
    running: RunningKnowledgeBase, world: str
) -> None:
    for options in ({}, {"world_id": world}, {"world_id": world, "player_id": "p1"}):
        await put(running, "Bell", description=str(sorted(options)), **options)
    assert (await get(running, "Bell")).description == "[]"
    assert (await get(running, "Bell", world_id=world)).description == "['world_id']"
    own = await get(running, "Bell", world_id=world, player_id="p1")
    assert (own.description, own.player_id) == ("['player_id', 'world_id']", "p1")
    other = await get(running, "Bell", world_id=world, player_id="p2")
    assert other.description == "['world_id']"
    page = await running.stub.ListConcepts(
        concepts_pb2.ListConceptsRequest(world_id=world, player_id="p1"), timeout=TIMEOUT_SECONDS
    )
    assert [(each.name, each.player_id) for each in page.concepts] == [
        ("Bell", "p1"),
        ("Nerrit", ""),
    ]
    call = put(running, "Bell", player_id="p1")
    assert (await refused(call))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_one_player_knows_reaches_no_other_and_no_other_world(
    running: RunningKnowledgeBase, world: str, knowledge_base_database: str
) -> None:
    told: dict[str, Any] = {"world_id": world, "player_id": "p1"}
    await put(running, CANARY, **told)
    await put(running, "Nerrit", description=CANARY, attributes={"age": CANARY}, **told)
    await put(running, "Nerrit", attributes={"age": "30"}, world_id=world)
    await put(running, "Nerrit", attributes={"age": CANARY}, **told)
    said = await say(running, home(CANARY), home(f"{CANARY} 2"), **told)
    await running.stub.RelateConcepts(
        concepts_pb2.RelateConceptsRequest(
            from_concept="Nerrit",
            to_concept=CANARY,
            kind="knows",
            request_id=str(uuid.uuid4()),
            **told,
        ),
        timeout=TIMEOUT_SECONDS,
    )
    assert len(await contradictions(running, **told)) == 2
    elsewhere = await new_world(running)
    views: list[dict[str, Any]] = [{"world_id": world}, {"world_id": world, "player_id": "p2"}]
    for seen in views:
        answers = [
            await get(running, "Nerrit", **seen),
            await running.stub.ListConcepts(
                concepts_pb2.ListConceptsRequest(**seen), timeout=TIMEOUT_SECONDS
            ),
            await running.stub.ListConceptVersions(
                concepts_pb2.ListConceptVersionsRequest(name="Nerrit", **seen),
                timeout=TIMEOUT_SECONDS,
            ),
            await running.stub.ListRelationships(
                concepts_pb2.ListRelationshipsRequest(concept="Nerrit", **seen),
                timeout=TIMEOUT_SECONDS,
            ),
            await running.stub.Traverse(
                graph_pb2.TraverseRequest(
                    start_concept="Nerrit",
                    direction=graph_pb2.TRAVERSAL_DIRECTION_BOTH,
                    maximum_depth=6,
                    **seen,
                ),
                timeout=TIMEOUT_SECONDS,
            ),
            await facts(running, **seen),
            await contradictions(running, **seen),
        ]
        assert CANARY not in str(answers)
    views += [{"world_id": elsewhere}, {"world_id": elsewhere, "player_id": "p1"}, {}]
    for seen in views:
        retract = facts_pb2.RetractFactRequest(
            fact_id=said[0].fact_id, request_id=str(uuid.uuid4()), **seen
        )
        assert await refused(running.stub.RetractFact(retract, timeout=TIMEOUT_SECONDS)) == (
            grpc.StatusCode.NOT_FOUND,
            "FACT_NOT_FOUND",
        )
        assert await facts(running, subject=CANARY, **seen) == []
    # The database itself shows a statement for one player nothing of another's.
    service = await asyncpg.connect(service_url(knowledge_base_database))
    try:
        await service.execute("SELECT set_config('knowledge_base.world_id', $1, false)", world)
        for player, shown in ((":p2", False), (":", False), (":p1", True)):
            await service.execute(
                "SELECT set_config('knowledge_base.player_id', $1, false)", player
            )
            for table in (
                *("narrative_concepts", "concept_versions", "concept_relationships"),
                *("story_facts", "contradictions"),
            ):
                rows = await service.fetch(f"SELECT * FROM knowledge_base.{table}")  # noqa: S608  # own list
                assert (CANARY in str(rows)) is shown, (table, player)
    finally:
        await service.close()


async def test_the_service_can_change_no_word_and_delete_nothing_of_what_was_said(
    running: RunningKnowledgeBase, world: str, knowledge_base_database: str
) -> None:
    service = await asyncpg.connect(service_url(knowledge_base_database))
    try:
        await service.execute("SELECT set_config('knowledge_base.world_id', $1, false)", world)
        for statement in (
            "UPDATE knowledge_base.story_facts SET object = 'x'",
            "UPDATE knowledge_base.concept_versions SET description = 'x'",
            "UPDATE knowledge_base.concept_periods SET valid_from = now()",
            "UPDATE knowledge_base.concept_relationships SET strength = 0",
            "DELETE FROM knowledge_base.story_facts",
            "DELETE FROM knowledge_base.concept_periods",
            "DELETE FROM knowledge_base.concept_relationships",
            "DELETE FROM knowledge_base.contradictions",
            "SELECT knowledge_base.grant_lasting_memory('knowledge_base_service')",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await service.execute(statement)
    finally:
        await service.close()


# --- facts -----------------------------------------------------------------------------------
