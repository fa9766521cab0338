"""The storyteller with a real knowledge base, a real router and model servers over HTTP."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from ai_router.adapters.static_fleet import StaticFleetSource
from ai_router.domain.fleet import ServerReport
from ai_router.domain.tiers import Tier
from ai_router.testing.running_router import RunningRouter, run_router
from ai_router.testing.scripted_model_server import Script, ScriptedModelServer, serve_script
from gamekeeper.addresses import Addresses
from gamekeeper.call_errors import CallFailed
from gamekeeper.client import GamekeeperClient
from gamekeeper.story_context import CitationKind, StoryContext
from gamekeeper.story_ports import AlreadyRecorded, MemoryAway, StoryEvent, StoryMemory
from gamekeeper.story_services import KnowledgeBaseMemory
from gamekeeper.story_testing import InMemoryStoryMemory
from gamekeeper.storyteller import Degradation
from gaming.knowledge_base.v1 import lore_pb2
from knowledge_base.testing import RunningKnowledgeBase, serve_knowledge_base
from servicekit.clock import SystemClock

EXAMPLE = Path(__file__).parents[2] / "libs" / "gamekeeper" / "examples" / "tell_a_story.py"
LORE = b"""# Places

## Harrowmere

The lamp of Harrowmere is lit by the ferryman every evening.
"""


@dataclass(frozen=True, slots=True)
class Suite:
    knowledge_base: RunningKnowledgeBase
    router: RunningRouter
    model_server: ScriptedModelServer
    addresses: Addresses


@pytest.fixture
async def suite(postgres_database: str) -> AsyncIterator[Suite]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serve_script(Script(tokens=["You ", "wait."])))
        report = ServerReport(
            server_id="silver-1", endpoint_url=server.url, tier=Tier.SILVER, model="m"
        )
        source = StaticFleetSource([report], SystemClock())
        router = await stack.enter_async_context(run_router(source))
        knowledge_base = await stack.enter_async_context(serve_knowledge_base(postgres_database))
        addresses = Addresses(ai_router=router.address, knowledge_base=knowledge_base.address)
        yield Suite(knowledge_base, router, server, addresses)


async def add_lore(suite: Suite) -> None:
    steps = [
        lore_pb2.IngestDocumentsRequest(begin=lore_pb2.IngestBegin(collection="lore")),
        lore_pb2.IngestDocumentsRequest(
            document=lore_pb2.IngestDocument(path="places.md", content=LORE)
        ),
    ]
    stub: Any = suite.knowledge_base.stub
    async for _ in stub.IngestDocuments(iter(steps), timeout=30):
        pass


def last_prompt(suite: Suite) -> str:
    return "\n".join(message["content"] for message in suite.model_server.bodies[-1]["messages"])


async def test_the_next_run_of_the_game_remembers_what_the_last_one_told(suite: Suite) -> None:
    async with GamekeeperClient.open(suite.addresses, environ={}) as first_run:
        world = await first_run.ensure_world("Hollowmere")
        told = await first_run.storyteller(world.world_id).tell(
            "I give the brass lantern to Ysra.", player="Oren"
        )
    assert told.text == "You wait."
    assert told.recorded
    assert told.degradations == ()
    async with GamekeeperClient.open(suite.addresses, environ={}) as second_run:
        world = await second_run.ensure_world("Hollowmere")
        assert world.event_count == 2
        turn = await second_run.storyteller(world.world_id).tell("Who has the brass lantern?")
    memories = [c.text for c in turn.citations if c.kind is CitationKind.MEMORY]
    assert "I give the brass lantern to Ysra." in memories
    assert "I give the brass lantern to Ysra." in last_prompt(suite)


async def test_lore_is_cited_by_file_heading_and_line(suite: Suite) -> None:
    await add_lore(suite)
    async with GamekeeperClient.open(suite.addresses, environ={}) as gamekeeper:
        world = await gamekeeper.ensure_world("Hollowmere")
        turn = await gamekeeper.storyteller(world.world_id).tell("Who lights the lamp?")
    (lore,) = [c for c in turn.citations if c.kind is CitationKind.LORE]
    assert lore.source.startswith("places.md > ")
    assert "Harrowmere" in lore.source
    assert lore.source.rsplit(" > ", 1)[1].isdigit()
    assert "lit by the ferryman" in last_prompt(suite)


async def test_another_world_knows_nothing_of_it(suite: Suite) -> None:
    async with GamekeeperClient.open(suite.addresses, environ={}) as gamekeeper:
        mine = await gamekeeper.ensure_world("Mine")
        theirs = await gamekeeper.ensure_world("Theirs")
        await gamekeeper.storyteller(mine.world_id).tell("I hide the key under the stone.")
        turn = await gamekeeper.storyteller(theirs.world_id).tell("Where is the key?")
    assert turn.citations == ()
    assert "stone" not in last_prompt(suite)


async def test_a_turn_sent_twice_is_remembered_once(suite: Suite) -> None:
    async with GamekeeperClient.open(suite.addresses, environ={}) as gamekeeper:
        world = await gamekeeper.ensure_world("Hollowmere")
        storyteller = gamekeeper.storyteller(world.world_id)
        first = await storyteller.tell("I wave.", turn_id="turn-1")
        suite.model_server.script = Script(tokens=["Something else."])
        assert await storyteller.tell("I wave.", turn_id="turn-1") is first
        restarted = await gamekeeper.storyteller(world.world_id).tell("I wave.", turn_id="turn-1")
        assert restarted.degradations == (Degradation.TOLD_BEFORE,)
        assert (await gamekeeper.ensure_world("Hollowmere")).event_count == 2


async def test_without_the_knowledge_base_the_story_goes_on(suite: Suite) -> None:
    away = Addresses(ai_router=suite.addresses.ai_router, knowledge_base="127.0.0.1:9")
    async with GamekeeperClient.open(away, environ={}) as gamekeeper:
        storyteller = gamekeeper.storyteller("6f0b6c39-6a38-4c1c-a9b8-4f6f2a7f4c11")
        turn = await storyteller.tell("I wave.")
    assert turn.text == "You wait."
    assert Degradation.NO_CONTEXT in turn.degradations
    assert Degradation.NOT_RECORDED in turn.degradations
    assert storyteller.pending_turns == 1


async def test_a_world_that_does_not_exist_is_told_as_such(suite: Suite) -> None:
    async with GamekeeperClient.open(suite.addresses, environ={}) as gamekeeper:
        storyteller = gamekeeper.storyteller("6f0b6c39-6a38-4c1c-a9b8-4f6f2a7f4c11")
        with pytest.raises(CallFailed) as caught:
            await storyteller.tell("I wave.")
    assert caught.value.service == "knowledge_base"
    assert caught.value.code is grpc.StatusCode.NOT_FOUND


async def test_the_routers_reason_reaches_the_game(suite: Suite) -> None:
    suite.model_server.script = Script(status=500)
    async with GamekeeperClient.open(suite.addresses, environ={}) as gamekeeper:
        world = await gamekeeper.ensure_world("Hollowmere")
        with pytest.raises(CallFailed) as caught:
            await gamekeeper.storyteller(world.world_id).tell("I wave.")
        assert (await gamekeeper.ensure_world("Hollowmere")).event_count == 0
    assert (caught.value.service, caught.value.reason) == ("ai_router", "UPSTREAM_FAILED")
    assert caught.value.is_away
    assert caught.value.retry_after_seconds is not None


async def test_worlds_made_at_once_by_many_are_one(suite: Suite) -> None:
    async with GamekeeperClient.open(suite.addresses, environ={}) as gamekeeper:
        worlds = await asyncio.gather(*(gamekeeper.ensure_world("Hollowmere") for _ in range(8)))
    assert len({world.world_id for world in worlds}) == 1


async def test_the_example_shows_that_it_remembers(suite: Suite) -> None:
    outputs = [await run_example(suite) for _ in range(2)]
    assert "is new and remembers nothing" in outputs[0]
    assert "recorded as 2 events" in outputs[0]
    assert "remembers 4 events" in outputs[1]
    assert "brass lantern" in outputs[1].split("What did I leave", 1)[1]


async def run_example(suite: Suite) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLE),
        env={
            **os.environ,
            "GAMEKEEPER_AI_ROUTER_ADDRESS": suite.addresses.ai_router,
            "GAMEKEEPER_KNOWLEDGE_BASE_ADDRESS": suite.addresses.knowledge_base,
        },
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


class Memories:
    """Makes each kind of memory, with a world in it, for the promises both must keep."""

    def __init__(self, suite: Suite) -> None:
        self._suite = suite

    async def make(self, kind: str) -> tuple[StoryMemory, str]:
        if kind == "in memory":
            return InMemoryStoryMemory(), "w"
        async with GamekeeperClient.open(self._suite.addresses, environ={}) as gamekeeper:
            world = await gamekeeper.ensure_world("Hollowmere")
        stub: Any = self._suite.knowledge_base.stub
        return KnowledgeBaseMemory(stub), world.world_id


@pytest.mark.parametrize("kind", ["in memory", "knowledge base"])
async def test_every_memory_keeps_its_promises(suite: Suite, kind: str) -> None:
    memory, world_id = await Memories(suite).make(kind)
    request_id = "0b3c2f6e-1d4a-4f0e-9b57-0a8a0f9f3c21"
    events = [
        StoryEvent(text="I give the lantern to Ysra", kind="player", participants=("Oren",)),
        StoryEvent(text="She hides it under the pier", kind="narration"),
    ]
    recorded = await memory.record(world_id, events, request_id)
    assert [event.text for event in recorded] == [event.text for event in events]
    assert len({event.event_id for event in recorded}) == 2
    again = await memory.record(world_id, events, request_id)
    assert [event.event_id for event in again] == [event.event_id for event in recorded]
    with pytest.raises(AlreadyRecorded):
        await memory.record(world_id, [StoryEvent(text="other")], request_id)
    context = await memory.context(
        world_id, "Who has the lantern", characters=("Oren",), token_budget=500, recent_events=10
    )
    assert [each.text for each in context.citations] == [event.text for event in events]
    assert [each.source for each in context.citations] == [each.event_id for each in recorded]
    assert all(f"[{each.label}]" in context.text for each in context.citations)
    assert 0 < context.tokens <= 500
    recalled = await memory.context(
        world_id, "Who has the lantern", characters=(), token_budget=500, recent_events=0
    )
    assert recalled.citations[0].source == recorded[0].event_id
    nothing = await memory.context(
        world_id, "Who has the lantern", characters=(), token_budget=1, recent_events=10
    )
    assert nothing == StoryContext()


async def test_a_knowledge_base_that_is_away_is_told_as_such(suite: Suite) -> None:
    away = Addresses(knowledge_base="127.0.0.1:9")
    async with GamekeeperClient.open(away, environ={}) as gamekeeper:
        with pytest.raises(MemoryAway):
            await KnowledgeBaseMemory(gamekeeper.knowledge_base).context(
                "w", "lantern", characters=(), token_budget=100, recent_events=1
            )
