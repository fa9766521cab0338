"""Tier aggregates as CloudWatch metrics.

What one call may hold is Amazon's: 150 values in a datum, 1,000 metrics and 1 MB in a request
(CloudWatch API Reference, PutMetricData). PutMetricData is not idempotent: a datum that is sent
twice counts twice. So a call is repeated only when it certainly took no effect.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote_plus

from aiobotocore.session import AioSession
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
)

from gpu_metrics.domain.aggregate import TierAggregate
from gpu_metrics.domain.histogram import Histogram
from gpu_metrics.domain.tier_samples import GpuFigure, TierDistribution
from gpu_metrics.ports import MetricBatch, Publication, PublishFailed, PublishOutcome
from messaging.adapters.aws_sessions import open_session

__all__ = ["CloudWatchAggregates", "metric_data", "request_batches"]

_VALUES_PER_DATUM = 150
_METRICS_PER_REQUEST = 1000
_BYTES_PER_REQUEST = 1_000_000
# Action, version and the namespace of up to 255 characters, each of up to nine bytes when quoted.
_ENVELOPE_BYTES = 4096

_THROTTLED = frozenset(
    {"LimitExceeded", "RequestLimitExceeded", "SlowDown", "Throttling", "ThrottlingException"}
)
"""Refusals for want of capacity, given before a request is looked at."""

_NOT_ALLOWED = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidClientTokenId",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
"""Refusals for want of permission or of valid credentials, which may be put right."""

_NEVER_SENT = (
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
)

_GPU_METRICS: Mapping[GpuFigure, tuple[str, str]] = {
    GpuFigure.UTILIZATION_PERCENT: ("GpuUtilization", "Percent"),
    GpuFigure.MEMORY_USED_PERCENT: ("GpuMemoryUsage", "Percent"),
    GpuFigure.POWER_WATTS: ("GpuPowerWatts", "None"),
    GpuFigure.TEMPERATURE_CELSIUS: ("GpuTemperatureCelsius", "None"),
}


def metric_data(publication: Publication) -> list[dict[str, Any]]:
    """Return a publication as PutMetricData's `MetricData`, with the dimension `Tier`.

    A figure nobody reported gives no datum: CloudWatch then shows a gap, which alarms can treat
    as missing. Distributions give values with counts, so that percentiles survive: a GPU's figure
    by its rounded value; a latency by its bucket's upper bound, so that CloudWatch's percentiles
    are at most one bucket too high and never too low; what lies beyond the last bound is given as
    that bound. Every datum carries the publication's time, so that it may arrive later.
    """
    data: list[dict[str, Any]] = []
    for aggregate in publication.aggregates:
        common = _common(aggregate.tier.name, publication)
        for name, value, unit in _single_figures(aggregate):
            if value is not None:
                data.append({**common, "MetricName": name, "Value": value, "Unit": unit})
        for name, histogram in (
            ("TimeToFirstToken", aggregate.time_to_first_token),
            ("InterTokenLatency", aggregate.inter_token_latency),
        ):
            data += _values({**common, "MetricName": name, "Unit": "Seconds"}, _filled(histogram))
    for distribution in publication.distributions:
        name, unit = _GPU_METRICS[distribution.figure]
        common = _common(distribution.tier.name, publication)
        data += _values({**common, "MetricName": name, "Unit": unit}, _counts(distribution))
    return data


def request_batches(data: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Yield the data in as few requests as the limits of PutMetricData allow, in their order.

    The size is that of the form-encoded body before compression: the SDK's longest encoding.
    """
    batch: list[Mapping[str, Any]] = []
    size = _ENVELOPE_BYTES
    for datum in data:
        added = _encoded_bytes(datum)
        if batch and (len(batch) == _METRICS_PER_REQUEST or size + added > _BYTES_PER_REQUEST):
            yield batch
            batch, size = [], _ENVELOPE_BYTES
        batch.append(datum)
        size += added
    if batch:
        yield batch


def _encoded_bytes(datum: Mapping[str, Any]) -> int:
    """Return at most how many bytes a datum takes in a form-encoded request."""
    prefix = len("&MetricData.member.1000.")
    total = 0
    for name, value in datum.items():
        if isinstance(value, list):
            for entry in value:
                fields = entry.values() if isinstance(entry, Mapping) else (entry,)
                # The longest field of an entry: `.member.150.Value=`.
                total += sum(
                    prefix + len(name) + len(".member.150.Value=") + len(quote_plus(str(field)))
                    for field in fields
                )
        else:
            total += prefix + len(name) + 1 + len(quote_plus(str(value)))
    return total


def _common(tier_name: str, publication: Publication) -> dict[str, Any]:
    return {
        "Dimensions": [{"Name": "Tier", "Value": tier_name.lower()}],
        "Timestamp": publication.time,
    }


def _single_figures(aggregate: TierAggregate) -> Iterable[tuple[str, float | None, str]]:
    used, capacity = aggregate.kv_cache_used_tokens, aggregate.kv_cache_capacity_tokens
    yield "KnownServers", aggregate.known_servers, "Count"
    yield "FreshServers", aggregate.fresh_servers, "Count"
    yield "ReadyServers", aggregate.ready_servers, "Count"
    yield "FreshGpus", aggregate.fresh_gpus, "Count"
    yield "RunningRequests", aggregate.running_requests, "Count"
    yield "WaitingRequests", aggregate.waiting_requests, "Count"
    yield (
        "KvCacheUsage",
        100.0 * used / capacity if used is not None and capacity else None,
        "Percent",
    )


def _counts(distribution: TierDistribution) -> dict[float, float]:
    return {float(value): float(count) for value, count in distribution.counts.items()}


def _filled(histogram: Histogram | None) -> dict[float, float]:
    if histogram is None or not histogram.bounds:
        return {}
    bounds = (*histogram.bounds, histogram.bounds[-1])
    filled: dict[float, float] = {}
    for bound, count in zip(bounds, histogram.counts, strict=True):
        if count:
            filled[bound] = filled.get(bound, 0.0) + count
    return filled


def _values(common: dict[str, Any], counts: Mapping[float, float]) -> Iterable[dict[str, Any]]:
    values = list(counts)
    for start in range(0, len(values), _VALUES_PER_DATUM):
        part = values[start : start + _VALUES_PER_DATUM]
        yield {**common, "Values": part, "Counts": [counts[value] for value in part]}


class CloudWatchAggregates:
    """Publishes to one namespace; credentials, region and endpoint come the AWS SDK's usual way."""

    def __init__(
        self, *, namespace: str, region: str, endpoint_url: str | None, timeout_seconds: float
    ) -> None:
        self._namespace = namespace
        self._region = region
        self._endpoint_url = endpoint_url
        self._timeout_seconds = timeout_seconds
        self._session: AioSession | None = None

    def batches(self, publication: Publication) -> Sequence[MetricBatch]:
        """Return the publication as requests, each within Amazon's limits."""
        return list(request_batches(metric_data(publication)))

    async def send(self, batch: MetricBatch) -> None:
        """Make one request. Raises `PublishFailed`, which says what is known of its effect."""
        config = Config(
            connect_timeout=self._timeout_seconds,
            read_timeout=self._timeout_seconds,
            # The SDK would repeat what timed out or broke off, whose effect nobody knows.
            retries={"total_max_attempts": 1},
        )
        session = self._session = self._session or await open_session("cloudwatch")
        try:
            async with (
                asyncio.timeout(4 * self._timeout_seconds),
                session.create_client(
                    "cloudwatch",
                    region_name=self._region,
                    endpoint_url=self._endpoint_url,
                    config=config,
                ) as client,
            ):
                await client.put_metric_data(Namespace=self._namespace, MetricData=list(batch))
        except TimeoutError:
            raise PublishFailed("TIMEOUT", PublishOutcome.UNKNOWN) from None
        except ClientError as error:
            code = str(error.response["Error"]["Code"])
            raise PublishFailed(code, _outcome_of_refusal(error, code)) from error
        except BotoCoreError as error:
            never_sent = isinstance(error, _NEVER_SENT)
            outcome = PublishOutcome.NOT_TAKEN if never_sent else PublishOutcome.UNKNOWN
            raise PublishFailed(type(error).__name__, outcome) from error


def _outcome_of_refusal(error: ClientError, code: str) -> PublishOutcome:
    if code in _THROTTLED or code in _NOT_ALLOWED:
        return PublishOutcome.NOT_TAKEN
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
    # A server's error leaves open how far it got; a client's error stays one however often.
    return PublishOutcome.UNKNOWN if status >= 500 else PublishOutcome.REFUSED
