"""SIGTERM to a router that is answering players and feeding an autoscaler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from service_processes import ServiceProcess, router_process

from ai_router.testing.scripted_model_server import Script, serve_script
from gaming.ai_router.v1 import ai_router_pb2 as pb
from gaming.ai_router.v1 import ai_router_pb2_grpc as rpc
from gaming.common.v1 import tier_pb2
from servicekit.channels import open_channel
from servicekit.testing import details_of, failure_of, reason_of

CALLS = 20
STREAMS = 5
ANSWER = Script(tokens=["The ", "lamp ", "burns."], hold_before=2)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SPEC = pb.GenerationSpec(
    tier=tier_pb2.TIER_GOLD,
    messages=[pb.ChatMessage(role=pb.CHAT_ROLE_USER, content="What burns?")],
    max_output_tokens=8,
)


async def whole_answer(stub: rpc.AiRouterServiceAsyncStub, *, streamed: bool) -> str:
    if not streamed:
        answer = await stub.GenerateOnce(pb.GenerateOnceRequest(spec=SPEC), timeout=60)
        return str(answer.text)
    text, ended = "", False
    async for response in stub.Generate(pb.GenerateRequest(spec=SPEC), timeout=60):
        text += response.delta.text
        ended = ended or response.HasField("end")
    assert ended
    return text


async def health_states(channel: grpc.aio.Channel) -> AsyncIterator[int]:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    async for update in stub.Watch(health_pb2.HealthCheckRequest(), timeout=60):
        yield update.status


async def last_token(stream: AsyncIterator[pb.WatchDemandResponse]) -> str:
    return (await anext(stream)).resume_token


async def test_calls_are_finished_streams_are_sent_elsewhere_and_health_says_so_first(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        models = await stack.enter_async_context(serve_script(ANSWER))
        environ = {"AI_ROUTER_STATIC_SERVERS": f"gold:lamp@{models.url}"}
        router, other = await asyncio.gather(
            *(
                stack.enter_async_context(router_process(tmp_path / f"{name}.log", **environ))
                for name in ("router", "other")
            )
        )
        channel = await stack.enter_async_context(open_channel(router.address))
        stub = rpc.AiRouterServiceStub(channel)
        states = health_states(channel)
        assert await anext(states) == SERVING
        demands = [stub.WatchDemand(pb.WatchDemandRequest()) for _ in range(STREAMS)]
        iterators = [aiter(demand) for demand in demands]
        tokens = await asyncio.gather(*map(last_token, iterators))
        calls = [
            asyncio.create_task(whole_answer(stub, streamed=number % 2 == 0))
            for number in range(CALLS)
        ]
        async with asyncio.timeout(30):
            while models.running < CALLS:  # noqa: ASYNC110  # counted by many handlers
                await asyncio.sleep(0.01)

        begun = loop.time()
        router.terminate()
        async with asyncio.timeout(20):
            assert await anext(states) == NOT_SERVING
        health_seconds = loop.time() - begun
        assert not any(call.done() for call in calls), "health must turn before calls are finished"
        async with asyncio.timeout(20):
            farewells = await asyncio.gather(*map(farewell, iterators))
        await the_streams_were_told_to_resume_elsewhere(farewells)
        await a_token_of_one_router_is_too_old_for_another(other, tokens[0])
        assert not any(call.done() for call in calls)
        models.release.set()
        async with asyncio.timeout(30):
            answers = await asyncio.gather(*calls)
        exit_code = await router.exit_code()
        ended_seconds = loop.time() - begun
    record_property("health turned after, s", round(health_seconds, 3))
    record_property("process ended after, s", round(ended_seconds, 2))
    record_property("calls finished", len(answers))
    assert answers == ["The lamp burns."] * CALLS
    assert exit_code == 0


async def farewell(iterator: AsyncIterator[Any]) -> grpc.aio.AioRpcError:
    try:
        async for _ in iterator:
            pass
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the stream ended without a reason")


async def the_streams_were_told_to_resume_elsewhere(
    farewells: list[grpc.aio.AioRpcError],
) -> None:
    for error in farewells:
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert reason_of(error) == "SHUTTING_DOWN"
        assert details_of(error)["RetryInfo"].retry_delay.ToMilliseconds() == 100


async def a_token_of_one_router_is_too_old_for_another(other: ServiceProcess, token: str) -> None:
    """A router's demand is its own: the other one has no such interval, and says so."""
    async with open_channel(other.address) as channel:
        stub = rpc.AiRouterServiceStub(channel)
        error = await failure_of(stub.WatchDemand(pb.WatchDemandRequest(resume_token=token)))
        assert error.code() is grpc.StatusCode.OUT_OF_RANGE
        assert reason_of(error) == "RESUME_TOKEN_TOO_OLD"
        assert await last_token(aiter(stub.WatchDemand(pb.WatchDemandRequest())))
