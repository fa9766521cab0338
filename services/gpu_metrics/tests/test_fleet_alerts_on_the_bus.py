"""The bus is told of alerts as they begin and end, in order, and a bus that is away loses few."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

from gaming.events import events_pb2 as pb
from gpu_metrics.alerts import AlertReporter, alert_message
from gpu_metrics.domain.alerts import (
    AlertChange,
    AlertKind,
)
from gpu_metrics.domain.readings import (
    ModelServerState,
    Tier,
)
from messaging.errors import BusRefused, BusUnavailable
from servicekit.telemetry import Telemetry
from servicekit.testing import FakeClock

from .alert_fleet import (
    Fleet,
    moment,
)
from .builders import NOON, make_server


def unhealthy(fleet: Fleet, *names: str) -> tuple[AlertChange, ...]:
    sick = [make_server(name, state=ModelServerState.UNHEALTHY) for name in names]
    for second in (0, 3):
        fleet.report(second, *sick)
        changes = fleet.changes(second)
    return changes


def test_the_bus_is_told_all_that_is_known_of_an_alert() -> None:
    fleet = Fleet()
    servers = (make_server("s", Tier.SILVER, state=ModelServerState.UNHEALTHY), make_server("g"))
    for second in (0, 3):
        fleet.report(second, *servers)
        changes = fleet.changes(second)
    message = alert_message(changes[0], time=NOON)
    event = pb.GpuAlertEvent.FromString(message.payload)
    assert (message.event_type, message.source) == (pb.GPU_ALERT, "gpu_metrics")
    assert event.kind == pb.GPU_ALERT_KIND_SERVER_UNHEALTHY
    assert event.state == pb.GPU_ALERT_STATE_RAISED
    assert (event.host_id, event.server_id, event.gpu_uuid) == ("i-1", "s", "")
    assert list(event.tiers) == [1, 2]
    assert event.last_report_timestamp == round((NOON.timestamp() + 3) * 1000)
    assert event.alert_id == changes[0].alert.alert_id
    again = alert_message(changes[0], time=NOON + timedelta(seconds=1))
    assert again.event_id == message.event_id


def test_the_bus_has_a_word_for_every_kind() -> None:
    fleet = Fleet()
    (change,) = unhealthy(fleet, "gold-1")
    for kind in AlertKind:
        condition = replace(change.alert.condition, kind=kind)
        told = replace(change, alert=replace(change.alert, condition=condition))
        event = pb.GpuAlertEvent.FromString(alert_message(told, time=NOON).payload)
        assert event.kind != pb.GPU_ALERT_KIND_UNSPECIFIED


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
    bus, telemetry, clock = Bus(), Counter(), FakeClock()
    reporter = AlertReporter(clock=clock, telemetry=telemetry, buffer=2)
    for change in unhealthy(Fleet(), "gold-1", "gold-2", "gold-3"):
        reporter.offer(change)
    assert telemetry.counts["gpu_metrics.alerts.dropped"] == 1
    bus.failures = [BusUnavailable("away"), BusUnavailable("away")]
    publishing = asyncio.create_task(reporter.publish(bus))
    for _ in range(10):
        await clock.advance(1.0)
    publishing.cancel()
    assert len(bus.published) == 2


async def test_an_alert_the_bus_refuses_is_dropped_and_holds_up_none() -> None:
    bus, telemetry, clock = Bus(), Counter(), FakeClock()
    reporter = AlertReporter(clock=clock, telemetry=telemetry, buffer=9)
    bus.failures = [BusRefused("no such topic")]
    for change in unhealthy(Fleet(), "gold-1", "gold-2"):
        reporter.offer(change)
    publishing = asyncio.create_task(reporter.publish(bus))
    for _ in range(3):
        await clock.advance(1.0)
    publishing.cancel()
    assert len(bus.published) == 1
    assert telemetry.counts["gpu_metrics.alerts.dropped"] == 1


def test_the_bus_hears_nothing_of_who_looks_after_an_alert_nor_of_silence_that_became_loss() -> (
    None
):
    fleet, clock = Fleet(), FakeClock()
    reporter = AlertReporter(clock=clock, telemetry=Telemetry("test"), buffer=9)
    fleet.report(0)
    (raised,) = fleet.changes(5)
    acknowledged = fleet.book.acknowledge(raised.alert.alert_id, who="kim", note="", now=moment(6))
    assert acknowledged is not None
    changes = fleet.changes(60)
    for change in (raised, acknowledged, *changes):
        reporter.offer(change)
    waiting = [reporter._waiting.get_nowait() for _ in range(reporter._waiting.qsize())]
    kinds = [pb.GpuAlertEvent.FromString(message.payload).kind for message in waiting]
    assert kinds == [pb.GPU_ALERT_KIND_HOST_SILENT, pb.GPU_ALERT_KIND_HOST_LOST]
