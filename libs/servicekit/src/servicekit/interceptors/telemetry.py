"""Measures every call and carries the caller's trace on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from opentelemetry import propagate, trace

from servicekit.clock import Clock
from servicekit.interceptors.call import Call
from servicekit.telemetry import Telemetry

__all__ = ["TelemetryInterceptor"]


class TelemetryInterceptor:
    """Opens a server span as child of the caller's, and records rate, errors and duration.

    Names follow OpenTelemetry's semantic conventions for RPC.
    """

    def __init__(self, telemetry: Telemetry, clock: Clock) -> None:
        self._telemetry = telemetry
        self._clock = clock
        self._duration = telemetry.histogram(
            "rpc.server.call.duration", unit="s", description="Duration of RPCs handled."
        )

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Measures the call."""
        text = {key: value for key, value in call.metadata.items() if isinstance(value, str)}
        span = self._telemetry.tracer.start_span(
            call.path.lstrip("/"), context=propagate.extract(text), kind=trace.SpanKind.SERVER
        )
        with trace.use_span(span, end_on_exit=True, record_exception=False):
            trace_id = _trace_id(span, text.get("traceparent", ""))
            if trace_id:
                structlog.contextvars.bind_contextvars(trace_id=trace_id)
            try:
                yield
            finally:
                attributes = {
                    "rpc.system.name": "grpc",
                    "rpc.method": call.path.lstrip("/"),
                    "rpc.response.status_code": call.code,
                }
                self._duration.record(self._clock.monotonic() - call.started, attributes)
                span.set_attributes(attributes)


def _trace_id(span: trace.Span, traceparent: str) -> str | None:
    context = span.get_span_context()
    if context.is_valid:
        return format(context.trace_id, "032x")
    # Without an exporter spans are not recorded, but the caller's trace id still links our logs.
    parts = traceparent.split("-")
    return parts[1] if len(parts) == 4 else None
