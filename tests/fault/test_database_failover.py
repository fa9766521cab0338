"""The database's primary is lost and a standby takes over; the former primary comes back."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio
import pytest
from service_processes import service_process

from gamekeeper.backup.accounts import give_away
from gamekeeper.backup.server import Programs, ServerAddress
from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc, story_pb2, worlds_pb2
from knowledge_base.testing import service_url
from localsuite.postgres import EmbeddedPostgres
from servicekit.channels import open_channel

pytestmark = [pytest.mark.endurance, pytest.mark.timeout(240)]

PATIENCE_SECONDS = 60.0
RECOVERY_SECONDS = 5.0
STORED = "SELECT text FROM knowledge_base.story_events"


@contextmanager
def primary_and_standby() -> Iterator[tuple[EmbeddedPostgres, EmbeddedPostgres]]:
    """A primary that acknowledges nothing alone, and its standby."""
    directory = Path(tempfile.mkdtemp(prefix="gamekeeper-failover-"))
    directory.chmod(0o711)
    try:
        with EmbeddedPostgres(directory / "one") as first:
            first.create_database("knowledge")
            place = directory / "two"
            shutil.copytree(
                first.location, place, ignore=shutil.ignore_patterns("cluster", "*.log")
            )
            address = ServerAddress.of_embedded(first.location)
            Programs.find().run(
                address,
                "pg_basebackup",
                "-R",
                "-c",
                "fast",
                "-D",
                str(place / "cluster"),
                progress=False,
            )
            if os.geteuid() == 0:
                owner = first.cluster.stat()
                give_away(place / "cluster", owner.st_uid, owner.st_gid)
            with EmbeddedPostgres(place, settings={"hot_standby": "on"}) as second:
                first.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
                first.execute("SELECT pg_reload_conf()")
                try:
                    yield first, second
                finally:
                    first.thaw()  # a frozen server cannot be stopped
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def both(first: str, second: str) -> str:
    """One address of both servers."""
    host = second.rpartition("@")[2].partition("/")[0]
    head, _, database = first.rpartition("/")
    return f"{head},{host}/{database}"


class Writers:
    """Write events, each until it is acknowledged, and keep which were."""

    def __init__(self, stub: Any, world_id: str) -> None:
        self._stub = stub
        self._world_id = world_id
        self.begun: list[str] = []
        self.acknowledged: list[str] = []
        self.progress = asyncio.Condition()

    async def run(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            request = story_pb2.RecordEventsRequest(
                world_id=self._world_id,
                events=[story_pb2.StoryEvent(text=str(uuid.uuid4()))],
                request_id=str(uuid.uuid4()),
            )
            self.begun.append(request.events[0].text)
            while True:
                try:
                    await self._stub.RecordEvents(request, timeout=2.0)
                except grpc.aio.AioRpcError:
                    continue
                break
            self.acknowledged.append(request.events[0].text)
            async with self.progress:
                self.progress.notify_all()

    async def more(self, count: int) -> None:
        wanted = len(self.acknowledged) + count
        async with asyncio.timeout(PATIENCE_SECONDS), self.progress:
            await self.progress.wait_for(lambda: len(self.acknowledged) >= wanted)


async def test_the_standby_takes_over_and_the_former_primary_is_written_no_more(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with primary_and_standby() as (first, second):
        owner = first.url("knowledge")
        environ = {"KNOWLEDGE_BASE_MIGRATION_DATABASE_URL": owner}
        url = both(service_url(owner), second.url("knowledge"))
        # The service needs no owner once the schema is there.
        migrated = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "knowledge_base", "migrate"],
            env={**os.environ, **environ, "KNOWLEDGE_BASE_DATABASE_URL": service_url(owner)},
            check=False,
            timeout=PATIENCE_SECONDS,
        )
        assert migrated.returncode == 0
        async with (
            service_process(
                ("knowledge_base",), tmp_path / "log", KNOWLEDGE_BASE_DATABASE_URL=url
            ) as service,
            open_channel(service.address) as channel,
        ):
            stub: Any = knowledge_base_pb2_grpc.KnowledgeBaseServiceStub(channel)
            request = worlds_pb2.CreateWorldRequest(name="a", request_id=str(uuid.uuid4()))
            world = (await stub.CreateWorld(request, timeout=20)).world
            writers, stopping = Writers(stub, world.world_id), asyncio.Event()
            async with asyncio.TaskGroup() as group:
                for _ in range(4):
                    group.create_task(writers.run(stopping))
                await writers.more(50)
                first.freeze()
                await asyncio.to_thread(second.execute, "SELECT pg_promote()")
                promoted = time.monotonic()
                await writers.more(5)  # one for each writer was under way, and may be told late
                back_seconds = time.monotonic() - promoted
                begun_before = len(writers.begun)
                first.thaw()
                await writers.more(200)
                stopping.set()
            # What it was sent while it was frozen may still become visible there; nothing else may.
            stored = set(first.execute(STORED, database="knowledge").splitlines())
            assert len(stored) >= 50
            assert not stored & set(writers.begun[begun_before:])
        connection = await asyncpg.connect(second.url("knowledge"))
        try:
            rows = await connection.fetch("SELECT text FROM knowledge_base.story_events")
        finally:
            await connection.close()
        figures = {"back, s": round(back_seconds, 2), "acknowledged": len(writers.acknowledged)}
        record_property("figures", figures)
        print(figures)
        assert sorted(row["text"] for row in rows) == sorted(writers.acknowledged)
        assert back_seconds < RECOVERY_SECONDS
