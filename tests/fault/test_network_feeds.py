"""A bad network under the fleet feed: from an agent to its collector, from there to a router."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from fault_proxy import FaultProxy
from service_processes import collector_process, router_process

from gaming.ai_router.v1 import ai_router_pb2, ai_router_pb2_grpc
from gaming.gpu_metrics.v1 import fleet_pb2, gpu_metrics_pb2, gpu_metrics_pb2_grpc
from gpu_metrics.adapters.collector_link import CollectorLink
from gpu_metrics.adapters.configured_host import ConfiguredHost
from gpu_metrics.agent import Agent
from gpu_metrics.domain.readings import Host, ModelServerReading, Tier
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.telemetry import Telemetry

RECOVERY_SECONDS = 5.0
STALE_SECONDS = 2.0
HOST_ID = "i-behind-a-bad-link"


class ReadyServer:
    async def read_server(self) -> ModelServerReading:
        return ModelServerReading(
            server_id="server", endpoint_url="http://127.0.0.1:9", tier=Tier.GOLD
        )


@asynccontextmanager
async def reporting_agent(collector_address: str) -> AsyncIterator[None]:
    clock, telemetry, stopping = SystemClock(), Telemetry("test"), asyncio.Event()
    async with open_channel(collector_address) as channel, asyncio.TaskGroup() as group:
        link = CollectorLink(
            channel,
            name=collector_address,
            clock=clock,
            jitter=random.Random(1),  # noqa: S311  # spreads retries, no secret
            telemetry=telemetry,
        )
        agent = Agent(
            host=ConfiguredHost(Host(host_id=HOST_ID)),
            gpus=[],
            servers=[ReadyServer()],
            sinks=[link],
            clock=clock,
            boot_id="boot",
            interval_seconds=0.2,
        )
        group.create_task(agent.run(stopping))
        try:
            yield
        finally:
            stopping.set()


@dataclass(frozen=True, slots=True)
class Feeds:
    """Both links through proxies, and what may be asked at either end."""

    to_collector: FaultProxy
    to_router: FaultProxy
    collector: gpu_metrics_pb2_grpc.GpuMetricsServiceAsyncStub
    router: ai_router_pb2_grpc.AiRouterServiceAsyncStub

    async def host_is_fresh(self) -> bool:
        answer = await self.collector.GetFleet(gpu_metrics_pb2.GetFleetRequest(), timeout=5)
        hosts = {view.host.host_id: view.freshness for view in answer.fleet.hosts}
        return hosts.get(HOST_ID) == fleet_pb2.FRESHNESS_FRESH

    async def router_knows_the_server(self, age: timedelta) -> bool:
        answer = await self.router.ListTiers(ai_router_pb2.ListTiersRequest(), timeout=5)
        servers = [server.server_id for tier in answer.tiers for server in tier.servers]
        return "server" in servers and answer.fleet_age.ToTimedelta() < age


@pytest.fixture
async def feeds(tmp_path: Path) -> AsyncIterator[Feeds]:
    async with AsyncExitStack() as stack:
        collector = await stack.enter_async_context(
            collector_process(
                tmp_path / "collector.log",
                GPU_METRICS_STALE_AFTER_SECONDS=str(STALE_SECONDS),
                GPU_METRICS_HEARTBEAT_SECONDS="0.5",
            )
        )
        to_collector = await stack.enter_async_context(FaultProxy(collector.address, seed=1))
        to_router = await stack.enter_async_context(FaultProxy(collector.address, seed=2))
        router = await stack.enter_async_context(
            router_process(tmp_path / "router.log", AI_ROUTER_COLLECTOR_ADDRESS=to_router.address)
        )
        await stack.enter_async_context(reporting_agent(to_collector.address))
        channels = [
            await stack.enter_async_context(open_channel(each.address))
            for each in (collector, router)
        ]
        feeds = Feeds(
            to_collector,
            to_router,
            gpu_metrics_pb2_grpc.GpuMetricsServiceStub(channels[0]),
            ai_router_pb2_grpc.AiRouterServiceStub(channels[1]),
        )
        await until(lambda: feeds.router_knows_the_server(timedelta(seconds=2)))
        yield feeds


async def until(holds: Callable[[], Awaitable[bool]], timeout_seconds: float = 30.0) -> float:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with asyncio.timeout(timeout_seconds):
        while not await holds():  # noqa: ASYNC110  # asked by RPC
            await asyncio.sleep(0.05)
    return loop.time() - begun


@pytest.mark.endurance
async def test_an_agent_cut_off_turns_stale_and_reports_again_once_it_can(
    feeds: Feeds, record_property: Callable[[str, object], None]
) -> None:
    async def stale() -> bool:
        return not await feeds.host_is_fresh()

    feeds.to_collector.blackhole()
    await until(stale)
    # Silence of a host is no reason to take its server out of use.
    assert await feeds.router_knows_the_server(timedelta(seconds=5))
    await asyncio.sleep(RECOVERY_SECONDS)
    feeds.to_collector.heal()
    recovery = await until(feeds.host_is_fresh)
    record_property("fresh again after, s", round(recovery, 2))
    assert recovery <= RECOVERY_SECONDS


@pytest.mark.endurance
async def test_a_router_cut_off_from_its_collector_keeps_the_fleet_and_follows_it_again(
    feeds: Feeds, record_property: Callable[[str, object], None]
) -> None:
    feeds.to_router.blackhole()
    await asyncio.sleep(RECOVERY_SECONDS)
    assert await feeds.router_knows_the_server(timedelta(minutes=1))
    assert not await feeds.router_knows_the_server(timedelta(seconds=2))
    feeds.to_router.heal()
    recovery = await until(lambda: feeds.router_knows_the_server(timedelta(seconds=1)))
    record_property("followed again after, s", round(recovery, 2))
    assert recovery <= RECOVERY_SECONDS


@pytest.mark.endurance
async def test_half_open_connections_are_left_for_new_ones_by_agent_and_router(
    feeds: Feeds,
) -> None:
    """Nobody is told: both would wait for ever on connections whose other end is gone."""
    lost = [
        (proxy, proxy.accepted, proxy.open_connections)
        for proxy in (feeds.to_collector, feeds.to_router)
    ]
    for proxy, _, connections in lost:
        assert connections > 0
        proxy.lose_servers()

    async def both_left() -> bool:
        return all(proxy.accepted > accepted for proxy, accepted, _ in lost)

    await until(both_left)
    await until(feeds.host_is_fresh)
    await until(lambda: feeds.router_knows_the_server(timedelta(seconds=1)))
