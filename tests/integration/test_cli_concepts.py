"""The commands about what a world knows, on a real knowledge base."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from typer.testing import CliRunner, Result

from gamekeeper.cli import app
from gaming.knowledge_base.v1 import concepts_pb2, facts_pb2, worlds_pb2
from knowledge_base.testing import RunningKnowledgeBase, serve_knowledge_base

TIMEOUT_SECONDS = 20


@pytest.fixture
async def running(
    knowledge_base_database: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RunningKnowledgeBase]:
    monkeypatch.setenv("COLUMNS", "240")
    async with serve_knowledge_base(knowledge_base_database) as running:
        yield running


async def command(running: RunningKnowledgeBase, *words: str) -> Result:
    # The command has an event loop of its own, so it runs beside the server's one.
    line = ["--knowledge-base", running.address, "world", *words]
    return await asyncio.to_thread(lambda: CliRunner().invoke(app, line))


async def shown(running: RunningKnowledgeBase, *words: str) -> str:
    result = await command(running, *words)
    assert result.exit_code == 0, result.output
    return result.stdout


async def fill(running: RunningKnowledgeBase) -> None:
    stub, later = running.stub, Timestamp()
    later.FromDatetime(datetime(1310, 1, 1, tzinfo=UTC))
    made = await stub.CreateWorld(
        worlds_pb2.CreateWorldRequest(name="Hollowmere", request_id=str(uuid.uuid4())),
        timeout=TIMEOUT_SECONDS,
    )
    world = made.world.world_id
    for name, text, begun in (
        ("Mara", "A ferryman.", None),
        ("Mara", "A mayor [of sorts].", later),
        ("Bell", "Bronze.", None),
        ("Tower", "Tall.", None),
    ):
        await stub.PutConcept(
            concepts_pb2.PutConceptRequest(
                world_id=world,
                name=name,
                kind="thing",
                description=text,
                valid_from=begun,
                request_id=str(uuid.uuid4()),
            ),
            timeout=TIMEOUT_SECONDS,
        )
    for start, end, kind in (("Mara", "Bell", "guards"), ("Bell", "Tower", "hangs_in")):
        await stub.RelateConcepts(
            concepts_pb2.RelateConceptsRequest(
                world_id=world,
                from_concept=start,
                to_concept=end,
                kind=kind,
                strength=0.5,
                request_id=str(uuid.uuid4()),
            ),
            timeout=TIMEOUT_SECONDS,
        )
    await stub.AssertFacts(
        facts_pb2.AssertFactsRequest(
            world_id=world,
            facts=[
                facts_pb2.Fact(
                    subject="Mara", predicate="lives_in", text=place, single_valued=True, source=who
                )
                for place, who in (("the inn", "song"), ("the mill", "chronicle"))
            ],
            request_id=str(uuid.uuid4()),
        ),
        timeout=TIMEOUT_SECONDS,
    )


async def test_what_a_world_knows_is_shown_in_words(running: RunningKnowledgeBase) -> None:
    await fill(running)
    assert "A mayor [of sorts]." in await shown(running, "concepts", "Hollowmere")
    now = await shown(running, "concept", "Hollowmere", "Mara")
    assert "version 2" in now
    assert "from 1310-01-01" in now
    then = await shown(running, "concept", "Hollowmere", "Mara", "--at", "1309-01-01")
    assert "A ferryman." in then
    assert "until 1310-01-01" in then
    history = await shown(running, "concept", "Hollowmere", "Mara", "--history")
    assert history.count("believed from") == 3
    facts = await shown(running, "facts", "Hollowmere", "--about", "Mara")
    assert "the inn" in facts
    assert "chronicle" in facts
    told = await shown(running, "contradictions", "Hollowmere")
    assert "the inn (world, song)" in told
    assert "the mill (world, chronicle)" in told
    graph = await shown(running, "graph", "Hollowmere", "Mara")
    assert "guards Bell" in graph
    assert "hangs_in Tower" in graph
    around = await shown(running, "graph", "Hollowmere", "Tower", "--direction", "in")
    assert "<- guards Mara" in around
    path = await shown(running, "path", "Hollowmere", "Mara", "Tower", "--strongest")
    assert "strength of the whole: 0.25" in path
    assert "no path" in await shown(running, "path", "Hollowmere", "Tower", "Mara")


async def test_what_is_no_time_is_refused_in_words(running: RunningKnowledgeBase) -> None:
    result = await command(running, "concepts", "Hollowmere", "--at", "yesterday")
    assert result.exit_code == 2
    assert "--at must be a time" in result.output
