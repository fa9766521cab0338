"""Tier aggregates published to the local AWS's CloudWatch by the real SDK."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import aioboto3
import pytest
from aiohttp import web

from gpu_metrics.adapters.cloudwatch import CloudWatchAggregates
from gpu_metrics.domain.aggregate import TierAggregate
from gpu_metrics.domain.histogram import Histogram
from gpu_metrics.domain.readings import Tier
from gpu_metrics.domain.tier_samples import GpuFigure, TierDistribution
from gpu_metrics.ports import MetricBatch, Publication, PublishFailed, PublishOutcome
from localsuite.aws.region import Region
from localsuite.aws.server import LocalAwsServer

NAMESPACE = "Gamekeeper/Test"


@pytest.fixture
async def endpoint(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")
    server = LocalAwsServer(Region(seed=7), moving=False)
    await asyncio.to_thread(server.start)
    yield server.endpoint
    await asyncio.to_thread(server.stop)


def aggregate(tier: Tier, *, running: int | None, counts: tuple[int, ...]) -> TierAggregate:
    return TierAggregate(
        tier=tier,
        known_servers=3,
        fresh_servers=2,
        ready_servers=1,
        running_requests=running,
        waiting_requests=None,
        kv_cache_used_tokens=25,
        kv_cache_capacity_tokens=100,
        time_to_first_token=Histogram((0.1, 0.5), counts, 1.0),
        inter_token_latency=None,
        fresh_gpus=2,
        mean_gpu_utilization_permille=None,
        power_milliwatts=150_000,
    )


def a_batch(sink: CloudWatchAggregates) -> MetricBatch:
    tiers = [aggregate(Tier.GOLD, running=1, counts=(1, 0, 0))]
    (batch,) = sink.batches(Publication(datetime.now(UTC), tiers))
    return batch


async def statistics(endpoint: str, metric: str, tier: str) -> list[dict[str, Any]]:
    now = datetime.now(UTC)
    async with aioboto3.Session().client(
        "cloudwatch", endpoint_url=endpoint, region_name="us-east-1"
    ) as client:
        answer = await client.get_metric_statistics(
            Namespace=NAMESPACE,
            MetricName=metric,
            Dimensions=[{"Name": "Tier", "Value": tier}],
            StartTime=now - timedelta(minutes=5),
            EndTime=now + timedelta(minutes=5),
            Period=3600,
            Statistics=["SampleCount", "Maximum", "Minimum", "Sum"],
        )
    return list(answer["Datapoints"])


async def test_figures_and_histograms_arrive_by_tier(endpoint: str) -> None:
    sink = CloudWatchAggregates(
        namespace=NAMESPACE, region="us-east-1", endpoint_url=endpoint, timeout_seconds=10.0
    )
    utilization = TierDistribution(Tier.GOLD, GpuFigure.UTILIZATION_PERCENT, {10: 90, 95: 10})
    tiers = [
        aggregate(Tier.GOLD, running=7, counts=(3, 2, 0)),
        aggregate(Tier.SILVER, running=None, counts=(0, 0, 0)),
    ]
    for batch in sink.batches(Publication(datetime.now(UTC), tiers, [utilization])):
        await sink.send(batch)
    (running,) = await statistics(endpoint, "RunningRequests", "gold")
    assert running["Maximum"] == 7
    (latency,) = await statistics(endpoint, "TimeToFirstToken", "gold")
    assert (latency["SampleCount"], latency["Minimum"], latency["Maximum"]) == (5, 0.1, 0.5)
    (usage,) = await statistics(endpoint, "KvCacheUsage", "silver")
    assert usage["Maximum"] == 25
    assert await statistics(endpoint, "RunningRequests", "silver") == []
    assert await statistics(endpoint, "TimeToFirstToken", "silver") == []
    (busy,) = await statistics(endpoint, "GpuUtilization", "gold")
    assert (busy["SampleCount"], busy["Sum"], busy["Maximum"]) == (100, 1850, 95)


async def test_an_unreachable_cloudwatch_is_a_failed_publication(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")
    sink = CloudWatchAggregates(
        namespace=NAMESPACE,
        region="us-east-1",
        endpoint_url="http://127.0.0.1:9",
        timeout_seconds=5.0,
    )
    with pytest.raises(PublishFailed, match="EndpointConnectionError") as failed:
        await sink.send(a_batch(sink))
    assert failed.value.outcome is PublishOutcome.NOT_TAKEN


async def test_without_credentials_a_publication_fails_and_does_not_raise_anything_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    sink = CloudWatchAggregates(
        namespace=NAMESPACE,
        region="us-east-1",
        endpoint_url="http://127.0.0.1:9",
        timeout_seconds=5.0,
    )
    with pytest.raises(PublishFailed, match="NoCredentialsError") as failed:
        await sink.send(a_batch(sink))
    assert failed.value.outcome is PublishOutcome.NOT_TAKEN


@dataclass
class ScriptedService:
    """Takes the calls of an HTTP client, counts them, and answers the first by the script."""

    script: str
    taken: int = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        self.taken += 1
        if self.taken > 1:
            return web.Response(text="<PutMetricDataResponse/>", content_type="text/xml")
        match self.script:
            case "throttles":
                return refusal(400, "Throttling")
            case "has no room for a value":
                return refusal(400, "InvalidParameterValue")
            case "fails inside":
                return refusal(500, "InternalServiceFault")
            case "is not there":
                return refusal(503, "ServiceUnavailable")
            case "takes it and breaks off":
                assert request.transport is not None
                request.transport.abort()
            case "takes it and says nothing":
                await asyncio.sleep(60)
        return web.Response()


def refusal(status: int, code: str) -> web.Response:
    body = f"<ErrorResponse><Error><Code>{code}</Code><Message>no</Message></Error></ErrorResponse>"
    return web.Response(status=status, text=body, content_type="text/xml")


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ("throttles", PublishOutcome.NOT_TAKEN),
        ("has no room for a value", PublishOutcome.REFUSED),
        ("fails inside", PublishOutcome.UNKNOWN),
        ("is not there", PublishOutcome.UNKNOWN),
        ("takes it and breaks off", PublishOutcome.UNKNOWN),
        ("takes it and says nothing", PublishOutcome.UNKNOWN),
    ],
)
async def test_one_failure_is_one_request_and_says_what_is_known_of_its_effect(
    script: str, outcome: PublishOutcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")
    service = ScriptedService(script)
    runner = web.AppRunner(app := web.Application(), shutdown_timeout=0.1)
    app.router.add_post("/", service.answer)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        sink = CloudWatchAggregates(
            namespace=NAMESPACE,
            region="us-east-1",
            endpoint_url=f"http://{host}:{port}",
            timeout_seconds=1.0 if script == "takes it and says nothing" else 20.0,
        )
        with pytest.raises(PublishFailed) as failed:
            await sink.send(a_batch(sink))
    finally:
        await runner.cleanup()
    assert failed.value.outcome is outcome
    # The SDK itself repeats nothing.
    assert service.taken == 1
