"""Keeps moto's CloudWatch within bounds: it holds every single observation for ever otherwise.

A datum with `Values` and `Counts` becomes one object per observation there, which moto holds twice:
in the account, and in a list per class that its own reset uses. An hour of token latencies would
take gigabytes.
"""

from moto.backends import get_backend
from moto.cloudwatch.models import MetricAggregatedDatum, MetricDatum

__all__ = ["OBSERVATIONS_KEPT", "forget_old_observations"]

OBSERVATIONS_KEPT = 20_000
"""The newest that are kept, about 20 MB."""


def forget_old_observations(
    account_id: str, region_name: str, *, keep: int = OBSERVATIONS_KEPT
) -> None:
    """Drops the oldest observations above `keep`, whatever their metric."""
    observations = get_backend("cloudwatch")[account_id][region_name].metric_data
    # Cut in larger steps than one call adds, so that most calls move nothing.
    if len(observations) > keep * 5 // 4:
        del observations[:-keep]
    for tracked in (MetricDatum, MetricAggregatedDatum):
        tracked.instances_tracked.clear()
