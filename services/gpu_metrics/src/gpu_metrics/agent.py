"""The agent: reads one host once per interval and offers the report to every collector."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import structlog

from gpu_metrics.domain.readings import GpuReading, HostReport, ModelServerReading
from gpu_metrics.ports import GpuSource, HostSource, ModelServerSource, ReportSink
from servicekit.clock import Clock

__all__ = ["Agent"]

log = structlog.get_logger(__name__)


class Agent:
    """Reports on one host for as long as it runs.

    `boot_id` names this run; collectors take reports of a new run as a restart. `start_delay`
    spreads the agents of many hosts over the interval.
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
        self._interval_seconds = interval_seconds
        self._start_delay_seconds = start_delay_seconds
        self._leave_timeout_seconds = leave_timeout_seconds

    async def run(self, stopping: asyncio.Event) -> None:
        """Report until `stopping` is set, then tell every collector that the host leaves.

        Cancelling instead ends the agent as a crash would: the collectors find the host silent.
        """
        async with asyncio.TaskGroup() as group:
            sinks = [group.create_task(sink.run()) for sink in self._sinks]
            sampling = group.create_task(self._sample_for_ever())
            await stopping.wait()
            sampling.cancel()
            await self._leave()
            for task in sinks:
                task.cancel()

    async def read(self) -> HostReport:
        """Return what the sources say now; the sequence is left to the sinks."""
        async with asyncio.TaskGroup() as group:
            host = group.create_task(self._host.read_host())
            gpus = [group.create_task(source.read_gpus()) for source in self._gpus]
            servers = [group.create_task(source.read_server()) for source in self._servers]
        found_gpus = tuple(gpu for task in gpus for gpu in task.result())
        return HostReport(
            host=host.result(),
            boot_id=self._boot_id,
            sequence=1,
            sample_time=self._clock.now(),
            gpus=found_gpus,
            servers=_with_gpus([task.result() for task in servers], found_gpus),
        )

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
            await self._clock.sleep(due - now)

    async def _leave(self) -> None:
        report = HostReport(
            host=await self._host.read_host(),
            boot_id=self._boot_id,
            sequence=1,
            sample_time=self._clock.now(),
            leaving=True,
        )
        for sink in self._sinks:
            sink.offer(report)
        try:
            async with asyncio.timeout(self._leave_timeout_seconds):
                await asyncio.gather(*(sink.delivered() for sink in self._sinks))
        except TimeoutError:
            log.warning("leaving_unacknowledged", host_id=report.host.host_id)


def _with_gpus(
    servers: Sequence[ModelServerReading], gpus: Sequence[GpuReading]
) -> tuple[ModelServerReading, ...]:
    """Return the servers, where the only one of a host runs on all its GPUs unless it says more."""
    if len(servers) == 1 and not servers[0].gpu_uuids:
        # The protocol takes 16 GPUs per server, as many as the largest instance types have.
        return (replace(servers[0], gpu_uuids=tuple(gpu.gpu_uuid for gpu in gpus[:16])),)
    return tuple(servers)
