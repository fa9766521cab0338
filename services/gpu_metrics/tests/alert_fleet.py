"""A fleet whose alerts are looked at as time passes."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from gpu_metrics.domain.alert_book import AlertBook, Moment
from gpu_metrics.domain.alerts import (
    AlertChange,
    AlertChangeKind,
    AlertKind,
    AlertPolicy,
)
from gpu_metrics.domain.fleet import FleetPolicy, FleetView
from gpu_metrics.domain.gpu_events import GpuEvent, GpuEventKind, Severity
from gpu_metrics.domain.readings import (
    GpuReading,
    MissingReason,
)

from .builders import NOON, make_report

POLICY = FleetPolicy(stale_after_seconds=5, expire_after_seconds=60)
RUNBOOKS = Path(__file__).parents[3] / "deploy/runbooks/gpu"
RAISED, CLEARED = AlertChangeKind.RAISED, AlertChangeKind.CLEARED


def moment(at: float) -> Moment:
    return Moment(at, NOON + timedelta(seconds=at))


class Fleet:
    """A view that is looked at as time passes."""

    def __init__(self, **policy: Any) -> None:
        self.view = FleetView(POLICY)
        self.book = AlertBook(AlertPolicy(**policy))
        self.sequence = 0
        self.events = 0
        self.revision = 0

    def report(self, at: float, *servers: Any, host_id: str = "i-1", **options: Any) -> None:
        self.sequence += 1
        report = make_report(host_id, self.sequence, *servers, **options)
        report = report._replace(sample_time=NOON + timedelta(seconds=at))
        self.view.apply(report, at, NOON + timedelta(seconds=at))

    def event(
        self, at: float, kind: GpuEventKind, when: float | None = None, **fields: Any
    ) -> list[tuple[AlertKind, AlertChangeKind]]:
        self.events += 1
        event = GpuEvent(
            sequence=self.events,
            kind=kind,
            time=NOON + timedelta(seconds=at if when is None else when),
            **{"gpu_uuid": "GPU-1", **fields},
        )
        return brief(self.book.take_events("i-1", "j", [event], moment(at)))

    def xid(self, at: float, when: float | None = None, **fields: Any) -> list[Any]:
        fields = {"xid": 79, "severity": Severity.CRITICAL, **fields}
        return self.event(at, GpuEventKind.XID, when, **fields)

    def look(self, at: float) -> list[tuple[AlertKind, AlertChangeKind]]:
        return brief(self.changes(at))

    def changes(self, at: float) -> tuple[AlertChange, ...]:
        changes = self.view.changes_since(self.revision, at)
        self.revision = changes.revision
        told = self.book.look(changes.changed, changes.removed_host_ids, moment(at))
        return (*told, *self.book.pass_time(moment(at)))

    def standing(self) -> set[AlertKind]:
        return {alert.condition.kind for alert in self.book.standing()}


def brief(changes: tuple[AlertChange, ...]) -> list[tuple[AlertKind, AlertChangeKind]]:
    return [(change.alert.condition.kind, change.kind) for change in changes]


def gpu(**readings: Any) -> GpuReading:
    defaults = {"utilization_permille": 200, "temperature_celsius": 60}
    return GpuReading(gpu_uuid="GPU-1", index=0, **{**defaults, **readings})


def failed_gpu(reason: MissingReason = MissingReason.LOST) -> GpuReading:
    return GpuReading(
        gpu_uuid="GPU-1",
        index=0,
        utilization_permille=reason,
        memory_used_bytes=reason,
        power_milliwatts=reason,
        temperature_celsius=reason,
    )
