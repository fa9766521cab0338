import asyncio
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise

import pytest

from gpu_metrics.agent import Agent
from gpu_metrics.domain.gpu_events import GpuEventKind, ObservedEvent
from gpu_metrics.domain.processes import GpuProcess, ProcessReading
from gpu_metrics.domain.readings import (
    GpuReading,
    Host,
    HostReport,
    MissingReason,
    ModelServerReading,
)
from gpu_metrics.domain.samples import AgentCost, DriverCost, FleetMetric, SampleSeries
from gpu_metrics.journal import EventJournal
from gpu_metrics.ports import DriverMismatch
from servicekit.testing import FakeClock

from .builders import NOON, make_server


class FixedHost:
    async def read_host(self) -> Host:
        return Host(host_id="i-1")


class FixedGpus:
    def __init__(self, *uuids: str) -> None:
        self._uuids = uuids

    async def read_gpus(self) -> Sequence[GpuReading]:
        return [
            GpuReading(gpu_uuid=uuid, index=i, power_milliwatts=MissingReason.UNSUPPORTED)
            for i, uuid in enumerate(self._uuids)
        ]


class FixedServer:
    def __init__(self, clock: FakeClock, *, name: str = "gold-1", seconds: float = 0.0) -> None:
        self._clock, self._name, self._seconds = clock, name, seconds

    async def read_server(self) -> ModelServerReading:
        if self._seconds:
            await self._clock.sleep(self._seconds)
        return make_server(self._name)


class RecordingSink:
    def __init__(self, *, acknowledges: bool = True) -> None:
        self.offered: list[HostReport] = []
        self._acknowledges = acknowledges

    def offer(self, report: HostReport) -> None:
        self.offered.append(report)

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def delivered(self) -> None:
        if not self._acknowledges:
            await asyncio.Event().wait()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def make_agent(
    clock: FakeClock,
    *sinks: RecordingSink,
    servers: Sequence[FixedServer] | None = None,
    leave_timeout_seconds: float = 2.0,
    interval_seconds: float = 1.0,
) -> Agent:
    return Agent(
        host=FixedHost(),
        gpus=[FixedGpus("G1"), FixedGpus("G2")],
        servers=[FixedServer(clock)] if servers is None else servers,
        sinks=sinks,
        clock=clock,
        boot_id="boot",
        leave_timeout_seconds=leave_timeout_seconds,
        interval_seconds=interval_seconds,
    )


async def test_every_collector_is_offered_a_report_a_second(clock: FakeClock) -> None:
    one, other = RecordingSink(), RecordingSink()
    stopping = asyncio.Event()
    running = asyncio.ensure_future(make_agent(clock, one, other).run(stopping))
    await clock.advance(4.5)
    assert len(one.offered) == 5
    assert one.offered == other.offered
    assert [report.boot_id for report in one.offered] == ["boot"] * 5
    stopping.set()
    await running


class TimedSink(RecordingSink):
    """Notes when it is offered what."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock
        self.moments: list[datetime] = []

    def offer(self, report: HostReport) -> None:
        super().offer(report)
        self.moments.append(self._clock.now())


async def test_agents_that_start_at_any_time_report_at_moments_they_share(clock: FakeClock) -> None:
    sinks = [TimedSink(clock), TimedSink(clock)]
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as agents:
        for sink in sinks:
            await clock.advance(0.0137)
            agents.create_task(make_agent(clock, sink).run(stopping))
        await clock.advance(3.0)
        stopping.set()
    for sink in sinks:
        assert sink.offered.pop().leaving
        sink.moments.pop()
        # The first report comes at once, so that a host is known from its start.
        later = sink.moments[1:]
        assert len(later) >= 2
        # Of a tenth of a second, to the microsecond that a time is told in.
        assert all((each.microsecond + 1) % 100_000 in (0, 1, 2) for each in later)


async def test_a_report_is_offered_as_soon_as_it_was_read(clock: FakeClock) -> None:
    sink, stopping = TimedSink(clock), asyncio.Event()
    await clock.advance(0.0137)
    running = asyncio.ensure_future(make_agent(clock, sink).run(stopping))
    await clock.advance(3.0)
    stopping.set()
    await running
    assert sink.moments == [report.sample_time for report in sink.offered]


@pytest.mark.parametrize("interval_seconds", [1.0, 0.25])
async def test_reports_keep_their_interval_once_they_are_at_a_shared_moment(
    clock: FakeClock, interval_seconds: float
) -> None:
    sink, stopping = TimedSink(clock), asyncio.Event()
    await clock.advance(0.0137)
    agent = make_agent(clock, sink, interval_seconds=interval_seconds)
    running = asyncio.ensure_future(agent.run(stopping))
    await clock.advance(9.5 * interval_seconds)
    stopping.set()
    await running
    seconds = [
        round((later - earlier).total_seconds(), 3)
        for earlier, later in pairwise(sink.moments[1:-1])
    ]
    assert seconds == [interval_seconds] * 8


async def test_the_only_server_of_a_host_runs_on_all_its_gpus(clock: FakeClock) -> None:
    report = await make_agent(clock).read()
    assert [gpu.gpu_uuid for gpu in report.gpus] == ["G1", "G2"]
    assert report.servers[0].gpu_uuids == ("G1", "G2")


async def test_which_gpus_two_servers_run_on_is_not_guessed(clock: FakeClock) -> None:
    servers = [FixedServer(clock, name="a"), FixedServer(clock, name="b")]
    report = await make_agent(clock, servers=servers).read()
    assert [server.gpu_uuids for server in report.servers] == [(), ()]


async def test_a_reading_that_takes_too_long_is_not_caught_up_on(clock: FakeClock) -> None:
    sink, stopping = RecordingSink(), asyncio.Event()
    agent = make_agent(clock, sink, servers=[FixedServer(clock, seconds=2.5)])
    running = asyncio.ensure_future(agent.run(stopping))
    await clock.advance(10.1)
    assert len(sink.offered) == 4
    stopping.set()
    await running


async def test_an_agent_that_stops_says_that_its_host_leaves(clock: FakeClock) -> None:
    sink, stopping = RecordingSink(), asyncio.Event()
    running = asyncio.ensure_future(make_agent(clock, sink).run(stopping))
    await clock.advance(0.5)
    stopping.set()
    await running
    assert [report.leaving for report in sink.offered] == [False, True]
    assert sink.offered[-1].servers == ()


async def test_an_agent_does_not_wait_for_ever_for_a_collector_that_is_away(
    clock: FakeClock,
) -> None:
    sink, stopping = RecordingSink(acknowledges=False), asyncio.Event()
    agent = make_agent(clock, sink, leave_timeout_seconds=0.01)
    running = asyncio.ensure_future(agent.run(stopping))
    await clock.advance(0.5)
    stopping.set()
    await asyncio.wait_for(running, 5)
    assert sink.offered[-1].leaving


async def test_a_cancelled_agent_says_nothing(clock: FakeClock) -> None:
    sink = RecordingSink()
    running = asyncio.ensure_future(make_agent(clock, sink).run(asyncio.Event()))
    await clock.advance(0.5)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not any(report.leaving for report in sink.offered)


class ScriptedEvents:
    """An event source that sees what it is told to, and counts what was taken."""

    def __init__(self) -> None:
        self.seen: asyncio.Queue[ObservedEvent] = asyncio.Queue()

    def see(self, kind: GpuEventKind) -> None:
        self.seen.put_nowait(ObservedEvent(kind=kind, time=NOON, gpu_uuid="G1"))

    async def next_events(self) -> Sequence[ObservedEvent]:
        events = [await self.seen.get()]
        while not self.seen.empty():
            events.append(self.seen.get_nowait())
        return events


class MismatchedGpus(ScriptedEvents):
    """GPUs whose driver was replaced while they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.mismatched = False

    async def read_gpus(self) -> Sequence[GpuReading]:
        if not self.mismatched:
            return [GpuReading(gpu_uuid="G1", index=0)]
        self.see(GpuEventKind.DRIVER_MISMATCH)
        raise DriverMismatch


class FixedDriver:
    driver_version = "570.1"
    cost = DriverCost(calls=12, seconds=0.5)

    def take_series(self, sample_time: datetime) -> tuple[SampleSeries, ...]:
        metric = FleetMetric.GPU_UTILIZATION_PERMILLE
        return (SampleSeries(gpu_index=0, metric=metric, offset_microseconds=(5,), values=(1000,)),)


class FixedProcesses:
    def __init__(self) -> None:
        self.reading = ProcessReading(read_time=NOON)

    async def read_processes(self) -> ProcessReading:
        return self.reading


async def test_what_a_source_sees_is_in_the_journal_in_order(clock: FakeClock) -> None:
    journal, events, stopping = EventJournal(), ScriptedEvents(), asyncio.Event()
    agent = Agent(
        host=FixedHost(),
        gpus=[],
        servers=[],
        sinks=[RecordingSink()],
        clock=clock,
        boot_id="boot",
        journal=journal,
        event_sources=[events],
    )
    running = asyncio.ensure_future(agent.run(stopping))
    events.see(GpuEventKind.GPU_LOST)
    events.see(GpuEventKind.GPU_BACK)
    await clock.advance(0.5)
    stopping.set()
    await running
    batch = journal.next_batch({}, 10)
    assert batch is not None
    assert [event.kind for event in batch.events] == [GpuEventKind.GPU_LOST, GpuEventKind.GPU_BACK]


async def test_a_driver_that_does_not_match_ends_the_agent_once_that_is_written_and_told(
    clock: FakeClock,
) -> None:
    journal, gpus, sink = EventJournal(), MismatchedGpus(), RecordingSink()
    agent = Agent(
        host=FixedHost(),
        gpus=[gpus],
        servers=[],
        sinks=[sink],
        clock=clock,
        boot_id="boot",
        journal=journal,
        event_sources=[gpus],
    )
    running = asyncio.ensure_future(agent.run(asyncio.Event()))
    await clock.advance(0.5)
    gpus.mismatched = True
    await clock.advance(1.0)
    with pytest.raises(DriverMismatch):
        await asyncio.wait_for(running, 30)
    batch = journal.next_batch({}, 10)
    assert batch is not None
    assert [event.kind for event in batch.events] == [GpuEventKind.DRIVER_MISMATCH]
    # The host does not leave, and shows no GPU that nobody can read.
    assert not any(report.leaving for report in sink.offered)
    assert sink.offered[-1].gpus == ()


async def test_a_report_holds_samples_cost_and_what_the_driver_tells(clock: FakeClock) -> None:
    agent = Agent(
        host=FixedHost(),
        gpus=[FixedGpus("G1")],
        servers=[],
        sinks=[],
        clock=clock,
        boot_id="boot",
        drivers=[FixedDriver()],
        measure_cost=lambda: AgentCost(driver_calls=12),
    )
    await clock.advance(3)
    report = await agent.read()
    assert report.host.driver_version == "570.1"
    assert report.series[0].values == (1000,)
    assert report.cost == AgentCost(driver_calls=12)
    assert report.monotonic_microseconds == round(clock.monotonic() * 1_000_000)


async def test_processes_are_reported_once_each_time_they_were_read(clock: FakeClock) -> None:
    processes = FixedProcesses()
    agent = Agent(
        host=FixedHost(),
        gpus=[],
        servers=[],
        sinks=[],
        clock=clock,
        boot_id="boot",
        processes=processes,
    )
    first, second = await agent.read(), await agent.read()
    # The same list of the driver's, of which more was found out.
    processes.reading = ProcessReading(
        read_time=NOON, processes=(GpuProcess(process_id=1, gpu_uuid="G1"),)
    )
    third = await agent.read()
    assert (first.processes is not None, second.processes) == (True, None)
    assert third.processes == processes.reading
