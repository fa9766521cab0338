"""Tells the game's event bus what of the fleet needs attention.

Nothing here stands in the way of reports: the view is looked at from outside at a fixed pace, and
what is to be told waits in a bounded buffer.
"""

import asyncio
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog

from gaming.common.v1 import tier_pb2
from gaming.events import events_pb2 as pb
from gpu_metrics import metric_names
from gpu_metrics.domain.alerts import Alert, AlertBook, AlertKind
from gpu_metrics.domain.fleet import FleetView
from gpu_metrics.ports import EventSink
from messaging.codec import new_event
from servicekit.clock import Clock
from servicekit.errors import ServiceError, Unavailable
from servicekit.telemetry import Telemetry

__all__ = ["SOURCE", "AlertReporter", "alert_message"]

log = structlog.get_logger(__name__)

SOURCE = "gpu_metrics"

_LOOK_SECONDS = 0.5
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class AlertReporter:
    """Looks at the view and publishes what begins and what ends.

    While the bus is away at most `buffer` alerts wait, and are published with their own times once
    it is back; further ones are dropped and counted.
    """

    def __init__(
        self,
        view: FleetView,
        sink: EventSink,
        *,
        clock: Clock,
        telemetry: Telemetry,
        confirm_seconds: float,
        buffer: int,
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        self._view = view
        self._sink = sink
        self._clock = clock
        self._book = AlertBook(confirm_seconds=confirm_seconds)
        self._waiting: asyncio.Queue[pb.GameEvent] = asyncio.Queue(buffer)
        self._new_id = new_id
        self._alerts = telemetry.counter(
            metric_names.ALERTS, unit="1", description="alerts of the fleet, by kind and state"
        )
        self._dropped = telemetry.counter(
            metric_names.ALERTS_DROPPED, unit="1", description="alerts never published, by reason"
        )

    async def watch(self) -> None:
        """Look at the view until cancelled."""
        while True:
            self.look()
            await self._clock.sleep(_LOOK_SECONDS)

    def look(self) -> None:
        """Look once, and put what is to be told into the buffer."""
        now = self._clock.monotonic()
        for alert in self._book.look(self._view.hosts(now), now):
            kind, state = alert.condition.kind.name.lower(), _state_name(alert)
            self._alerts.add(1, {"kind": kind, "state": state})
            log.warning(
                "fleet_alert",
                kind=kind,
                state=state,
                host_id=alert.condition.host_id,
                part_id=alert.condition.part_id or None,
                reason=alert.reason,
            )
            message = alert_message(alert, event_id=str(self._new_id()), time=self._clock.now())
            try:
                self._waiting.put_nowait(message)
            except asyncio.QueueFull:
                self._dropped.add(1, {"reason": "buffer_full"})

    async def publish(self) -> None:
        """Publish what waits, in order, until cancelled; tries again while the bus is away."""
        while True:
            await self._publish_one(await self._waiting.get())

    async def _publish_one(self, message: pb.GameEvent) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                await self._sink.publish(message)
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


def alert_message(alert: Alert, *, event_id: str, time: datetime) -> pb.GameEvent:
    """Return the alert as the bus carries it."""
    condition = alert.condition
    is_server = condition.kind is AlertKind.SERVER_UNHEALTHY
    return new_event(
        pb.GPU_ALERT,
        pb.GpuAlertEvent(
            kind=pb.GpuAlertKind.ValueType(condition.kind.value),
            state=pb.GPU_ALERT_STATE_RAISED if alert.raised else pb.GPU_ALERT_STATE_CLEARED,
            host_id=condition.host_id,
            gpu_uuid="" if is_server else condition.part_id,
            server_id=condition.part_id if is_server else "",
            tiers=[tier_pb2.Tier.ValueType(tier.value) for tier in alert.tiers],
            last_report_timestamp=_milliseconds(alert.last_report_time),
            reason=alert.reason,
            simulated=alert.simulated,
        ),
        source=SOURCE,
        event_id=event_id,
        timestamp_milliseconds=_milliseconds(time),
    )


def _state_name(alert: Alert) -> str:
    return "raised" if alert.raised else "cleared"


def _milliseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)
