"""What of the fleet needs attention is said once when it begins and once when it ends."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from gaming.events import events_pb2 as pb
from gpu_metrics.alerts import AlertReporter, alert_message
from gpu_metrics.domain.alerts import Alert, AlertBook, AlertKind
from gpu_metrics.domain.fleet import FleetPolicy, FleetView
from gpu_metrics.domain.readings import (
    GpuReading,
    Host,
    HostReport,
    MissingReason,
    ModelServerState,
    Tier,
)
from messaging.errors import BusRefused, BusUnavailable
from servicekit.telemetry import Telemetry
from servicekit.testing import FakeClock

from .builders import NOON, make_report, make_server

POLICY = FleetPolicy(stale_after_seconds=5, expire_after_seconds=60)


class Fleet:
    """A view that is looked at as time passes."""

    def __init__(self) -> None:
        self.view = FleetView(POLICY)
        self.book = AlertBook(confirm_seconds=3)
        self.sequence = 0

    def report(self, at: float, *servers: Any, host_id: str = "i-1", **options: Any) -> None:
        self.sequence += 1
        report = make_report(host_id, self.sequence, *servers, **options)
        self.view.apply(report, at, NOON + timedelta(seconds=at))

    def look(self, at: float) -> list[tuple[AlertKind, bool]]:
        return [(alert.condition.kind, alert.raised) for alert in self.alerts(at)]

    def alerts(self, at: float) -> tuple[Alert, ...]:
        return self.book.look(self.view.hosts(at), at)


def gpu(**readings: Any) -> GpuReading:
    defaults = {"utilization_permille": 200, "temperature_celsius": 60}
    return GpuReading(gpu_uuid="GPU-1", index=0, **{**defaults, **readings})


def lost_gpu(reason: MissingReason = MissingReason.LOST) -> GpuReading:
    return GpuReading(
        gpu_uuid="GPU-1",
        index=0,
        utilization_permille=reason,
        memory_used_bytes=reason,
        power_milliwatts=reason,
        temperature_celsius=reason,
    )


def test_a_host_that_falls_silent_and_reports_again_is_told_once_each() -> None:
    fleet = Fleet()
    fleet.report(0)
    assert fleet.look(4) == []
    assert fleet.look(5) == [(AlertKind.HOST_SILENT, True)]
    assert fleet.look(6) == []
    fleet.report(7)
    assert fleet.look(7) == [(AlertKind.HOST_SILENT, False)]
    assert fleet.look(8) == []


def test_a_silent_host_that_is_given_up_is_lost_until_it_reports_again() -> None:
    fleet = Fleet()
    fleet.report(0)
    fleet.look(5)
    assert fleet.look(60) == [(AlertKind.HOST_LOST, True)]
    assert fleet.look(61) == []
    fleet.report(100)
    assert fleet.look(100) == [(AlertKind.HOST_LOST, False)]


def test_a_host_that_leaves_on_purpose_or_was_taken_back_with_notice_is_no_alert() -> None:
    fleet = Fleet()
    fleet.report(0)
    fleet.look(0)
    fleet.report(1, leaving=True)
    assert fleet.look(100) == []
    noticed = Host(host_id="i-2", interruption_time=NOON)
    fleet.view.apply(HostReport(host=noticed, boot_id="b", sequence=1, sample_time=NOON), 0, NOON)
    assert fleet.look(130) == []
    assert fleet.look(300) == []


def test_a_gpu_that_answers_for_nothing_any_more_is_told_once_it_stays_so() -> None:
    fleet = Fleet()
    fleet.report(0, gpus=(lost_gpu(),))
    assert fleet.look(0) == []
    fleet.report(2.9, gpus=(lost_gpu(),))
    assert fleet.look(2.9) == []
    fleet.report(3, gpus=(lost_gpu(),))
    (alert,) = fleet.alerts(3)
    assert (alert.condition.kind, alert.condition.part_id) == (AlertKind.GPU_FAILED, "GPU-1")
    assert "fell off the bus" in alert.reason
    fleet.report(4, gpus=(gpu(),))
    assert fleet.look(4) == [(AlertKind.GPU_FAILED, False)]


def test_a_single_late_answer_and_a_reading_that_is_not_offered_are_no_failures() -> None:
    fleet = Fleet()
    for second in range(12):
        late = lost_gpu(MissingReason.TIMEOUT) if second % 2 else gpu()
        fleet.report(second, gpus=(late,), host_id="late")
        fleet.report(second, gpus=(lost_gpu(MissingReason.UNSUPPORTED),), host_id="old")
        partly = gpu(power_milliwatts=MissingReason.TIMEOUT)
        fleet.report(second, gpus=(partly,), host_id="partly")
        assert fleet.look(second) == []


def test_a_server_that_stays_unhealthy_is_told_and_cleared() -> None:
    fleet = Fleet()
    sick = make_server("gold-1", state=ModelServerState.UNHEALTHY)
    fleet.report(0, sick)
    fleet.look(0)
    fleet.report(3, sick)
    assert fleet.look(3) == [(AlertKind.SERVER_UNHEALTHY, True)]
    fleet.report(4, make_server("gold-1"))
    assert fleet.look(4) == [(AlertKind.SERVER_UNHEALTHY, False)]


def test_while_a_host_is_silent_nothing_is_said_of_what_is_on_it() -> None:
    fleet = Fleet()
    sick = make_server("gold-1", state=ModelServerState.UNHEALTHY)
    fleet.report(0, sick)
    fleet.look(0)
    fleet.report(3, sick)
    fleet.look(3)
    assert fleet.look(8) == [(AlertKind.HOST_SILENT, True)]
    fleet.report(9, make_server("gold-1"))
    assert set(fleet.look(9)) == {
        (AlertKind.HOST_SILENT, False),
        (AlertKind.SERVER_UNHEALTHY, False),
    }


def test_the_bus_is_told_all_that_is_known_of_an_alert() -> None:
    fleet = Fleet()
    servers = (make_server("s", Tier.SILVER, state=ModelServerState.UNHEALTHY), make_server("g"))
    fleet.report(0, *servers)
    fleet.look(0)
    fleet.report(3, *servers)
    (alert,) = fleet.alerts(3)
    message = alert_message(alert, event_id="e1", time=NOON)
    event = pb.GpuAlertEvent.FromString(message.payload)
    assert (message.event_type, message.source) == (pb.GPU_ALERT, "gpu_metrics")
    assert event.kind == pb.GPU_ALERT_KIND_SERVER_UNHEALTHY
    assert event.state == pb.GPU_ALERT_STATE_RAISED
    assert (event.host_id, event.server_id, event.gpu_uuid) == ("i-1", "s", "")
    assert list(event.tiers) == [1, 2]
    assert event.last_report_timestamp == round((NOON.timestamp() + 3) * 1000)
    for kind in AlertKind:
        assert pb.GpuAlertKind.Name(kind.value) == f"GPU_ALERT_KIND_{kind.name}"  # type: ignore[arg-type]  # the same numbers


class Bus:
    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.published: list[str] = []

    async def publish(self, event: pb.GameEvent) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.published.append(event.event_id)


class Counter(Telemetry):
    """Counts in memory."""

    def __init__(self) -> None:
        super().__init__("test")
        self.counts: dict[str, int] = {}

    def counter(self, name: str, **options: Any) -> Any:
        counts = self.counts

        class Instrument:
            def add(self, amount: int, attributes: Any = None) -> None:
                counts[name] = counts.get(name, 0) + amount

        return Instrument()


async def test_alerts_wait_while_the_bus_is_away_and_what_does_not_fit_is_counted() -> None:
    fleet, bus, telemetry, clock = Fleet(), Bus(), Counter(), FakeClock()
    alerts = AlertReporter(
        fleet.view, bus, clock=clock, telemetry=telemetry, confirm_seconds=0, buffer=2
    )
    sick = [make_server(f"gold-{number}", state=ModelServerState.UNHEALTHY) for number in range(3)]
    fleet.report(clock.monotonic(), *sick)
    alerts.look()
    assert telemetry.counts["gpu_metrics.alerts"] == 3
    assert telemetry.counts["gpu_metrics.alerts.dropped"] == 1
    bus.failures = [BusUnavailable("away"), BusUnavailable("away")]
    publishing = asyncio.create_task(alerts.publish())
    for _ in range(10):
        await clock.advance(1.0)
    publishing.cancel()
    assert len(bus.published) == 2


async def test_an_alert_the_bus_refuses_is_dropped_and_holds_up_none() -> None:
    fleet, bus, telemetry, clock = Fleet(), Bus(), Counter(), FakeClock()
    alerts = AlertReporter(
        fleet.view, bus, clock=clock, telemetry=telemetry, confirm_seconds=0, buffer=9
    )
    sick = [make_server(f"gold-{number}", state=ModelServerState.UNHEALTHY) for number in range(2)]
    fleet.report(clock.monotonic(), *sick)
    bus.failures = [BusRefused("no such topic")]
    alerts.look()
    publishing = asyncio.create_task(alerts.publish())
    for _ in range(3):
        await clock.advance(1.0)
    publishing.cancel()
    assert len(bus.published) == 1
    assert telemetry.counts["gpu_metrics.alerts.dropped"] == 1


@pytest.mark.parametrize("reason", [MissingReason.LOST, MissingReason.TIMEOUT])
def test_the_reason_of_a_failed_gpu_is_told(reason: MissingReason) -> None:
    fleet = Fleet()
    for second in (0, 3):
        fleet.report(second, gpus=(lost_gpu(reason),))
        alerts = fleet.alerts(second)
    assert alerts[0].reason.startswith("GPU 0: the ")
