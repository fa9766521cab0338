"""Ways through the graph, over real gRPC and a real PostgreSQL, against searches in Python."""

import itertools
import math
import uuid
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gaming.knowledge_base.v1 import concepts_pb2, graph_pb2, worlds_pb2
from knowledge_base.testing import RunningKnowledgeBase, failure_of, serve_knowledge_base

TIMEOUT_SECONDS = 20
NAMES = ("A", "B", "C", "D", "E", "F")
OUT, IN, BOTH = (
    graph_pb2.TRAVERSAL_DIRECTION_OUT,
    graph_pb2.TRAVERSAL_DIRECTION_IN,
    graph_pb2.TRAVERSAL_DIRECTION_BOTH,
)

Ties = Mapping[tuple[str, str], float]


@pytest.fixture
async def running(knowledge_base_database: str) -> AsyncIterator[RunningKnowledgeBase]:
    async with serve_knowledge_base(knowledge_base_database) as running:
        yield running


async def new_world(running: RunningKnowledgeBase, names: Sequence[str] = NAMES) -> str:
    request = worlds_pb2.CreateWorldRequest(name=str(uuid.uuid4()), request_id=str(uuid.uuid4()))
    world = (await running.stub.CreateWorld(request, timeout=TIMEOUT_SECONDS)).world.world_id
    for name in names:
        await put(running, name, world_id=world)
    return world


async def put(running: RunningKnowledgeBase, name: str, **options: Any) -> None:
    await running.stub.PutConcept(
        concepts_pb2.PutConceptRequest(
            name=name, kind="person", description=name, request_id=str(uuid.uuid4()), **options
        ),
        timeout=TIMEOUT_SECONDS,
    )


async def relate(
    running: RunningKnowledgeBase, start: str, end: str, strength: float = 1.0, **options: Any
) -> None:
    options.setdefault("kind", "knows")
    await running.stub.RelateConcepts(
        concepts_pb2.RelateConceptsRequest(
            from_concept=start,
            to_concept=end,
            strength=strength,
            request_id=str(uuid.uuid4()),
            **options,
        ),
        timeout=TIMEOUT_SECONDS,
    )


async def traverse(
    running: RunningKnowledgeBase, start: str, **options: Any
) -> graph_pb2.TraverseResponse:
    request = graph_pb2.TraverseRequest(start_concept=start, **options)
    return await running.stub.Traverse(request, timeout=TIMEOUT_SECONDS)


async def find_path(
    running: RunningKnowledgeBase, start: str, end: str, **options: Any
) -> graph_pb2.FindPathResponse:
    request = graph_pb2.FindPathRequest(from_concept=start, to_concept=end, **options)
    return await running.stub.FindPath(request, timeout=TIMEOUT_SECONDS)


def reached(answer: graph_pb2.TraverseResponse) -> dict[str, int]:
    return {concept.name: concept.depth for concept in answer.concepts}


def steps_from(ties: Ties, direction: int, minimum: float) -> dict[str, dict[str, float]]:
    steps: dict[str, dict[str, float]] = {name: {} for name in NAMES}
    for (start, end), strength in ties.items():
        if strength > 0 and strength >= minimum:
            if direction in (OUT, BOTH):
                steps[start][end] = max(strength, steps[start].get(end, 0))
            if direction in (IN, BOTH):
                steps[end][start] = max(strength, steps[end].get(start, 0))
    return steps


def depths(ties: Ties, start: str, direction: int, minimum: float, limit: int) -> dict[str, int]:
    steps, found, waiting = steps_from(ties, direction, minimum), {start: 0}, deque([start])
    while waiting:
        name = waiting.popleft()
        for other in steps[name]:
            if other not in found and found[name] < limit:
                found[other] = found[name] + 1
                waiting.append(other)
    return found


def simple_paths(
    ties: Ties, start: str, end: str, direction: int, limit: int
) -> list[tuple[int, float]]:
    """Lengths and strengths of all paths that visit no concept twice."""
    steps, found = steps_from(ties, direction, 0), []
    for length in range(limit):
        for middle in itertools.permutations(set(NAMES) - {start, end}, length):
            way = [start, *middle, end]
            strengths = [steps[a].get(b, 0.0) for a, b in itertools.pairwise(way)]
            if all(strengths):
                found.append((len(strengths), math.prod(strengths)))
    return found


graphs = st.dictionaries(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)),
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    max_size=12,
)


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(ties=graphs, direction=st.sampled_from([OUT, IN, BOTH]), limit=st.integers(1, 6))
async def test_ways_are_those_that_a_search_of_all_of_them_finds(
    running: RunningKnowledgeBase, ties: dict[tuple[str, str], float], direction: int, limit: int
) -> None:
    world = await new_world(running)
    for (start, end), strength in ties.items():
        await relate(running, start, end, strength, world_id=world)
    options: dict[str, Any] = {"world_id": world, "direction": direction, "maximum_depth": limit}

    for minimum in (0.0, 0.5):
        around = await traverse(running, "A", minimum_strength=minimum, **options)
        expected = depths(ties, "A", direction, minimum, limit)
        assert reached(around) == expected
        assert not around.truncated
        followed = {(tie.from_concept, tie.to_concept) for tie in around.relationships}
        assert followed == {
            (start, end)
            for (start, end), strength in ties.items()
            if strength > 0
            and strength >= minimum
            and {start, end} <= set(expected)
            and {
                OUT: expected[start] < limit,
                IN: expected[end] < limit,
                BOTH: min(expected[start], expected[end]) < limit,
            }[direction]  # type: ignore[index]  # an enum value is an int
        }

    paths = simple_paths(ties, "A", "B", direction, limit)
    shortest = await find_path(running, "A", "B", **options)
    strongest = await find_path(
        running, "A", "B", preference=graph_pb2.PATH_PREFERENCE_STRONGEST, **options
    )
    assert shortest.found == strongest.found == bool(paths)
    if paths:
        fewest, best = min(length for length, _ in paths), max(s for _, s in paths)
        assert len(shortest.relationships) == fewest
        assert shortest.strength == pytest.approx(max(s for n, s in paths if n == fewest))
        assert strongest.strength == pytest.approx(best)
        for path in (shortest, strongest):
            assert (path.concepts[0], path.concepts[-1]) == ("A", "B")
            assert len(set(path.concepts)) == len(path.concepts)
            for tie, pair in zip(
                path.relationships, itertools.pairwise(path.concepts), strict=True
            ):
                assert {tie.from_concept, tie.to_concept} == set(pair)


async def test_bounds_keep_the_strongest_and_are_told(running: RunningKnowledgeBase) -> None:
    names = [f"n{number}" for number in range(9)]
    world = await new_world(running, names)
    for number, name in enumerate(names[1:], start=1):
        await relate(running, "n0", name, number / 10, world_id=world)
    few = await traverse(running, "n0", world_id=world, maximum_concepts=4)
    assert reached(few) == {"n0": 0, "n8": 1, "n7": 1, "n6": 1}
    assert few.truncated
    exactly = await traverse(running, "n0", world_id=world, maximum_concepts=9)
    assert not exactly.truncated
    ties = await traverse(running, "n0", world_id=world, maximum_relationships=2)
    assert [tie.to_concept for tie in ties.relationships] == ["n8", "n7"]
    assert ties.truncated


async def test_kinds_and_moments_choose_the_ties(running: RunningKnowledgeBase) -> None:
    world = await new_world(running)
    early, late = Timestamp(), Timestamp()
    early.FromDatetime(datetime(1200, 1, 1, tzinfo=UTC))
    late.FromDatetime(datetime(1300, 1, 1, tzinfo=UTC))
    await relate(running, "A", "B", world_id=world, kind="ally_of", valid_until=late)
    await relate(running, "B", "C", world_id=world, kind="fears", valid_from=early)
    assert set(reached(await traverse(running, "A", world_id=world))) == {"A"}
    then = await traverse(running, "A", world_id=world, as_of_valid=early)
    assert set(reached(then)) == {"A", "B", "C"}
    allies = await traverse(running, "A", world_id=world, as_of_valid=early, kinds=["ally_of"])
    assert set(reached(allies)) == {"A", "B"}
    recorded = then.relationships[0].record_time
    before = Timestamp(seconds=recorded.seconds - 3600)
    nothing = await traverse(running, "A", world_id=world, as_of_valid=early, as_of_recorded=before)
    assert set(reached(nothing)) == {"A"}


async def test_each_layer_has_its_graph_and_no_other_world_shows(
    running: RunningKnowledgeBase,
) -> None:
    for name in ("S", "T"):
        await put(running, name)
    world, other = await new_world(running, ["W"]), await new_world(running, ["canary"])
    await relate(running, "S", "T", 0.9)
    await relate(running, "T", "W", world_id=world)
    await relate(running, "S", "canary", world_id=other)
    await relate(running, "W", "S", world_id=world, player_id="p1", kind="p1-canary")
    assert set(reached(await traverse(running, "S"))) == {"S", "T"}
    assert set(reached(await traverse(running, "S", world_id=world))) == {"S", "T", "W"}
    around = await traverse(running, "S", world_id=world, direction=BOTH, maximum_depth=6)
    assert "canary" not in str(around)
    other_player = await traverse(
        running, "S", world_id=world, player_id="p2", direction=BOTH, maximum_depth=6
    )
    assert other_player == around
    own = await find_path(running, "W", "S", world_id=world, player_id="p1")
    assert [tie.kind for tie in own.relationships] == ["p1-canary"]
    assert not (await find_path(running, "W", "S", world_id=world)).found
    # A world ends a shared tie for itself with one of strength 0.
    await relate(running, "S", "T", 0.0, world_id=world)
    assert set(reached(await traverse(running, "S", world_id=world))) == {"S"}
    assert set(reached(await traverse(running, "S", world_id=other))) == {"S", "T", "canary"}


async def test_ends_that_are_not_there_are_named(running: RunningKnowledgeBase) -> None:
    world = await new_world(running, ["A"])
    for call, missing in (
        (traverse(running, "Nobody", world_id=world), "start_concept"),
        (find_path(running, "Nobody", "A", world_id=world), "from_concept"),
        (find_path(running, "A", "Nobody", world_id=world), "to_concept"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        told = failure_of(caught.value)
        assert (told.code, told.reason) == (grpc.StatusCode.NOT_FOUND, "CONCEPT_NOT_FOUND")
        assert told.metadata["field"] == missing
    alone = await find_path(running, "A", "A", world_id=world)
    assert (alone.found, list(alone.concepts), alone.strength) == (True, ["A"], 1.0)
