"""Where metrics and traces go when an OTLP collector is named; loaded only then."""

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

__all__ = ["open_providers"]

_EXPORT_INTERVAL_MILLISECONDS = 10_000


def open_providers(service_name: str, endpoint: str) -> tuple[MeterProvider, TracerProvider]:
    """Returns providers that export to an OTLP/gRPC collector; the caller shuts them down.

    Their own exit hooks are off: they would wait for an absent collector once more.
    """
    resource = Resource.create({"service.name": service_name})
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(endpoint=endpoint),
        export_interval_millis=_EXPORT_INTERVAL_MILLISECONDS,
    )
    meter_provider = MeterProvider(
        resource=resource, metric_readers=[reader], shutdown_on_exit=False
    )
    tracer_provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    tracer_provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return meter_provider, tracer_provider
