"""A service is killed with SIGKILL: noticed, said, started again, and it serves again."""

import asyncio
import json
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import pytest_asyncio

from gamekeeper.addresses import Addresses
from gamekeeper.client import GamekeeperClient
from gaming.ai_router.v1 import ai_router_pb2
from gaming.autoscaler.v1 import autoscaler_pb2
from gaming.common.v1 import tier_pb2
from gaming.gpu_metrics.v1 import gpu_metrics_pb2
from gaming.knowledge_base.v1 import lore_pb2, story_pb2

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(280),
    pytest.mark.asyncio(loop_scope="module"),
]


class RunningSuite:
    """The suite as its user sees it: lines on a terminal, and addresses."""

    def __init__(self, process: asyncio.subprocess.Process, data_directory: Path) -> None:
        self.process = process
        self._lines: list[str] = []
        self._data_directory = data_directory
        self._changed = asyncio.Condition()

    async def read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            async with self._changed:
                self._lines.append(line.decode())
                self._changed.notify_all()

    async def line_with(self, *words: str) -> str:
        """Waits for a line that holds all the words."""

        def found() -> list[str]:
            return [line for line in self._lines if all(word in line for word in words)]

        try:
            async with asyncio.timeout(90), self._changed:
                await self._changed.wait_for(found)
        except TimeoutError:
            pytest.fail(f"no line with {words} in:\n{''.join(self._lines)}")
        return found()[0]

    def addresses(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self._data_directory / "addresses.json").read_text())
        return document

    @property
    def client(self) -> GamekeeperClient:
        document = self.addresses()
        addresses = Addresses(
            **{
                name: document[name]
                for name in ("gpu_metrics", "autoscaler", "ai_router", "knowledge_base")
            }
        )
        return GamekeeperClient.open(addresses, environ={})

    def pid_of(self, component: str) -> int:
        return int(self.addresses()["processes"][component])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def suite() -> AsyncIterator[RunningSuite]:
    with tempfile.TemporaryDirectory(prefix="gamekeeper-killed-") as directory:
        data_directory = Path(directory) / "var"
        lore = Path(directory) / "lore"
        lore.mkdir()
        (lore / "lending.md").write_text("# Lending\n\nA name may be lent, never sold.\n")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "localsuite", "--plain", "--no-traffic"),
            *("--data-dir", str(data_directory), "--lore", str(lore), "--port-base", "0"),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        running = RunningSuite(process, data_directory)
        reader = asyncio.create_task(running.read())
        try:
            await running.line_with("The suite is up.")
            yield running
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGINT)
            async with asyncio.timeout(60):
                await reader
                await process.wait()


async def ask_router(client: GamekeeperClient) -> None:
    spec = ai_router_pb2.GenerationSpec(
        messages=[ai_router_pb2.ChatMessage(role=ai_router_pb2.CHAT_ROLE_USER, content="Who?")],
        tier=tier_pb2.TIER_GOLD,
        max_output_tokens=4,
    )
    answer = await client.ai_router.GenerateOnce(
        ai_router_pb2.GenerateOnceRequest(spec=spec), timeout=5
    )
    assert answer.text


async def ask_autoscaler(client: GamekeeperClient) -> None:
    answer = await client.autoscaler.ListTiers(autoscaler_pb2.ListTiersRequest(), timeout=5)
    assert len(answer.tiers) == 3


async def ask_knowledge_base(client: GamekeeperClient) -> None:
    answer = await client.knowledge_base.Search(
        lore_pb2.SearchRequest(query="what may be lent", limit=1), timeout=5
    )
    assert answer.results


async def ask_gpu_metrics(client: GamekeeperClient) -> None:
    answer = await client.gpu_metrics.GetFleet(gpu_metrics_pb2.GetFleetRequest(), timeout=5)
    assert answer.fleet.hosts


QUESTIONS = {
    "ai_router": ask_router,
    "autoscaler": ask_autoscaler,
    "knowledge_base": ask_knowledge_base,
    "gpu_metrics": ask_gpu_metrics,
}


async def answered_within(seconds: float, client: GamekeeperClient, service: str) -> None:
    """Asks until there is an answer: after a start a service may still be gathering its inputs."""
    last: Exception | None = None
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    await QUESTIONS[service](client)
                except (grpc.aio.AioRpcError, AssertionError) as error:
                    last = error
                    await asyncio.sleep(0.1)
                else:
                    return
    except TimeoutError:
        pytest.fail(f"{service} did not answer again: {last!r}")


@pytest.mark.parametrize("service", QUESTIONS)
async def test_a_killed_service_is_noticed_said_and_serves_again(
    suite: RunningSuite, service: str
) -> None:
    async with suite.client as client:
        await answered_within(60, client, service)
        killed = suite.pid_of(service)
        os.kill(killed, signal.SIGKILL)
        told = await suite.line_with(service, "was killed by SIGKILL")
        assert "restart at once" in told
        await suite.line_with(service, "is up again (restart 1)")
        await answered_within(60, client, service)
        assert suite.pid_of(service) != killed


async def test_what_was_remembered_survives_the_death_of_the_database(suite: RunningSuite) -> None:
    async with suite.client as client:
        await answered_within(60, client, "knowledge_base")
        world = await client.ensure_world(f"Survivors {uuid.uuid4()}")
        recorded = await client.knowledge_base.RecordEvents(
            story_pb2.RecordEventsRequest(
                world_id=world.world_id,
                events=[story_pb2.StoryEvent(text="The bell rang twice.")],
                request_id=str(uuid.uuid4()),
            ),
            timeout=10,
        )
        os.kill(suite.pid_of("postgres"), signal.SIGKILL)
        await suite.line_with("postgres", "is up again")
        async with asyncio.timeout(60):
            while True:
                try:
                    events = await client.knowledge_base.ListEvents(
                        story_pb2.ListEventsRequest(world_id=world.world_id), timeout=5
                    )
                    break
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.1)
        assert [event.event_id for event in events.events] == [
            event.event_id for event in recorded.events
        ]


async def test_a_run_that_is_killed_takes_its_processes_with_it(suite: RunningSuite) -> None:
    """Stands last: the suite of this module is gone after it."""
    document = suite.addresses()
    processes = [psutil.Process(pid) for pid in document["processes"].values()]
    assert len(processes) == 7
    suite.process.kill()
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, timeout=30)
    # A zombie has ended; in a container nobody may be there to reap it.
    assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []
