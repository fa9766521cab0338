"""The router and the collector's fleet feed: discovery, drains, demand, static stability."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from ai_router.adapters.collector_fleet import CollectorFleetSource
from ai_router.domain.tiers import Tier
from ai_router.testing.fleet_publisher import FleetPublisher
from ai_router.testing.running_router import RunningRouter, run_router
from ai_router.testing.scripted_model_server import Script, ScriptedModelServer, serve_script
from gaming.ai_router.v1 import ai_router_pb2 as pb
from gaming.common.v1 import tier_pb2
from gaming.gpu_metrics.v1 import fleet_pb2, gpu_metrics_pb2_grpc
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.server import RpcServer, ServerSettings
from servicekit.settings import load_settings

TIMEOUT_SECONDS = 20.0


async def until(condition: Callable[[], Any], timeout_seconds: float = 30.0) -> None:
    async with asyncio.timeout(timeout_seconds):
        while not condition():  # noqa: ASYNC110  # state of several parties, polled
            await asyncio.sleep(0.005)


class World:
    """A collector, a router that follows it, and the test's hands on both."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.publisher = FleetPublisher("first")  # type: ignore[abstract]  # what nobody calls answers UNIMPLEMENTED
        self._collector: RpcServer | None = None
        self._address = "127.0.0.1:0"

    async def start_collector(self, publisher: FleetPublisher | None = None) -> None:
        self.publisher = publisher or self.publisher
        environ = {"GAMEKEEPER_LISTEN_ADDRESS": self._address}
        settings = load_settings(ServerSettings, environ)
        registrations = [self.publisher.registration]
        self._collector = RpcServer(registrations, settings, clock=SystemClock())
        await self._collector.start()
        self._address = self._collector.address

    async def stop_collector(self) -> None:
        if self._collector is not None:
            collector, self._collector = self._collector, None
            await collector.stop(0)

    async def start_router(self, grace_seconds: float = 20.0, **environ: str) -> RunningRouter:
        channel = await self._stack.enter_async_context(open_channel(self._address))
        source = CollectorFleetSource(
            gpu_metrics_pb2_grpc.GpuMetricsServiceStub(channel),
            SystemClock(),
            random=random.Random(1),  # noqa: S311  # jitter, no secret
            grace_seconds=grace_seconds,
        )
        environ.setdefault("AI_ROUTER_DEMAND_INTERVAL_SECONDS", "0.1")
        running = await self._stack.enter_async_context(run_router(source, environ))
        await until(lambda: running.router.fleet_age_seconds() is not None)
        return running

    async def model_server(self, script: Script | None = None) -> ScriptedModelServer:
        return await self._stack.enter_async_context(serve_script(script))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        made = World(stack)
        await made.start_collector()
        try:
            yield made
        finally:
            await stack.aclose()
            await made.stop_collector()


async def ask(running: RunningRouter, **fields: Any) -> pb.GenerateOnceResponse:
    fields.setdefault("tier", tier_pb2.TIER_GOLD)
    message = pb.ChatMessage(role=pb.CHAT_ROLE_USER, content="Who lit the lighthouse?")
    spec = pb.GenerationSpec(messages=[message], max_output_tokens=16, **fields)
    request = pb.GenerateOnceRequest(spec=spec)
    return await running.stub.GenerateOnce(request, timeout=TIMEOUT_SECONDS)


async def states(running: RunningRouter) -> dict[str, pb.RouterServerState.ValueType]:
    tiers = await running.stub.ListTiers(pb.ListTiersRequest(), timeout=TIMEOUT_SECONDS)
    return {server.server_id: server.state for tier in tiers.tiers for server in tier.servers}


def known(running: RunningRouter, server_id: str) -> bool:
    return any(
        status.report.server_id == server_id
        for tier in Tier
        for status in running.router.desk.directory.statuses(tier, 0.0)
    )


async def test_servers_come_change_and_go_with_the_feed(world: World) -> None:
    server = await world.model_server()
    world.publisher.put("a", server.url, state=fleet_pb2.MODEL_SERVER_STATE_STARTING)
    running = await world.start_router()
    await until(lambda: known(running, "a"))
    assert await states(running) == {"a": pb.ROUTER_SERVER_STATE_UNAVAILABLE}
    world.publisher.put("a", server.url)
    response = await ask(running)
    assert response.route.server_id == "a"
    world.publisher.put("b", server.url, tier="silver")
    await until(lambda: known(running, "b"))
    world.publisher.remove("a")
    await until(lambda: not known(running, "a"))
    route = (await ask(running)).route
    assert (route.server_id, route.tier) == ("b", tier_pb2.TIER_SILVER)


async def test_a_tier_at_zero_shows_demand_and_serves_once_a_server_comes(world: World) -> None:
    running = await world.start_router()
    demand = running.stub.WatchDemand(pb.WatchDemandRequest(), timeout=TIMEOUT_SECONDS)
    answer = asyncio.create_task(ask(running, tier=tier_pb2.TIER_BRONZE))
    async for interval in demand:
        assert [tier.tier for tier in interval.tiers] == [1, 2, 3]
        bronze = interval.tiers[2]
        if bronze.queued_requests:
            break
    assert bronze.queued_tokens > 0
    server = await world.model_server()
    world.publisher.put("b", server.url, tier="bronze", model="bronze-model")
    response = await answer
    assert response.route.server_id == "b"
    assert response.route.queue_duration.ToMilliseconds() > 0
    async for interval in demand:
        bronze = interval.tiers[2]
        if bronze.completed_requests:
            break
    assert (bronze.completed_requests, bronze.queued_requests) == (1, 0)
    demand.cancel()


async def test_demand_is_counted_for_the_wanted_tier_and_resumes_without_a_gap(
    world: World,
) -> None:
    server = await world.model_server()
    world.publisher.put("s", server.url, tier="silver")
    running = await world.start_router()
    await until(lambda: known(running, "s"))
    first = running.stub.WatchDemand(pb.WatchDemandRequest(), timeout=TIMEOUT_SECONDS)
    start = await first.read()
    assert isinstance(start, pb.WatchDemandResponse)
    first.cancel()
    for _ in range(3):
        assert (await ask(running)).route.tier == tier_pb2.TIER_SILVER
    await ask(running, tier=tier_pb2.TIER_SILVER)
    resumed = running.stub.WatchDemand(
        pb.WatchDemandRequest(resume_token=start.resume_token), timeout=TIMEOUT_SECONDS
    )
    gold_completed = gold_fallback = silver_completed = 0
    last_end = start.end_time
    async for interval in resumed:
        assert interval.router_id == "router-under-test"
        assert interval.start_time == last_end, "intervals touch"
        last_end = interval.end_time
        gold, silver, _ = interval.tiers
        gold_completed += gold.completed_requests
        gold_fallback += gold.fallback_requests
        silver_completed += silver.completed_requests
        if gold_completed + silver_completed >= 4:
            break
    resumed.cancel()
    assert (gold_completed, gold_fallback, silver_completed) == (3, 3, 1)


async def test_an_unknown_resume_token_is_told_to_start_again(world: World) -> None:
    running = await world.start_router()
    call = running.stub.WatchDemand(
        pb.WatchDemandRequest(resume_token="elsewhere.1"), timeout=TIMEOUT_SECONDS
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE


async def test_a_dead_collector_takes_no_server_away(world: World) -> None:
    server = await world.model_server()
    world.publisher.put("a", server.url)
    running = await world.start_router()
    await until(lambda: known(running, "a"))
    await world.stop_collector()
    for _ in range(5):
        assert (await ask(running)).route.server_id == "a"
    tiers = await running.stub.ListTiers(pb.ListTiersRequest(), timeout=TIMEOUT_SECONDS)
    assert tiers.fleet_age.ToMilliseconds() > 0


async def test_a_restarted_collector_that_knows_nobody_yet_takes_no_server_away(
    world: World,
) -> None:
    server = await world.model_server()
    world.publisher.put("a", server.url)
    running = await world.start_router(grace_seconds=1.0)
    await until(lambda: known(running, "a"))
    await world.stop_collector()
    successor = FleetPublisher("second")  # type: ignore[abstract]  # what nobody calls answers UNIMPLEMENTED
    await world.start_collector(successor)
    await until(lambda: successor.subscribers == 1)
    assert (await ask(running)).route.server_id == "a"
    # What does not report to the successor within the grace is gone after all.
    await until(lambda: not known(running, "a"))


async def test_a_drained_server_finishes_what_it_has_and_gets_nothing_new(world: World) -> None:
    busy, other = await world.model_server(Script(hold_before=1)), await world.model_server()
    world.publisher.put("busy", busy.url)
    running = await world.start_router()
    await until(lambda: known(running, "busy"))
    held = asyncio.create_task(ask(running))
    await busy.held.wait()
    world.publisher.put("other", other.url)
    await until(lambda: known(running, "other"))
    drain = pb.DrainServerRequest(server_id="busy", lease_duration=Duration(seconds=60))
    response = await running.stub.DrainServer(drain, timeout=TIMEOUT_SECONDS)
    assert response.running_requests == 1
    assert response.HasField("lease_expire_time")
    for _ in range(5):
        assert (await ask(running)).route.server_id == "other"
    assert (await states(running))["busy"] == pb.ROUTER_SERVER_STATE_DRAINING
    busy.release.set()
    assert (await held).text == "The lamp burns."
    response = await running.stub.DrainServer(drain, timeout=TIMEOUT_SECONDS)
    assert response.running_requests == 0
    resumed = await running.stub.ResumeServer(
        pb.ResumeServerRequest(server_id="busy"), timeout=TIMEOUT_SECONDS
    )
    assert resumed.state == pb.ROUTER_SERVER_STATE_READY


async def test_draining_an_unknown_server_is_refused(world: World) -> None:
    running = await world.start_router()
    for call in (
        running.stub.DrainServer(pb.DrainServerRequest(server_id="nobody"), timeout=5),
        running.stub.ResumeServer(pb.ResumeServerRequest(server_id="nobody"), timeout=5),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_route_is_explained_before_it_is_taken(world: World) -> None:
    server = await world.model_server()
    world.publisher.put("a", server.url)
    world.publisher.put("b", server.url)
    world.publisher.put("s", server.url, tier="silver")
    running = await world.start_router()
    await until(lambda: all(known(running, name) for name in "abs"))
    await running.stub.DrainServer(pb.DrainServerRequest(server_id="a"), timeout=TIMEOUT_SECONDS)
    message = pb.ChatMessage(role=pb.CHAT_ROLE_USER, content="x" * 400)
    spec = pb.GenerationSpec(
        messages=[message], priority=pb.PRIORITY_HIGH, max_output_tokens=50, temperature=0.0
    )
    request = pb.ExplainRouteRequest(spec=spec)
    explained = await running.stub.ExplainRoute(request, timeout=TIMEOUT_SECONDS)
    assert explained.verdict == pb.ROUTE_VERDICT_SEND
    assert (explained.wanted_tier, explained.serving_tier) == (1, 1)
    assert explained.server_id == "b"
    assert "high priority" in explained.tier_reason
    assert explained.estimated_tokens == pytest.approx(157, abs=5)
    by_id = {candidate.server_id: candidate for candidate in explained.candidates}
    assert not by_id["a"].eligible
    assert by_id["s"].eligible
    assert not server.bodies, "nothing was sent"
    once = pb.GenerateOnceRequest(spec=spec)
    assert (await running.stub.GenerateOnce(once, timeout=10)).route.server_id == "b"
    explained = await running.stub.ExplainRoute(request, timeout=TIMEOUT_SECONDS)
    assert explained.verdict == pb.ROUTE_VERDICT_CACHE


async def test_tiers_show_what_happened_in_the_last_minute(world: World) -> None:
    server = await world.model_server(Script(tokens=["w "] * 10))
    world.publisher.put("a", server.url)
    running = await world.start_router()
    await until(lambda: known(running, "a"))
    for _ in range(4):
        await ask(running)
    tiers = (await running.stub.ListTiers(pb.ListTiersRequest(), timeout=5)).tiers
    gold, silver = tiers[0], tiers[1]
    assert gold.completed_last_minute == 4
    assert gold.time_to_first_token_p95.ToMicroseconds() > 0
    assert gold.HasField("time_per_token_p95")
    assert gold.queue_limit == 100
    assert (gold.servers[0].running_requests, gold.servers[0].running_tokens) == (0, 0)
    assert gold.servers[0].endpoint_url == server.url
    assert not silver.HasField("time_to_first_token_p95")


async def test_load_that_others_put_on_a_server_is_avoided(world: World) -> None:
    server = await world.model_server()
    world.publisher.put(
        "loaded",
        server.url,
        running_requests=30,
        waiting_requests=10,
        kv_cache_usage_permille=500,
        kv_cache_capacity_tokens=20_000,
    )
    world.publisher.put("idle", server.url, running_requests=0, waiting_requests=0)
    running = await world.start_router()
    await until(lambda: known(running, "loaded") and known(running, "idle"))
    assert {(await ask(running)).route.server_id for _ in range(6)} == {"idle"}
