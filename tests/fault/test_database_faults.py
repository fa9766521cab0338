"""PostgreSQL fails in four ways under the writers of two services; its return is noticed at once.

Every write carries a request id and is repeated until it is acknowledged. Meanwhile callers are
told UNAVAILABLE and when to try again, the leader goes on adding servers and takes none away, and
at the end everything acknowledged is there, once.
"""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import grpc.aio
import pytest
from database_faults import (
    ConnectionsExhausted,
    DatabaseFault,
    DiskFull,
    Frozen,
    Killed,
    durable_server,
    may_mount,
)
from replica_world import ReplicaWorld, until, until_leader
from service_processes import service_process

from autoscaler.domain.tiers import Tier
from autoscaler.testing.outside import Asked
from gaming.autoscaler.v1 import autoscaler_pb2, autoscaler_pb2_grpc
from gaming.common.v1 import tier_pb2
from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc, story_pb2, worlds_pb2
from knowledge_base.testing import failure_of, service_url
from localsuite.postgres import EmbeddedPostgres
from servicekit.channels import open_channel

WRITERS = 3
CALL_SECONDS = 10.0
RECOVERY_SECONDS = 5.0
TOLD_WITHIN_SECONDS = 3.0
"""Generous: four tries by a channel take about a second, and the machine may be busy."""
RETRYABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}

Write = Callable[[str, str], Awaitable[str]]
"""Writes a text under a request id; returns what was acknowledged."""


@dataclass
class Writers:
    """Writers of one service: each writes text after text, repeating until it is acknowledged."""

    service: str
    write: Write
    acknowledged: list[tuple[str, str]] = field(default_factory=list)
    last_success: float = 0.0
    refusals: Counter[str] = field(default_factory=Counter)
    refused_seconds: list[float] = field(default_factory=list)
    untold: list[str] = field(default_factory=list)

    async def run(self, number: int, stopping: asyncio.Event) -> None:
        count = 0
        while not stopping.is_set():
            text = f"writer {number} text {count}"
            self.acknowledged.append((text, await self._until_taken(text)))
            self.last_success = time.monotonic()
            count += 1
            await asyncio.sleep(0.02)

    async def _until_taken(self, text: str) -> str:
        request_id = str(uuid.uuid4())
        while True:
            began = time.monotonic()
            try:
                return await self.write(text, request_id)
            except grpc.aio.AioRpcError as error:
                if error.code() not in RETRYABLE:
                    raise
                self.refused_seconds.append(time.monotonic() - began)
                self.refusals[error.code().name] += 1
                told = failure_of(error)
                if told.code is grpc.StatusCode.UNAVAILABLE and told.retry_seconds is None:
                    self.untold.append(told.text)
            await asyncio.sleep(0.1)

    async def success_after(self, moment: float) -> float:
        """Waits for an acknowledgement after `moment`; returns how long after it came."""
        async with asyncio.timeout(60):
            while self.last_success <= moment:  # noqa: ASYNC110 - a loop of its own writes
                await asyncio.sleep(0.01)
        return self.last_success - moment


@asynccontextmanager
async def knowledge_base(server: EmbeddedPostgres, log_file: Path) -> AsyncIterator[Any]:
    owner = server.url("knowledge")
    async with (
        service_process(
            ("knowledge_base",),
            log_file,
            KNOWLEDGE_BASE_DATABASE_URL=service_url(owner),
            KNOWLEDGE_BASE_MIGRATION_DATABASE_URL=owner,
        ) as service,
        open_channel(service.address) as channel,
    ):
        yield knowledge_base_pb2_grpc.KnowledgeBaseServiceStub(channel)


def story_writer(stub: Any, world_id: str) -> Write:
    async def write(text: str, request_id: str) -> str:
        recorded = await stub.RecordEvents(
            story_pb2.RecordEventsRequest(
                world_id=world_id, events=[story_pb2.StoryEvent(text=text)], request_id=request_id
            ),
            timeout=CALL_SECONDS,
        )
        return str(recorded.events[0].event_id)

    return write


def hold_writer(stub: Any) -> Write:
    async def write(text: str, request_id: str) -> str:
        override = autoscaler_pb2.Override(
            kind=autoscaler_pb2.OVERRIDE_KIND_BOUNDS, maximum=20, reason=text
        )
        override.expire_time.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
        # The first try's moment is part of the request, and a repeat is the same request.
        override.expire_time.CopyFrom(expiry.setdefault(request_id, override.expire_time))
        kept = await stub.SetOverride(
            autoscaler_pb2.SetOverrideRequest(
                tier=tier_pb2.TIER_BRONZE, override=override, request_id=request_id
            ),
            timeout=CALL_SECONDS,
        )
        return str(kept.override.reason)

    expiry: dict[str, Any] = {}
    return write


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(ConnectionsExhausted(), id="connections_exhausted"),
        pytest.param(Killed(), id="killed", marks=pytest.mark.endurance),
        pytest.param(Frozen(), id="frozen_30_s", marks=pytest.mark.endurance),
        pytest.param(
            DiskFull(),
            id="disk_full",
            marks=[
                pytest.mark.endurance,
                pytest.mark.skipif(not may_mount(), reason="only root may mount a small disk"),
            ],
        ),
    ],
)
async def test_nothing_acknowledged_is_lost_nothing_is_done_twice_and_its_return_is_noticed(
    fault: DatabaseFault,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    async with AsyncExitStack() as stack:
        server = stack.enter_context(durable_server(fault))
        for name in ("knowledge", "autoscaler"):
            server.create_database(name)
        stub = await stack.enter_async_context(knowledge_base(server, tmp_path / "knowledge.log"))
        world = ReplicaWorld(stack, server.url("autoscaler"))
        world.environ["AUTOSCALER_STABILIZATION_SECONDS"] = "1"
        await world.start()
        world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=5, running_requests=25)
        replica = await world.spawn("first")
        await until_leader(replica, "first")
        created = await stub.CreateWorld(
            worlds_pb2.CreateWorldRequest(name="a", request_id=str(uuid.uuid4())), timeout=20
        )
        stories = Writers("knowledge_base", story_writer(stub, created.world.world_id))
        channel = await stack.enter_async_context(open_channel(replica.address))
        holds = Writers(
            "autoscaler", hold_writer(autoscaler_pb2_grpc.AutoscalerServiceStub(channel))
        )
        both = (stories, holds)
        stopping = asyncio.Event()

        async with asyncio.TaskGroup() as group:
            for writers in both:
                for number in range(WRITERS):
                    group.create_task(writers.run(number, stopping))
            await until(lambda: all(len(w.acknowledged) >= 20 for w in both))
            servers = world.desired()
            struck = time.monotonic()
            async with fault.strikes(server):
                ended_before = list(world.hosts.terminated)
                # It goes on adding; with less to do it would take away, but not now.
                world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=20, running_requests=100)
                await until(lambda: all(w.refusals for w in both))
                await until(lambda: world.desired() > servers)
                grew_seconds = time.monotonic() - struck
                world.router.asked[Tier.GOLD] = Asked(arrivals_per_second=1, running_requests=2)
                await asyncio.sleep(max(0.0, struck + fault.least_seconds - time.monotonic()))
                assert world.hosts.terminated == ended_before
            back = time.monotonic()
            recoveries = {w.service: await w.success_after(back) for w in both}
            stopping.set()

        figures = {
            "first success after recovery, s": {k: round(v, 2) for k, v in recoveries.items()},
            "refusals": {w.service: dict(w.refusals) for w in both},
            "longest refusal, s": {w.service: round(max(w.refused_seconds), 1) for w in both},
            "median refusal, s": {
                w.service: round(statistics.median(w.refused_seconds), 2) for w in both
            },
            "servers added meanwhile after, s": round(grew_seconds, 1),
            "acknowledged": {w.service: len(w.acknowledged) for w in both},
        }
        record_property("figures", figures)
        print(figures)
        await assert_once(
            server.url("knowledge"),
            "SELECT text, event_id::text FROM knowledge_base.story_events",
            stories.acknowledged,
        )
        await assert_once(
            server.url("autoscaler"),
            "SELECT reason, reason FROM autoscaler.overrides",
            holds.acknowledged,
        )
        for writers in both:
            assert writers.untold == []
            # Those under way when it struck may wait in vain. The others are told at once,
            # though the channel asks for them up to four times.
            assert writers.refusals["DEADLINE_EXCEEDED"] <= 2 * WRITERS
            assert statistics.median(writers.refused_seconds) < TOLD_WITHIN_SECONDS
        assert max(recoveries.values()) < RECOVERY_SECONDS


async def assert_once(url: str, query: str, acknowledged: list[tuple[str, str]]) -> None:
    """Every call was repeated until it was answered: what is stored is what was acknowledged."""
    connection = await asyncpg.connect(url)
    try:
        stored = [(row[0], row[1]) for row in await connection.fetch(query)]
    finally:
        await connection.close()
    assert Counter(stored) == Counter(acknowledged)
    assert max(Counter(text for text, _ in stored).values()) == 1
