"""Deadlines at a real router: capped where there is none, and a request out of time is dropped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from ai_router.adapters.static_fleet import StaticFleetSource
from ai_router.domain.fleet import FleetView, ServerReport
from ai_router.domain.tiers import Tier
from ai_router.testing.running_router import RunningRouter, run_router
from ai_router.testing.scripted_model_server import Script, ScriptedModelServer, serve_script
from gaming.ai_router.v1 import ai_router_pb2 as pb
from gaming.ai_router.v1 import ai_router_pb2_grpc
from gaming.common.v1 import tier_pb2
from servicekit import method_policies
from servicekit.clock import SystemClock
from servicekit.testing import failure_of

TIMEOUT_SECONDS = 20.0


@pytest.fixture
async def model_server() -> AsyncIterator[ScriptedModelServer]:
    async with serve_script() as server:
        yield server


@pytest.fixture
async def running() -> AsyncIterator[RunningRouter]:
    """A router without any server, so that every request waits in its tier's queue."""
    async with run_router(StaticFleetSource([], SystemClock())) as running:
        await until(lambda: running.router.fleet_age_seconds() is not None)
        yield running


async def until(condition: Any) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not condition():  # noqa: ASYNC110  # state of several parties, polled
            await asyncio.sleep(0.005)


def request(text: str = "Who lit the lighthouse?") -> pb.GenerateOnceRequest:
    message = pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=text)
    return pb.GenerateOnceRequest(
        spec=pb.GenerationSpec(messages=[message], tier=tier_pb2.TIER_BRONZE)
    )


def waiting(running: RunningRouter) -> int:
    return len(running.router.desk.queued(Tier.BRONZE))


def add_server(running: RunningRouter, server: ScriptedModelServer) -> None:
    report = ServerReport(server_id="b-1", endpoint_url=server.url, tier=Tier.BRONZE, model="m")
    running.router.apply_fleet(FleetView((report,)))


async def test_a_deadline_that_passes_in_the_queue_takes_the_request_out_of_it(
    running: RunningRouter, model_server: ScriptedModelServer
) -> None:
    late = asyncio.ensure_future(
        failure_of(running.stub.GenerateOnce(request("late"), timeout=3.0))
    )
    patient = asyncio.ensure_future(
        _answer(running.stub.GenerateOnce(request("patient"), timeout=TIMEOUT_SECONDS))
    )
    await until(lambda: waiting(running) == 2)
    # The router may give up a little before the deadline, so that its reason still arrives.
    assert (await late).code() in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )
    await until(lambda: waiting(running) == 1)
    add_server(running, model_server)
    assert (await patient).text == "The lamp burns."
    prompts = [body["messages"][-1]["content"] for body in model_server.bodies]
    assert prompts == ["patient"]
    assert waiting(running) == 0


async def test_a_caller_that_goes_away_leaves_the_queue(running: RunningRouter) -> None:
    call = running.stub.GenerateOnce(request(), timeout=TIMEOUT_SECONDS)
    await until(lambda: waiting(running) == 1)
    call.cancel()
    await until(lambda: waiting(running) == 0)


async def test_a_caller_without_a_deadline_does_not_wait_for_ever(
    running: RunningRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    shortened = dict.fromkeys(method_policies.DEADLINE_SECONDS, 0.5)
    monkeypatch.setattr(method_policies, "DEADLINE_SECONDS", shortened)
    async with grpc.aio.insecure_channel(running.address) as bare:
        stub = ai_router_pb2_grpc.AiRouterServiceStub(bare)
        error = await failure_of(stub.GenerateOnce(request()))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "set a deadline" in (error.details() or "")
    assert waiting(running) == 0


async def test_a_deadline_that_passes_during_generation_stops_the_model_server(
    running: RunningRouter, model_server: ScriptedModelServer
) -> None:
    model_server.script = Script(hold_before=1)
    add_server(running, model_server)
    error = await failure_of(running.stub.GenerateOnce(request(), timeout=3.0))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: model_server.aborted == 1 and model_server.running == 0)


async def _answer(call: Any) -> Any:
    return await call
