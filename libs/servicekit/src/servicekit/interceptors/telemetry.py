"""Measures every call and carries the caller's trace on."""

from __future__ import annotations

from typing import Any

import structlog
from opentelemetry import propagate, trace

from servicekit import metric_names
from servicekit.clock import Clock
from servicekit.interceptors.call import Call, Proceed
from servicekit.telemetry import Telemetry

__all__ = ["TelemetryInterceptor"]


class TelemetryInterceptor:
    """Opens a server span as child of the caller's, and records rate, errors and duration.

    Names follow OpenTelemetry's semantic conventions for RPC. Without an exporter the caller's
    trace id still reaches our logs and the calls we make; a call without one costs nothing then.
    """

    def __init__(self, telemetry: Telemetry, clock: Clock) -> None:
        self._telemetry = telemetry
        self._clock = clock
        self._duration = telemetry.histogram(
            metric_names.RPC_SERVER_CALL_DURATION,
            unit="s",
            description="Duration of RPCs handled.",
        )

    async def intercept(self, call: Call, proceed: Proceed) -> Any:
        """Measures the call."""
        if not self._telemetry.exporting and "traceparent" not in call.metadata:
            return await proceed(call)
        text = {key: value for key, value in call.metadata.items() if isinstance(value, str)}
        span = self._telemetry.tracer.start_span(
            call.path.lstrip("/"), context=propagate.extract(text), kind=trace.SpanKind.SERVER
        )
        with trace.use_span(span, end_on_exit=True, record_exception=False):
            context = span.get_span_context()
            if context.is_valid:
                structlog.contextvars.bind_contextvars(trace_id=f"{context.trace_id:032x}")
            try:
                return await proceed(call)
            finally:
                attributes = {
                    "rpc.system.name": "grpc",
                    "rpc.method": call.path.lstrip("/"),
                    "rpc.response.status_code": call.code,
                }
                self._duration.record(self._clock.monotonic() - call.started, attributes)
                span.set_attributes(attributes)
