"""Distributions as messages."""

from gaming.common.v1 import tier_pb2
from gaming.gpu_metrics.v1 import samples_pb2
from gpu_metrics.domain.distributions import ScopedDistribution
from gpu_metrics.domain.log_histogram import GROWTH

__all__ = ["distribution_message"]


def distribution_message(distribution: ScopedDistribution) -> samples_pb2.ScopedDistribution:
    """Return how a figure was distributed over a part of the fleet."""
    part = distribution.part
    message = samples_pb2.ScopedDistribution(
        metric=samples_pb2.FleetMetric.ValueType(distribution.metric.value),
        expected=distribution.expected,
        observed=distribution.observed,
    )
    if part.host_id:
        message.host_id = part.host_id
    elif part.server_id:
        message.server_id = part.server_id
    elif part.tier is not None:
        message.tier = tier_pb2.Tier.ValueType(part.tier.value)
    if distribution.oldest_age_seconds is not None:
        message.oldest_age.FromMilliseconds(round(distribution.oldest_age_seconds * 1000))
    histogram, filled = distribution.histogram, sorted(distribution.histogram.counts)
    message.histogram.growth = GROWTH
    if histogram.count:
        message.histogram.bucket_indexes.extend(filled)
        message.histogram.bucket_counts.extend(histogram.counts[bucket] for bucket in filled)
        message.histogram.zero_count = histogram.zero_count
        message.histogram.minimum = histogram.minimum
        message.histogram.maximum = histogram.maximum
        message.histogram.sum = histogram.total
    return message
