"""What an agent costs and had to give up, from where it is counted to where people see it."""

import random
from datetime import UTC, datetime

from gaming.gpu_metrics.v1 import gpu_metrics_pb2
from gpu_metrics import wire
from gpu_metrics.adapters.collector_link import CollectorLink
from gpu_metrics.adapters.process_cost import CostMeter
from gpu_metrics.domain.gpu_events import GpuEventKind, ObservedEvent
from gpu_metrics.domain.readings import Host, HostReport
from gpu_metrics.domain.samples import AgentCost, DriverCost, SampleSeries
from gpu_metrics.journal import EventJournal
from gpu_metrics.testing import collector_for_test
from servicekit.channels import open_channel
from servicekit.telemetry import Telemetry
from servicekit.testing import FakeClock

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
COST = AgentCost(
    driver_calls=9000,
    driver_seconds=2.5,
    cpu_seconds=12.25,
    resident_bytes=63_000_000,
    replaced_reports=3,
    lost_events=1,
)


class Driver:
    """A driver that says what its calls took."""

    driver_version = "570.1"

    def __init__(self, cost: DriverCost) -> None:
        self.cost = cost

    def take_series(self, sample_time: datetime) -> tuple[SampleSeries, ...]:
        return ()


def report_of(sequence: int, cost: AgentCost | None = None) -> HostReport:
    return HostReport(
        host=Host(host_id="i-1"), boot_id="boot", sequence=sequence, sample_time=NOON, cost=cost
    )


async def test_a_meter_adds_up_drivers_links_and_journal() -> None:
    journal = EventJournal(bound=16)
    async with open_channel("127.0.0.1:9") as channel:
        links = [
            CollectorLink(
                channel,
                name=f"collector-{number}",
                clock=FakeClock(),
                jitter=random.Random(1),  # noqa: S311  # spreads retries, no secret
                telemetry=Telemetry("test"),
                journal=journal,
            )
            for number in range(2)
        ]
        drivers = [Driver(DriverCost(100, 1.5)), Driver(DriverCost(20, 0.25))]
        meter = CostMeter(drivers=drivers, links=links, journal=journal)
        before = meter()
        assert (before.driver_calls, before.driver_seconds) == (120, 1.75)
        assert (before.replaced_reports, before.lost_events) == (0, 0)
        assert before.resident_bytes > 1_000_000
        assert before.cpu_seconds > 0

        for link in links:
            for sequence in range(1, 4):
                link.offer(report_of(sequence))
        for code in range(20):
            await journal.append([ObservedEvent(kind=GpuEventKind.XID, time=NOON, xid=code + 1)])
        drivers[0].cost = DriverCost(101, 2.0)
        after = meter()
    assert (after.driver_calls, after.driver_seconds) == (121, 2.25)
    assert (after.replaced_reports, after.lost_events) == (4, 4)
    assert after.cpu_seconds >= before.cpu_seconds


async def test_the_collector_shows_what_an_agent_said_last_that_it_costs() -> None:
    async with collector_for_test() as collector:
        call = collector.reports.StreamReports(timeout=30)
        for report in (report_of(1), report_of(2, COST), report_of(3)):
            await call.write(wire.report_message(report))
            await call.read()
            answer = await collector.fleet.GetFleet(gpu_metrics_pb2.GetFleetRequest(), timeout=30)
            (view,) = answer.fleet.hosts
            assert view.HasField("agent_cost") == (report.sequence > 1)
        call.cancel()
    assert wire.report_message(report_of(4, COST)).cost == view.agent_cost
