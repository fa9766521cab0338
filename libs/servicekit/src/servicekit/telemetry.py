"""Logs by structlog, metrics and traces by OpenTelemetry, exported when an endpoint is set."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, Observation

from servicekit.settings import setting

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["Telemetry", "TelemetrySettings", "configure_logging"]

_CLOSE_SECONDS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySettings:
    """Where logs, metrics and traces go."""

    log_level: str = setting(
        "GAMEKEEPER_LOG_LEVEL",
        default="info",
        choices=("debug", "info", "warning", "error"),
        help="least severity that is logged",
    )
    log_format: str = setting(
        "GAMEKEEPER_LOG_FORMAT",
        default="json",
        choices=("json", "console"),
        help="json for machines, console for people",
    )
    log_all_calls: bool = setting(
        "GAMEKEEPER_LOG_ALL_CALLS",
        default=False,
        help="log successful calls too, not only failures",
    )
    otlp_endpoint: str = setting(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        default="",
        help="OTLP/gRPC collector for metrics and traces; empty exports nothing",
    )


class Telemetry:
    """A service's meter and tracer; instruments cost next to nothing when unexported."""

    def __init__(self, service_name: str, settings: TelemetrySettings | None = None) -> None:
        self._providers: list[MeterProvider | TracerProvider] = []
        self.exporting = settings is not None and bool(settings.otlp_endpoint)
        if settings is None or not settings.otlp_endpoint:
            self.meter: Meter = metrics.NoOpMeterProvider().get_meter(service_name)
            self.tracer: trace.Tracer = trace.NoOpTracerProvider().get_tracer(service_name)
            return
        # Loading the SDK and its exporter takes 0.15 s, which a process that exports nothing saves.
        from servicekit.telemetry_export import open_providers  # noqa: PLC0415  # see above

        meter_provider, tracer_provider = open_providers(service_name, settings.otlp_endpoint)
        self._providers = [meter_provider, tracer_provider]
        self.meter = meter_provider.get_meter(service_name)
        self.tracer = tracer_provider.get_tracer(service_name)

    def counter(self, name: str, *, unit: str, description: str) -> Counter:
        """Returns a counter that only goes up."""
        return self.meter.create_counter(name, unit=unit, description=description)

    def histogram(self, name: str, *, unit: str, description: str) -> Histogram:
        """Returns a histogram."""
        return self.meter.create_histogram(name, unit=unit, description=description)

    def gauge(
        self,
        name: str,
        read: Callable[[], Iterable[tuple[float, dict[str, str]]]],
        *,
        unit: str,
        description: str,
    ) -> None:
        """Registers a gauge whose values and attributes `read` returns at every export."""

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            return [Observation(value, attributes) for value, attributes in read()]

        self.meter.create_observable_gauge(
            name, callbacks=[observe], unit=unit, description=description
        )

    def close(self) -> None:
        """Exports what is left and stops; gives up on an absent collector after three seconds."""
        closing = [
            threading.Thread(target=provider.shutdown, name="telemetry_close", daemon=True)
            for provider in self._providers
        ]
        for thread in closing:
            thread.start()
        give_up = time.monotonic() + _CLOSE_SECONDS
        for thread in closing:
            thread.join(max(0.0, give_up - time.monotonic()))


def configure_logging(settings: TelemetrySettings, service_name: str) -> None:
    """Sends structlog's and the standard library's records to stderr in one format."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if settings.log_format == "json":
        final: list[Any] = [
            # Without local variables: they hold players' prompts.
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
            ),
            structlog.processors.JSONRenderer(default=str),
        ]
    else:
        final = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service_name)
