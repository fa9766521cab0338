"""How an agent's events reach a collector, over real streams that break."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from gaming.gpu_metrics.v1 import gpu_metrics_pb2, gpu_metrics_pb2_grpc
from gpu_metrics.adapters.collector_link import CollectorLink
from gpu_metrics.domain.gpu_events import GpuEventKind, ObservedEvent
from gpu_metrics.domain.readings import Host, HostReport
from gpu_metrics.journal import EventJournal
from servicekit.clock import SystemClock
from servicekit.errors import Unavailable
from servicekit.server import ServiceRegistration
from servicekit.telemetry import Telemetry
from servicekit.testing import serve_for_test

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class TakingCollector(gpu_metrics_pb2_grpc.GpuReportServiceServicer):
    """Takes events in order; forgets them, refuses or does not understand them when told to."""

    def __init__(self, *, knows_journals: bool = True, takes: bool = True) -> None:
        self.held: list[int] = []
        self.messages: list[gpu_metrics_pb2.StreamReportsRequest] = []
        self.break_after_message = False
        self._knows_journals, self._takes = knows_journals, takes
        self._changed = asyncio.Event()

    async def StreamReports(  # noqa: N802  # the method's name in the protocol
        self, request_iterator: AsyncIterator[gpu_metrics_pb2.StreamReportsRequest], context: Any
    ) -> AsyncIterator[gpu_metrics_pb2.StreamReportsResponse]:
        async for request in request_iterator:
            self.messages.append(request)
            for event in request.events:
                expected = max(self.held[-1] if self.held else 0, request.oldest_event_sequence - 1)
                if self._takes and event.sequence == expected + 1:
                    self.held.append(event.sequence)
            self._changed.set()
            if self.break_after_message and request.events:
                self.break_after_message = False
                raise Unavailable("the collector goes away before it acknowledges")
            yield gpu_metrics_pb2.StreamReportsResponse(
                boot_id=request.boot_id,
                acknowledged_sequence=request.sequence,
                journal_id=request.journal_id if self._knows_journals else "",
                acknowledged_event_sequence=self.held[-1] if self.held else 0,
            )

    async def has(self, *events: int) -> None:
        async with asyncio.timeout(30):
            while self.held != list(events):
                self._changed.clear()
                await self._changed.wait()

    async def has_messages(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.messages) < count:
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def linked(journal: EventJournal, *collectors: TakingCollector) -> AsyncIterator[None]:
    """A link to each collector, which has had one report and gets no other."""
    async with asyncio.TaskGroup() as group:
        running = []
        for collector in collectors:
            registration = ServiceRegistration.of(
                gpu_metrics_pb2_grpc.add_GpuReportServiceServicer_to_server,
                collector,
                gpu_metrics_pb2.DESCRIPTOR.services_by_name["GpuReportService"],
            )
            ready = asyncio.Event()

            async def serve(
                registration: ServiceRegistration = registration, ready: asyncio.Event = ready
            ) -> None:
                async with serve_for_test([registration]) as (_, channel):
                    link = CollectorLink(
                        channel,
                        name="collector",
                        clock=SystemClock(),
                        jitter=random.Random(7),  # noqa: S311  # spreads retries, no secret
                        telemetry=Telemetry("test"),
                        journal=journal,
                        first_backoff_seconds=0.02,
                        maximum_backoff_seconds=0.1,
                    )
                    link.offer(report())
                    ready.set()
                    await link.run()

            running.append(group.create_task(serve()))
            await ready.wait()
        yield
        for task in running:
            task.cancel()


def report() -> HostReport:
    return HostReport(host=Host(host_id="i-1"), boot_id="boot", sequence=1, sample_time=NOON)


def xids(count: int) -> list[ObservedEvent]:
    return [ObservedEvent(kind=GpuEventKind.XID, time=NOON, gpu_uuid="GPU-a", xid=31)] * count


async def test_an_event_does_not_wait_for_the_next_report() -> None:
    journal, collector = EventJournal(), TakingCollector()
    async with linked(journal, collector):
        await collector.has_messages(2)
        await journal.append(xids(1))
        await collector.has(1)
    assert collector.messages[-1].events_only
    assert [message.events_only for message in collector.messages].count(False) == 1


async def test_many_events_come_in_order_in_messages_of_a_bounded_size() -> None:
    journal, collector = EventJournal(), TakingCollector()
    await journal.append(xids(600))
    async with linked(journal, collector):
        await collector.has(*range(1, 601))
    sizes = [len(message.events) for message in collector.messages if message.events]
    assert sizes == [256, 256, 88]


async def test_each_collector_is_sent_what_it_lacks() -> None:
    journal = EventJournal()
    await journal.append(xids(5))
    new, old = TakingCollector(), TakingCollector()
    old.held = [1, 2, 3]
    async with linked(journal, new, old):
        await new.has(1, 2, 3, 4, 5)
        await old.has(1, 2, 3, 4, 5)
    sent = [event.sequence for message in old.messages for event in message.events]
    assert sent == [4, 5]


async def test_an_acknowledgement_that_is_lost_neither_loses_nor_repeats_an_event() -> None:
    journal, collector = EventJournal(), TakingCollector()
    await journal.append(xids(3))
    collector.break_after_message = True
    async with linked(journal, collector):
        await collector.has(1, 2, 3)
        await journal.append(xids(1))
        await collector.has(1, 2, 3, 4)
    sent = [event.sequence for message in collector.messages for event in message.events]
    # The stream that follows asks where the collector stands, and goes on from there.
    assert sent == [1, 2, 3, 4]


async def test_a_collector_that_starts_anew_gets_all_that_the_journal_holds() -> None:
    journal, collector = EventJournal(bound=4), TakingCollector()
    await journal.append(xids(6))
    async with linked(journal, collector):
        await collector.has(3, 4, 5, 6)
        collector.held = []
        collector.break_after_message = True
        await journal.append(xids(1))
        await collector.has(4, 5, 6, 7)


async def test_a_collector_that_takes_no_events_gets_reports_all_the_same() -> None:
    journal, collector = EventJournal(), TakingCollector(knows_journals=False)
    await journal.append(xids(1))
    async with linked(journal, collector):
        await collector.has_messages(2)
        await journal.append(xids(1))
    assert [message.events_only for message in collector.messages] == [True, False]
    assert not any(message.events for message in collector.messages)


async def test_a_collector_that_does_not_take_what_it_is_sent_is_not_flooded() -> None:
    journal, collector = EventJournal(), TakingCollector(takes=False)
    await journal.append(xids(1))
    async with linked(journal, collector):
        await collector.has_messages(2)
        for _ in range(3):
            await journal.append(xids(1))
            await collector.has_messages(len(collector.messages) + 1)
        await asyncio.sleep(0)
    # Where it stands, the report with events, and one message for each time there was news.
    assert len(collector.messages) <= 2 + 3 + 1
