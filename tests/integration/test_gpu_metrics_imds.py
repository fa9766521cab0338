"""What the agent learns of EC2 about its host, from a strict metadata service over real HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp
import pytest
from aiohttp import web
from metadata_service import MetadataService, served
from structlog.testing import capture_logs

from gpu_metrics.adapters.ec2_host import Ec2Host, instance_id
from gpu_metrics.adapters.imds import InstanceMetadata, MetadataUnavailable
from gpu_metrics.domain.gpu_events import GpuEventKind, Severity
from gpu_metrics.domain.readings import Host, PurchaseOption
from gpu_metrics.journal import EventJournal
from servicekit.clock import SystemClock
from servicekit.testing import FakeClock

DUE = datetime(2026, 1, 1, 12, 2, tzinfo=UTC)
ACTION = json.dumps({"action": "terminate", "time": "2026-01-01T12:02:00Z"})
RECOMMENDATION = json.dumps({"noticeTime": "2026-01-01T11:55:00Z"})


@asynccontextmanager
async def reading(
    url: str, *, timeout_seconds: float = 30.0, clock: FakeClock | None = None
) -> AsyncIterator[InstanceMetadata]:
    async with aiohttp.ClientSession() as session:
        yield InstanceMetadata(
            session,
            clock=clock or SystemClock(),
            base_url=url,
            timeout_seconds=timeout_seconds,
        )


class RoundClock(SystemClock):
    """Sleeps briefly whatever it is asked for, and keeps what that was."""

    def __init__(self) -> None:
        super().__init__()
        self._rounds = 0
        self.pauses: list[float] = []
        self._next_round = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self._rounds += 1
        self.pauses.append(seconds)
        self._next_round.set()
        await super().sleep(0.01)

    async def rounds(self, count: int) -> None:
        """Wait until so many more rounds are done."""
        wanted = self._rounds + count
        async with asyncio.timeout(30):
            while self._rounds < wanted:
                self._next_round.clear()
                await self._next_round.wait()


@dataclass
class Watched:
    """A host that is kept up to date, and the clock of its rounds."""

    ec2: Ec2Host
    clock: RoundClock


@asynccontextmanager
async def watching(
    service: MetadataService,
    *,
    host: Host = Host(host_id="i-1"),  # noqa: B008  # frozen
    journal: EventJournal | None = None,
) -> AsyncIterator[Watched]:
    clock = RoundClock()
    async with reading(service.url) as metadata:
        ec2 = Ec2Host(host, metadata, clock=clock, journal=journal or EventJournal())
        running = asyncio.ensure_future(ec2.run())
        try:
            yield Watched(ec2, clock)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_one_token_serves_many_requests() -> None:
    async with served(MetadataService()) as service, reading(service.url) as metadata:
        assert await metadata.read("instance-id") == "i-0123456789abcdef0"
        assert await metadata.read("instance-type") == "g6.2xlarge"
        assert await metadata.read("spot/instance-action") is None
    assert service.tokens_given == 1


async def test_a_token_is_renewed_before_it_runs_out_and_when_it_is_refused() -> None:
    clock = FakeClock()
    async with served(MetadataService()) as service, reading(service.url, clock=clock) as metadata:
        await metadata.read("instance-id")
        service.expire_tokens()
        assert await metadata.read("instance-id") == "i-0123456789abcdef0"
        assert service.tokens_given == 2
        await clock.advance(6 * 3600)
        await metadata.read("instance-id")
        assert service.tokens_given == 3


async def test_a_service_that_is_absent_slow_or_beyond_the_hop_limit_is_unavailable() -> None:
    async with served(MetadataService()) as service:
        async with reading(service.url, timeout_seconds=0.2) as metadata:
            service.beyond_hop_limit = True
            with pytest.raises(MetadataUnavailable, match="TIMEOUT"):
                await metadata.read("instance-id")
            service.beyond_hop_limit = False
            service.answering.clear()
            with pytest.raises(MetadataUnavailable, match="TIMEOUT"):
                await metadata.read("instance-id")
        gone = service.url
    async with reading(gone) as metadata:
        with pytest.raises(MetadataUnavailable, match="UNREACHABLE"):
            await metadata.read("instance-id")
        assert await instance_id(metadata) == ""


@pytest.mark.parametrize(
    ("token", "page", "cause"),
    [
        (web.Response(status=403), None, "NO_TOKEN"),
        (web.Response(text="a\r\nb"), None, "NO_TOKEN"),
        (web.Response(text="t"), web.Response(status=401), "TOKEN_REFUSED"),
        (web.Response(text="t"), web.Response(status=500), "STATUS_500"),
        (web.Response(text="t"), web.Response(status=302, headers={"Location": "/"}), "STATUS_302"),
        (web.Response(text="t"), web.Response(body=b"\xff\xfe"), "MALFORMED"),
        (web.Response(text="t"), web.Response(body=b"x" * 10_000_000), "TOO_LARGE"),
    ],
)
async def test_an_answer_that_means_nothing_is_none(
    token: web.Response, page: web.Response | None, cause: str
) -> None:
    def copied(response: web.Response | None) -> web.Response:
        assert response is not None
        return web.Response(
            body=response.body, status=response.status, headers=dict(response.headers)
        )

    async def answer(request: web.Request) -> web.Response:
        return copied(token if request.method == "PUT" else page)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        async with reading(f"http://{host}:{port}") as metadata:
            with pytest.raises(MetadataUnavailable, match=cause):
                await metadata.read("instance-id")
    finally:
        await runner.cleanup()


async def test_what_the_settings_leave_open_is_filled_in() -> None:
    configured = Host(host_id="a", instance_type="mine")
    async with (
        served(MetadataService()) as service,
        watching(service, host=configured) as watched,
    ):
        await watched.clock.rounds(1)
        host = await watched.ec2.read_host()
    assert host == Host(
        host_id="a",
        instance_type="mine",
        availability_zone="eu-central-1b",
        purchase_option=PurchaseOption.SPOT,
    )


async def test_a_spot_notice_is_an_event_once_and_marks_the_host() -> None:
    async with served(MetadataService()) as service, watching(service) as watched:
        service.pages["spot/instance-action"] = ACTION
        async with asyncio.timeout(30):
            (event,) = await watched.ec2.next_events()
        assert (event.kind, event.due_time) == (GpuEventKind.SPOT_INTERRUPTION, DUE)
        assert event.severity is Severity.CRITICAL
        assert (await watched.ec2.read_host()).interruption_time == DUE
        await watched.clock.rounds(3)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await watched.ec2.next_events()


async def test_a_recommendation_is_an_event_and_is_withdrawn_when_the_cloud_does() -> None:
    async with served(MetadataService()) as service, watching(service) as watched:
        service.pages["events/recommendations/rebalance"] = RECOMMENDATION
        async with asyncio.timeout(30):
            (event,) = await watched.ec2.next_events()
        noticed = datetime(2026, 1, 1, 11, 55, tzinfo=UTC)
        assert (event.kind, event.time) == (GpuEventKind.REBALANCE_RECOMMENDATION, noticed)
        assert (await watched.ec2.read_host()).rebalance_time == noticed
        del service.pages["events/recommendations/rebalance"]
        await watched.clock.rounds(2)
        assert (await watched.ec2.read_host()).rebalance_time is None


async def test_an_agent_that_starts_again_does_not_tell_the_same_notice_again() -> None:
    journal = EventJournal()
    async with served(MetadataService()) as service:
        service.pages["spot/instance-action"] = ACTION
        async with watching(service, journal=journal) as watched, asyncio.timeout(30):
            await journal.append(await watched.ec2.next_events())
        async with watching(service, journal=journal) as watched:
            await watched.clock.rounds(2)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await watched.ec2.next_events()
            assert (await watched.ec2.read_host()).interruption_time == DUE


async def test_an_on_demand_host_is_not_asked_for_notices() -> None:
    async with served(MetadataService(life_cycle="on-demand")) as service:
        with capture_logs() as logs:
            async with watching(service) as watched:
                await watched.clock.rounds(3)
    assert [entry["event"] for entry in logs] == ["instance_metadata_available"]
    assert not any("spot" in path for path in service.requests)


@pytest.mark.parametrize(
    "notice", ["", "[]", "{}", '{"action": 1}', '{"action":"stop","time":"x"}']
)
async def test_a_notice_that_cannot_be_read_is_no_notice_and_hides_no_other(notice: str) -> None:
    async with served(MetadataService()) as service:
        service.pages["spot/instance-action"] = notice
        service.pages["events/recommendations/rebalance"] = RECOMMENDATION
        async with watching(service) as watched, asyncio.timeout(30):
            (event,) = await watched.ec2.next_events()
            assert event.kind is GpuEventKind.REBALANCE_RECOMMENDATION
            assert (await watched.ec2.read_host()).interruption_time is None


async def test_without_a_metadata_service_that_is_said_once() -> None:
    async with served(MetadataService()) as service:
        pass
    with capture_logs() as logs:
        async with watching(service) as watched:
            await watched.clock.rounds(3)
    assert [entry["event"] for entry in logs] == ["instance_metadata_unavailable"]


async def test_a_notice_is_looked_for_though_the_rest_could_not_be_had() -> None:
    service = MetadataService()
    service.failing = {"placement/availability-zone"}
    with capture_logs() as logs:
        async with served(service), watching(service) as watched:
            await watched.clock.rounds(3)
            service.pages["spot/instance-action"] = ACTION
            async with asyncio.timeout(30):
                (event,) = await watched.ec2.next_events()
            host = await watched.ec2.read_host()
    assert event.kind is GpuEventKind.SPOT_INTERRUPTION
    # What could be had is known.
    assert (host.instance_type, host.availability_zone) == ("g6.2xlarge", "")
    assert set(watched.clock.pauses) == {5.0}
    # The rest is not asked for with each round, and the log does not say that it came and went.
    assert service.requests.count("/latest/meta-data/placement/availability-zone") == 1
    assert [entry["event"] for entry in logs] == ["instance_metadata_unavailable"]


async def test_a_service_that_never_answered_is_asked_ever_less_often() -> None:
    async with served(MetadataService()) as service:
        pass
    async with watching(service) as watched:
        await watched.clock.rounds(7)
    assert watched.clock.pauses[:7] == [5, 10, 20, 40, 60, 60, 60]


async def test_a_service_that_has_answered_is_asked_as_often_when_it_does_not() -> None:
    async with served(MetadataService()) as service, watching(service) as watched:
        await watched.clock.rounds(1)
        service.failing = {"spot/instance-action", "events/recommendations/rebalance"}
        await watched.clock.rounds(4)
    assert set(watched.clock.pauses) == {5.0}
