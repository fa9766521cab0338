"""Facts, contradictions, layers and histories over real gRPC and a real PostgreSQL."""

import asyncio
import unicodedata
import uuid
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime
from typing import Any

import asyncpg
import grpc
import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from gaming.knowledge_base.v1 import concepts_pb2, facts_pb2, graph_pb2, story_pb2, worlds_pb2
from knowledge_base.testing import (
    RunningKnowledgeBase,
    failure_of,
    serve_knowledge_base,
    service_url,
)

TIMEOUT_SECONDS = 20
CANARY = "the-canary-sings-at-dawn"
FACT = facts_pb2.CONTRADICTION_KIND_FACT
ATTRIBUTE = facts_pb2.CONTRADICTION_KIND_ATTRIBUTE
CANON = facts_pb2.CONTRADICTION_KIND_CANON


@pytest.fixture
async def running(knowledge_base_database: str) -> AsyncIterator[RunningKnowledgeBase]:
    async with serve_knowledge_base(knowledge_base_database) as running:
        yield running


@pytest.fixture
async def world(running: RunningKnowledgeBase) -> str:
    world = await new_world(running)
    await put(running, "Nerrit", world_id=world)
    return world


async def new_world(running: RunningKnowledgeBase) -> str:
    request = worlds_pb2.CreateWorldRequest(name=str(uuid.uuid4()), request_id=str(uuid.uuid4()))
    return (await running.stub.CreateWorld(request, timeout=TIMEOUT_SECONDS)).world.world_id


def year(number: int) -> Timestamp:
    moment = Timestamp()
    moment.FromDatetime(datetime(number, 1, 1, tzinfo=UTC))
    return moment


async def put(running: RunningKnowledgeBase, name: str, **options: Any) -> concepts_pb2.Concept:
    fields = {
        "kind": "character",
        "description": "Text.",
        "request_id": str(uuid.uuid4()),
        **options,
    }
    request = concepts_pb2.PutConceptRequest(name=name, **fields)
    return (await running.stub.PutConcept(request, timeout=TIMEOUT_SECONDS)).concept


async def get(running: RunningKnowledgeBase, name: str, **options: Any) -> concepts_pb2.Concept:
    request = concepts_pb2.GetConceptRequest(name=name, **options)
    return (await running.stub.GetConcept(request, timeout=TIMEOUT_SECONDS)).concept


async def say(
    running: RunningKnowledgeBase,
    *facts: facts_pb2.Fact,
    request_id: str = "",
    **options: Any,
) -> list[facts_pb2.Fact]:
    request = facts_pb2.AssertFactsRequest(
        facts=facts, request_id=request_id or str(uuid.uuid4()), **options
    )
    return list((await running.stub.AssertFacts(request, timeout=TIMEOUT_SECONDS)).facts)


def home(place: str, **options: Any) -> facts_pb2.Fact:
    fields = {"single_valued": True, **options}
    return facts_pb2.Fact(subject="Nerrit", predicate="lives_in", text=place, **fields)


async def facts(running: RunningKnowledgeBase, **options: Any) -> list[facts_pb2.Fact]:
    found: list[facts_pb2.Fact] = []
    token = ""
    while True:
        page = await running.stub.ListFacts(
            facts_pb2.ListFactsRequest(page_token=token, **options), timeout=TIMEOUT_SECONDS
        )
        found += page.facts
        token = page.next_page_token
        if not token:
            return found


async def contradictions(
    running: RunningKnowledgeBase, **options: Any
) -> list[facts_pb2.Contradiction]:
    found: list[facts_pb2.Contradiction] = []
    token = ""
    while True:
        page = await running.stub.ListContradictions(
            facts_pb2.ListContradictionsRequest(page_token=token, **options),
            timeout=TIMEOUT_SECONDS,
        )
        found += page.contradictions
        token = page.next_page_token
        if not token:
            return found


async def refused(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    told = failure_of(caught.value)
    assert CANARY not in told.text
    return told.code, told.reason


# --- concepts in two times -------------------------------------------------------------------


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
