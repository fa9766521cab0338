"""One simulated GPU host: what its agent reads, and the agent itself."""

import asyncio
from collections.abc import Sequence
from datetime import datetime

from fleetsim.vllm_http import SimulatedFleetServer
from gpu_metrics.agent import Agent
from gpu_metrics.domain.gpu_events import GpuEventKind, ObservedEvent, Severity
from gpu_metrics.domain.readings import GpuReading, Host, MissingReason, PurchaseOption
from localsuite.fleet.instance_feed import FleetInstance
from servicekit.clock import Clock

__all__ = ["SimulatedGpus", "SimulatedHost", "SimulatedHostIdentity"]


class SimulatedHostIdentity:
    """Tells the agent what instance it runs on, and of an interruption once there is a notice."""

    def __init__(self, instance: FleetInstance, clock: Clock) -> None:
        self._instance = instance
        self._clock = clock
        self._interruption_time: datetime | None = None
        # An instance is given one notice.
        self._notices: asyncio.Queue[ObservedEvent] = asyncio.Queue()
        if instance.termination_time is not None:
            self.interrupt(instance.termination_time)

    def interrupt(self, time: datetime) -> None:
        """Give notice that the instance is taken back at `time`; the first notice is an event."""
        if self._interruption_time is None:
            self._notices.put_nowait(
                ObservedEvent(
                    kind=GpuEventKind.SPOT_INTERRUPTION,
                    time=self._clock.now(),
                    due_time=time,
                    severity=Severity.CRITICAL,
                    description="EC2 takes the Spot instance back: terminate",
                )
            )
        self._interruption_time = time

    async def next_events(self) -> Sequence[ObservedEvent]:
        """Wait for the instance's notice."""
        return (await self._notices.get(),)

    async def read_host(self) -> Host:
        """Return the machine as it is now."""
        return Host(
            host_id=self._instance.instance_id,
            instance_type=self._instance.instance_type,
            availability_zone=self._instance.zone,
            purchase_option=(
                PurchaseOption.SPOT if self._instance.is_spot else PurchaseOption.ON_DEMAND
            ),
            interruption_time=self._interruption_time,
            simulated=True,
        )


class SimulatedGpus:
    """Reads the GPU that the simulation computes for a model server's host."""

    def __init__(self, fleet: SimulatedFleetServer, server_id: str) -> None:
        self._fleet = fleet
        self._server_id = server_id
        self._last: GpuReading | None = None

    async def read_gpus(self) -> Sequence[GpuReading]:
        """Return the host's GPU; hosts of CPU tiers have none.

        While the server's process is gone its GPU is still there, but the simulation has no
        figures for it.
        """
        try:
            reading = self._fleet.gpu_reading(self._server_id)
        except KeyError:
            return [] if self._last is None else [_unreachable(self._last)]
        if reading is None:
            return []
        self._last = GpuReading(
            gpu_uuid=reading.uuid,
            index=0,
            product_name=reading.name,
            utilization_permille=round(1000 * reading.utilization_ratio),
            memory_used_bytes=reading.memory_used_bytes,
            memory_total_bytes=reading.memory_total_bytes,
            power_milliwatts=round(1000 * reading.power_watts),
            energy_millijoules=reading.energy_millijoules,
            temperature_celsius=round(reading.temperature_celsius),
            sm_clock_megahertz=reading.sm_clock_mhz,
        )
        return [self._last]


def _unreachable(last: GpuReading) -> GpuReading:
    reason = MissingReason.UNREACHABLE
    return GpuReading(
        gpu_uuid=last.gpu_uuid,
        index=last.index,
        product_name=last.product_name,
        utilization_permille=reason,
        memory_used_bytes=reason,
        memory_total_bytes=reason,
        power_milliwatts=reason,
        energy_millijoules=reason,
        temperature_celsius=reason,
        sm_clock_megahertz=reason,
    )


class SimulatedHost:
    """A host's life: it boots, its agent reports, then it shuts down or fails."""

    def __init__(
        self,
        instance: FleetInstance,
        *,
        server_id: str,
        identity: SimulatedHostIdentity,
        agent: Agent,
        boot_seconds: float,
    ) -> None:
        self.instance = instance
        self.server_id = server_id
        self.identity = identity
        self._agent = agent
        self._boot_seconds = boot_seconds
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self, group: asyncio.TaskGroup) -> None:
        """Switch the host on; it runs as a task of `group`."""
        self._task = group.create_task(self._live(), name=self.instance.instance_id)

    def shut_down(self) -> None:
        """Shut down in order: the agent tells the collectors that the host leaves."""
        self._stopping.set()

    def fail(self) -> None:
        """Fail at once: nobody is told, the collectors find the host silent."""
        if self._task is not None:
            self._task.cancel()

    async def _live(self) -> None:
        try:
            async with asyncio.timeout(self._boot_seconds):
                await self._stopping.wait()
        except TimeoutError:
            await self._agent.run(self._stopping)
