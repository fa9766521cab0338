"""Who uses the GPUs: from process ids to containers, ECS tasks and model servers."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from gpu_metrics.adapters.daemon_worker import DaemonWorker
from gpu_metrics.adapters.ecs_tasks import EcsTasks
from gpu_metrics.adapters.proc_tree import ProcessFacts, ProcTree
from gpu_metrics.domain.assigned_gpus import assigned_gpus
from gpu_metrics.domain.processes import GpuProcess, ProcessReading
from gpu_metrics.ports import ProcessSource
from servicekit.clock import Clock

__all__ = ["AttributedProcesses", "ServedModel"]

log = structlog.get_logger(__name__)

# As many as the protocol takes.
_MOST_PROCESSES = 256
_FIRST_WAIT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model server of this host: the port it listens on, and what it serves."""

    server_id: str
    port: int
    model: str


@dataclass(frozen=True, slots=True)
class _Found:
    facts: ProcessFacts
    port: int


class AttributedProcesses:
    """Reads the processes of a source every `interval_seconds` and finds out whose they are.

    /proc is read in a thread within a limit, since a process that hangs in a driver may hold
    whoever reads of it. What could not be found out stays empty, and `unknown_because` says why.
    """

    def __init__(
        self,
        source: ProcessSource,
        *,
        proc: ProcTree,
        ecs: EcsTasks,
        clock: Clock,
        gpu_uuids: Callable[[], dict[int, str]],
        servers: Callable[[], Sequence[ServedModel]] = lambda: (),
        interval_seconds: float = 10.0,
        timeout_seconds: float = 2.0,
    ) -> None:
        self._source = source
        self._proc = proc
        self._ecs = ecs
        self._clock = clock
        self._gpu_uuids = gpu_uuids
        self._servers = servers
        self._interval_seconds = interval_seconds
        self._timeout_seconds = timeout_seconds
        self._worker = DaemonWorker("processes")
        self._last: ProcessReading | None = None

    async def read_processes(self) -> ProcessReading | None:
        """Return the processes as last attributed, None before they were."""
        return self._last

    async def run(self) -> None:
        """Keep the processes up to date until cancelled."""
        while True:
            reading = await self._source.read_processes()
            if reading is not None and self._gpu_uuids():
                self._last = await self.attribute(reading)
                await self._clock.sleep(self._interval_seconds)
            else:
                # The driver has not told of any GPU yet.
                await self._clock.sleep(_FIRST_WAIT_SECONDS)

    async def attribute(self, reading: ProcessReading) -> ProcessReading:
        """Return the reading with what could be found out about its processes.

        Its time stays that at which the driver listed them.
        """
        processes = reading.processes[:_MOST_PROCESSES]
        servers = {server.port: server for server in self._servers()}
        found = await self._look(
            sorted({process.process_id for process in processes}), set(servers)
        )
        containers = {
            each.facts.group.container_id
            for each in found.values()
            if each.facts.group is not None and each.facts.group.container_id
        }
        if containers:
            await self._ecs.refresh(containers)
        uuids = self._gpu_uuids()
        return replace(
            reading,
            processes=tuple(
                self._attributed(process, found.get(process.process_id), servers, uuids)
                for process in processes
            ),
        )

    def close(self) -> None:
        """Let the thread end."""
        self._worker.close()

    async def _look(self, process_ids: Sequence[int], ports: set[int]) -> dict[int, _Found]:
        """Return what /proc tells within the limit; of those not reached nothing."""
        found: dict[int, _Found] = {}
        if self._worker.busy or not process_ids:
            return found

        def look() -> None:
            for process_id in process_ids:
                facts = self._proc.describe(process_id)
                port = self._proc.listens_on(process_id, ports) if ports else 0
                found[process_id] = _Found(facts, port)

        looking = self._worker.call(look)
        done, _ = await asyncio.wait({looking}, timeout=self._timeout_seconds)
        if done and looking.exception() is not None:
            log.error("processes_unreadable", error=type(looking.exception()).__name__)
        # A copy: the thread may still be at work.
        return dict(found)

    def _attributed(
        self,
        process: GpuProcess,
        found: _Found | None,
        servers: dict[int, ServedModel],
        uuids: dict[int, str],
    ) -> GpuProcess:
        if found is None:
            return replace(process, unknown_because="the host's /proc did not answer in time")
        facts, server = found.facts, servers.get(found.port)
        known = replace(
            process,
            name=facts.name,
            server_id=server.server_id if server is not None else "",
            model=server.model if server is not None else "",
        )
        if facts.group is None:
            return replace(known, unknown_because=facts.problem)
        if not facts.group.container_id:
            return replace(known, unknown_because="the process runs in no container")
        known = replace(
            known,
            container_id=facts.group.container_id,
            assigned_gpu_uuids=assigned_gpus(facts.visible_devices, uuids),
        )
        container = self._ecs.find(facts.group.container_id, facts.group.ecs_task_id)
        if container is not None:
            return replace(
                known,
                ecs_task_arn=container.task_arn,
                ecs_service=container.service,
                container_name=container.name,
            )
        if facts.group.ecs_task_id:
            reason = f"nobody here knows the ECS task {facts.group.ecs_task_id}"
            return replace(known, unknown_because=reason)
        if self._ecs.available:
            return replace(known, unknown_because="the container is of no ECS task of this host")
        return replace(known, unknown_because="there is no ECS agent to ask for the task")
