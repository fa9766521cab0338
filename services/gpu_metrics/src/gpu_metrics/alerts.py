"""Tells the game's event bus which alerts begin and which end.

What is to be told waits in a bounded buffer while the bus is away.
"""

import asyncio
import uuid
from datetime import UTC, datetime, timedelta

import structlog

from gaming.common.v1 import tier_pb2
from gaming.events import events_pb2 as pb
from gpu_metrics import metric_names
from gpu_metrics.domain.alerts import AlertChange, AlertChangeKind, AlertKind
from gpu_metrics.ports import EventSink
from messaging.codec import new_event
from servicekit.clock import Clock
from servicekit.errors import ServiceError, Unavailable
from servicekit.telemetry import Telemetry

__all__ = ["SOURCE", "AlertReporter", "alert_message"]

log = structlog.get_logger(__name__)

SOURCE = "gpu_metrics"

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Names the events of alerts, so that two collectors that tell the same are heard once.
_NAMESPACE = uuid.UUID("6f5e2a9c-1d27-4f0e-9b55-3e0c8f7a4d21")

# The bus does not tell a GPU that is lost from one whose driver hangs; one GPU is never both.
_BUS_KINDS = {
    AlertKind.HOST_SILENT: pb.GPU_ALERT_KIND_HOST_SILENT,
    AlertKind.HOST_LOST: pb.GPU_ALERT_KIND_HOST_LOST,
    AlertKind.GPU_LOST: pb.GPU_ALERT_KIND_GPU_FAILED,
    AlertKind.GPU_HUNG: pb.GPU_ALERT_KIND_GPU_FAILED,
    AlertKind.SERVER_UNHEALTHY: pb.GPU_ALERT_KIND_SERVER_UNHEALTHY,
    AlertKind.XID: pb.GPU_ALERT_KIND_XID,
    AlertKind.THERMAL_THROTTLING: pb.GPU_ALERT_KIND_THERMAL_THROTTLING,
    AlertKind.POWER_THROTTLING: pb.GPU_ALERT_KIND_POWER_THROTTLING,
    AlertKind.ECC_UNCORRECTED: pb.GPU_ALERT_KIND_ECC_UNCORRECTED,
    AlertKind.CLOCK_SKEW: pb.GPU_ALERT_KIND_CLOCK_SKEW,
    AlertKind.DRIVER_UNREACHABLE: pb.GPU_ALERT_KIND_DRIVER_UNREACHABLE,
}


class AlertReporter:
    """Publishes what begins and what ends.

    While the bus is away at most `buffer` alerts wait, and are published with their own times once
    it is back; further ones are dropped and counted.
    """

    def __init__(self, *, clock: Clock, telemetry: Telemetry, buffer: int) -> None:
        self._clock = clock
        self._waiting: asyncio.Queue[pb.GameEvent] = asyncio.Queue(buffer)
        self._dropped = telemetry.counter(
            metric_names.ALERTS_DROPPED, unit="1", description="alerts never published, by reason"
        )

    def offer(self, change: AlertChange) -> None:
        """Put what is to be told into the buffer; who looks after an alert is not for the bus."""
        if change.kind is AlertChangeKind.ACKNOWLEDGED or change.replaced:
            return
        try:
            self._waiting.put_nowait(alert_message(change, time=self._clock.now()))
        except asyncio.QueueFull:
            self._dropped.add(1, {"reason": "buffer_full"})

    async def publish(self, sink: EventSink) -> None:
        """Publish what waits, in order, until cancelled; tries again while the bus is away."""
        while True:
            await self._publish_one(sink, await self._waiting.get())

    async def _publish_one(self, sink: EventSink, message: pb.GameEvent) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                await sink.publish(message)
            except Unavailable as error:
                log.warning("alert_waits", reason=error.reason, again_seconds=pause)
                await self._clock.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            except ServiceError as error:
                log.warning("alert_refused", reason=error.reason)
                self._dropped.add(1, {"reason": error.reason.lower()})
                return
            else:
                return


def alert_message(change: AlertChange, *, time: datetime) -> pb.GameEvent:
    """Return an alert's beginning or end as the bus carries it.

    Its event id follows from the alert's, so consumers that keep an inbox hear it once however many
    collectors tell it.
    """
    alert, condition = change.alert, change.alert.condition
    is_server = condition.kind is AlertKind.SERVER_UNHEALTHY
    state = pb.GPU_ALERT_STATE_RAISED if alert.stands else pb.GPU_ALERT_STATE_CLEARED
    return new_event(
        pb.GPU_ALERT,
        pb.GpuAlertEvent(
            kind=_BUS_KINDS[condition.kind],
            state=state,
            host_id=condition.host_id,
            gpu_uuid="" if is_server else condition.part_id,
            server_id=condition.part_id if is_server else "",
            tiers=[tier_pb2.Tier.ValueType(tier.value) for tier in alert.tiers],
            last_report_timestamp=_milliseconds(alert.last_report_time),
            reason=change.reason or alert.reason,
            simulated=alert.simulated,
            alert_id=alert.alert_id,
        ),
        source=SOURCE,
        event_id=str(uuid.uuid5(_NAMESPACE, f"{alert.alert_id}:{state}")),
        timestamp_milliseconds=_milliseconds(time),
    )


def _milliseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)
