"""The collector's two gRPC services, a module for each group of methods."""

from gaming.gpu_metrics.v1 import gpu_metrics_pb2, gpu_metrics_pb2_grpc
from gpu_metrics.alert_desk import AlertDesk
from gpu_metrics.event_store import EventStore
from gpu_metrics.feed import FleetFeed
from gpu_metrics.servicers.alerts import AlertMethods
from gpu_metrics.servicers.events import EventMethods
from gpu_metrics.servicers.fleet import FleetMethods, HostMessages
from gpu_metrics.servicers.gpus import GpuMethods
from gpu_metrics.servicers.history import HistoryMethods
from gpu_metrics.servicers.reports import GpuReportServicer
from gpu_metrics.wire.plain_reports import plainly_fit_report
from servicekit.clock import Clock
from servicekit.server import ServiceRegistration

__all__ = ["GpuMetricsServicer", "GpuReportServicer", "registrations"]


class GpuMetricsServicer(FleetMethods, GpuMethods, HistoryMethods, EventMethods, AlertMethods):
    """gaming.gpu_metrics.v1.GpuMetricsService: shows the fleet and what happens to it."""

    def __init__(
        self, feed: FleetFeed, clock: Clock, *, events: EventStore, alerts: AlertDesk
    ) -> None:
        self._feed = feed
        self._events = events
        self._alerts = alerts
        self._clock = clock
        self._messages = HostMessages()


def registrations(
    feed: FleetFeed, clock: Clock, *, events: EventStore, alerts: AlertDesk
) -> list[ServiceRegistration]:
    """Return both services for a server."""
    services = gpu_metrics_pb2.DESCRIPTOR.services_by_name
    return [
        ServiceRegistration.of(
            gpu_metrics_pb2_grpc.add_GpuMetricsServiceServicer_to_server,
            GpuMetricsServicer(feed, clock, events=events, alerts=alerts),
            services["GpuMetricsService"],
        ),
        ServiceRegistration.of(
            gpu_metrics_pb2_grpc.add_GpuReportServiceServicer_to_server,
            GpuReportServicer(feed, events),
            services["GpuReportService"],
            {gpu_metrics_pb2.StreamReportsRequest: plainly_fit_report},
        ),
    ]
