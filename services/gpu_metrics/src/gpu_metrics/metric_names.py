"""Every metric this service emits, by name; code, dashboards and alarms use these alone."""

__all__ = [
    "AGENT_REPORTS_REPLACED",
    "AGENT_STREAMS_BROKEN",
    "ALERTS",
    "ALERTS_DROPPED",
    "EVENTS_GIVEN_UP",
    "EVENTS_TAKEN",
    "FLEET_HOSTS",
    "HISTORY_BYTES",
    "HISTORY_REFUSED",
    "LATENCY_BOUNDS_DIFFER",
    "PUBLISH_DROPPED",
    "PUBLISH_FAILURES",
    "REPORTS_RECEIVED",
    "SAMPLES_RECEIVED",
]

REPORTS_RECEIVED = "gpu_metrics.reports.received"
"""Reports that reached the collector, by `outcome`."""

SAMPLES_RECEIVED = "gpu_metrics.samples.received"
"""Samples that reached the collector, by `outcome`: accepted, or dropped and why."""

HISTORY_BYTES = "gpu_metrics.history.bytes"
"""Memory of the history's cells."""

HISTORY_REFUSED = "gpu_metrics.history.refused"
"""Samples without a history because its memory is full."""

FLEET_HOSTS = "gpu_metrics.fleet.hosts"
"""Hosts in the view, by `freshness`."""

LATENCY_BOUNDS_DIFFER = "gpu_metrics.aggregates.coarsened"
"""Tier aggregates made from histograms with differing bounds, by `tier`."""

PUBLISH_FAILURES = "gpu_metrics.cloudwatch.failures"
"""Requests that CloudWatch did not confirm, by `outcome`."""

PUBLISH_DROPPED = "gpu_metrics.cloudwatch.dropped"
"""Requests that were given up, by `reason`."""

AGENT_STREAMS_BROKEN = "gpu_metrics.agent.streams_broken"
"""Report streams an agent had to open again, by `collector`."""

AGENT_REPORTS_REPLACED = "gpu_metrics.agent.reports_replaced"
"""Reports replaced by a newer one before a collector could take them, by `collector`."""

ALERTS = "gpu_metrics.alerts"
"""Alerts of the fleet, by `kind` and `state`."""

ALERTS_DROPPED = "gpu_metrics.alerts.dropped"
"""Alerts that the event bus never got, by `reason`."""

EVENTS_TAKEN = "gpu_metrics.events.taken"
"""GPU events that the collector took in, by `kind`."""

EVENTS_GIVEN_UP = "gpu_metrics.events.given_up"
"""GPU events that the collector dropped to keep within its bounds."""
