"""Rate limits of a real knowledge base: per world and per identity, with the wait told exactly."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gaming.knowledge_base.v1 import knowledge_base_pb2_grpc as pb_grpc
from gaming.knowledge_base.v1 import story_pb2, worlds_pb2
from knowledge_base.testing import RunningKnowledgeBase, serve_knowledge_base
from servicekit.channels import ChannelSettings, open_channel
from servicekit.development_certificates import CertificateFiles, DevelopmentAuthority
from servicekit.settings import load_settings
from servicekit.testing import details_of

TIMEOUT_SECONDS = 20


@pytest.fixture(scope="module")
def authority() -> DevelopmentAuthority:
    return DevelopmentAuthority(now=datetime.now(UTC))


async def new_world(stub: Any, name: str) -> str:
    request = worlds_pb2.CreateWorldRequest(name=name, request_id=str(uuid.uuid4()))
    return str((await stub.CreateWorld(request, timeout=TIMEOUT_SECONDS)).world.world_id)


async def list_events(stub: Any, world_id: str) -> Any:
    return await stub.ListEvents(
        story_pb2.ListEventsRequest(world_id=world_id), timeout=TIMEOUT_SECONDS
    )


def limit_of(error: grpc.aio.AioRpcError) -> dict[str, str]:
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    info = details_of(error)["ErrorInfo"]
    assert info.reason == "RATE_LIMITED"
    return dict(info.metadata)


async def use_up(call: Callable[[], Any], burst_calls: int) -> grpc.aio.AioRpcError:
    """Calls until refused, and returns how.

    A few calls more than the burst may pass: the budget grows while the calls take their time.
    """
    served = 0
    while served < 1.5 * burst_calls:
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            assert served >= burst_calls  # the error is what is returned
            return error
        served += 1
    raise AssertionError("the budget was never used up")


class TestWorlds:
    """A burst of twenty units: reads cost one each, a recall costs five."""

    @pytest.fixture
    async def running(self, knowledge_base_database: str) -> AsyncIterator[RunningKnowledgeBase]:
        async with serve_knowledge_base(
            knowledge_base_database,
            GAMEKEEPER_RATE_PER_WORLD="0.5",
            GAMEKEEPER_RATE_BURST_SECONDS="40",
        ) as running:
            yield running

    async def test_a_world_that_took_its_burst_waits_while_others_are_served(
        self, running: RunningKnowledgeBase
    ) -> None:
        stub = running.stub
        busy, quiet = await new_world(stub, "busy"), await new_world(stub, "quiet")
        assert limit_of(await use_up(lambda: list_events(stub, busy), 20)) == {
            "limit": "world",
            "units_per_second": "0.5",
            "burst_units": "20",
            "cost": "1",
        }
        await list_events(stub, quiet)
        await stub.ListWorlds(worlds_pb2.ListWorldsRequest(), timeout=TIMEOUT_SECONDS)

    async def test_a_dear_method_takes_more_of_the_budget(
        self, running: RunningKnowledgeBase
    ) -> None:
        stub = running.stub
        world = await new_world(stub, "busy")
        recall = story_pb2.RecallRequest(world_id=world, query="bell")
        error = await use_up(lambda: stub.Recall(recall, timeout=TIMEOUT_SECONDS), 4)
        assert limit_of(error)["cost"] == "5"

    async def test_another_spelling_of_a_world_is_no_other_budget(
        self, running: RunningKnowledgeBase
    ) -> None:
        world = await new_world(running.stub, "busy")
        spellings = itertools.cycle([world, world.upper()])
        error = await use_up(lambda: list_events(running.stub, next(spellings)), 20)
        assert limit_of(error)["limit"] == "world"


async def test_a_caller_that_waits_as_long_as_told_is_served(
    knowledge_base_database: str,
) -> None:
    async with serve_knowledge_base(
        knowledge_base_database,
        GAMEKEEPER_RATE_PER_WORLD="2",
        GAMEKEEPER_RATE_BURST_SECONDS="10",
    ) as running:
        world = await new_world(running.stub, "busy")
        request = story_pb2.RecallRequest(world_id=world, query="bell")

        async def recall() -> None:
            await running.stub.Recall(request, timeout=TIMEOUT_SECONDS)

        error = await use_up(recall, 4)
        wait = details_of(error)["RetryInfo"].retry_delay.ToTimedelta().total_seconds()
        assert 0 < wait <= 2.5  # five units at two a second
        await asyncio.sleep(wait)
        await recall()


class TestIdentities:
    """Under mutual TLS each certificate has a budget, and an operator another one."""

    async def test_one_caller_runs_dry_and_nobody_else_notices(
        self, knowledge_base_database: str, authority: DevelopmentAuthority, tmp_path: Path
    ) -> None:
        async with (
            self.served(knowledge_base_database, authority, tmp_path) as address,
            self.stub(address, authority, tmp_path, "game-service/battle") as (battle, channel),
            self.stub(address, authority, tmp_path, "game-service/quest") as (quest, _),
            self.stub(address, authority, tmp_path, "operator/me") as (operator, _),
        ):
            error = await use_up(lambda: battle.ListWorlds(worlds_pb2.ListWorldsRequest()), 20)
            assert limit_of(error)["limit"] == "identity"
            await quest.ListWorlds(worlds_pb2.ListWorldsRequest())
            await operator.ListWorlds(worlds_pb2.ListWorldsRequest())
            health: Any = health_pb2_grpc.HealthStub(channel)
            for _ in range(25):
                assert (await health.Check(health_pb2.HealthCheckRequest())).status == 1

    async def test_an_operator_has_an_own_budget_and_no_worlds_limit_in_the_way(
        self, knowledge_base_database: str, authority: DevelopmentAuthority, tmp_path: Path
    ) -> None:
        async with (
            self.served(
                knowledge_base_database,
                authority,
                tmp_path,
                GAMEKEEPER_RATE_PER_OPERATOR="1",
                GAMEKEEPER_RATE_PER_WORLD="0.5",
            ) as address,
            self.stub(address, authority, tmp_path, "operator/me") as (operator, _),
        ):
            world = await new_world(operator, "a")
            error = await use_up(lambda: list_events(operator, world), 39)
            assert limit_of(error)["limit"] == "operator"

    @asynccontextmanager
    async def served(
        self, database: str, authority: DevelopmentAuthority, directory: Path, **environ: str
    ) -> AsyncIterator[str]:
        files = authority.issue("suite-service/knowledge-base", directory)
        rates = {"GAMEKEEPER_RATE_PER_IDENTITY": "0.5", "GAMEKEEPER_RATE_BURST_SECONDS": "40"}
        settings: dict[str, Any] = environ_of(files) | rates | environ
        async with serve_knowledge_base(database, **settings) as running:
            yield running.address

    @asynccontextmanager
    async def stub(
        self, address: str, authority: DevelopmentAuthority, directory: Path, identity: str
    ) -> AsyncIterator[tuple[Any, grpc.aio.Channel]]:
        files = authority.issue(identity, directory / identity)
        settings = load_settings(ChannelSettings, environ_of(files))
        async with open_channel(address, settings) as channel:
            yield pb_grpc.KnowledgeBaseServiceStub(channel), channel


def environ_of(files: CertificateFiles) -> dict[str, str]:
    return {
        "GAMEKEEPER_TLS_CERTIFICATE_FILE": str(files.certificate),
        "GAMEKEEPER_TLS_KEY_FILE": str(files.key),
        "GAMEKEEPER_TLS_CA_FILE": str(files.authority),
    }


async def test_limits_of_zero_are_no_limits(knowledge_base_database: str) -> None:
    async with serve_knowledge_base(
        knowledge_base_database,
        GAMEKEEPER_RATE_PER_WORLD="0",
        GAMEKEEPER_RATE_PER_IDENTITY="0",
        GAMEKEEPER_RATE_BURST_SECONDS="0",
    ) as running:
        world = await new_world(running.stub, "busy")
        await asyncio.gather(*(list_events(running.stub, world) for _ in range(50)))
