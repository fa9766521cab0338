"""Somebody inside who claims to be more: real services with mutual TLS, and what they refuse."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from http2_attacker import seconds_until_closed
from service_processes import ServiceProcess, router_process

from ai_router.testing.scripted_model_server import serve_script
from gaming.ai_router.v1 import ai_router_pb2, ai_router_pb2_grpc
from gaming.common.v1 import tier_pb2
from servicekit.channels import ChannelSettings, open_channel
from servicekit.development_certificates import CertificateFiles, DevelopmentAuthority
from servicekit.settings import load_settings
from servicekit.testing import failure_of

OPERATOR_CLAIMS = (
    ("x-gamekeeper-identity", "spiffe://gamekeeper/operator/me"),
    ("x-forwarded-client-cert", "URI=spiffe://gamekeeper/operator/me"),
    ("peer_spiffe_id", "spiffe://gamekeeper/operator/me"),
    ("authorization", "Bearer operator"),
    ("x-role", "operator"),
)


@pytest.fixture(scope="module")
def authority() -> DevelopmentAuthority:
    return DevelopmentAuthority(now=datetime.now(UTC))


def environ_of(files: CertificateFiles) -> dict[str, str]:
    return {
        "GAMEKEEPER_TLS_CERTIFICATE_FILE": str(files.certificate),
        "GAMEKEEPER_TLS_KEY_FILE": str(files.key),
        "GAMEKEEPER_TLS_CA_FILE": str(files.authority),
    }


@asynccontextmanager
async def guarded_router(
    authority: DevelopmentAuthority, directory: Path, **environ: str
) -> AsyncIterator[ServiceProcess]:
    files = authority.issue("suite-service/ai-router", directory / "router")
    async with router_process(directory / "log", **environ_of(files), **environ) as service:
        yield service


@asynccontextmanager
async def channel_as(
    authority: DevelopmentAuthority, directory: Path, service: ServiceProcess, identity: str
) -> AsyncIterator[Any]:
    files = authority.issue(identity, directory / identity)
    settings = load_settings(ChannelSettings, environ_of(files))
    async with open_channel(service.address, settings) as channel:
        yield channel


def deterministic() -> ai_router_pb2.GenerateOnceRequest:
    message = ai_router_pb2.ChatMessage(role=ai_router_pb2.CHAT_ROLE_USER, content="The secret?")
    return ai_router_pb2.GenerateOnceRequest(
        spec=ai_router_pb2.GenerationSpec(
            tier=tier_pb2.TIER_GOLD, messages=[message], temperature=0
        )
    )


async def answer_for(channel: Any) -> Any:
    stub = ai_router_pb2_grpc.AiRouterServiceStub(channel)
    return await stub.GenerateOnce(deterministic(), timeout=20)


async def test_no_caller_learns_from_the_cache_what_another_asked(
    authority: DevelopmentAuthority, tmp_path: Path
) -> None:
    async with (
        serve_script() as model_server,
        guarded_router(
            authority, tmp_path, AI_ROUTER_STATIC_SERVERS=f"gold:m@{model_server.url}"
        ) as service,
        channel_as(authority, tmp_path, service, "game-service/battle") as battle,
        channel_as(authority, tmp_path, service, "game-service/market") as market,
    ):
        assert not (await answer_for(battle)).route.cached
        assert (await answer_for(battle)).route.cached
        assert not (await answer_for(market)).route.cached
        explained = await ai_router_pb2_grpc.AiRouterServiceStub(market).ExplainRoute(
            ai_router_pb2.ExplainRouteRequest(spec=deterministic().spec), timeout=20
        )
        assert explained.verdict == ai_router_pb2.ROUTE_VERDICT_CACHE  # its own answer
    assert len(model_server.bodies) == 2


async def test_claims_in_metadata_make_nobody_an_operator(
    authority: DevelopmentAuthority, tmp_path: Path
) -> None:
    drain = ai_router_pb2.DrainServerRequest(server_id="gold-1")
    async with (
        guarded_router(authority, tmp_path) as service,
        channel_as(authority, tmp_path, service, "game-service/battle") as channel,
        channel_as(authority, tmp_path, service, "operator/me") as operator,
    ):
        stub = ai_router_pb2_grpc.AiRouterServiceStub(channel)
        error = await failure_of(stub.DrainServer(drain, metadata=OPERATOR_CLAIMS, timeout=20))
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "spiffe://gamekeeper/game-service/battle may not" in (error.details() or "")
        # An operator gets as far as the question whether there is such a server.
        theirs = ai_router_pb2_grpc.AiRouterServiceStub(operator)
        error = await failure_of(theirs.DrainServer(drain, timeout=20))
        assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_only_operators_read_the_protocol_and_nobody_the_connections(
    authority: DevelopmentAuthority, tmp_path: Path
) -> None:
    async with guarded_router(
        authority, tmp_path, GAMEKEEPER_ADMIN_ADDRESS="127.0.0.1:0"
    ) as service:
        for identity, expected in (
            ("operator/me", grpc.StatusCode.OK),
            ("game-service/battle", grpc.StatusCode.PERMISSION_DENIED),
            ("gpu-agent/host-1", grpc.StatusCode.PERMISSION_DENIED),
            ("suite-service/autoscaler", grpc.StatusCode.PERMISSION_DENIED),
        ):
            async with channel_as(authority, tmp_path, service, identity) as channel:
                reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
                assert await code_of_reflection(reflection) is expected
                channelz: Any = channelz_pb2_grpc.ChannelzStub(channel)
                error = await failure_of(
                    channelz.GetServers(channelz_pb2.GetServersRequest(), timeout=20)
                )
                assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def code_of_reflection(stub: Any) -> grpc.StatusCode:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    while True:
        try:
            async for _ in stub.ServerReflectionInfo(iter([request]), timeout=20):
                pass
        except grpc.aio.AioRpcError as error:
            # What grpc.aio's client says when the refusal comes while it still writes the request.
            if error.details() != "Internal error from Core":
                return error.code()
        else:
            return grpc.StatusCode.OK


@pytest.mark.endurance
async def test_sockets_that_do_not_begin_their_handshake_are_closed_within_5_seconds(
    authority: DevelopmentAuthority, tmp_path: Path
) -> None:
    async with guarded_router(authority, tmp_path) as service:
        seconds = await asyncio.gather(
            *(seconds_until_closed(service.address, b"") for _ in range(100))
        )
    print(f"  longest open: {max(seconds):.3f} s")
    assert max(seconds) <= 5.0


@pytest.mark.parametrize("variable", ["GAMEKEEPER_LISTEN_ADDRESS", "GAMEKEEPER_ADMIN_ADDRESS"])
async def test_a_service_does_not_start_with_an_open_door(variable: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ai_router"),
        env={"PATH": os.environ["PATH"], variable: "0.0.0.0:0"},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 2
    assert variable in said.decode()
    assert "loopback" in said.decode()
