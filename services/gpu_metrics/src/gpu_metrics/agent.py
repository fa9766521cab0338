"""The agent: reads one host once per interval and offers the report to every collector."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import structlog

from gpu_metrics.domain.gpu_events import GpuEventKind
from gpu_metrics.domain.gpu_merge import merged_gpus
from gpu_metrics.domain.processes import ProcessReading
from gpu_metrics.domain.readings import GpuReading, Host, HostReport, ModelServerReading
from gpu_metrics.domain.samples import AgentCost
from gpu_metrics.journal import EventJournal
from gpu_metrics.ports import (
    DriverMismatch,
    DriverSource,
    GpuEventSource,
    GpuSource,
    HostSource,
    ModelServerSource,
    ProcessSource,
    ReportSink,
)
from servicekit.clock import Clock

__all__ = ["Agent"]

log = structlog.get_logger(__name__)

# As many as the protocol takes.
_MOST_GPUS = 64
# Events of one append; the rest of a storm is in the journal.
_MOST_LOGGED_AT_ONCE = 16
# Agents of all hosts read, and so report, at the same moments of the wall clock, ten a second. A
# collector that gets ten reports at a time is woken a tenth as often, which is most of what one
# costs it; and of a thousand hosts, in step with nobody's second, no more than a hundred come at
# once. Who reports more often than once a second has ten moments in each interval all the same.
_SHARED_MOMENT_SECONDS = 0.1
_MOMENTS_OF_INTERVAL = 10


class Agent:
    """Reports on one host for as long as it runs.

    `boot_id` names this run; collectors take reports of a new run as a restart. `start_delay`
    spreads the agents of many hosts over the interval. Of a figure that several `gpus` tell, the
    first one's counts. What `event_sources` see goes into the `journal`, from where the sinks take
    it. `background` is work that the sources need, run beside the agent.

    It reads at the nearest of ten moments a second that all agents share, and offers at once.
    """

    def __init__(
        self,
        *,
        host: HostSource,
        gpus: Sequence[GpuSource],
        servers: Sequence[ModelServerSource],
        sinks: Sequence[ReportSink],
        clock: Clock,
        boot_id: str,
        journal: EventJournal | None = None,
        event_sources: Sequence[GpuEventSource] = (),
        drivers: Sequence[DriverSource] = (),
        processes: ProcessSource | None = None,
        measure_cost: Callable[[], AgentCost] | None = None,
        background: Sequence[Callable[[], Awaitable[None]]] = (),
        interval_seconds: float = 1.0,
        start_delay_seconds: float = 0.0,
        leave_timeout_seconds: float = 2.0,
    ) -> None:
        self._host = host
        self._gpus = tuple(gpus)
        self._servers = tuple(servers)
        self._sinks = tuple(sinks)
        self._clock = clock
        self._boot_id = boot_id
        self._journal = journal or EventJournal()
        self._event_sources = tuple(event_sources)
        self._drivers = tuple(drivers)
        self._processes = processes
        self._measure_cost = measure_cost
        self._background = tuple(background)
        self._interval_seconds = interval_seconds
        self._moment_seconds = min(_SHARED_MOMENT_SECONDS, interval_seconds / _MOMENTS_OF_INTERVAL)
        self._start_delay_seconds = start_delay_seconds
        self._leave_timeout_seconds = leave_timeout_seconds
        self._reported_processes: ProcessReading | None = None
        self._mismatched = asyncio.Event()
        self._mismatch_written = asyncio.Event()

    async def run(self, stopping: asyncio.Event) -> None:
        """Report until `stopping` is set, then tell every collector that the host leaves.

        Cancelling instead ends the agent as a crash would: the collectors find the host silent.
        Raises `DriverMismatch` once the GPUs can be read by a new process alone and the collectors
        were told, or had the time to be.
        """
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(sink.run()) for sink in self._sinks]
            running += [group.create_task(self._write_down(each)) for each in self._event_sources]
            running += [group.create_task(_run(work)) for work in self._background]
            sampling = group.create_task(self._sample_for_ever())
            await self._end(stopping)
            sampling.cancel()
            if self._mismatched.is_set():
                await self._tell_mismatch()
            else:
                await self._leave()
            for task in running:
                task.cancel()
        if self._mismatched.is_set():
            raise DriverMismatch

    async def read(self) -> HostReport:
        """Return what the sources say now; the sequence is left to the sinks."""
        async with asyncio.TaskGroup() as group:
            host = group.create_task(self._read_host())
            gpus = [group.create_task(self._read_gpus(source)) for source in self._gpus]
            servers = [group.create_task(source.read_server()) for source in self._servers]
            processes = group.create_task(self._read_processes())
        sample_time = self._clock.now()
        found_gpus = merged_gpus([task.result() for task in gpus])[:_MOST_GPUS]
        return HostReport(
            host=host.result(),
            boot_id=self._boot_id,
            sequence=1,
            sample_time=sample_time,
            monotonic_microseconds=round(self._clock.monotonic() * 1_000_000),
            gpus=found_gpus,
            servers=_with_gpus([task.result() for task in servers], found_gpus),
            series=tuple(
                series for driver in self._drivers for series in driver.take_series(sample_time)
            ),
            processes=processes.result(),
            cost=self._measure_cost() if self._measure_cost is not None else None,
        )

    async def _read_host(self) -> Host:
        host = await self._host.read_host()
        version = next(filter(None, (driver.driver_version for driver in self._drivers)), "")
        return replace(host, driver_version=version) if version else host

    async def _read_gpus(self, source: GpuSource) -> Sequence[GpuReading]:
        try:
            return await source.read_gpus()
        except DriverMismatch:
            self._mismatched.set()
            return ()

    async def _read_processes(self) -> ProcessReading | None:
        """Return the processes where there is another reading than the one last reported."""
        if self._processes is None:
            return None
        reading = await self._processes.read_processes()
        # Of one list of the driver's more may be found out later, so its time does not tell.
        if reading is None or reading is self._reported_processes:
            return None
        self._reported_processes = reading
        return reading

    async def _sample_for_ever(self) -> None:
        await self._clock.sleep(self._start_delay_seconds)
        due = self._clock.monotonic()
        while True:
            report = await self.read()
            for sink in self._sinks:
                sink.offer(report)
            now = self._clock.monotonic()
            # After a reading that took longer than the interval, go on from now; do not catch up.
            due = max(due + self._interval_seconds, now)
            due += self._to_shared_moment(due - now)
            await self._clock.sleep(max(0.0, due - now))

    def _to_shared_moment(self, wait_seconds: float) -> float:
        """Return how much longer to wait, or shorter, to end at the nearest shared moment."""
        moment = self._moment_seconds
        since = (self._clock.now().timestamp() + wait_seconds) % moment
        return -since if since < moment / 2 else moment - since

    async def _write_down(self, source: GpuEventSource) -> None:
        """Take what a source sees; more is asked for once that is safe.

        All that wait are one append: what came during one fsync shares the next, so that a storm
        of events is written as fast as it comes.
        """
        while True:
            written = await self._journal.append(await source.next_events())
            for event in written[:_MOST_LOGGED_AT_ONCE]:
                log.warning(
                    "gpu_event",
                    sequence=event.sequence,
                    kind=event.kind.name,
                    gpu_uuid=event.gpu_uuid,
                    xid=event.xid or None,
                    description=event.description,
                )
            if (more := len(written) - _MOST_LOGGED_AT_ONCE) > 0:
                log.warning("gpu_events_more", count=more, last_sequence=written[-1].sequence)
            if any(event.kind is GpuEventKind.DRIVER_MISMATCH for event in written):
                self._mismatch_written.set()

    async def _end(self, stopping: asyncio.Event) -> None:
        """Return once the agent is to stop or the driver does not match any more."""
        waits = [asyncio.ensure_future(each.wait()) for each in (stopping, self._mismatched)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _tell_mismatch(self) -> None:
        """Offer a report without the GPUs that cannot be read, and the event of it."""
        await self._deliver(
            HostReport(
                host=await self._host.read_host(),
                boot_id=self._boot_id,
                sequence=1,
                sample_time=self._clock.now(),
            ),
            after=self._mismatch_written,
        )

    async def _leave(self) -> None:
        await self._deliver(
            HostReport(
                host=await self._host.read_host(),
                boot_id=self._boot_id,
                sequence=1,
                sample_time=self._clock.now(),
                leaving=True,
            )
        )

    async def _deliver(self, report: HostReport, after: asyncio.Event | None = None) -> None:
        """Offer a last report and wait until all is acknowledged, for a limited time."""
        for sink in self._sinks:
            sink.offer(report)
        try:
            async with asyncio.timeout(self._leave_timeout_seconds):
                if after is not None:
                    await after.wait()
                await asyncio.gather(*(sink.delivered() for sink in self._sinks))
        except TimeoutError:
            log.warning("leaving_unacknowledged", host_id=report.host.host_id)


async def _run(work: Callable[[], Awaitable[None]]) -> None:
    await work()


def _with_gpus(
    servers: Sequence[ModelServerReading], gpus: Sequence[GpuReading]
) -> tuple[ModelServerReading, ...]:
    """Return the servers, where the only one of a host runs on all its GPUs unless it says more."""
    if len(servers) == 1 and not servers[0].gpu_uuids:
        # The protocol takes 16 GPUs per server, as many as the largest instance types have.
        return (replace(servers[0], gpu_uuids=tuple(gpu.gpu_uuid for gpu in gpus[:16])),)
    return tuple(servers)
