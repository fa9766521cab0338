"""The knowledge base under steady load for long: does anything grow?

    python tests/fault/knowledge_base_soak.py --minutes 60

Starts a PostgreSQL and the service, calls it at a steady rate, and prints the memory of the service
and of its sessions in the database, connections and latency by window. What it says in the end is
the last third against the middle one: the first is spent on filling caches.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio
from service_processes import ServiceProcess, service_process

from gaming.knowledge_base.v1 import (
    concepts_pb2,
    knowledge_base_pb2_grpc,
    lore_pb2,
    story_pb2,
    worlds_pb2,
)
from knowledge_base.testing import service_url
from localsuite.postgres import EmbeddedPostgres
from servicekit.channels import open_channel

__all__ = ["Soak", "Window", "soak"]

WORLDS = 20
CALL_SECONDS = 30.0
_KIBIBYTES_OF_MEBIBYTE = 1024
WORDS = (
    *("bell", "lamp", "tide", "warden", "stile", "market", "winter", "oath", "ferry", "bridge"),
    *("letter", "crown", "mill", "orchard", "debt", "song", "mirror", "salt", "raven", "harbour"),
    *("thief", "keeper", "storm", "road", "door"),
)
LORE = "\n\n".join(
    f"## Part {number}\n\n" + " ".join(random.Random(number).choices(WORDS, k=60)) + "."  # noqa: S311 - words
    for number in range(60)
)


@dataclass(frozen=True, slots=True)
class Window:
    """What was seen in one stretch of time.

    `database_mebibytes` is what the service's sessions hold for themselves (plans, catalogue), not
    the server's shared buffers.
    """

    resident_mebibytes: float
    database_mebibytes: float
    connections: int
    calls: int
    failures: Counter[str]
    p50_milliseconds: float
    p99_milliseconds: float


@dataclass(slots=True)
class Soak:
    """A whole run."""

    windows: list[Window] = field(default_factory=list)

    def thirds(self, value: Callable[[Window], float]) -> tuple[float, float]:
        """Returns the medians of the middle and of the last third of the windows."""
        third = len(self.windows) // 3 or 1
        middle, last = self.windows[-2 * third : -third], self.windows[-third:]
        return statistics.median(map(value, middle or last)), statistics.median(map(value, last))

    @property
    def failures(self) -> Counter[str]:
        """What failed how often."""
        return sum((each.failures for each in self.windows), Counter())


class Caller:
    """Makes one call after the other, of all kinds, each world's memory growing slowly."""

    def __init__(self, stub: Any, worlds: list[str], seed: int) -> None:
        self._stub = stub
        self._worlds = worlds
        self._random = random.Random(seed)  # noqa: S311 - which call comes next
        self.seconds: list[float] = []
        self.failures: Counter[str] = Counter()

    async def call(self) -> None:
        kinds: list[tuple[Callable[[], Awaitable[Any]], float]] = [
            (self._search, 4),
            (self._recall, 4),
            (self._record, 1),
            (self._list, 1),
            (self._concept, 0.5),
        ]
        made = self._random.choices([kind for kind, _ in kinds], [share for _, share in kinds])[0]
        began = time.monotonic()
        try:
            await made()
        except grpc.aio.AioRpcError as error:
            self.failures[f"{made.__name__}: {error.code().name} {error.details()}"] += 1
        self.seconds.append(time.monotonic() - began)

    def _text(self) -> str:
        return " ".join(self._random.choices(WORDS, k=12))

    def _world(self) -> str:
        return self._random.choice(self._worlds)

    async def _search(self) -> None:
        await self._stub.Search(lore_pb2.SearchRequest(query=self._text()), timeout=CALL_SECONDS)

    async def _recall(self) -> None:
        request = story_pb2.RecallRequest(world_id=self._world(), query=self._text())
        await self._stub.Recall(request, timeout=CALL_SECONDS)

    async def _record(self) -> None:
        event = story_pb2.StoryEvent(text=self._text(), participants=["Mira"])
        request = story_pb2.RecordEventsRequest(
            world_id=self._world(), events=[event], request_id=str(uuid.uuid4())
        )
        await self._stub.RecordEvents(request, timeout=CALL_SECONDS)

    async def _list(self) -> None:
        request = story_pb2.ListEventsRequest(world_id=self._world(), page_size=50)
        await self._stub.ListEvents(request, timeout=CALL_SECONDS)

    async def _concept(self) -> None:
        request = concepts_pb2.PutConceptRequest(
            world_id=self._world(),
            name=self._random.choice(WORDS),
            kind="thing",
            description=self._text(),
            request_id=str(uuid.uuid4()),
        )
        await self._stub.PutConcept(request, timeout=CALL_SECONDS)


async def soak(
    *,
    seconds: float,
    calls_per_second: float,
    window_seconds: float,
    tell: Callable[[Window], None] = lambda _: None,
) -> Soak:
    """Runs the load and returns what was seen; calls start on time, however long others take."""
    directory = Path(tempfile.mkdtemp(prefix="gamekeeper-postgres-"))
    found = Soak()
    try:
        with EmbeddedPostgres(directory) as server:
            server.create_database("knowledge")
            owner = server.url("knowledge")
            async with (
                service_process(
                    ("knowledge_base",),
                    directory / "service.log",
                    KNOWLEDGE_BASE_DATABASE_URL=service_url(owner),
                    KNOWLEDGE_BASE_MIGRATION_DATABASE_URL=owner,
                ) as service,
                open_channel(service.address) as channel,
            ):
                stub: Any = knowledge_base_pb2_grpc.KnowledgeBaseServiceStub(channel)
                caller = Caller(stub, await _prepare(stub), seed=7)
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    await _one_window(caller, window_seconds, calls_per_second)
                    window = await _window(caller, service, server)
                    found.windows.append(window)
                    tell(window)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return found


async def _prepare(stub: Any) -> list[str]:
    steps = [
        lore_pb2.IngestDocumentsRequest(begin=lore_pb2.IngestBegin(collection="lore")),
        lore_pb2.IngestDocumentsRequest(
            document=lore_pb2.IngestDocument(path="lore.md", content=LORE.encode())
        ),
    ]
    async for _ in stub.IngestDocuments(iter(steps), timeout=120):
        pass
    worlds = []
    for number in range(WORLDS):
        request = worlds_pb2.CreateWorldRequest(
            name=f"world {number}", request_id=str(uuid.uuid4())
        )
        worlds.append((await stub.CreateWorld(request, timeout=CALL_SECONDS)).world.world_id)
    return worlds


async def _one_window(caller: Caller, seconds: float, calls_per_second: float) -> None:
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(round(seconds * calls_per_second)):
            await asyncio.sleep(max(0.0, began + number / calls_per_second - time.monotonic()))
            group.create_task(caller.call())


async def _window(caller: Caller, service: ServiceProcess, server: EmbeddedPostgres) -> Window:
    connection = await asyncpg.connect(server.url("knowledge"), timeout=CALL_SECONDS)
    try:
        sessions = await connection.fetch(
            "SELECT pid FROM pg_stat_activity WHERE usename = 'knowledge_base_service'"
        )
        database_mebibytes = sum(_own_mebibytes(session["pid"]) for session in sessions)
    finally:
        await connection.close()
    milliseconds = sorted(each * 1000 for each in caller.seconds)
    window = Window(
        service.resident_mebibytes(),
        database_mebibytes,
        len(sessions),
        len(milliseconds),
        caller.failures,
        milliseconds[len(milliseconds) // 2],
        milliseconds[int(len(milliseconds) * 0.99)],
    )
    caller.seconds, caller.failures = [], Counter()
    return window


def _own_mebibytes(pid: int) -> float:
    """Returns a process's anonymous memory; pages it still shares with others count in part.

    A session that ended since it was listed holds none.
    """
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss_Anon:"):
                return int(line.split()[1]) / _KIBIBYTES_OF_MEBIBYTE
    return 0.0


def main() -> int:
    """Runs the soak of the command line and prints it; 1 when calls failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--calls-per-second", type=float, default=20.0)
    arguments = parser.parse_args()
    print("minute  MiB    in database  connections  calls  failed  P50 ms  P99 ms", flush=True)
    minute = 0

    def tell(window: Window) -> None:
        nonlocal minute
        minute += 1
        print(
            f"{minute:6}  {window.resident_mebibytes:5.1f}  {window.database_mebibytes:11.1f}  "
            f"{window.connections:11}  "
            f"{window.calls:5}  {window.failures.total():6}  {window.p50_milliseconds:6.1f}  "
            f"{window.p99_milliseconds:6.1f}",
            flush=True,
        )

    found = asyncio.run(
        soak(
            seconds=arguments.minutes * 60,
            calls_per_second=arguments.calls_per_second,
            window_seconds=60.0,
            tell=tell,
        )
    )
    for name, value in (
        ("MiB", lambda window: window.resident_mebibytes),
        ("MiB in the database", lambda window: window.database_mebibytes),
        ("connections", lambda window: window.connections),
        ("P50 ms", lambda window: window.p50_milliseconds),
        ("P99 ms", lambda window: window.p99_milliseconds),
    ):
        middle, last = found.thirds(value)
        print(f"{name}: {middle:.1f} in the middle third, {last:.1f} in the last")
    print(f"{found.failures.total()} calls failed: {dict(found.failures.most_common(10))}")
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
