"""Alerts as messages."""

from gaming.common.v1 import tier_pb2
from gaming.gpu_metrics.v1 import alerts_pb2, events_pb2
from gpu_metrics.domain.alerts import Alert, AlertKind
from gpu_metrics.wire.moments import timestamp

__all__ = ["alert_message"]


def alert_message(alert: Alert, *, runbook_base_url: str) -> alerts_pb2.Alert:
    """Return an alert as a message, with the link to its kind's runbook."""
    condition = alert.condition
    is_server = condition.kind is AlertKind.SERVER_UNHEALTHY
    acknowledged = alert.acknowledge_time
    return alerts_pb2.Alert(
        alert_id=alert.alert_id,
        kind=alerts_pb2.AlertKind.ValueType(condition.kind.value),
        severity=events_pb2.Severity.ValueType(alert.severity.value),
        host_id=condition.host_id,
        gpu_uuid="" if is_server else condition.part_id,
        server_id=condition.part_id if is_server else "",
        tiers=[tier_pb2.Tier.ValueType(tier.value) for tier in alert.tiers],
        reason=alert.reason,
        runbook_url=f"{runbook_base_url.rstrip('/')}/{condition.kind.slug}.md",
        raise_time=timestamp(alert.raise_time),
        clear_time=timestamp(alert.clear_time) if alert.clear_time is not None else None,
        acknowledged_by=alert.acknowledged_by,
        acknowledge_time=timestamp(acknowledged) if acknowledged is not None else None,
        note=alert.note,
        xid=condition.xid,
        simulated=alert.simulated,
    )
