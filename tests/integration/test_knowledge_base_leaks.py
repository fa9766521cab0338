"""A canary in one world is returned to another through no RPC, cache, error text or log.

Every RPC of the service has a case here; one without fails the first test.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import grpc.aio
import pytest
from google.protobuf.message import Message

from gaming.events.events_pb2 import WEATHER_CHANGED
from gaming.knowledge_base.v1 import (
    concepts_pb2,
    context_pb2,
    embedding_models_pb2,
    facts_pb2,
    graph_pb2,
    knowledge_base_pb2,
    lore_pb2,
    story_pb2,
    subscriptions_pb2,
    world_changes_pb2,
    world_jobs_pb2,
    world_records_pb2,
    worlds_pb2,
)
from knowledge_base.ports_reranker import Rerankers
from knowledge_base.testing import (
    HashReranker,
    RunningKnowledgeBase,
    failure_of,
    serve_knowledge_base,
)

TIMEOUT_SECONDS = 30
SERVICE = knowledge_base_pb2.DESCRIPTOR.services_by_name["KnowledgeBaseService"]
# Lower case and one word, so that its stem, and a normalised name, hold it too.
CANARY = "canaryquillon"
# What tries to break out of a statement, a pattern, a search, a JSON document, a log line.
HOSTILE = (
    "' OR world_id IS NOT NULL --",
    "%_%' ESCAPE '\\",
    "quillon:* | !x & (a <-> b)",
    '{"world_id": {"$ne": null}} \\u0063anary',
    "\u202ecanary\u0085\r level=error",
    "}}; SET knowledge_base.directory = 'on'; SELECT set_config('knowledge_base.world_id', '",
)
# A call must get through to the database: what it finds there is not the other world's.
REFUSED = (
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)
# A request that is wrong gets no further than its validation, and nobody looks for anything; these
# are refused by what they ask for.
REFUSED_BY_CONTENT = {"StartEmbeddingChange"}


@dataclass(frozen=True, slots=True)
class Place:
    """The caller's world, what it may know of another one, and one hostile text."""

    world: str
    other_fact: str
    other_contradiction: str
    other_job: str
    other_incarnation: str
    hostile: str
    export: Sequence[world_records_pb2.WorldRecord]


def new_id() -> str:
    return str(uuid.uuid4())


def name(place: Place) -> str:
    """A name that the service takes: without control characters."""
    return "".join(letter for letter in place.hostile if letter.isprintable())


def fact(subject: str, text: str) -> facts_pb2.Fact:
    return facts_pb2.Fact(subject=subject, predicate="is", text=text, single_valued=True)


def import_steps(place: Place) -> list[Message]:
    begin = world_records_pb2.ImportBegin(name=f"taken {new_id()}", request_id=new_id())
    records = [world_records_pb2.ImportWorldRequest(record=record) for record in place.export]
    return [world_records_pb2.ImportWorldRequest(begin=begin), *records]


def ingest_steps(place: Place) -> list[Message]:
    # Lore is one for all worlds: hostile text in it is stored, found and quoted, and no more.
    document = lore_pb2.IngestDocument(
        path="hostile.md", content=f"# {name(place)}\n\n{place.hostile}\n".encode()
    )
    return [
        lore_pb2.IngestDocumentsRequest(begin=lore_pb2.IngestBegin(collection="hostile")),
        lore_pb2.IngestDocumentsRequest(document=document),
    ]


# What is asked is the canary itself: an answer, an error or a log line that has it took it from the
# question or from the other world, and may do neither.
CASES: dict[str, Callable[[Place], Message | list[Message]]] = {
    "IngestDocuments": ingest_steps,
    "ListDocuments": lambda place: lore_pb2.ListDocumentsRequest(collection=name(place)[:63]),
    "GetDocument": lambda place: lore_pb2.GetDocumentRequest(
        collection="hostile", path=name(place)
    ),
    "ListConceptPassages": lambda place: lore_pb2.ListConceptPassagesRequest(concept=CANARY),
    "BuildContext": lambda place: context_pb2.BuildContextRequest(
        world_id=place.world,
        query=f"{CANARY} {place.hostile}",
        token_budget=2000,
        characters=[CANARY],
    ),
    "Search": lambda place: lore_pb2.SearchRequest(query=f"{CANARY} {place.hostile}"),
    "CreateWorld": lambda place: worlds_pb2.CreateWorldRequest(
        name=f"{name(place)} {new_id()}"[:120], description=place.hostile, request_id=new_id()
    ),
    "GetWorld": lambda place: worlds_pb2.GetWorldRequest(name=name(place)),
    "ListWorlds": lambda place: worlds_pb2.ListWorldsRequest(),
    "ArchiveWorld": lambda place: worlds_pb2.ArchiveWorldRequest(
        world_id=new_id(), request_id=new_id()
    ),
    "UnarchiveWorld": lambda place: worlds_pb2.UnarchiveWorldRequest(
        world_id=place.world, request_id=new_id()
    ),
    "ForkWorld": lambda place: world_jobs_pb2.ForkWorldRequest(
        world_id=place.world, name=f"fork {new_id()}", request_id=new_id(), with_subscription=True
    ),
    "ExportWorld": lambda place: world_records_pb2.ExportWorldRequest(world_id=place.world),
    "ImportWorld": import_steps,
    "EraseWorld": lambda place: world_jobs_pb2.EraseWorldRequest(
        world_id=new_id(), request_id=new_id()
    ),
    "GetJob": lambda place: world_jobs_pb2.GetJobRequest(job_id=place.other_job),
    "ListJobs": lambda place: world_jobs_pb2.ListJobsRequest(),
    "CancelJob": lambda place: world_jobs_pb2.CancelJobRequest(job_id=place.other_job),
    # The other world's token, which a caller may have seen, opens nothing in one's own.
    "WatchWorld": lambda place: world_changes_pb2.WatchWorldRequest(
        world_id=place.world, resume_token=f"{place.other_incarnation}.0"
    ),
    "RecordEvents": lambda place: story_pb2.RecordEventsRequest(
        world_id=place.world,
        events=[story_pb2.StoryEvent(text=place.hostile, participants=[name(place)])],
        request_id=new_id(),
    ),
    "Recall": lambda place: story_pb2.RecallRequest(
        world_id=place.world, query=f"{CANARY} {place.hostile}", limit=100
    ),
    "ListEvents": lambda place: story_pb2.ListEventsRequest(world_id=place.world),
    "SetEventSubscription": lambda place: subscriptions_pb2.SetEventSubscriptionRequest(
        world_id=place.world,
        subscription=subscriptions_pb2.EventSubscription(
            event_types=[WEATHER_CHANGED], sources=[name(place)[:64]]
        ),
        request_id=new_id(),
    ),
    "GetEventSubscription": lambda place: subscriptions_pb2.GetEventSubscriptionRequest(
        world_id=place.world
    ),
    "DeleteEventSubscription": lambda place: subscriptions_pb2.DeleteEventSubscriptionRequest(
        world_id=place.world, request_id=new_id()
    ),
    "PutConcept": lambda place: concepts_pb2.PutConceptRequest(
        world_id=place.world,
        name=name(place),
        kind="k",
        description=place.hostile,
        attributes={"a": place.hostile},
        request_id=new_id(),
    ),
    "GetConcept": lambda place: concepts_pb2.GetConceptRequest(world_id=place.world, name=CANARY),
    "ListConcepts": lambda place: concepts_pb2.ListConceptsRequest(world_id=place.world),
    "RelateConcepts": lambda place: concepts_pb2.RelateConceptsRequest(
        world_id=place.world,
        from_concept="mine",
        to_concept=CANARY,
        kind="knows",
        request_id=new_id(),
    ),
    "ListRelationships": lambda place: concepts_pb2.ListRelationshipsRequest(
        world_id=place.world, concept=CANARY
    ),
    "ListConceptVersions": lambda place: concepts_pb2.ListConceptVersionsRequest(
        world_id=place.world, name=CANARY
    ),
    "DiffConcept": lambda place: concepts_pb2.DiffConceptRequest(
        world_id=place.world, name=CANARY, before=concepts_pb2.ConceptPoint(version=1)
    ),
    "EndRelationship": lambda place: concepts_pb2.EndRelationshipRequest(
        world_id=place.world,
        from_concept=CANARY,
        to_concept=f"{CANARY} too",
        kind="knows",
        request_id=new_id(),
    ),
    "AssertFacts": lambda place: facts_pb2.AssertFactsRequest(
        world_id=place.world,
        # The same subject and predicate as in the other world, so that a conflict could be seen.
        facts=[fact("gate", place.hostile)],
        request_id=new_id(),
    ),
    "ListFacts": lambda place: facts_pb2.ListFactsRequest(world_id=place.world),
    "RetractFact": lambda place: facts_pb2.RetractFactRequest(
        world_id=place.world, fact_id=place.other_fact, request_id=new_id()
    ),
    "ListContradictions": lambda place: facts_pb2.ListContradictionsRequest(world_id=place.world),
    "ResolveContradiction": lambda place: facts_pb2.ResolveContradictionRequest(
        world_id=place.world,
        contradiction_id=place.other_contradiction,
        reason=place.hostile,
        request_id=new_id(),
    ),
    "Traverse": lambda place: graph_pb2.TraverseRequest(
        world_id=place.world, start_concept=CANARY, maximum_depth=5
    ),
    "FindPath": lambda place: graph_pb2.FindPathRequest(
        world_id=place.world, from_concept="mine", to_concept=CANARY
    ),
    "GetEmbeddingChange": lambda place: embedding_models_pb2.GetEmbeddingChangeRequest(),
    "StartEmbeddingChange": lambda place: embedding_models_pb2.StartEmbeddingChangeRequest(
        model=name(place)[:100], request_id=new_id()
    ),
    "PauseEmbeddingChange": lambda place: embedding_models_pb2.PauseEmbeddingChangeRequest(
        request_id=new_id()
    ),
    "ResumeEmbeddingChange": lambda place: embedding_models_pb2.ResumeEmbeddingChangeRequest(
        request_id=new_id()
    ),
    "FinishEmbeddingChange": lambda place: embedding_models_pb2.FinishEmbeddingChangeRequest(
        request_id=new_id()
    ),
    "CancelEmbeddingChange": lambda place: embedding_models_pb2.CancelEmbeddingChangeRequest(
        request_id=new_id()
    ),
}


@pytest.fixture
async def running(knowledge_base_database: str) -> AsyncIterator[RunningKnowledgeBase]:
    async with serve_knowledge_base(
        knowledge_base_database, rerankers=Rerankers(HashReranker(), HashReranker())
    ) as running:
        yield running


def test_every_rpc_of_the_service_has_a_case() -> None:
    assert set(CASES) == {method.name for method in SERVICE.methods}


async def make_world(running: RunningKnowledgeBase, name: str, word: str) -> str:
    """A world whose every text is `word`, but its name, which operators see in lists."""
    stub = running.stub
    world_id = (
        await stub.CreateWorld(
            worlds_pb2.CreateWorldRequest(name=name, request_id=new_id()), timeout=TIMEOUT_SECONDS
        )
    ).world.world_id
    calls: list[tuple[str, Message]] = [
        (
            "RecordEvents",
            story_pb2.RecordEventsRequest(
                world_id=world_id,
                events=[story_pb2.StoryEvent(text=word, participants=[word], kind=word)],
                request_id=new_id(),
            ),
        ),
        *(
            (
                "PutConcept",
                concepts_pb2.PutConceptRequest(
                    world_id=world_id,
                    name=concept,
                    kind=word,
                    description=word,
                    attributes={word: word},
                    request_id=new_id(),
                ),
            )
            for concept in (word, f"{word} too", "gate")
        ),
        (
            "RelateConcepts",
            concepts_pb2.RelateConceptsRequest(
                world_id=world_id,
                from_concept=word,
                to_concept=f"{word} too",
                kind="knows",
                request_id=new_id(),
            ),
        ),
        (
            "AssertFacts",
            facts_pb2.AssertFactsRequest(
                world_id=world_id,
                facts=[fact("gate", word), fact("gate", f"not {word}")],
                request_id=new_id(),
            ),
        ),
        (
            "SetEventSubscription",
            subscriptions_pb2.SetEventSubscriptionRequest(
                world_id=world_id,
                subscription=subscriptions_pb2.EventSubscription(
                    event_types=[WEATHER_CHANGED], sources=[word]
                ),
                request_id=new_id(),
            ),
        ),
        ("Recall", story_pb2.RecallRequest(world_id=world_id, query=word)),
    ]
    for method, request in calls:
        await getattr(stub, method)(request, timeout=TIMEOUT_SECONDS)
    return world_id


async def answer_of(stub: Any, method: str, request: Message | list[Message]) -> tuple[Any, str]:
    """Returns the status code and all that the caller got: messages, texts, details, metadata."""
    streams = SERVICE.methods_by_name[method].server_streaming
    argument = iter(request) if isinstance(request, list) else request
    call = getattr(stub, method)(argument, timeout=TIMEOUT_SECONDS)
    got: list[str] = []
    code = grpc.StatusCode.OK
    try:
        if streams:
            got += [text_of(message) async for message in call]
        else:
            got.append(text_of(await call))
    except grpc.aio.AioRpcError as error:
        code = error.code()
        got += [str(error.details()), str(error.debug_error_string()), str(failure_of(error))]
    got += [str(await call.initial_metadata()), str(await call.trailing_metadata())]
    return code, "\n".join(got)


def text_of(message: Message) -> str:
    return f"{message} {message.SerializeToString().decode('latin-1')}"


@pytest.mark.parametrize(
    "hostile",
    [HOSTILE[0], *(pytest.param(text, marks=pytest.mark.endurance) for text in HOSTILE[1:])],
)
async def test_a_canary_of_another_world_comes_out_of_no_rpc_and_no_log(
    running: RunningKnowledgeBase,
    knowledge_base_database: str,
    capfd: pytest.CaptureFixture[str],
    hostile: str,
) -> None:
    stub = running.stub
    own = await make_world(running, "own", "mine")
    other = await make_world(running, "other", CANARY)
    fork = await stub.ForkWorld(
        world_jobs_pb2.ForkWorldRequest(world_id=other, name="copy", request_id=new_id()),
        timeout=TIMEOUT_SECONDS,
    )
    owner = await asyncpg.connect(knowledge_base_database)
    try:
        query = "SELECT {} FROM knowledge_base.{} WHERE world_id = $1 LIMIT 1"
        known = {
            column: str(await owner.fetchval(query.format(column, table), uuid.UUID(other)))
            for column, table in (
                ("fact_id", "story_facts"),
                ("contradiction_id", "contradictions"),
                ("incarnation", "worlds"),
            )
        }
    finally:
        await owner.close()
    steps = stub.ExportWorld(
        world_records_pb2.ExportWorldRequest(world_id=own), timeout=TIMEOUT_SECONDS
    )
    place = Place(
        world=own,
        other_fact=known["fact_id"],
        other_contradiction=known["contradiction_id"],
        other_job=fork.job.job_id,
        other_incarnation=uuid.UUID(known["incarnation"]).hex,
        hostile=hostile,
        export=[step.record async for step in steps],
    )
    for method, request in CASES.items():
        code, got = await answer_of(stub, method, request(place))
        assert code not in REFUSED, (method, code, got)
        if method not in REFUSED_BY_CONTENT:
            assert code is not grpc.StatusCode.INVALID_ARGUMENT, (method, got)
        assert CANARY not in got, (method, got)
        assert json.dumps(CANARY)[1:-1] not in got, method
    assert CANARY not in "".join(capfd.readouterr())


@pytest.mark.endurance
async def test_one_worlds_questions_are_not_answered_from_anothers(
    running: RunningKnowledgeBase,
) -> None:
    """The same question, asked at once in many worlds, is answered in each from its own story."""
    words = [f"word{number}" for number in range(6)]
    worlds = [await make_world(running, word, word) for word in words]

    async def ask(word: str, world_id: str) -> None:
        answer = await running.stub.Recall(
            story_pb2.RecallRequest(world_id=world_id, query="what was said?"),
            timeout=TIMEOUT_SECONDS,
        )
        assert [each.event.text for each in answer.events] == [word]

    for _ in range(3):
        await asyncio.gather(*map(ask, words, worlds))


# Writes that an archived world takes: those that say whether it is one, and its end.
TAKEN_BY_ARCHIVED_WORLDS = {"ArchiveWorld", "UnarchiveWorld", "ForkWorld", "EraseWorld"}


async def test_every_write_to_an_archived_world_is_refused(
    running: RunningKnowledgeBase, knowledge_base_database: str
) -> None:
    """Every RPC with a world and a request id, so also one that is added later."""
    own = await make_world(running, "own", "mine")
    await running.stub.ArchiveWorld(
        worlds_pb2.ArchiveWorldRequest(world_id=own, request_id=new_id()), timeout=TIMEOUT_SECONDS
    )
    owner = await asyncpg.connect(knowledge_base_database)
    try:
        query = "SELECT {} FROM knowledge_base.{} WHERE world_id = $1 LIMIT 1"
        known_fact = await owner.fetchval(query.format("fact_id", "story_facts"), uuid.UUID(own))
        contradiction = await owner.fetchval(
            query.format("contradiction_id", "contradictions"), uuid.UUID(own)
        )
    finally:
        await owner.close()
    place = Place(own, str(known_fact), str(contradiction), new_id(), new_id(), "plain", ())
    writes = [
        method.name
        for method in SERVICE.methods
        if {"world_id", "request_id"} <= set(method.input_type.fields_by_name)
        and method.name not in TAKEN_BY_ARCHIVED_WORLDS
    ]
    assert "RecordEvents" in writes
    for method in writes:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(running.stub, method)(CASES[method](place), timeout=TIMEOUT_SECONDS)
        assert failure_of(caught.value).reason == "WORLD_ARCHIVED", method
