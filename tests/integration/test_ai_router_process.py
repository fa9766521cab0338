"""The router as an operator meets it: a process with settings, signals, health and reflection."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from ai_router.testing.scripted_model_server import Script, ScriptedModelServer, serve_script
from gaming.ai_router.v1 import ai_router_pb2 as pb
from gaming.ai_router.v1 import ai_router_pb2_grpc
from gaming.common.v1 import tier_pb2
from servicekit.channels import open_channel

SERVICE = "gaming.ai_router.v1.AiRouterService"
TIMEOUT_SECONDS = 20.0


@asynccontextmanager
async def router_process(**environ: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "ai_router",
        env={**os.environ, "GAMEKEEPER_LISTEN_ADDRESS": "127.0.0.1:0", **environ},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def address_of(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    async with asyncio.timeout(TIMEOUT_SECONDS):
        async for line in process.stderr:
            text = line.decode()
            if '"server_started"' in text:
                return text.split('"address": "')[1].split('"')[0]
    raise AssertionError("the router ended before it served")


@pytest.fixture
async def model_server() -> AsyncIterator[ScriptedModelServer]:
    async with serve_script() as server:
        yield server


def request() -> pb.GenerateOnceRequest:
    message = pb.ChatMessage(role=pb.CHAT_ROLE_USER, content="Who lit the lighthouse?")
    return pb.GenerateOnceRequest(
        spec=pb.GenerationSpec(messages=[message], tier=tier_pb2.TIER_SILVER)
    )


async def test_it_serves_health_reflection_and_text_and_drains_at_sigterm(
    model_server: ScriptedModelServer,
) -> None:
    servers = f"silver:m@{model_server.url}"
    async with router_process(AI_ROUTER_STATIC_SERVERS=servers) as process:
        async with open_channel(await address_of(process)) as channel:
            stub = ai_router_pb2_grpc.AiRouterServiceStub(channel)
            answer = await stub.GenerateOnce(request(), timeout=TIMEOUT_SECONDS)
            assert answer.text == "The lamp burns."
            health: Any = health_pb2_grpc.HealthStub(channel)
            states = health.Watch(
                health_pb2.HealthCheckRequest(service=SERVICE), timeout=TIMEOUT_SECONDS
            )
            assert (await states.read()).status == health_pb2.HealthCheckResponse.SERVING
            assert SERVICE in await reflected_services(channel)
            model_server.script = Script(hold_before=1)
            under_way = asyncio.ensure_future(stub.GenerateOnce(request(), timeout=TIMEOUT_SECONDS))
            await model_server.held.wait()
            process.send_signal(signal.SIGTERM)
            assert (await states.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            states.cancel()
            model_server.release.set()
            assert (await under_way).text == "The lamp burns."
        async with asyncio.timeout(TIMEOUT_SECONDS):
            assert await process.wait() == 0


async def test_all_wrong_settings_are_told_at_once() -> None:
    async with router_process(
        AI_ROUTER_STATIC_SERVERS="copper:m@http://127.0.0.1:1",
        AI_ROUTER_ATTEMPTS="0",
        AI_ROUTER_QUEUE_LIMIT="many",
    ) as process:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            _, errors = await process.communicate()
        assert process.returncode == 2
    text = errors.decode()
    for variable in ("AI_ROUTER_STATIC_SERVERS", "AI_ROUTER_ATTEMPTS", "AI_ROUTER_QUEUE_LIMIT"):
        assert variable in text
    assert "gold, silver or bronze" in text


async def reflected_services(channel: grpc.aio.Channel) -> set[str]:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]  # aio
    call = stub.ServerReflectionInfo(timeout=TIMEOUT_SECONDS)
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    answer = await call.read()
    assert isinstance(answer, reflection_pb2.ServerReflectionResponse)
    call.cancel()
    return {service.name for service in answer.list_services_response.service}
