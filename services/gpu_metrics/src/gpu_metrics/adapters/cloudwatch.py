"""Tier aggregates as CloudWatch metrics."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import aioboto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from gpu_metrics.domain.aggregate import TierAggregate
from gpu_metrics.domain.histogram import Histogram
from gpu_metrics.ports import PublishFailed

__all__ = ["CloudWatchAggregates", "metric_data"]

_VALUES_PER_DATUM = 150
"""What PutMetricData takes in one datum, by its API reference."""


def metric_data(aggregates: Iterable[TierAggregate]) -> list[dict[str, Any]]:
    """Return the aggregates as PutMetricData's `MetricData`, with the dimension `Tier`.

    A figure nobody reported gives no datum: CloudWatch then shows a gap, which alarms can treat
    as missing. A latency histogram gives one value per filled bucket, the bucket's upper bound
    with its count, so that percentiles of CloudWatch are at most one bucket too high and never
    too low; what lies beyond the last bound is given as that bound.
    """
    data: list[dict[str, Any]] = []
    for aggregate in aggregates:
        dimensions = [{"Name": "Tier", "Value": aggregate.tier.name.lower()}]
        for name, value, unit in _single_figures(aggregate):
            if value is not None:
                data.append(
                    {"MetricName": name, "Dimensions": dimensions, "Value": value, "Unit": unit}
                )
        for name, histogram in (
            ("TimeToFirstToken", aggregate.time_to_first_token),
            ("InterTokenLatency", aggregate.inter_token_latency),
        ):
            data += [
                {
                    "MetricName": name,
                    "Dimensions": dimensions,
                    "Values": values,
                    "Counts": counts,
                    "Unit": "Seconds",
                }
                for values, counts in _filled_buckets(histogram)
            ]
    return data


def _single_figures(aggregate: TierAggregate) -> Iterable[tuple[str, float | None, str]]:
    used, capacity = aggregate.kv_cache_used_tokens, aggregate.kv_cache_capacity_tokens
    utilization = aggregate.mean_gpu_utilization_permille
    power = aggregate.power_milliwatts
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
    yield "GpuUtilization", utilization / 10 if utilization is not None else None, "Percent"
    yield "GpuPowerWatts", power / 1000 if power is not None else None, "None"


def _filled_buckets(histogram: Histogram | None) -> Iterable[tuple[list[float], list[float]]]:
    if histogram is None or not histogram.bounds:
        return
    bounds = (*histogram.bounds, histogram.bounds[-1])
    filled: dict[float, float] = {}
    for bound, count in zip(bounds, histogram.counts, strict=True):
        if count:
            filled[bound] = filled.get(bound, 0.0) + count
    values = list(filled)
    for start in range(0, len(values), _VALUES_PER_DATUM):
        part = values[start : start + _VALUES_PER_DATUM]
        yield part, [filled[value] for value in part]


class CloudWatchAggregates:
    """Publishes to one namespace; credentials, region and endpoint come the AWS SDK's usual way."""

    def __init__(
        self, *, namespace: str, region: str, endpoint_url: str | None, timeout_seconds: float
    ) -> None:
        self._namespace = namespace
        self._region = region
        self._endpoint_url = endpoint_url
        self._timeout_seconds = timeout_seconds
        self._session = aioboto3.Session()

    async def publish(self, aggregates: Sequence[TierAggregate]) -> None:
        """Publish one interval of all tiers. Raises `PublishFailed`."""
        data = metric_data(aggregates)
        if not data:
            return
        config = Config(
            connect_timeout=self._timeout_seconds,
            read_timeout=self._timeout_seconds,
            retries={"mode": "standard", "total_max_attempts": 3},
        )
        try:
            async with (
                asyncio.timeout(4 * self._timeout_seconds),
                self._session.client(
                    "cloudwatch",
                    region_name=self._region,
                    endpoint_url=self._endpoint_url,
                    config=config,
                ) as client,
            ):
                await client.put_metric_data(Namespace=self._namespace, MetricData=data)
        except TimeoutError:
            raise PublishFailed("TIMEOUT") from None
        except ClientError as error:
            raise PublishFailed(str(error.response["Error"]["Code"])) from error
        except BotoCoreError as error:
            raise PublishFailed(type(error).__name__) from error
