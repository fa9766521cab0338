"""The methods for what needs attention: list, follow, acknowledge."""

from collections.abc import AsyncIterator
from typing import Any

from gaming.gpu_metrics.v1 import alerts_pb2, gpu_metrics_pb2_grpc
from gpu_metrics.alert_desk import AlertDesk
from gpu_metrics.domain.alerts import Alert
from gpu_metrics.wire.alerts import alert_message
from gpu_metrics.wire.moments import timestamp
from servicekit.caller import current_caller
from servicekit.clock import Clock

__all__ = ["AlertMethods"]

_DEFAULT_PAGE_SIZE = 100


class AlertMethods(gpu_metrics_pb2_grpc.GpuMetricsServiceServicer):
    """The methods for what needs attention."""

    _alerts: AlertDesk
    _clock: Clock

    async def ListAlerts(  # noqa: N802  # the method's name in the protocol
        self, request: alerts_pb2.ListAlertsRequest, context: Any
    ) -> alerts_pb2.ListAlertsResponse:
        """Return a page of alerts."""
        page = self._alerts.page(
            include_cleared=request.include_cleared,
            host_id=request.host_id,
            page_size=request.page_size or _DEFAULT_PAGE_SIZE,
            page_token=request.page_token,
        )
        return alerts_pb2.ListAlertsResponse(
            alerts=map(self._alert, page.items), next_page_token=page.next_page_token
        )

    async def WatchAlerts(  # noqa: N802  # the method's name in the protocol
        self, request: alerts_pb2.WatchAlertsRequest, context: Any
    ) -> AsyncIterator[alerts_pb2.WatchAlertsResponse]:
        """Stream all that stand, then each change, and heartbeats."""
        async for step in self._alerts.follow(request.resume_token):
            yield alerts_pb2.WatchAlertsResponse(
                resume_token=step.token,
                snapshot=step.snapshot,
                alerts=map(self._alert, step.alerts),
                send_time=timestamp(self._clock.now()),
            )

    async def AcknowledgeAlert(  # noqa: N802  # the method's name in the protocol
        self, request: alerts_pb2.AcknowledgeAlertRequest, context: Any
    ) -> alerts_pb2.AcknowledgeAlertResponse:
        """Note who looks after an alert: the caller."""
        alert = self._alerts.acknowledge(
            request.alert_id, who=current_caller().identity, note=request.note
        )
        return alerts_pb2.AcknowledgeAlertResponse(alert=self._alert(alert))

    def _alert(self, alert: Alert) -> alerts_pb2.Alert:
        return alert_message(alert, runbook_base_url=self._alerts.runbook_base_url)
