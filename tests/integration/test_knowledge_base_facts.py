"""Facts and contradictions over real gRPC and a real PostgreSQL."""

import asyncio
import unicodedata
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from bitemporal_calls import (
    ATTRIBUTE,
    CANARY,
    CANON,
    FACT,
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

from gaming.knowledge_base.v1 import concepts_pb2, facts_pb2, graph_pb2, story_pb2
from knowledge_base.testing import (
    RunningKnowledgeBase,
    failure_of,
    serve_knowledge_base,
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


async def test_a_fact_is_told_for_its_time_and_ended_without_being_lost(
    running: RunningKnowledgeBase, world: str
) -> None:
    event = (
        await running.stub.RecordEvents(
            story_pb2.RecordEventsRequest(
                world_id=world,
                events=[story_pb2.StoryEvent(text="Nerrit moved.")],
                request_id=str(uuid.uuid4()),
            ),
            timeout=TIMEOUT_SECONDS,
        )
    ).events[0]
    await put(running, "Mauk", kind="place", world_id=world)
    told = facts_pb2.Fact(
        subject="Nerrit",
        predicate="lives_in",
        object_concept="Mauk",
        valid_from=year(1300),
        source="Mira",
        source_event_id=event.event_id,
    )
    (said,) = await say(running, told, world_id=world)
    assert (said.object_concept, said.source_event_id) == ("Mauk", event.event_id)
    assert await facts(running, world_id=world, as_of_valid=year(1299)) == []
    assert await facts(running, world_id=world, as_of_valid=year(1300)) == [said]
    request = facts_pb2.RetractFactRequest(
        world_id=world,
        fact_id=said.fact_id,
        valid_until=year(1310),
        request_id=str(uuid.uuid4()),
    )
    first = await running.stub.RetractFact(request, timeout=TIMEOUT_SECONDS)
    assert [fact.valid_until for fact in first.facts] == [year(1310)]
    assert await running.stub.RetractFact(request, timeout=TIMEOUT_SECONDS) == first
    assert await facts(running, world_id=world, as_of_valid=year(1310)) == []
    before = await facts(
        running, world_id=world, as_of_valid=year(1310), as_of_recorded=said.record_time
    )
    assert [(fact.fact_id, fact.HasField("superseded_time")) for fact in before] == [
        (said.fact_id, True)
    ]
    again = await say(running, told, world_id=world)
    assert again[0].fact_id == said.fact_id


async def test_what_a_fact_names_must_be_there(running: RunningKnowledgeBase, world: str) -> None:
    other = await new_world(running)
    await put(running, CANARY, world_id=other)
    missing_event = str(uuid.uuid4())
    for fact, reason in (
        (facts_pb2.Fact(subject="Nobody", predicate="is", text="x"), "CONCEPT_NOT_FOUND"),
        (facts_pb2.Fact(subject=CANARY, predicate="is", text="x"), "CONCEPT_NOT_FOUND"),
        (home("", object_concept="Nobody"), "CONCEPT_NOT_FOUND"),
        (home("x", source_event_id=missing_event), "EVENT_NOT_FOUND"),
    ):
        request = facts_pb2.AssertFactsRequest(
            world_id=world, facts=[home("Mauk"), fact], request_id=str(uuid.uuid4())
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.stub.AssertFacts(request, timeout=TIMEOUT_SECONDS)
        told = failure_of(caught.value)
        assert (told.code, told.reason) == (grpc.StatusCode.NOT_FOUND, reason)
        assert told.metadata["field"].startswith("facts[1].")
    assert await facts(running, world_id=world) == []  # all or none


async def test_facts_are_paged_without_gap_or_repeat(
    running: RunningKnowledgeBase, world: str
) -> None:
    told = [
        facts_pb2.Fact(subject="Nerrit", predicate=f"p{number % 3}", text=f"t{number}")
        for number in range(7)
    ]
    said = await say(running, *told, home("Mauk", valid_from=year(1300)), world_id=world)
    paged = await facts(running, world_id=world, page_size=2)
    assert paged == await facts(running, world_id=world)
    assert {fact.fact_id for fact in paged} == {fact.fact_id for fact in said}
    assert [fact.predicate for fact in paged] == sorted(fact.predicate for fact in paged)
    page = await running.stub.ListFacts(
        facts_pb2.ListFactsRequest(world_id=world, page_size=2), timeout=TIMEOUT_SECONDS
    )
    stolen = facts_pb2.ListFactsRequest(page_token=page.next_page_token)
    assert (await refused(running.stub.ListFacts(stolen, timeout=TIMEOUT_SECONDS)))[1] == (
        "INVALID_PAGE_TOKEN"
    )


async def test_repeats_and_writers_at_once_leave_one_of_each(
    running: RunningKnowledgeBase, world: str
) -> None:
    request_id = str(uuid.uuid4())
    answers = await asyncio.gather(
        *(say(running, home("Mauk"), world_id=world, request_id=request_id) for _ in range(5))
    )
    assert all(answer == answers[0] for answer in answers)
    assert await refused(say(running, home("Inn"), world_id=world, request_id=request_id)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "REQUEST_ID_REUSED",
    )
    await asyncio.gather(
        *(
            say(running, home("Mauk", valid_from=year(1300 + number)), world_id=world)
            for number in range(8)
        ),
        *(
            put(running, "Nerrit", world_id=world, valid_from=year(1300 + number))
            for number in range(8)
        ),
    )
    # At every moment one period of the fact, and one version of the concept, is believed.
    for moment in range(1299, 1309):
        held = await facts(running, world_id=world, as_of_valid=year(moment))
        assert len(held) == 1
        await get(running, "Nerrit", world_id=world, as_of_valid=year(moment))
    history = await running.stub.ListConceptVersions(
        concepts_pb2.ListConceptVersionsRequest(world_id=world, name="Nerrit"),
        timeout=TIMEOUT_SECONDS,
    )
    assert [each.concept.version for each in history.versions] == list(range(9, 0, -1))


async def test_a_name_typed_in_two_ways_is_one_and_a_hidden_one_is_refused(
    running: RunningKnowledgeBase, world: str
) -> None:
    composed = unicodedata.normalize("NFC", "Zoë")
    split = unicodedata.normalize("NFD", "Zoë")
    await put(running, composed, world_id=world)
    fact = facts_pb2.Fact(subject=split, predicate="is", text="x' OR true --", single_valued=True)
    (said,) = await say(running, fact, world_id=world)
    assert said.subject == composed
    assert await facts(running, world_id=world, subject=split) == [said]
    for name in ("Ner\u200brit", "Nerrit\u202e", "Ner\x00rit"):
        hidden = facts_pb2.Fact(subject=name, predicate="is", text="x")
        assert (await refused(say(running, hidden, world_id=world)))[0] is (
            grpc.StatusCode.INVALID_ARGUMENT
        )
        traversal = running.stub.Traverse(
            graph_pb2.TraverseRequest(world_id=world, start_concept=name),
            timeout=TIMEOUT_SECONDS,
        )
        assert (await refused(traversal))[0] is grpc.StatusCode.INVALID_ARGUMENT
        call = put(running, "Nerrit", world_id=world, player_id=name)
        assert (await refused(call))[0] is grpc.StatusCode.INVALID_ARGUMENT


# --- contradictions --------------------------------------------------------------------------


async def test_two_objects_where_one_is_possible_are_a_contradiction(
    running: RunningKnowledgeBase, world: str
) -> None:
    await say(running, home("Mauk", valid_until=year(1310), source="song"), world_id=world)
    await say(running, home("Inn", valid_from=year(1310)), world_id=world)
    assert await contradictions(running, world_id=world) == []  # one after the other
    await say(
        running,
        home("Ruin", valid_from=year(1305), valid_until=year(1311), single_valued=False),
        world_id=world,
    )
    found = await contradictions(running, world_id=world)
    assert {
        (each.earlier.value, each.later.value): (each.kind, each.valid_from, each.valid_until)
        for each in found
    } == {
        ("Mauk", "Ruin"): (FACT, year(1305), year(1310)),
        ("Inn", "Ruin"): (FACT, year(1310), year(1311)),
    }
    assert [each.earlier.source for each in found if each.earlier.value == "Mauk"] == ["song"]
    # Both stay, and the same one is not told twice.
    assert len(await facts(running, world_id=world, as_of_valid=year(1306))) == 2
    await say(running, home("Mauk", valid_until=year(1310)), world_id=world)
    assert len(await contradictions(running, world_id=world)) == 2
    assert await contradictions(running, world_id=await new_world(running)) == []


async def test_sources_that_differ_on_an_attribute_are_a_contradiction(
    running: RunningKnowledgeBase, world: str
) -> None:
    options = {"world_id": world}
    await put(running, "Mira", attributes={"hair": "red", "age": "30"}, source="song", **options)
    await put(running, "Mira", attributes={"hair": "black"}, source="song", **options)
    assert await contradictions(running, **options) == []  # a source may correct itself
    await put(
        running,
        "Mira",
        attributes={"hair": "grey", "age": "30"},
        source="chronicle",
        valid_from=year(1310),
        **options,
    )
    (found,) = await contradictions(running, **options)
    assert (found.kind, found.predicate, found.valid_from) == (ATTRIBUTE, "hair", year(1310))
    assert (found.earlier.value, found.earlier.source, found.earlier.version) == (
        "black",
        "song",
        2,
    )
    assert (found.later.value, found.later.source, found.later.version) == (
        "grey",
        "chronicle",
        3,
    )
    assert found.earlier.layer == found.later.layer == facts_pb2.KNOWLEDGE_LAYER_WORLD


async def test_a_world_against_the_canon_is_a_contradiction_of_that_world(
    running: RunningKnowledgeBase, world: str
) -> None:
    await put(running, "Wall", attributes={"stuff": "stone"})
    await say(running, facts_pb2.Fact(subject="Wall", predicate="is", text="whole"))
    await put(running, "Wall", attributes={"stuff": "glass"}, world_id=world)
    broken = facts_pb2.Fact(subject="Wall", predicate="is", text="broken", single_valued=True)
    await say(running, broken, world_id=world)
    found = await contradictions(running, world_id=world)
    assert [(each.kind, each.predicate, each.earlier.layer) for each in found] == [
        (CANON, "is", facts_pb2.KNOWLEDGE_LAYER_SHARED),
        (CANON, "stuff", facts_pb2.KNOWLEDGE_LAYER_SHARED),
    ]
    assert await contradictions(running) == []
    (seen,) = await facts(running, world_id=world, subject="Wall", as_of_valid=year(1300))
    assert seen.text == "broken"


async def test_a_contradiction_is_resolved_once_and_may_come_again(
    running: RunningKnowledgeBase, world: str
) -> None:
    await say(running, home("Mauk"), home("Inn"), world_id=world)
    (found,) = await contradictions(running, world_id=world)
    request = facts_pb2.ResolveContradictionRequest(
        world_id=world,
        contradiction_id=found.contradiction_id,
        reason="The song\nis wrong.",
        request_id=str(uuid.uuid4()),
    )
    resolved = await running.stub.ResolveContradiction(request, timeout=TIMEOUT_SECONDS)
    assert resolved.contradiction.state == facts_pb2.CONTRADICTION_STATE_RESOLVED
    assert await running.stub.ResolveContradiction(request, timeout=TIMEOUT_SECONDS) == resolved
    request.request_id, request.reason = str(uuid.uuid4()), "Otherwise."
    assert await running.stub.ResolveContradiction(request, timeout=TIMEOUT_SECONDS) == resolved
    is_open = facts_pb2.CONTRADICTION_STATE_OPEN
    assert await contradictions(running, world_id=world, state=is_open) == []
    await say(running, home("Inn"), world_id=world)
    (again,) = await contradictions(running, world_id=world, state=is_open)
    assert again.contradiction_id != found.contradiction_id
    assert len(await contradictions(running, world_id=world, page_size=1)) == 2
    request.contradiction_id = str(uuid.uuid4())
    request.request_id = str(uuid.uuid4())
    assert await refused(running.stub.ResolveContradiction(request, timeout=TIMEOUT_SECONDS)) == (
        grpc.StatusCode.NOT_FOUND,
        "CONTRADICTION_NOT_FOUND",
    )


async def test_a_relationship_ends_and_what_was_not_there_cannot(
    running: RunningKnowledgeBase, world: str
) -> None:
    await put(running, "Mira", world_id=world)
    tie: dict[str, Any] = {
        "from_concept": "Nerrit",
        "to_concept": "Mira",
        "kind": "ally_of",
        "world_id": world,
    }
    end = concepts_pb2.EndRelationshipRequest(
        request_id=str(uuid.uuid4()), valid_until=year(1310), **tie
    )
    assert await refused(running.stub.EndRelationship(end, timeout=TIMEOUT_SECONDS)) == (
        grpc.StatusCode.NOT_FOUND,
        "RELATIONSHIP_NOT_FOUND",
    )
    await running.stub.RelateConcepts(
        concepts_pb2.RelateConceptsRequest(request_id=str(uuid.uuid4()), **tie),
        timeout=TIMEOUT_SECONDS,
    )
    ended = await running.stub.EndRelationship(end, timeout=TIMEOUT_SECONDS)
    assert [each.valid_until for each in ended.relationships] == [year(1310)]
    assert await running.stub.EndRelationship(end, timeout=TIMEOUT_SECONDS) == ended
    listed = concepts_pb2.ListRelationshipsRequest(world_id=world, concept="Nerrit")
    assert not (await running.stub.ListRelationships(listed, timeout=TIMEOUT_SECONDS)).relationships
    listed.as_of_valid.CopyFrom(year(1309))
    assert (
        len((await running.stub.ListRelationships(listed, timeout=TIMEOUT_SECONDS)).relationships)
        == 1
    )
