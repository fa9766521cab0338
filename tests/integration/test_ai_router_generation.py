"""The router between real gRPC callers and real HTTP model servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from ai_router.adapters.static_fleet import StaticFleetSource
from ai_router.domain.fleet import ServerReport
from ai_router.domain.tiers import Tier
from ai_router.testing.running_router import RunningRouter, run_router
from ai_router.testing.scripted_model_server import Script, ScriptedModelServer, serve_script
from fleetsim.profiles import GOLD
from fleetsim.vllm_http import SimulatedFleetServer
from gaming.ai_router.v1 import ai_router_pb2 as pb
from gaming.common.v1 import tier_pb2
from servicekit.clock import SystemClock
from servicekit.testing import details_of

TIMEOUT_SECONDS = 20.0


def spec(text: str = "Who lit the lighthouse?", **fields: Any) -> pb.GenerationSpec:
    fields.setdefault("tier", tier_pb2.TIER_GOLD)
    fields.setdefault("max_output_tokens", 16)
    message = pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=text)
    return pb.GenerationSpec(messages=[message], **fields)


async def generate(
    running: RunningRouter, *, into: list[pb.GenerateResponse] | None = None, **fields: Any
) -> list[pb.GenerateResponse]:
    responses = [] if into is None else into
    call = running.stub.Generate(pb.GenerateRequest(spec=spec(**fields)), timeout=TIMEOUT_SECONDS)
    async for response in call:
        responses.append(response)
    return responses


async def until(condition: Any, timeout_seconds: float = 30.0) -> None:
    async with asyncio.timeout(timeout_seconds):
        while not condition():  # noqa: ASYNC110  # state of several parties, polled
            await asyncio.sleep(0.005)


def text_of(responses: list[pb.GenerateResponse]) -> str:
    return "".join(r.delta.text for r in responses if r.WhichOneof("event") == "delta")


class Fleet:
    """Scripted servers behind a router that is started on first use."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._reports: list[ServerReport] = []

    async def add(
        self, server_id: str, script: Script | None = None, tier: Tier = Tier.GOLD
    ) -> ScriptedModelServer:
        server = await self._stack.enter_async_context(serve_script(script))
        self.add_url(server_id, server.url, tier)
        return server

    def add_url(self, server_id: str, url: str, tier: Tier = Tier.GOLD) -> None:
        self._reports.append(
            ServerReport(server_id=server_id, endpoint_url=url, tier=tier, model="m")
        )

    async def route(self, **environ: str) -> RunningRouter:
        source = StaticFleetSource(self._reports, SystemClock())
        running = await self._stack.enter_async_context(run_router(source, environ))
        await until(lambda: running.router.fleet_age_seconds() is not None)
        return running


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        yield Fleet(stack)


async def test_text_streams_with_route_first_and_usage_last() -> None:
    async with SimulatedFleetServer(seed=3) as simulated:
        url = await simulated.add_server("gold-1", GOLD)
        report = ServerReport(
            server_id="gold-1", endpoint_url=url, tier=Tier.GOLD, model=GOLD.model_name
        )
        source = StaticFleetSource([report], SystemClock())
        async with run_router(source) as running:
            await until(lambda: running.router.fleet_age_seconds() is not None)
            responses = await generate(running, max_output_tokens=12)
    kinds = [response.WhichOneof("event") for response in responses]
    assert kinds[0] == "route"
    assert kinds[-1] == "end"
    assert set(kinds[1:-1]) == {"delta"}
    assert len(kinds) > 4, "the text came in pieces"
    route, end = responses[0].route, responses[-1].end
    assert (route.server_id, route.model) == ("gold-1", GOLD.model_name)
    assert (route.tier, route.wanted_tier) == (tier_pb2.TIER_GOLD, tier_pb2.TIER_GOLD)
    assert text_of(responses).strip()
    assert 0 < end.output_tokens <= 12
    assert end.prompt_tokens > 0
    first, total = end.time_to_first_token.ToSeconds(), end.total_duration.ToSeconds()
    assert 0 <= first <= total


async def test_the_whole_text_comes_at_once_when_asked_for(fleet: Fleet) -> None:
    server = await fleet.add("a")
    running = await fleet.route(AI_ROUTER_MODEL_SERVER_API_KEY="")
    request = pb.GenerateOnceRequest(
        request_id="turn-7",
        spec=spec(temperature=0.5, top_p=0.9, seed=4, stop=["END"], max_output_tokens=9),
    )
    response = await running.stub.GenerateOnce(request, timeout=TIMEOUT_SECONDS)
    assert response.text == "The lamp burns."
    assert response.route.request_id == "turn-7"
    assert response.end.finish_reason == pb.FINISH_REASON_STOP
    assert (response.end.prompt_tokens, response.end.output_tokens) == (11, 3)
    body = server.bodies[0]
    assert body["messages"] == [{"role": "user", "content": "Who lit the lighthouse?"}]
    assert (body["max_tokens"], body["seed"], body["stop"]) == (9, 4, ["END"])
    assert body["stream_options"] == {"include_usage": True}
    assert server.headers[0]["X-Request-Id"] == "turn-7"


async def test_text_that_came_at_once_leaves_in_one_message(fleet: Fleet) -> None:
    await fleet.add("a", Script(tokens=["w "] * 200, one_write=True))
    running = await fleet.route()
    responses = await generate(running)
    assert text_of(responses) == "w " * 200
    assert len(responses) < 10


async def test_connections_are_used_again(fleet: Fleet) -> None:
    server = await fleet.add("a")
    running = await fleet.route()
    for _ in range(5):
        await generate(running)
    assert len(server.bodies) == 5
    assert len(server.connections) == 1


@pytest.mark.parametrize(
    "script",
    [
        Script(status=500),
        Script(status=503),
        Script(status=404),
        Script(status=302),
        Script(break_after=0),
        Script(raw_events=["not json"]),
        Script(raw_events=["[]"]),
        Script(raw_events=['{"error": {"message": "CUDA out of memory"}}']),
        Script(raw_events=["[DONE]"]),
        Script(tokens=[], finish_reason="abort"),
    ],
    ids=["500", "503", "404", "302", "broken", "garbage", "list", "error", "no end", "abort"],
)
async def test_another_server_takes_over_before_the_first_token(
    fleet: Fleet, script: Script
) -> None:
    bad = await fleet.add("bad", script)
    await fleet.add("good")
    running = await fleet.route()
    for _ in range(8):
        responses = await generate(running)
        assert responses[0].route.server_id == "good"
        assert text_of(responses) == "The lamp burns."
    assert bad.bodies, "the bad server was tried"


async def test_a_server_that_is_not_there_costs_nobody_an_answer(fleet: Fleet) -> None:
    fleet.add_url("gone", "http://127.0.0.1:9")
    await fleet.add("good")
    running = await fleet.route()
    answers = await asyncio.gather(*(generate(running) for _ in range(20)))
    assert {text_of(answer) for answer in answers} == {"The lamp burns."}
    tiers = await running.stub.ListTiers(pb.ListTiersRequest(), timeout=TIMEOUT_SECONDS)
    states = {server.server_id: server.state for server in tiers.tiers[0].servers}
    assert states == {
        "gone": pb.ROUTER_SERVER_STATE_BROKEN,
        "good": pb.ROUTER_SERVER_STATE_READY,
    }


async def test_a_silent_server_is_given_up_in_time(fleet: Fleet) -> None:
    silent = await fleet.add("silent", Script(hold_before=0))
    running = await fleet.route(AI_ROUTER_GOLD_FIRST_TOKEN_TIMEOUT_SECONDS="0.2")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await generate(running, forbid_fallback=True)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert details_of(caught.value)["ErrorInfo"].reason == "UPSTREAM_FAILED"
    await until(lambda: silent.aborted == 1)


@pytest.mark.parametrize("script", [Script(break_after=2), Script(hold_before=2)])
async def test_a_failure_after_the_first_token_is_told_never_hidden(
    fleet: Fleet, script: Script
) -> None:
    await fleet.add("a", script)
    await fleet.add("b", Script(tokens=script.tokens, break_after=2))
    running = await fleet.route(AI_ROUTER_IDLE_TIMEOUT_SECONDS="0.3")
    responses: list[pb.GenerateResponse] = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await generate(running, into=responses)
    assert text_of(responses) == "The lamp "
    assert all(response.WhichOneof("event") != "end" for response in responses)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert details_of(caught.value)["ErrorInfo"].reason == "UPSTREAM_FAILED_MIDSTREAM"


async def test_a_wrong_request_is_told_so_and_not_tried_elsewhere(fleet: Fleet) -> None:
    servers = [await fleet.add(name, Script(status=400)) for name in ("a", "b")]
    running = await fleet.route()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await generate(running)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(caught.value)["ErrorInfo"].reason == "REJECTED_BY_MODEL"
    assert "scripted" not in (caught.value.details() or "")
    assert sum(len(server.bodies) for server in servers) == 1


async def test_a_request_without_messages_is_invalid(fleet: Fleet) -> None:
    running = await fleet.route()
    call = running.stub.Generate(pb.GenerateRequest(spec=pb.GenerationSpec()), timeout=5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [response async for response in call]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_servers_that_are_all_too_busy_are_told_as_overload(fleet: Fleet) -> None:
    for name in ("a", "b"):
        await fleet.add(name, Script(status=503))
    running = await fleet.route()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await generate(running, forbid_fallback=True)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    found = details_of(caught.value)
    assert found["ErrorInfo"].reason == "OVERLOADED"
    assert found["RetryInfo"].retry_delay.ToMilliseconds() > 0


async def test_cancellation_reaches_the_model_server_and_frees_the_place(fleet: Fleet) -> None:
    server = await fleet.add("a", Script(hold_before=1))
    running = await fleet.route(AI_ROUTER_GOLD_REQUEST_LIMIT="1")
    call = running.stub.Generate(pb.GenerateRequest(spec=spec()), timeout=TIMEOUT_SECONDS)
    responses = aiter(call)
    assert (await anext(responses)).WhichOneof("event") == "route"
    await server.held.wait()
    call.cancel()
    await until(lambda: server.aborted == 1 and server.running == 0)
    await until(lambda: running.router.desk.directory.pool(Tier.GOLD).running("a") == (0, 0))
    server.script = Script()
    assert text_of(await generate(running, forbid_fallback=True)) == "The lamp burns."


async def test_a_deadline_reaches_the_model_server_too(fleet: Fleet) -> None:
    server = await fleet.add("a", Script(hold_before=1))
    running = await fleet.route()
    call = running.stub.Generate(pb.GenerateRequest(spec=spec()), timeout=0.5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [response async for response in call]
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: server.running == 0)


async def test_who_leaves_the_queue_leaves_no_trace(fleet: Fleet) -> None:
    server = await fleet.add("a", Script(hold_before=0))
    running = await fleet.route(AI_ROUTER_GOLD_REQUEST_LIMIT="1")
    first = asyncio.create_task(generate(running, forbid_fallback=True))
    await server.held.wait()
    waiting = running.stub.Generate(
        pb.GenerateRequest(spec=spec(forbid_fallback=True)), timeout=TIMEOUT_SECONDS
    )
    reading = asyncio.create_task(waiting.read())
    await until(lambda: len(running.router.desk.queued(Tier.GOLD)) == 1)
    waiting.cancel()
    await until(lambda: len(running.router.desk.queued(Tier.GOLD)) == 0)
    server.release.set()
    assert text_of(await first) == "The lamp burns."
    assert len(server.bodies) == 1
    await asyncio.gather(reading, return_exceptions=True)


async def test_a_full_queue_turns_away_with_a_time_to_come_back(fleet: Fleet) -> None:
    server = await fleet.add("a", Script(hold_before=0))
    running = await fleet.route(AI_ROUTER_GOLD_REQUEST_LIMIT="1", AI_ROUTER_QUEUE_LIMIT="2")
    calls = [asyncio.create_task(generate(running, forbid_fallback=True)) for _ in range(3)]
    await until(lambda: len(running.router.desk.queued(Tier.GOLD)) == 2)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await generate(running, forbid_fallback=True)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    found = details_of(caught.value)
    assert found["ErrorInfo"].reason == "OVERLOADED"
    assert found["RetryInfo"].retry_delay.ToMilliseconds() >= 1000
    urgent = asyncio.create_task(generate(running, forbid_fallback=True, priority=pb.PRIORITY_HIGH))
    await until(lambda: any(call.done() for call in calls))
    server.release.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(outcome, grpc.aio.AioRpcError) for outcome in outcomes) == 1
    assert text_of(await urgent) == "The lamp burns."


async def test_a_request_that_cannot_be_in_time_is_refused_at_once(fleet: Fleet) -> None:
    server = await fleet.add("a", Script(hold_before=0))
    running = await fleet.route(AI_ROUTER_GOLD_REQUEST_LIMIT="1")
    first = asyncio.create_task(generate(running, max_output_tokens=1000))
    await server.held.wait()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await generate(
            running,
            max_output_tokens=1000,
            latency_budget=Duration(seconds=1),
            forbid_fallback=True,
        )
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details_of(caught.value)["ErrorInfo"].reason == "DEADLINE_UNREACHABLE"
    server.release.set()
    await first


async def test_the_fallback_tier_answers_when_the_wanted_one_is_down(fleet: Fleet) -> None:
    await fleet.add("g", Script(status=500))
    await fleet.add("s", tier=Tier.SILVER)
    running = await fleet.route()
    route = (await generate(running))[0].route
    assert (route.tier, route.wanted_tier) == (tier_pb2.TIER_SILVER, tier_pb2.TIER_GOLD)
    assert route.failed_attempts == 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await generate(running, forbid_fallback=True)
    assert details_of(caught.value)["ErrorInfo"].reason == "UPSTREAM_FAILED"


async def test_no_capacity_is_told_apart_from_overload(fleet: Fleet) -> None:
    running = await fleet.route()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await generate(running, latency_budget=Duration(nanos=300_000_000))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    found = details_of(caught.value)
    assert found["ErrorInfo"].reason == "NO_CAPACITY"
    assert found["RetryInfo"].retry_delay.ToMilliseconds() == 5000


async def test_the_same_deterministic_request_is_answered_once(fleet: Fleet) -> None:
    server = await fleet.add("a")
    running = await fleet.route()
    first = await generate(running, temperature=0.0)
    again = await generate(running, temperature=0.0)
    assert text_of(first) == text_of(again)
    assert not first[0].route.cached
    assert again[0].route.cached
    assert again[0].route.server_id == ""
    assert again[-1].end.output_tokens == first[-1].end.output_tokens
    assert len(server.bodies) == 1
    await generate(running, temperature=0.0, cache_mode=pb.CACHE_MODE_BYPASS)
    await generate(running)
    assert len(server.bodies) == 3
    tiers = await running.stub.ListTiers(pb.ListTiersRequest(), timeout=TIMEOUT_SECONDS)
    assert (tiers.cached_answers, tiers.cache_hits, tiers.cache_misses) == (1, 1, 1)


async def test_a_broken_answer_is_never_cached(fleet: Fleet) -> None:
    server = await fleet.add("a", Script(break_after=2))
    running = await fleet.route()
    with pytest.raises(grpc.aio.AioRpcError):
        await generate(running, temperature=0.0)
    server.script = Script()
    assert text_of(await generate(running, temperature=0.0)) == "The lamp burns."
