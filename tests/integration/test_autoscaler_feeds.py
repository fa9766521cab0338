"""The autoscaler's eyes and hands over real gRPC: feeds that break, routers that do not answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from autoscaler.adapters.demand_feed import WatchedDemand
from autoscaler.adapters.fleet_feed import WatchedFleet
from autoscaler.adapters.router_drains import GrpcRouterDrains
from autoscaler.domain.tiers import Tier
from autoscaler.testing.outside import Asked, ScriptedCollector, ScriptedRouter
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.server import RpcServer, ServerSettings, ServiceRegistration
from servicekit.settings import load_settings


class Net:
    """Servers that a test starts and stops on addresses that stay."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.stack = stack

    async def serve(
        self, registration: ServiceRegistration, address: str = "127.0.0.1:0"
    ) -> RpcServer:
        settings = load_settings(ServerSettings, {"GAMEKEEPER_LISTEN_ADDRESS": address})
        server = RpcServer([registration], settings, clock=SystemClock())
        await server.start()
        self.stack.push_async_callback(server.stop, 0)
        return server

    async def run(self, task: Callable[[], Any]) -> None:
        running = asyncio.ensure_future(task())

        async def end() -> None:
            running.cancel()
            await asyncio.wait([running])

        self.stack.push_async_callback(end)


@pytest.fixture
async def net() -> AsyncIterator[Net]:
    async with AsyncExitStack() as stack:
        yield Net(stack)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - state of several parties, polled
            await asyncio.sleep(0.02)


async def test_the_fleet_is_followed_through_a_restart_of_the_collector(net: Net) -> None:
    collector = ScriptedCollector(hosts={"i-1": Tier.GOLD})  # type: ignore[abstract]  # what nobody calls answers UNIMPLEMENTED
    server = await net.serve(collector.registration)
    channel = await net.stack.enter_async_context(open_channel(server.address))
    fleet = WatchedFleet(channel, clock=SystemClock(), jitter=random.Random(1))  # noqa: S311 - jitter, no secret
    assert fleet.view().age_seconds is None
    await net.run(fleet.run)
    await until(lambda: "i-1" in fleet.view().hosts)
    collector.hosts = {"i-1": Tier.GOLD, "i-2": Tier.SILVER}
    collector.interruptions = {"i-1": 2_000_000_000.0}
    await until(lambda: len(fleet.view().hosts) == 2)
    # By our clock: the message was a moment on its way.
    interruption_time = fleet.view().hosts["i-1"].interruption_time
    assert interruption_time == pytest.approx(2_000_000_000.0, abs=20)
    assert fleet.view().tiers[Tier.GOLD].ready_servers == 1
    address = server.address
    await server.stop(0)
    await until(lambda: (fleet.view().age_seconds or 0) > 0.5)
    before = fleet.view().age_seconds or 0
    assert len(fleet.view().hosts) == 2  # the last good state stays, with its age
    other = ScriptedCollector(hosts={"i-3": Tier.BRONZE})  # type: ignore[abstract]  # what nobody calls answers UNIMPLEMENTED
    await net.serve(other.registration, address)
    await until(lambda: set(fleet.view().hosts) == {"i-3"})
    await until(lambda: (fleet.view().age_seconds or 0) < before)


async def test_demand_of_all_routers_is_summed_and_one_that_is_silent_makes_it_old(
    net: Net,
) -> None:
    first = ScriptedRouter("one", asked={Tier.GOLD: Asked(arrivals_per_second=4)})
    second = ScriptedRouter(
        "two", asked={Tier.GOLD: Asked(arrivals_per_second=2, queued_requests=3)}
    )
    servers = [await net.serve(r.registration) for r in (first, second)]
    channels = {
        s.address: await net.stack.enter_async_context(open_channel(s.address)) for s in servers
    }
    demand = WatchedDemand(
        channels,
        clock=SystemClock(),
        jitter=random.Random(1),  # noqa: S311 - jitter, no secret
        window_seconds=1.0,
        forget_seconds=2.0,
    )
    await net.run(demand.run)
    await until(lambda: demand.view().age_seconds is not None)
    gold = demand.view().tiers[Tier.GOLD]
    assert gold.arrivals_per_second == pytest.approx(6.0)
    assert gold.queued_tokens == 1_800
    await servers[1].stop(0)
    await until(lambda: (demand.view().age_seconds or 0) > 2.0)
    assert demand.view().tiers[Tier.GOLD].arrivals_per_second == pytest.approx(4.0)


async def test_every_router_is_asked_to_drain_and_silence_is_not_zero(net: Net) -> None:
    busy = ScriptedRouter("busy", running={"gold-1": 3})
    ignorant = ScriptedRouter("ignorant", unknown_servers={"gold-1"})
    servers = [await net.serve(r.registration) for r in (busy, ignorant)]
    targets = [*(s.address for s in servers), "127.0.0.1:1"]
    channels = {t: await net.stack.enter_async_context(open_channel(t)) for t in targets}
    drains = GrpcRouterDrains(channels, timeout_seconds=2.0)
    answers = await drains.drain("gold-1", lease_seconds=0.2)
    assert answers == {targets[0]: 3, targets[1]: 0, targets[2]: None}
    assert busy.draining == {"gold-1"}
    await drains.resume("gold-1")
    assert busy.resumed == ["gold-1"]
