"""The machine, with the ECS cluster that it is part of."""

from dataclasses import replace

from gpu_metrics.adapters.ecs_tasks import EcsTasks
from gpu_metrics.domain.readings import Host
from gpu_metrics.ports import HostSource
from servicekit.clock import Clock

__all__ = ["EcsHost"]

_RETRY_SECONDS = 60.0


class EcsHost:
    """Adds the cluster to what another source tells, once ECS has said it."""

    def __init__(self, host: HostSource, ecs: EcsTasks, *, clock: Clock) -> None:
        self._host = host
        self._ecs = ecs
        self._clock = clock

    async def read_host(self) -> Host:
        """Return the machine as it is known now."""
        host = await self._host.read_host()
        return replace(host, ecs_cluster=self._ecs.cluster) if self._ecs.cluster else host

    async def run(self) -> None:
        """Ask for the cluster until it is known; it does not change."""
        while not await self._ecs.find_cluster():
            await self._clock.sleep(_RETRY_SECONDS)
