"""Every service is killed in every phase of an evening: what stands, and how soon it is back.

As `make run ARGS="--once"` plays it, with one service after the other ended by SIGKILL. What each
can be without is the others' promise (see "Static stability" in the design): capacity stays while
the autoscaler is away, players are answered while the collector or the knowledge base is, and what
was remembered stays remembered.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest

from gaming.ai_router.v1 import ai_router_pb2, ai_router_pb2_grpc
from gaming.autoscaler.v1 import autoscaler_pb2, autoscaler_pb2_grpc
from gaming.common.v1 import tier_pb2
from gaming.gpu_metrics.v1 import gpu_metrics_pb2, gpu_metrics_pb2_grpc
from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc, lore_pb2, story_pb2, worlds_pb2
from localsuite.supervision.backoff import RestartPolicy
from localsuite.timing import Evening

ROOT = Path(__file__).resolve().parents[2]
PLAYERS, SECONDS, SEED = 200, 110, 7
BACK_SECONDS = 5.0
LEAST_KILLS_OF_EACH = 2
# The supervisor takes one more within a minute for a service that cannot live, and ends the run.
MOST_KILLS_A_MINUTE = RestartPolicy().give_up_after - 1
REASON_OF_THE_CLOUD = ("Server.", "Client.InstanceInitiated")

pytestmark = [pytest.mark.endurance, pytest.mark.timeout(420)]

Question = Callable[[grpc.aio.Channel], Awaitable[None]]


async def ask_router(channel: grpc.aio.Channel) -> None:
    stub = ai_router_pb2_grpc.AiRouterServiceStub(channel)
    assert (await stub.ListTiers(ai_router_pb2.ListTiersRequest(), timeout=2)).tiers


async def ask_autoscaler(channel: grpc.aio.Channel) -> None:
    stub = autoscaler_pb2_grpc.AutoscalerServiceStub(channel)
    assert (await stub.ListTiers(autoscaler_pb2.ListTiersRequest(), timeout=2)).tiers


async def ask_collector(channel: grpc.aio.Channel) -> None:
    stub = gpu_metrics_pb2_grpc.GpuMetricsServiceStub(channel)
    fleet = (await stub.GetFleet(gpu_metrics_pb2.GetFleetRequest(), timeout=2)).fleet
    assert fleet.hosts


async def ask_knowledge_base(channel: grpc.aio.Channel) -> None:
    stub = knowledge_base_pb2_grpc.KnowledgeBaseServiceStub(channel)
    await stub.Search(lore_pb2.SearchRequest(query="lending", limit=1), timeout=2)


QUESTIONS: dict[str, Question] = {
    "autoscaler": ask_autoscaler,
    "gpu_metrics": ask_collector,
    "ai_router": ask_router,
    "knowledge_base": ask_knowledge_base,
}


@dataclass
class Outage:
    """One kill: when, and when the service answered again (monotonic seconds)."""

    service: str
    phase: str
    began: float
    back: float
    taken_away: list[str] = field(default_factory=list)
    waited_for_a_core: float = 0.0
    """Seconds in which the new process could have run on an idle core, and others ran on all."""

    @property
    def seconds(self) -> float:
        """How long it was away, without what only a machine with more to do than cores adds."""
        return self.back - self.began - self.waited_for_a_core


class Run:
    """A run of the suite: its lines, its addresses, its simulated cloud."""

    def __init__(self, process: asyncio.subprocess.Process, data: Path) -> None:
        self.process = process
        self._data = data
        self.lines: list[str] = []
        self._changed = asyncio.Condition()

    async def read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            async with self._changed:
                self.lines.append(line.decode())
                self._changed.notify_all()

    async def said(self, words: str, timeout_seconds: float) -> None:
        async with asyncio.timeout(timeout_seconds), self._changed:
            await self._changed.wait_for(lambda: any(words in line for line in self.lines))

    def addresses(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self._data / "addresses.json").read_text())
        return document

    async def events(self, after: int) -> tuple[list[dict[str, Any]], int]:
        """Returns what happened in the cloud after that position, and where to go on."""
        url = f"{self.addresses()['aws']}/_local/events?after={after}"

        def read() -> dict[str, Any]:
            with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  # ours, loopback
                document: dict[str, Any] = json.load(answer)
                return document

        page = await asyncio.to_thread(read)
        return page["events"], page["next"]

    def report(self) -> dict[str, Any]:
        (path,) = (self._data / "reports").glob("*/report.json")
        document: dict[str, Any] = json.loads(path.read_text())
        return document


@asynccontextmanager
async def evening() -> AsyncIterator[Run]:
    # Not below pytest's directory: as root, PostgreSQL runs as another account and must enter.
    with tempfile.TemporaryDirectory(prefix="gamekeeper-kills-") as directory:
        lore = Path(directory) / "lore"
        lore.mkdir()
        name = "06-lending-and-its-limits.md"
        shutil.copy(ROOT / "services" / "knowledge_base" / "lore" / name, lore / name)
        data = Path(directory) / "var"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "localsuite", "--once", "--plain", "--port-base", "0"),
            *("--players", str(PLAYERS), "--duration-seconds", str(SECONDS), "--seed", str(SEED)),
            *("--data-dir", str(data), "--lore", str(lore)),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        run = Run(process, data)
        reader = asyncio.create_task(run.read())
        try:
            yield run
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGINT)
            async with asyncio.timeout(60):
                await reader
                await process.wait()


class Probes:
    """Players of the test's own, and a chronicler: who was answered when, and what was kept."""

    def __init__(self, run: Run) -> None:
        addresses = run.addresses()
        self._router = addresses["ai_router"]
        self._knowledge_base = addresses["knowledge_base"]
        self.answered: list[float] = []
        self.failed: list[tuple[float, str]] = []
        self.kept: list[str] = []
        self.world_id = ""

    async def play(self, stopping: asyncio.Event) -> None:
        spec = ai_router_pb2.GenerationSpec(
            messages=[ai_router_pb2.ChatMessage(role=ai_router_pb2.CHAT_ROLE_USER, content="Who?")],
            tier=tier_pb2.TIER_GOLD,
            max_output_tokens=4,
        )
        async with grpc.aio.insecure_channel(self._router) as channel:
            stub = ai_router_pb2_grpc.AiRouterServiceStub(channel)
            while not stopping.is_set():
                made = time.monotonic()
                try:
                    await stub.GenerateOnce(ai_router_pb2.GenerateOnceRequest(spec=spec), timeout=5)
                    self.answered.append(made)
                except grpc.aio.AioRpcError as error:
                    self.failed.append((made, f"{error.code().name} {error.details()}"))
                await asyncio.sleep(0.1)

    async def chronicle(self, stopping: asyncio.Event) -> None:
        async with grpc.aio.insecure_channel(self._knowledge_base) as channel:
            stub = knowledge_base_pb2_grpc.KnowledgeBaseServiceStub(channel)
            while not stopping.is_set():
                text, request_id = f"event {len(self.kept)}", str(uuid.uuid4())
                while True:
                    try:
                        await self._record(stub, text, request_id)
                        break
                    except grpc.aio.AioRpcError:
                        await asyncio.sleep(0.1)
                self.kept.append(text)
                await asyncio.sleep(0.1)
            stored: list[str] = []
            token = ""
            while True:
                page = await stub.ListEvents(
                    story_pb2.ListEventsRequest(
                        world_id=self.world_id, page_size=500, page_token=token
                    ),
                    timeout=10,
                )
                stored += [event.text for event in page.events]
                token = page.next_page_token
                if not token:
                    break
        assert sorted(stored) == sorted(self.kept)

    async def _record(self, stub: Any, text: str, request_id: str) -> None:
        if not self.world_id:
            created = await stub.CreateWorld(
                worlds_pb2.CreateWorldRequest(name="Chronicle", request_id=request_id),
                timeout=5,
            )
            self.world_id = created.world.world_id
            request_id = str(uuid.uuid4())
        await stub.RecordEvents(
            story_pb2.RecordEventsRequest(
                world_id=self.world_id,
                events=[story_pb2.StoryEvent(text=text)],
                request_id=request_id,
            ),
            timeout=5,
        )

    def answered_share(self, began: float, back: float) -> float | None:
        """Share of the players' calls made in a time that were answered; None without any."""
        good = sum(began <= made <= back for made in self.answered)
        bad = sum(began <= made <= back for made, _ in self.failed)
        return good / (good + bad) if good + bad else None


async def kill(run: Run, service: str, phase: str) -> Outage:
    """Kills a service and returns once it answers again."""
    _, position = await run.events(0)
    document = run.addresses()
    suite = psutil.Process(document["pid"])
    others = {child.pid for child in suite.children()}
    os.kill(document["processes"][service], signal.SIGKILL)
    began = time.monotonic()
    async with asyncio.timeout(60):
        # A channel of its own for each try: one that saw the service die waits before it tries.
        while True:
            async with grpc.aio.insecure_channel(document[service]) as channel:
                try:
                    await QUESTIONS[service](channel)
                    break
                except (grpc.aio.AioRpcError, AssertionError):
                    assert run.process.returncode is None, "".join(run.lines[-40:])
                    await asyncio.sleep(0.05)
    outage = Outage(service, phase, began, time.monotonic())
    outage.waited_for_a_core = sum(
        waited_for_a_core(child.pid)
        for child in suite.children()
        if child.pid not in others and service in child.cmdline()
    )
    events, _ = await run.events(position)
    outage.taken_away = [
        event["instance"]["instance_id"]
        for event in events
        if event["kind"] == "instance-shutting-down"
        and not str(event["instance"]["state_reason"]).startswith(REASON_OF_THE_CLOUD)
    ]
    return outage


def waited_for_a_core(pid: int) -> float:
    """Returns how long a process's thread that waited most was ready to run and did not.

    By the kernel's count: the second figure of /proc/PID/task/TID/schedstat, in nanoseconds (Linux,
    sched-stats.rst); 0 where there is none. Threads wait side by side, so their sum would excuse
    more time than there was.
    """
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        waited = [int((task / "schedstat").read_text().split()[1]) for task in tasks]
    except (OSError, IndexError):
        return 0.0
    return max(waited, default=0) / 1e9


def recent_kills(outages: list[Outage], service: str) -> int:
    since = time.monotonic() - 62.0
    return sum(each.service == service and each.began > since for each in outages)


async def kill_in_every_phase(run: Run, began: float) -> list[Outage]:
    plan = Evening(peak_players=PLAYERS, duration_seconds=SECONDS, seed=SEED)
    outages: list[Outage] = []
    done: set[tuple[str, str]] = set()
    names = list(QUESTIONS)
    while (at := time.monotonic() - began) < SECONDS * 0.97:
        phase = plan.phase(at)
        left = [
            name
            for name in names
            if (name, phase) not in done and recent_kills(outages, name) < MOST_KILLS_A_MINUTE
        ]
        if not left:
            await asyncio.sleep(0.05)
            continue
        # Whoever was killed least comes first, so that all see about as many phases.
        service = min(left, key=lambda name: sum(each.service == name for each in outages))
        done.add((service, phase))
        outages.append(await kill(run, service, phase))
    return outages


async def test_what_stands_without_each_service_in_every_phase_and_how_soon_it_is_back(
    record_property: Callable[[str, object], None],
) -> None:
    async with evening() as run:
        await run.said("lore:", 120)
        probes, stopping = Probes(run), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(probes.play(stopping))
            chronicle = group.create_task(probes.chronicle(stopping))
            outages = await kill_in_every_phase(run, time.monotonic())
            stopping.set()
            await chronicle
        async with asyncio.timeout(120):
            await run.process.wait()
        findings = run.report()["findings"]

    figures = [
        {
            "phase": each.phase,
            "service": each.service,
            "back after, s": round(each.back - each.began, 2),
            "waited for a core, s": round(each.waited_for_a_core, 2),
            "players answered meanwhile": probes.answered_share(each.began, each.back),
        }
        for each in outages
    ]
    record_property("figures", figures)
    print(*figures, sep="\n")
    print(
        {name: findings[name] for name in ("sent", "completed", "shed", "failed", "unaccounted")},
        {"kept": len(probes.kept), "failures": sorted({text for _, text in probes.failed})},
    )
    counts = {name: sum(each.service == name for each in outages) for name in QUESTIONS}
    phases = {each.phase for each in outages}
    assert min(counts.values()) >= LEAST_KILLS_OF_EACH
    assert len(phases) == 7
    assert [each for each in outages if each.service == "autoscaler" and each.taken_away] == []
    assert findings["unaccounted"] == 0
    warm = next(made for made in probes.answered)  # before it, Gold had no server yet
    for each in outages:
        if each.service != "ai_router" and each.began > warm:
            share = probes.answered_share(each.began, each.back)
            assert share is None or share > 0.5, each
    slow = [each for each in outages if each.seconds >= BACK_SECONDS]
    assert slow == []
