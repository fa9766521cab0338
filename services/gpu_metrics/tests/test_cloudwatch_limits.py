"""What is sent stays within what PutMetricData takes, measured on the SDK's own requests, and
within its price."""

import gzip
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import botocore.session
import pytest
from botocore.awsrequest import AWSRequest
from botocore.compress import maybe_compress_request
from botocore.config import Config
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gpu_metrics.adapters.cloudwatch import CloudWatchAggregates, metric_data, request_batches
from gpu_metrics.domain.fleet import FleetPolicy, FleetView
from gpu_metrics.domain.readings import GpuReading, Tier
from gpu_metrics.domain.samples import FleetMetric, SampleSeries
from gpu_metrics.domain.tier_samples import GpuFigure, TierDistribution, TierSamples
from gpu_metrics.ports import MetricBatch, Publication

from .builders import NOON, make_histogram, make_report, make_server

DOLLARS_PER_METRIC_AND_MONTH = 0.30
DOLLARS_PER_REQUEST = 0.01 / 1000
"""US East (N. Virginia), no free tier counted: custom metrics, the first 10,000 of them, and
requests of the group "GetMetricStatistics, ListMetrics, PutMetricData, ...": the paid tier's tables
in aws.amazon.com/cloudwatch/pricing. A metric is a name with its dimensions."""

MINUTES_PER_MONTH = 31 * 24 * 60
SERVICE_LIMIT_BYTES = 1_000_000


@cache
def request_model() -> tuple[Any, Any]:
    session = botocore.session.get_session()
    model = session.get_service_model("cloudwatch").operation_model("PutMetricData")
    protocol = model.service_model.resolved_protocol
    return botocore.serialize.create_serializer(protocol), model


def body_of(batch: Sequence[Mapping[str, Any]], *, compressed: bool) -> bytes:
    """Return the body as the SDK sends it; it compresses what is over 10 KiB."""
    serializer, model = request_model()
    namespace = "N" * 255
    request = serializer.serialize_to_request(
        {"Namespace": namespace, "MetricData": list(batch)}, model
    )
    config = Config(
        disable_request_compression=not compressed, request_min_compression_size_bytes=10_240
    )
    maybe_compress_request(config, request, model)
    prepared = AWSRequest(
        method="POST", url="https://example.com", headers=request["headers"], data=request["body"]
    ).prepare()
    body = prepared.body
    return body.encode() if isinstance(body, str) else bytes(body)


dimension_text = st.text(min_size=1, max_size=255)
numbers = st.floats(min_value=-(2.0**360), max_value=2.0**360)


@st.composite
def data(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Data as awkward to encode as PutMetricData allows, few kinds many times over."""
    kinds = []
    for _ in range(draw(st.integers(1, 3))):
        datum: dict[str, Any] = {
            "MetricName": draw(dimension_text),
            "Dimensions": [
                {"Name": draw(dimension_text), "Value": draw(dimension_text)}
                for _ in range(draw(st.integers(0, 4)))
            ],
            "Timestamp": datetime(2026, 1, 1, tzinfo=UTC)
            + timedelta(microseconds=draw(st.integers(0, 10**12))),
            "Unit": "Seconds",
        }
        values = draw(st.lists(numbers, max_size=150))
        if values:
            datum |= {"Values": values, "Counts": values}
        else:
            datum["Value"] = draw(numbers)
        kinds.append(datum)
    return kinds * draw(st.integers(0, 150))


SMALL: dict[str, Any] = {"MetricName": "m", "Value": 1.0, "Unit": "Count"}
LARGE: dict[str, Any] = {
    "MetricName": "m",
    "Dimensions": [{"Name": "Tier", "Value": "ü" * 255}],
    "Values": [-1.0123456789012345e-300] * 150,
    "Counts": [1.0] * 150,
}


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(data())
@example([SMALL] * 1001)
@example([LARGE] * 80)
def test_no_request_is_over_a_limit_and_none_loses_a_datum(data: list[dict[str, Any]]) -> None:
    batches = list(request_batches(data))
    assert [datum for batch in batches for datum in batch] == data
    for batch in batches:
        assert len(batch) <= 1000
        assert len(body_of(batch, compressed=False)) <= SERVICE_LIMIT_BYTES
        assert len(body_of(batch, compressed=True)) <= SERVICE_LIMIT_BYTES


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 700), st.integers(0, 2**40), st.sampled_from(GpuFigure))
@example(151, 0, GpuFigure.POWER_WATTS)
def test_no_datum_has_more_values_than_allowed_and_no_observation_is_lost(
    distinct: int, least: int, figure: GpuFigure
) -> None:
    counts = {least + number: number + 1 for number in range(distinct)}
    publication = Publication(NOON, [], [TierDistribution(Tier.GOLD, figure, counts)])
    data = metric_data(publication)
    assert all(1 <= len(datum["Values"]) <= 150 for datum in data)
    sent = {v: c for d in data for v, c in zip(d["Values"], d["Counts"], strict=True)}
    assert sent == counts


def test_the_sdk_compresses_a_large_request() -> None:
    distribution = TierDistribution(Tier.GOLD, GpuFigure.POWER_WATTS, dict.fromkeys(range(700), 1))
    (batch,) = request_batches(metric_data(Publication(NOON, [], [distribution])))
    plain, packed = body_of(batch, compressed=False), body_of(batch, compressed=True)
    assert gzip.decompress(packed) == plain
    assert len(packed) < len(plain) / 4


# --- cost ---------------------------------------------------------------------------------------


def fleet_of_100_gpus(minute: int, *, collectors_before: int = 0) -> tuple[FleetView, TierSamples]:
    """A minute of 100 GPUs on 50 hosts in three tiers, every figure present and spread."""
    view, samples = FleetView(FleetPolicy()), TierSamples()
    tiers = [Tier.GOLD] * 25 + [Tier.SILVER] * 15 + [Tier.BRONZE] * 10
    for second in range(0, 60, 5):
        for number, tier in enumerate(tiers):
            gpus = tuple(
                GpuReading(
                    gpu_uuid=f"GPU-{number}-{index}",
                    index=index,
                    utilization_permille=(37 * number + 211 * second + 5 * minute) % 1001,
                    memory_used_bytes=(number + second) * 10**8,
                    memory_total_bytes=24 * 10**9,
                    power_milliwatts=60_000 + 4_321 * ((number + second + minute) % 60),
                    temperature_celsius=30 + (number + second + minute) % 60,
                )
                for index in range(2)
            )
            series = (
                SampleSeries(
                    gpu_index=0,
                    metric=FleetMetric.GPU_UTILIZATION_PERMILLE,
                    offset_microseconds=(0,) * 10,
                    values=tuple((97 * number + 13 * each) % 1001 for each in range(10)),
                ),
            )
            histogram = make_histogram(second, second, second, second)
            server = make_server(
                f"s-{number}",
                tier,
                time_to_first_token=histogram,
                inter_token_latency=histogram,
                gpu_uuids=tuple(gpu.gpu_uuid for gpu in gpus),
            )
            report = make_report(f"i-{number}", second + 1, server, gpus=gpus)
            report = report._replace(series=series, collectors_before=collectors_before)
            view.apply(report, float(second), NOON)
        samples.observe(view.hosts(float(second)))
    return view, samples


def test_100_gpus_in_three_tiers_cost_at_most_20_dollars_a_month() -> None:
    sink = CloudWatchAggregates(
        namespace="Gamekeeper/Fleet", region="us-east-1", endpoint_url=None, timeout_seconds=5.0
    )
    names: set[tuple[str, str]] = set()
    requests = []
    for minute in range(3):
        batches: list[MetricBatch] = []
        # Two collectors; the hosts count at the first of them.
        for before in range(2):
            view, samples = fleet_of_100_gpus(minute, collectors_before=before)
            tiers = view.aggregates(59.0, counted_here=True)
            batches += sink.batches(Publication(NOON, tiers, samples.take()))
        requests.append(len(batches))
        names |= {
            (datum["MetricName"], datum["Dimensions"][0]["Value"])
            for batch in batches
            for datum in batch
        }
    assert {name for name, _ in names} >= {"GpuUtilization", "GpuPowerWatts", "TimeToFirstToken"}
    assert len({tier for _, tier in names}) == 3
    dollars = (
        len(names) * DOLLARS_PER_METRIC_AND_MONTH
        + max(requests) * MINUTES_PER_MONTH * DOLLARS_PER_REQUEST
    )
    assert dollars == pytest.approx(12.15, abs=0.01)
    assert dollars <= 20.0
