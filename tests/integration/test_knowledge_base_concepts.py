"""Concepts, versions and relationships over real gRPC and a real PostgreSQL."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from gaming.knowledge_base.v1 import concepts_pb2, worlds_pb2
from knowledge_base.testing import (
    RunningKnowledgeBase,
    failure_of,
    serve_knowledge_base,
)

TIMEOUT_SECONDS = 20


@pytest.fixture
async def running(knowledge_base_database: str) -> AsyncIterator[RunningKnowledgeBase]:
    async with serve_knowledge_base(knowledge_base_database) as running:
        yield running


@pytest.fixture
async def world(running: RunningKnowledgeBase) -> str:
    return await new_world(running, "Mauk")


async def new_world(running: RunningKnowledgeBase, name: str) -> str:
    request = worlds_pb2.CreateWorldRequest(name=name, request_id=str(uuid.uuid4()))
    return (await running.stub.CreateWorld(request, timeout=TIMEOUT_SECONDS)).world.world_id


async def put(
    running: RunningKnowledgeBase, name: str, description: str, **options: Any
) -> concepts_pb2.Concept:
    fields: dict[str, Any] = {"kind": "character", "request_id": str(uuid.uuid4()), **options}
    request = concepts_pb2.PutConceptRequest(name=name, description=description, **fields)
    return (await running.stub.PutConcept(request, timeout=TIMEOUT_SECONDS)).concept


async def get(
    running: RunningKnowledgeBase, name: str, *, world_id: str = "", version: int = 0
) -> concepts_pb2.Concept:
    request = concepts_pb2.GetConceptRequest(name=name, world_id=world_id, version=version)
    return (await running.stub.GetConcept(request, timeout=TIMEOUT_SECONDS)).concept


async def names(running: RunningKnowledgeBase, **options: Any) -> list[tuple[str, str]]:
    found, token = [], ""
    while True:
        page = await running.stub.ListConcepts(
            concepts_pb2.ListConceptsRequest(page_token=token, **options), timeout=TIMEOUT_SECONDS
        )
        found += [(concept.name, concept.description) for concept in page.concepts]
        token = page.next_page_token
        if not token:
            return found


async def relate(
    running: RunningKnowledgeBase, from_concept: str, to_concept: str, kind: str, **options: Any
) -> concepts_pb2.Relationship:
    fields: dict[str, Any] = {"request_id": str(uuid.uuid4()), **options}
    request = concepts_pb2.RelateConceptsRequest(
        from_concept=from_concept, to_concept=to_concept, kind=kind, **fields
    )
    response = await running.stub.RelateConcepts(request, timeout=TIMEOUT_SECONDS)
    return response.relationship


async def ties(
    running: RunningKnowledgeBase, concept: str, *, page_size: int = 0, world_id: str = ""
) -> list[tuple[str, str, str, float]]:
    found, token = [], ""
    while True:
        page = await running.stub.ListRelationships(
            concepts_pb2.ListRelationshipsRequest(
                concept=concept, world_id=world_id, page_size=page_size, page_token=token
            ),
            timeout=TIMEOUT_SECONDS,
        )
        found += [(r.from_concept, r.kind, r.to_concept, r.strength) for r in page.relationships]
        token = page.next_page_token
        if not token:
            return found


def failure(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str]:
    told = failure_of(error)
    return told.code, told.reason


async def test_versions_are_added_and_older_ones_stay(
    running: RunningKnowledgeBase, world: str
) -> None:
    first = await put(running, "Nerrit", "An inspector.", world_id=world, attributes={"age": "30"})
    second = await put(running, "Nerrit", "A keeper.", world_id=world, kind="keeper")
    assert (first.version, second.version) == (1, 2)
    assert first.concept_id == second.concept_id
    assert await get(running, "Nerrit", world_id=world) == second
    assert await get(running, "Nerrit", world_id=world, version=1) == first
    assert first.attributes == {"age": "30"}
    for version in (3, 2**32 - 1):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await get(running, "Nerrit", world_id=world, version=version)
        assert failure(caught.value) == (grpc.StatusCode.NOT_FOUND, "CONCEPT_NOT_FOUND")


async def test_writers_at_once_make_one_version_each(
    running: RunningKnowledgeBase, world: str
) -> None:
    written = await asyncio.gather(
        *(put(running, "Nerrit", f"Text {n}.", world_id=world) for n in range(10))
    )
    assert sorted(concept.version for concept in written) == list(range(1, 11))


async def test_a_repeated_request_returns_its_version(
    running: RunningKnowledgeBase, world: str
) -> None:
    request_id = str(uuid.uuid4())
    first = await put(running, "Nerrit", "One.", world_id=world, request_id=request_id)
    await put(running, "Nerrit", "Two.", world_id=world)
    again = await put(running, "Nerrit", "One.", world_id=world, request_id=request_id)
    assert again == first
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await put(running, "Nerrit", "Other.", world_id=world, request_id=request_id)
    assert failure(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")


async def test_a_worlds_own_concept_hides_the_shared_one_there_only(
    running: RunningKnowledgeBase, world: str
) -> None:
    other = await new_world(running, "Other")
    shared = await put(running, "The Wall", "Stone.")
    assert shared.world_id == ""
    own = await put(running, "The Wall", "Glass, here.", world_id=world)
    await put(running, "Bell", "Bronze.")
    await put(running, "Kite", "Silk.", world_id=world)
    assert await get(running, "The Wall", world_id=world) == own
    assert await get(running, "The Wall", world_id=other) == shared
    assert await get(running, "The Wall") == shared
    assert await names(running, world_id=world, page_size=2) == [
        ("Bell", "Bronze."),
        ("Kite", "Silk."),
        ("The Wall", "Glass, here."),
    ]
    assert await names(running, world_id=other) == [("Bell", "Bronze."), ("The Wall", "Stone.")]
    assert await names(running) == [("Bell", "Bronze."), ("The Wall", "Stone.")]
    with pytest.raises(grpc.aio.AioRpcError):
        await get(running, "Kite", world_id=other)


async def test_concepts_are_listed_by_their_latest_kind(
    running: RunningKnowledgeBase, world: str
) -> None:
    await put(running, "a", "x", world_id=world, kind="place")
    await put(running, "b", "x", world_id=world, kind="place")
    await put(running, "b", "y", world_id=world, kind="ruin")
    assert await names(running, world_id=world, kind="place") == [("a", "x")]
    assert await names(running, world_id=world, kind="ruin") == [("b", "y")]


async def test_relationships_are_directed_and_replaced_by_pair_and_kind(
    running: RunningKnowledgeBase, world: str
) -> None:
    for name in ("A", "B", "C"):
        await put(running, name, name, world_id=world)
    first = await relate(running, "A", "B", "ally_of", world_id=world)
    assert first.strength == 1.0
    second = await relate(running, "A", "B", "ally_of", world_id=world, strength=0.0)
    assert second.relationship_id == first.relationship_id
    await relate(running, "A", "B", "fears", world_id=world, strength=0.25)
    await relate(running, "C", "A", "ally_of", world_id=world, strength=0.5)
    await relate(running, "A", "A", "doubts", world_id=world)
    assert await ties(running, "A", world_id=world, page_size=1) == [
        ("A", "doubts", "A", 1.0),
        ("A", "ally_of", "B", 0.0),
        ("A", "fears", "B", 0.25),
        ("C", "ally_of", "A", 0.5),
    ]
    assert await ties(running, "B", world_id=world) == [
        ("A", "ally_of", "B", 0.0),
        ("A", "fears", "B", 0.25),
    ]


async def test_a_repeated_relate_returns_what_it_answered_then(
    running: RunningKnowledgeBase, world: str
) -> None:
    for name in ("A", "B"):
        await put(running, name, name, world_id=world)
    options = {"world_id": world, "strength": 0.3, "request_id": str(uuid.uuid4())}
    first = await relate(running, "A", "B", "ally_of", **options)
    await relate(running, "A", "B", "ally_of", world_id=world, strength=0.9)
    assert await relate(running, "A", "B", "ally_of", **options) == first
    assert await ties(running, "A", world_id=world) == [("A", "ally_of", "B", 0.9)]


async def test_a_worlds_view_joins_shared_and_own_ties(
    running: RunningKnowledgeBase, world: str
) -> None:
    other = await new_world(running, "Other")
    for name in ("A", "B"):
        await put(running, name, name)
    await relate(running, "A", "B", "ally_of", strength=0.5)
    await put(running, "Own", "x", world_id=world)
    await relate(running, "Own", "A", "ally_of", world_id=world)
    await relate(running, "A", "B", "ally_of", world_id=world, strength=0.1)
    # The world's own version of a concept keeps the ties the shared one has.
    await put(running, "A", "mine", world_id=world)
    assert await ties(running, "A", world_id=world) == [
        ("A", "ally_of", "B", 0.1),
        ("Own", "ally_of", "A", 1.0),
    ]
    assert await ties(running, "A", world_id=other) == [("A", "ally_of", "B", 0.5)]
    assert await ties(running, "A") == [("A", "ally_of", "B", 0.5)]


async def test_unknown_ends_are_named(running: RunningKnowledgeBase, world: str) -> None:
    other = await new_world(running, "Other")
    await put(running, "A", "a", world_id=world)
    await put(running, "Elsewhere", "e", world_id=other)
    for missing in ("Nobody", "Elsewhere"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await relate(running, "A", missing, "ally_of", world_id=world)
        assert failure(caught.value) == (grpc.StatusCode.NOT_FOUND, "CONCEPT_NOT_FOUND")
        assert "to_concept" in failure_of(caught.value).text
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ties(running, "Nobody", world_id=world)
    assert failure(caught.value) == (grpc.StatusCode.NOT_FOUND, "CONCEPT_NOT_FOUND")


@pytest.mark.parametrize("world_id", ["not-a-uuid", str(uuid.UUID(int=0))])
async def test_what_is_no_world_is_refused(running: RunningKnowledgeBase, world_id: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await put(running, "A", "a", world_id=world_id)
    assert failure(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_IDENTIFIER")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await put(running, "A", "a", world_id=str(uuid.uuid4()))
    assert failure(caught.value) == (grpc.StatusCode.NOT_FOUND, "WORLD_NOT_FOUND")
