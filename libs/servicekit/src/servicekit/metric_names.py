"""Names of the metrics that every service has; a service's own stand in its `metric_names`."""

RPC_SERVER_CALL_DURATION = "rpc.server.call.duration"
"""Histogram, seconds; by method and status code, so it carries rate, errors and duration.

OpenTelemetry semantic conventions for RPC metrics.
"""
