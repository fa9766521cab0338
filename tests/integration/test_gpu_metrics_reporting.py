"""Real agents report to real collectors over gRPC, about simulated vLLM servers over HTTP."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from aiohttp import web

from fleetsim.profiles import GOLD
from fleetsim.vllm_http import SimulatedFleetServer
from gaming.common.v1 import tier_pb2
from gaming.gpu_metrics.v1 import fleet_pb2, gpu_metrics_pb2
from gpu_metrics import wire
from gpu_metrics.adapters.collector_link import CollectorLink
from gpu_metrics.adapters.configured_host import ConfiguredHost
from gpu_metrics.adapters.vllm_server import ScrapedServer, VllmServer
from gpu_metrics.agent import Agent
from gpu_metrics.domain.readings import (
    Host,
    HostReport,
    MissingReason,
    ModelServerReading,
    ModelServerState,
    Tier,
)
from gpu_metrics.ports import ModelServerSource
from gpu_metrics.testing import CollectorForTest, collector_for_test
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.telemetry import Telemetry
from servicekit.testing import reason_of


class IdleServer:
    """A model server that is reported on without being there."""

    async def read_server(self) -> ModelServerReading:
        return ModelServerReading(
            server_id="gold-1", endpoint_url="http://127.0.0.1:9", tier=Tier.GOLD
        )


@asynccontextmanager
async def running_agent(
    *addresses: str,
    host_id: str = "i-1",
    server: ModelServerSource | None = None,
    boot_id: str = "boot-1",
) -> AsyncIterator[tuple[asyncio.Event, "asyncio.Task[None]"]]:
    """An agent that reports ten times a second; yields how to stop it and its task."""
    clock, telemetry, stopping = SystemClock(), Telemetry("test"), asyncio.Event()
    channels = [open_channel(address) for address in addresses]
    agent = Agent(
        host=ConfiguredHost(Host(host_id=host_id)),
        gpus=[],
        servers=[server or IdleServer()],
        sinks=[
            CollectorLink(
                channel,
                name=address,
                clock=clock,
                jitter=random.Random(7),  # noqa: S311  # spreads retries, no secret
                telemetry=telemetry,
                acknowledge_timeout_seconds=2.0,
                maximum_backoff_seconds=0.3,
            )
            for address, channel in zip(addresses, channels, strict=True)
        ],
        clock=clock,
        boot_id=boot_id,
        interval_seconds=0.1,
    )
    task = asyncio.create_task(agent.run(stopping))
    try:
        yield stopping, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for channel in channels:
            await channel.close()


async def until(condition: Callable[[], Awaitable[bool]], *, timeout_seconds: float = 20.0) -> None:
    async with asyncio.timeout(timeout_seconds):
        while not await condition():  # noqa: ASYNC110  # another process's state has no event
            await asyncio.sleep(0.02)


async def fleet_of(collector: CollectorForTest) -> gpu_metrics_pb2.FleetSnapshot:
    response = await collector.fleet.GetFleet(gpu_metrics_pb2.GetFleetRequest(), timeout=5)
    return response.fleet


async def shows_host(collector: CollectorForTest, host_id: str = "i-1") -> bool:
    return any(view.host.host_id == host_id for view in (await fleet_of(collector)).hosts)


def report(host_id: str = "i-1", sequence: int = 1) -> gpu_metrics_pb2.StreamReportsRequest:
    return wire.report_message(
        HostReport(
            host=Host(host_id=host_id),
            boot_id="boot",
            sequence=sequence,
            sample_time=datetime(2026, 1, 1, tzinfo=UTC),
        )
    )


async def next_update(stream: Any) -> gpu_metrics_pb2.WatchFleetResponse:
    update = await stream.read()
    assert isinstance(update, gpu_metrics_pb2.WatchFleetResponse)
    return update


async def next_acknowledgement(stream: Any) -> int:
    answer = await stream.read()
    assert isinstance(answer, gpu_metrics_pb2.StreamReportsResponse)
    return answer.acknowledged_sequence


async def test_a_model_servers_load_reaches_the_tiers_aggregate() -> None:
    async with (
        collector_for_test() as collector,
        SimulatedFleetServer(seed=7) as servers,
        aiohttp.ClientSession() as session,
    ):
        url = await servers.add_server("gold-1", GOLD)
        source = VllmServer(
            ScrapedServer(server_id="gold-1", tier=Tier.GOLD, scrape_url=url, endpoint_url=url),
            session,
            clock=SystemClock(),
            timeout_seconds=2.0,
        )
        async with running_agent(collector.address, server=source):
            await until(lambda: shows_host(collector))
            generated = 0
            for _ in range(3):
                body = {"model": GOLD.model_name, "prompt": "Once", "max_tokens": 4}
                async with session.post(f"{url}/v1/completions", json=body) as response:
                    generated += (await response.json())["usage"]["completion_tokens"]

            async def observed() -> bool:
                listed = await collector.fleet.ListServers(
                    gpu_metrics_pb2.ListServersRequest(), timeout=5
                )
                return bool(listed.servers[0].server.generation_tokens_total == generated)

            await until(observed)
        (gold,) = (await fleet_of(collector)).tiers
        assert (gold.known_servers, gold.ready_servers) == (1, 1)
        assert gold.kv_cache_capacity_tokens == GOLD.kv_cache_capacity_tokens
        assert sum(gold.time_to_first_token.bucket_counts) == 3
        assert gold.time_to_first_token.sum_seconds > 0
        assert sum(gold.inter_token_latency.bucket_counts) == generated - 3
        listed = await collector.fleet.ListServers(gpu_metrics_pb2.ListServersRequest(), timeout=5)
        (found,) = listed.servers
        assert found.server.server_id == "gold-1"
        assert found.server.model == GOLD.model_name
        assert found.server.state == fleet_pb2.MODEL_SERVER_STATE_READY
        assert found.age.ToTimedelta().total_seconds() < 5


async def test_a_server_that_dies_is_unhealthy_and_its_figures_missing_with_a_reason() -> None:
    async with (
        collector_for_test() as collector,
        SimulatedFleetServer(seed=7) as servers,
        aiohttp.ClientSession() as session,
    ):
        url = await servers.add_server("gold-1", GOLD)
        source = VllmServer(
            ScrapedServer(server_id="gold-1", tier=Tier.GOLD, scrape_url=url, endpoint_url=url),
            session,
            clock=SystemClock(),
            timeout_seconds=2.0,
        )

        async def state() -> fleet_pb2.ModelServerSample:
            hosts = (await fleet_of(collector)).hosts
            return hosts[0].servers[0] if hosts else fleet_pb2.ModelServerSample()

        async def ready() -> bool:
            return (await state()).state == fleet_pb2.MODEL_SERVER_STATE_READY

        async def unhealthy() -> bool:
            return (await state()).state == fleet_pb2.MODEL_SERVER_STATE_UNHEALTHY

        async with running_agent(collector.address, server=source):
            await until(ready)
            await servers.remove_server("gold-1", abrupt=True)
            await until(unhealthy)
            sample = await state()
    assert not sample.HasField("running_requests")
    reasons = {entry.field: entry.reason for entry in sample.missing}
    assert reasons["running_requests"] == fleet_pb2.MISSING_REASON_UNREACHABLE


async def test_a_server_that_answers_late_now_and_then_stays_ready() -> None:
    late = 0

    async def health(_: web.Request) -> web.Response:
        if late:
            await asyncio.sleep(30)
        return web.Response()

    application = web.Application()
    application.router.add_get("/health", health)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession() as session:
        source = VllmServer(
            ScrapedServer(server_id="gold-1", tier=Tier.GOLD, scrape_url=url, endpoint_url=url),
            session,
            clock=SystemClock(),
            timeout_seconds=0.5,
            patience=2,
        )
        assert (await source.read_server()).state is ModelServerState.READY
        late = 1
        readings = [await source.read_server() for _ in range(3)]
        late = 0
        recovered = await source.read_server()
    await runner.cleanup()
    assert [reading.state for reading in readings] == [
        ModelServerState.READY,
        ModelServerState.READY,
        ModelServerState.UNHEALTHY,
    ]
    assert readings[0].running_requests is MissingReason.TIMEOUT
    assert recovered.state is ModelServerState.READY


async def test_of_two_agents_for_one_host_the_newer_run_counts() -> None:
    async with collector_for_test() as collector, running_agent(collector.address, boot_id="old"):
        await until(lambda: shows_host(collector))

        async def new_run() -> bool:
            hosts = collector.view.hosts(time.monotonic())
            return [state.report.boot_id for state in hosts] == ["new"]

        async with running_agent(collector.address, boot_id="new"):
            await until(new_run)
            revision = collector.view.revision

            async def reported_more() -> bool:
                return collector.view.revision > revision + 5

            await until(reported_more)
            assert await new_run()


async def test_every_collector_gets_the_whole_view() -> None:
    async with (
        collector_for_test() as one,
        collector_for_test() as other,
        running_agent(one.address, other.address, host_id="i-1"),
        running_agent(one.address, other.address, host_id="i-2", boot_id="boot-2"),
    ):
        for collector in (one, other):
            await until(lambda each=collector: shows_host(each, "i-1"))  # type: ignore[misc]
            await until(lambda each=collector: shows_host(each, "i-2"))  # type: ignore[misc]


async def test_a_collector_that_is_away_does_not_keep_the_other_from_its_reports() -> None:
    async with (
        collector_for_test() as collector,
        running_agent("127.0.0.1:1", collector.address),
    ):
        await until(lambda: shows_host(collector))


async def test_an_agent_reports_to_a_restarted_collector_without_being_told() -> None:
    async with collector_for_test() as first:
        port = int(first.address.rpartition(":")[2])
        agent = running_agent(first.address)
        await agent.__aenter__()
        await until(lambda: shows_host(first))
    try:
        async with collector_for_test(port=port) as second:
            await until(lambda: shows_host(second))
            before = second.view.revision

            async def goes_on() -> bool:
                return second.view.revision > before + 3

            await until(goes_on)
    finally:
        await agent.__aexit__(None, None, None)


async def test_watchers_see_a_killed_agents_host_turn_stale_and_then_expire() -> None:
    seen: list[str] = []
    async with collector_for_test(stale_after_seconds=0.5, expire_after_seconds=1.5) as collector:
        async with running_agent(collector.address) as (_, task):
            await until(lambda: shows_host(collector))
            request = gpu_metrics_pb2.WatchFleetRequest()
            request.minimum_interval.FromMilliseconds(100)
            stream = collector.fleet.WatchFleet(request, timeout=20)
            task.cancel()
            async for response in stream:
                seen += [
                    fleet_pb2.Freshness.Name(view.freshness)
                    for view in (*response.snapshot.hosts, *response.delta.changed_hosts)
                ]
                if response.delta.removed_host_ids:
                    seen.append("removed")
                    break
        assert list(dict.fromkeys(seen)) == ["FRESHNESS_FRESH", "FRESHNESS_STALE", "removed"]


async def test_a_host_whose_agent_stops_in_order_leaves_at_once() -> None:
    async with (
        collector_for_test(stale_after_seconds=300, expire_after_seconds=600) as collector,
        running_agent(collector.address) as (stopping, task),
    ):
        await until(lambda: shows_host(collector))
        stopping.set()
        await asyncio.wait_for(task, 30)
        assert not await shows_host(collector)


async def test_a_watcher_resumes_where_it_was_and_learns_when_it_cannot() -> None:
    async with collector_for_test() as collector, running_agent(collector.address):
        await until(lambda: shows_host(collector))
        request = gpu_metrics_pb2.WatchFleetRequest()
        request.minimum_interval.FromMilliseconds(100)
        stream = collector.fleet.WatchFleet(request, timeout=10)
        first = await next_update(stream)
        stream.cancel()
        assert first.WhichOneof("update") == "snapshot"
        assert [view.host.host_id for view in first.snapshot.hosts] == ["i-1"]

        request.resume_token = first.resume_token
        stream = collector.fleet.WatchFleet(request, timeout=10)
        assert (await next_update(stream)).WhichOneof("update") in ("delta", "heartbeat")
        stream.cancel()

        request.tiers.append(tier_pb2.TIER_SILVER)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await collector.fleet.WatchFleet(request, timeout=10).read()
        assert refused.value.code() is grpc.StatusCode.OUT_OF_RANGE
        assert reason_of(refused.value) == "RESUME_TOKEN_UNKNOWN"


async def test_a_quiet_stream_carries_heartbeats() -> None:
    async with collector_for_test(heartbeat_seconds=0.2) as collector:
        stream = collector.fleet.WatchFleet(gpu_metrics_pb2.WatchFleetRequest(), timeout=10)
        kinds = [(await next_update(stream)).WhichOneof("update") for _ in range(3)]
        stream.cancel()
    assert kinds == ["snapshot", "heartbeat", "heartbeat"]


async def test_each_report_is_acknowledged_and_an_old_one_changes_nothing() -> None:
    async with collector_for_test() as collector:
        stream = collector.reports.StreamReports(timeout=10)
        acknowledged = []
        for sequence in (1, 3, 2, 3, 4):
            await stream.write(report(sequence=sequence))
            acknowledged.append(await next_acknowledgement(stream))
        stream.cancel()
        assert acknowledged == [1, 3, 3, 3, 4]


async def test_a_report_that_wants_no_answer_is_in_the_view_and_gets_none() -> None:
    async with collector_for_test() as collector:
        stream = collector.reports.StreamReports(timeout=10)
        await stream.write(report(sequence=1))
        first = await stream.read()
        unanswered, question = report(sequence=2), report(sequence=1)
        unanswered.no_answer, question.events_only = True, True
        await stream.write(unanswered)
        await stream.write(question)
        second = await stream.read()
        stream.cancel()
    assert isinstance(first, gpu_metrics_pb2.StreamReportsResponse)
    assert isinstance(second, gpu_metrics_pb2.StreamReportsResponse)
    assert first.leaves_out_answers
    # The answer to the question tells that the report before it is there.
    assert (first.acknowledged_sequence, second.acknowledged_sequence) == (1, 2)


async def test_a_stream_stays_with_its_host() -> None:
    async with collector_for_test() as collector:
        stream = collector.reports.StreamReports(timeout=10)
        await stream.write(report("i-1"))
        await stream.read()
        await stream.write(report("i-2"))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stream.read()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert reason_of(refused.value) == "HOST_OF_STREAM_CHANGED"
        assert not await shows_host(collector, "i-2")


async def test_an_impossible_histogram_is_refused_in_words() -> None:
    async with collector_for_test() as collector:
        wrong = report()
        server = wrong.servers.add(
            server_id="s", endpoint_url="http://127.0.0.1:9", tier=tier_pb2.TIER_GOLD
        )
        server.time_to_first_token.upper_bounds_seconds.extend([0.1, 0.2])
        server.time_to_first_token.bucket_counts.extend([1])
        stream = collector.reports.StreamReports(timeout=10)
        await stream.write(wrong)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stream.read()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert reason_of(refused.value) == "HISTOGRAM_SHAPE"


async def test_a_full_collector_says_so_and_keeps_what_it_has() -> None:
    async with collector_for_test(maximum_hosts=1) as collector:
        kept = collector.reports.StreamReports(timeout=10)
        await kept.write(report("i-1"))
        await kept.read()
        refused_stream = collector.reports.StreamReports(timeout=10)
        await refused_stream.write(report("i-2"))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await refused_stream.read()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert reason_of(refused.value) == "FLEET_FULL"
        await kept.write(report("i-1", 2))
        assert await next_acknowledgement(kept) == 2
        kept.cancel()


async def test_servers_are_listed_page_by_page() -> None:
    async with collector_for_test() as collector:
        for number in range(5):
            message = report(f"i-{number}")
            message.servers.add(
                server_id=f"s-{number}", endpoint_url="http://127.0.0.1:9", tier=tier_pb2.TIER_GOLD
            )
            stream = collector.reports.StreamReports(timeout=10)
            await stream.write(message)
            await stream.read()
            stream.cancel()
        names, token = [], ""
        while True:
            page = await collector.fleet.ListServers(
                gpu_metrics_pb2.ListServersRequest(page_size=2, page_token=token), timeout=5
            )
            names += [found.server.server_id for found in page.servers]
            token = page.next_page_token
            if not token:
                break
        assert names == [f"s-{number}" for number in range(5)]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await collector.fleet.ListServers(
                gpu_metrics_pb2.ListServersRequest(page_token="not ours"), timeout=5
            )
        assert reason_of(refused.value) == "INVALID_PAGE_TOKEN"
