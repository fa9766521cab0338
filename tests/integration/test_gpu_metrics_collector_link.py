"""An agent's link to one collector, against collectors that are slow, silent or refuse."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import grpc.aio

from gaming.gpu_metrics.v1 import gpu_metrics_pb2, gpu_metrics_pb2_grpc
from gpu_metrics import wire
from gpu_metrics.adapters.collector_link import CollectorLink
from gpu_metrics.domain.gpu_events import GpuEventKind, ObservedEvent
from gpu_metrics.domain.readings import GpuReading, Host, HostReport
from gpu_metrics.domain.samples import FleetMetric, SampleSeries
from gpu_metrics.journal import EventJournal
from localsuite.ports import free_ports
from servicekit.clock import SystemClock
from servicekit.errors import ResourceExhausted, Unavailable
from servicekit.server import ServiceRegistration
from servicekit.telemetry import Telemetry
from servicekit.testing import serve_for_test


class ScriptedCollector(gpu_metrics_pb2_grpc.GpuReportServiceServicer):
    """Takes reports; acknowledges while `acknowledging` is set, refuses while `refusing` is."""

    def __init__(self) -> None:
        self.received: list[gpu_metrics_pb2.StreamReportsRequest] = []
        self.streams = 0
        self.refusing = False
        # As a collector that leaves out the answers that no agent waits for.
        self.leaves_out_answers = False
        # Ends the stream once it took so many messages in all.
        self.breaks_after = 0
        self.acknowledged_sequence: int | None = None
        self.acknowledging = asyncio.Event()
        self.changed = asyncio.Event()

    async def StreamReports(  # noqa: N802  # the method's name in the protocol
        self, request_iterator: AsyncIterator[gpu_metrics_pb2.StreamReportsRequest], context: Any
    ) -> AsyncIterator[gpu_metrics_pb2.StreamReportsResponse]:
        self.streams += 1
        async for request in request_iterator:
            if self.refusing:
                self.refusing = False
                raise ResourceExhausted("full")
            self.received.append(request)
            self.changed.set()
            if len(self.received) == self.breaks_after:
                raise Unavailable("the collector goes away")
            await self.acknowledging.wait()
            if self.leaves_out_answers and request.no_answer:
                continue
            sequence = self.acknowledged_sequence
            yield gpu_metrics_pb2.StreamReportsResponse(
                boot_id=request.boot_id,
                acknowledged_sequence=request.sequence if sequence is None else sequence,
                journal_id=request.journal_id,
                leaves_out_answers=self.leaves_out_answers,
            )

    async def has_received(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.received) < count:
                self.changed.clear()
                await self.changed.wait()

    @property
    def instance_types(self) -> list[str]:
        return [request.host.instance_type for request in self.received]


@asynccontextmanager
async def linked(
    collector: ScriptedCollector,
    *,
    acknowledge_timeout_seconds: float = 10.0,
    clock: SystemClock | None = None,
    before: Sequence[CollectorLink] = (),
    maximum_backoff_seconds: float = 0.1,
    journal: EventJournal | None = None,
) -> AsyncIterator[CollectorLink]:
    registration = ServiceRegistration.of(
        gpu_metrics_pb2_grpc.add_GpuReportServiceServicer_to_server,
        collector,
        gpu_metrics_pb2.DESCRIPTOR.services_by_name["GpuReportService"],
    )
    async with serve_for_test([registration]) as (_, channel):
        link = CollectorLink(
            channel,
            name="collector",
            clock=clock or SystemClock(),
            jitter=random.Random(7),  # noqa: S311  # spreads retries, no secret
            telemetry=Telemetry("test"),
            acknowledge_timeout_seconds=acknowledge_timeout_seconds,
            first_backoff_seconds=0.02,
            maximum_backoff_seconds=maximum_backoff_seconds,
            before=before,
            journal=journal,
        )
        running = asyncio.ensure_future(link.run())
        yield link
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def report(name: str, *, leaving: bool = False) -> HostReport:
    """A report that is told from others by its instance type."""
    return HostReport(
        host=Host(host_id="i-1", instance_type=name),
        boot_id="boot",
        sequence=1,
        sample_time=datetime(2026, 1, 1, tzinfo=UTC),
        leaving=leaving,
    )


async def test_while_a_collector_is_slow_only_the_newest_report_waits() -> None:
    collector = ScriptedCollector()
    async with linked(collector) as link:
        link.offer(report("first"))
        await collector.has_received(1)
        for name in ("second", "third", "newest"):
            link.offer(report(name))
        collector.acknowledging.set()
        async with asyncio.timeout(20):
            await link.delivered()
    assert collector.instance_types == ["first", "newest"]
    assert [request.sequence for request in collector.received] == [1, 2]


async def test_a_report_that_is_not_acknowledged_is_sent_again_on_another_stream() -> None:
    collector = ScriptedCollector()
    async with linked(collector, acknowledge_timeout_seconds=0.3) as link:
        link.offer(report("only"))
        await collector.has_received(2)
        collector.acknowledging.set()
        async with asyncio.timeout(20):
            await link.delivered()
    assert set(collector.instance_types) == {"only"}
    assert collector.streams >= 2
    sequences = [request.sequence for request in collector.received]
    assert sequences == sorted(set(sequences))


async def test_a_newer_report_takes_the_place_of_one_that_was_not_acknowledged() -> None:
    collector = ScriptedCollector()
    async with linked(collector, acknowledge_timeout_seconds=0.3) as link:
        link.offer(report("old"))
        await collector.has_received(1)
        link.offer(report("new", leaving=True))
        await collector.has_received(2)
        collector.acknowledging.set()
        async with asyncio.timeout(20):
            await link.delivered()
    assert collector.instance_types[:2] == ["old", "new"]
    assert "old" not in collector.instance_types[1:]
    assert collector.received[-1].leaving


async def test_a_refused_report_is_offered_again_after_a_pause() -> None:
    collector = ScriptedCollector()
    collector.refusing = True
    collector.acknowledging.set()
    async with linked(collector) as link:
        link.offer(report("only"))
        async with asyncio.timeout(20):
            await link.delivered()
    assert collector.instance_types == ["only"]
    assert collector.streams == 2


class PausesNoted(SystemClock):
    """Notes how long is slept and sleeps not at all, until `enough` pauses were noted."""

    def __init__(self, enough: int, before_each: Callable[[], None] = lambda: None) -> None:
        self.pauses: list[float] = []
        self.done = asyncio.Event()
        self._enough = enough
        self._before_each = before_each

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if len(self.pauses) >= self._enough:
            self.done.set()
            await asyncio.Event().wait()
        self._before_each()


async def test_a_collector_that_cannot_be_reached_is_tried_every_second() -> None:
    clock = PausesNoted(12)
    (port,) = free_ports(1)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        link = CollectorLink(
            channel,
            name="away",
            clock=clock,
            jitter=random.Random(7),  # noqa: S311  # spreads retries, no secret
            telemetry=Telemetry("test"),
        )
        link.offer(report("only"))
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            running = group.create_task(link.run())
            await clock.done.wait()
            running.cancel()
    assert max(clock.pauses) <= 1.0
    assert min(clock.pauses[4:]) >= 0.5


async def test_a_collector_that_refuses_is_spared_longer_than_one_that_is_away() -> None:
    collector = ScriptedCollector()

    def refuse_again() -> None:
        collector.refusing = True

    refuse_again()
    clock = PausesNoted(9, refuse_again)
    async with linked(collector, clock=clock, maximum_backoff_seconds=5.0) as link:
        link.offer(report("only"))
        async with asyncio.timeout(30):
            await clock.done.wait()
    assert max(clock.pauses) > 1.0


class ShiftedClock(SystemClock):
    """The machine's clock, some time later."""

    def __init__(self) -> None:
        self.shift = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.shift


async def test_a_host_counts_at_the_first_of_its_collectors_that_has_not_been_away_for_long() -> (
    None
):
    first, second, clock = ScriptedCollector(), ScriptedCollector(), ShiftedClock()
    first.acknowledging.set()
    second.acknowledging.set()
    async with (
        linked(first, acknowledge_timeout_seconds=0.3, clock=clock) as earlier,
        linked(second, clock=clock, before=[earlier]) as later,
    ):

        async def said_to_the_second() -> int:
            later.offer(report("next"))
            async with asyncio.timeout(20):
                await later.delivered()
            return second.received[-1].collectors_before

        earlier.offer(report("one"))
        async with asyncio.timeout(20):
            await earlier.delivered()
        assert await said_to_the_second() == 1
        first.acknowledging.clear()
        earlier.offer(report("two"))
        await first.has_received(3)
        # A stream that is opened again is no reason to count elsewhere.
        assert await said_to_the_second() == 1
        clock.shift = 6.0
        assert await said_to_the_second() == 0
        first.acknowledging.set()
        async with asyncio.timeout(20):
            await earlier.delivered()
        assert await said_to_the_second() == 1
    assert {request.collectors_before for request in first.received} == {0}


def sparing_collector() -> ScriptedCollector:
    collector = ScriptedCollector()
    collector.leaves_out_answers = True
    collector.acknowledging.set()
    return collector


def sampled(number: int) -> HostReport:
    """A report with one sample, whose value is its number, a second after the one before."""
    series = SampleSeries(0, FleetMetric.GPU_UTILIZATION_PERMILLE, (0,), (number,))
    return report(str(number))._replace(
        gpus=(GpuReading(gpu_uuid="GPU-a", index=0),),
        series=(series,),
        sample_time=datetime(2026, 1, 1, 0, 0, number, tzinfo=UTC),
    )


async def offer_one_by_one(
    link: CollectorLink, collector: ScriptedCollector, *numbers: int
) -> None:
    """Offer reports, each once the one before was received."""
    for number in numbers:
        received = len(collector.received)
        link.offer(sampled(number))
        await collector.has_received(received + 1)


async def test_samples_of_a_report_that_is_replaced_go_with_the_newer_one() -> None:
    collector = ScriptedCollector()
    async with linked(collector) as link:
        await offer_one_by_one(link, collector, 1)
        for number in (2, 3, 4):
            link.offer(sampled(number))
        collector.acknowledging.set()
        async with asyncio.timeout(20):
            await link.delivered()
    _, newest = map(wire.report_from_message, collector.received)
    (series,) = newest.series
    assert newest.host.instance_type == "4"
    assert (series.values, series.offset_microseconds) == (
        (2, 3, 4),
        (2_000_000, 1_000_000, 1_000_000),
    )
    assert link.replaced_reports == 2


async def test_a_collector_that_leaves_out_answers_is_asked_for_every_fifth() -> None:
    collector = sparing_collector()
    async with linked(collector) as link:
        await offer_one_by_one(link, collector, *range(1, 12))
    wanted = [request.sequence for request in collector.received if not request.no_answer]
    assert wanted == [1, 6, 11]


async def test_a_collector_that_does_not_say_so_is_asked_for_every_answer() -> None:
    collector = ScriptedCollector()
    collector.acknowledging.set()
    async with linked(collector) as link:
        await offer_one_by_one(link, collector, *range(1, 8))
        async with asyncio.timeout(20):
            await link.delivered()
    assert not any(request.no_answer for request in collector.received)
    assert collector.streams == 1


async def test_after_seconds_without_an_answer_the_next_is_wanted() -> None:
    collector, clock = sparing_collector(), ShiftedClock()
    async with linked(collector, clock=clock) as link:
        await offer_one_by_one(link, collector, 1, 2)
        clock.shift = 5.0
        await offer_one_by_one(link, collector, 3)
    assert [request.no_answer for request in collector.received] == [False, True, False]


async def test_what_is_delivered_is_acknowledged_also_by_a_collector_that_leaves_out_answers() -> (
    None
):
    collector = sparing_collector()
    async with linked(collector) as link:
        await offer_one_by_one(link, collector, 1, 2, 3)
        async with asyncio.timeout(20):
            await link.delivered()
        asked = collector.received[-1]
        link.offer(report("last", leaving=True))
        async with asyncio.timeout(20):
            await link.delivered()
    assert (asked.events_only, asked.no_answer) == (True, False)
    assert (collector.received[-1].leaving, collector.received[-1].no_answer) == (True, False)


async def test_a_report_with_events_is_always_answered() -> None:
    collector, journal = sparing_collector(), EventJournal()
    async with linked(collector, journal=journal) as link:
        await offer_one_by_one(link, collector, 1)
        await collector.has_received(2)
        await offer_one_by_one(link, collector, 2)
        time = datetime(2026, 1, 1, tzinfo=UTC)
        await journal.append([ObservedEvent(kind=GpuEventKind.XID, time=time, xid=31)])
        await collector.has_received(4)
    with_events = [request for request in collector.received if request.events]
    assert with_events
    assert not any(request.no_answer for request in with_events)


async def test_a_collector_that_hangs_is_left_though_few_answers_are_wanted() -> None:
    collector = sparing_collector()
    async with linked(collector, acknowledge_timeout_seconds=0.3) as link:
        await offer_one_by_one(link, collector, 1)
        async with asyncio.timeout(20):
            await link.delivered()
        collector.acknowledging.clear()
        # It takes no more than one of them, and answers none.
        async with asyncio.timeout(30):
            number = 2
            while collector.streams == 1:
                link.offer(sampled(number % 60))
                number += 1
                await asyncio.sleep(0.02)


async def samples_after_a_break(acknowledged: int | None) -> list[int]:
    """The samples of the first report on the stream that follows one that broke."""
    collector = sparing_collector()
    # It is asked where it stands, has three reports, and goes away with the fourth.
    collector.breaks_after = 5
    async with linked(collector, journal=EventJournal()) as link:
        link.offer(sampled(1))
        await collector.has_received(2)
        collector.acknowledged_sequence = acknowledged
        await offer_one_by_one(link, collector, 2, 3, 4)
        link.offer(sampled(5))
        await collector.has_received(7)
    assert collector.streams == 2
    assert collector.received[5].events_only
    first = collector.received[6]
    return [*first.series[0].values] if first.series else [*first.sample_blocks[0].values]


async def test_samples_of_reports_without_an_answer_are_sent_again_where_they_were_lost() -> None:
    assert await samples_after_a_break(0) == [1, 2, 3, 4, 5]


async def test_samples_that_the_collector_says_it_has_are_not_sent_again() -> None:
    assert await samples_after_a_break(3) == [4, 5]
