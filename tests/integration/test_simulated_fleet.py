"""The simulated GPU fleet as a process: it follows the local AWS and reports to a collector."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from gaming.gpu_metrics.v1 import events_pb2, fleet_pb2, gpu_metrics_pb2
from gpu_metrics.testing import CollectorForTest, collector_for_test
from localsuite.aws.account import seed_account
from localsuite.aws.region import Region
from localsuite.aws.server import LocalAwsServer
from localsuite.aws.tiers import TierCapacity

pytestmark = pytest.mark.slow

READY = fleet_pb2.MODEL_SERVER_STATE_READY
COMPRESSION = 60.0


@dataclass
class Suite:
    collector: CollectorForTest
    aws: LocalAwsServer
    aws_url: str
    control_url: str
    session: aiohttp.ClientSession
    process: asyncio.subprocess.Process

    async def hosts(self) -> dict[str, fleet_pb2.HostView]:
        request = gpu_metrics_pb2.GetFleetRequest()
        response = await self.collector.fleet.GetFleet(request, timeout=5)
        return {view.host.host_id: view for view in response.fleet.hosts}

    async def ready_hosts(self) -> dict[str, fleet_pb2.HostView]:
        return {
            host_id: view
            for host_id, view in (await self.hosts()).items()
            if any(server.state == READY for server in view.servers)
        }

    async def post(self, url: str, document: dict[str, Any] | None = None) -> Any:
        async with self.session.post(url, json=document or {}) as response:
            assert response.status == 200, await response.text()
            return await response.json()


async def until(condition: Callable[[], Awaitable[bool]], *, timeout_seconds: float = 40.0) -> None:
    async with asyncio.timeout(timeout_seconds):
        while not await condition():  # noqa: ASYNC110  # another process's state has no event
            await asyncio.sleep(0.05)


@asynccontextmanager
async def started_suite(*tiers: TierCapacity) -> AsyncIterator[Suite]:
    aws = LocalAwsServer(Region(seed=7, time_compression=COMPRESSION))
    await asyncio.to_thread(aws.start)
    await asyncio.to_thread(seed_account, aws.endpoint, tiers)
    async with (
        collector_for_test(stale_after_seconds=3, expire_after_seconds=6) as collector,
        aiohttp.ClientSession() as session,
    ):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "localsuite.fleet", "--aws-url", aws.endpoint),
            *("--collector", collector.address, "--seed", "7"),
            *("--time-compression", str(COMPRESSION)),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            line = await asyncio.wait_for(process.stdout.readline(), 60)
            ready = json.loads(line)
            assert ready["simulation"] is True
            yield Suite(collector, aws, aws.endpoint, ready["control_url"], session, process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            await asyncio.to_thread(aws.stop)


def capacity(tier: str, instance_type: str, count: int, **changes: Any) -> TierCapacity:
    return TierCapacity(
        tier=tier,
        instance_types=(instance_type,),
        min_size=0,
        max_size=10,
        desired_capacity=count,
        **changes,
    )


async def test_instances_become_hosts_with_a_server_of_their_tier_and_go_with_them() -> None:
    async with started_suite(
        capacity("gold", "g5.xlarge", 2), capacity("bronze", "c5.4xlarge", 1)
    ) as suite:

        async def all_ready() -> bool:
            return len(await suite.ready_hosts()) == 3

        await until(all_ready)
        hosts = await suite.hosts()
        for view in hosts.values():
            assert view.host.simulated
            assert view.host.availability_zone.startswith("us-east-1")
            (server,) = view.servers
            has_gpu = view.host.instance_type == "g5.xlarge"
            assert len(view.gpus) == len(server.gpu_uuids) == has_gpu

        gold_id = next(h for h, v in hosts.items() if v.host.instance_type == "g5.xlarge")
        async with suite.session.post(
            f"{suite.aws_url}/_local/kill-host", json={"instance_id": gold_id}
        ) as response:
            assert response.status == 200

        async def stale() -> bool:
            view = (await suite.hosts()).get(gold_id)
            return view is not None and view.freshness == fleet_pb2.FRESHNESS_STALE

        async def gone() -> bool:
            return gold_id not in await suite.hosts()

        # A host that fails says nothing: it is missed first, and forgotten later.
        await until(stale)
        await until(gone)
        # Its group replaces it.
        await until(all_ready)

        suite.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(suite.process.wait(), 60) == 0
        assert await suite.hosts() == {}


async def test_a_spot_notice_reaches_the_view_before_the_host_goes() -> None:
    spot = capacity("gold", "g6.xlarge", 1, on_demand_percentage_above_base=0)
    async with started_suite(spot) as suite:

        async def ready() -> bool:
            return bool(await suite.ready_hosts())

        await until(ready)
        ((host_id, view),) = (await suite.ready_hosts()).items()
        assert view.host.purchase_option == fleet_pb2.PURCHASE_OPTION_SPOT
        assert not view.host.HasField("interruption_time")
        await suite.post(f"{suite.aws_url}/_local/interrupt", {"instance_id": host_id})

        async def noticed_or_gone() -> bool:
            view = (await suite.hosts()).get(host_id)
            return view is None or view.host.HasField("interruption_time")

        await until(noticed_or_gone)
        assert host_id in await suite.hosts()
        told = suite.collector.fleet.WatchGpuEvents(events_pb2.WatchGpuEventsRequest(), timeout=60)
        async for step in told:
            if step.HasField("event"):
                break
        told.cancel()
        assert step.position.host_id == host_id
        assert step.event.kind == events_pb2.GPU_EVENT_KIND_SPOT_INTERRUPTION

        async def gone() -> bool:
            return host_id not in await suite.hosts()

        await until(gone)


async def test_a_killed_server_is_unhealthy_at_once_and_its_host_stays() -> None:
    async with started_suite(capacity("gold", "g5.xlarge", 1)) as suite:

        async def ready() -> bool:
            return bool(await suite.ready_hosts())

        await until(ready)
        (view,) = (await suite.hosts()).values()
        url = view.servers[0].endpoint_url
        killed = await suite.post(
            f"{suite.control_url}/kill?server_id={view.servers[0].server_id}&restart=false"
        )
        assert killed["killed"]["endpoint_url"] == url
        with pytest.raises(aiohttp.ClientConnectionError):
            await suite.session.get(f"{url}/health")

        async def unhealthy() -> bool:
            (view,) = (await suite.hosts()).values()
            return view.servers[0].state == fleet_pb2.MODEL_SERVER_STATE_UNHEALTHY

        await until(unhealthy)
        async with suite.session.post(f"{suite.control_url}/kill?tier=gold") as response:
            assert response.status == 404


async def test_a_killed_server_that_is_restarted_serves_on_the_same_port_again() -> None:
    async with started_suite(capacity("silver", "g5.2xlarge", 1)) as suite:

        async def ready() -> bool:
            return bool(await suite.ready_hosts())

        await until(ready)
        killed = await suite.post(f"{suite.control_url}/kill?tier=silver")
        await until(ready)
        async with suite.session.get(f"{suite.control_url}/servers") as response:
            (server,) = (await response.json())["servers"]
        assert server["endpoint_url"] == killed["killed"]["endpoint_url"]
        assert server["ready_time"] > killed["killed"]["ready_time"]


async def test_hosts_live_on_without_the_cloud_and_follow_it_when_it_is_another_one() -> None:
    async with started_suite(capacity("gold", "g5.xlarge", 1)) as suite:

        async def ready() -> bool:
            return bool(await suite.ready_hosts())

        await until(ready)
        before = set(await suite.hosts())
        await asyncio.to_thread(suite.aws.stop)
        (view,) = (await suite.hosts()).values()
        reported = view.receive_time.ToDatetime()

        async def reports_go_on() -> bool:
            (view,) = (await suite.hosts()).values()
            return (view.receive_time.ToDatetime() - reported).total_seconds() > 1.5

        await until(reports_go_on)
        port = int(suite.aws_url.rpartition(":")[2])
        other = LocalAwsServer(Region(seed=8, time_compression=COMPRESSION), port=port)
        await asyncio.to_thread(other.start)
        try:
            tiers = (capacity("silver", "g5.2xlarge", 1),)
            await asyncio.to_thread(seed_account, other.endpoint, tiers)

            async def replaced() -> bool:
                return bool(await suite.ready_hosts()) and before.isdisjoint(await suite.hosts())

            await until(replaced)
            (view,) = (await suite.hosts()).values()
            assert view.host.instance_type == "g5.2xlarge"
        finally:
            await asyncio.to_thread(other.stop)
