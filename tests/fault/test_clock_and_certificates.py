"""A service whose clock is an hour wrong refuses good certificates, until the clock is right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import grpc.aio
import pytest
from faked_clock import HOUR_SECONDS, FakedClock
from service_processes import ServiceProcess, collector_process, router_process

from gaming.ai_router.v1 import ai_router_pb2 as pb
from gaming.ai_router.v1 import ai_router_pb2_grpc as rpc
from servicekit.channels import ChannelSettings, open_channel
from servicekit.development_certificates import CertificateFiles, DevelopmentAuthority
from servicekit.settings import load_settings
from servicekit.testing import failure_of

REFUSED_WITHIN_SECONDS = 3.0
RECOVERY_SECONDS = 5.0
LIFETIME = timedelta(days=1)
VALID_FROM = {
    HOUR_SECONDS: LIFETIME - timedelta(minutes=30),
    -HOUR_SECONDS: timedelta(),
}
"""How long ago certificates began to be valid: a clock so wrong finds them expired, or too new."""


def environ_of(files: CertificateFiles) -> dict[str, str]:
    return {
        "GAMEKEEPER_TLS_CERTIFICATE_FILE": str(files.certificate),
        "GAMEKEEPER_TLS_KEY_FILE": str(files.key),
        "GAMEKEEPER_TLS_CA_FILE": str(files.authority),
    }


@asynccontextmanager
async def client_of(
    router: ServiceProcess, environ: dict[str, str]
) -> AsyncIterator[rpc.AiRouterServiceAsyncStub]:
    async with open_channel(router.address, load_settings(ChannelSettings, environ)) as channel:
        yield rpc.AiRouterServiceStub(channel)


async def follows_the_fleet(stub: rpc.AiRouterServiceAsyncStub) -> bool:
    """Whether the router answers, and itself hears of the fleet."""
    answer = await stub.ListTiers(pb.ListTiersRequest(), timeout=5)
    return answer.HasField("fleet_age") and answer.fleet_age.ToTimedelta() < timedelta(seconds=5)


async def until_well(stub: rpc.AiRouterServiceAsyncStub) -> None:
    async with asyncio.timeout(30):
        while True:
            with suppress(grpc.aio.AioRpcError):
                if await follows_the_fleet(stub):
                    return
            await asyncio.sleep(0.05)


@pytest.mark.endurance
@pytest.mark.parametrize("wrong_by_seconds", [HOUR_SECONDS, -HOUR_SECONDS])
async def test_certificates_are_refused_by_a_wrong_clock_and_taken_once_it_is_right(
    tmp_path: Path, wrong_by_seconds: int, record_property: Callable[[str, object], None]
) -> None:
    loop, clock = asyncio.get_running_loop(), FakedClock(tmp_path / "clock")
    authority = DevelopmentAuthority(
        now=datetime.now(UTC) - VALID_FROM[wrong_by_seconds], valid_days=LIFETIME.days
    )
    of = {
        name: environ_of(authority.issue(name, tmp_path / "certificates"))
        for name in ("suite-service/collector", "suite-service/router", "game-service/quests")
    }
    clock.set_off_by(wrong_by_seconds)
    async with AsyncExitStack() as stack:
        collector = await stack.enter_async_context(
            collector_process(tmp_path / "collector.log", **of["suite-service/collector"])
        )
        router = await stack.enter_async_context(
            router_process(
                tmp_path / "router.log",
                AI_ROUTER_COLLECTOR_ADDRESS=collector.address,
                **of["suite-service/router"],
                **clock.environ,
            )
        )
        stub = await stack.enter_async_context(client_of(router, of["game-service/quests"]))
        begun = loop.time()
        refusal = await failure_of(stub.ListTiers(pb.ListTiersRequest(), timeout=9))
        refused_after = loop.time() - begun
        async with asyncio.timeout(20):
            while not router.events("watch_interrupted"):  # noqa: ASYNC110  # another process
                await asyncio.sleep(0.05)

        clock.set_off_by(0)
        begun = loop.time()
        await until_well(stub)
        recovered_after = loop.time() - begun

        clock.set_off_by(wrong_by_seconds)
        assert await follows_the_fleet(stub), "connections that exist go on"
    record_property("refused after, s", round(refused_after, 2))
    record_property("well again after, s", round(recovered_after, 2))
    assert refusal.code() is grpc.StatusCode.UNAVAILABLE
    assert refused_after < REFUSED_WITHIN_SECONDS
    assert {entry["code"] for entry in router.events("watch_interrupted")} == {"UNAVAILABLE"}
    assert recovered_after < RECOVERY_SECONDS
