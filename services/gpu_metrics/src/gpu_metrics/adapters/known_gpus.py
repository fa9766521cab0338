"""GPUs of a source, remembered for those who must tell them by their index or UUID."""

from collections.abc import Sequence

from gpu_metrics.domain.readings import GpuReading
from gpu_metrics.ports import GpuSource

__all__ = ["KnownGpus"]


class KnownGpus:
    """Passes a source's readings on and remembers the UUIDs of its GPUs by their index."""

    def __init__(self, source: GpuSource) -> None:
        self._source = source
        self._uuids: dict[int, str] = {}

    @property
    def uuids(self) -> dict[int, str]:
        """Return the UUIDs of the last reading."""
        return self._uuids

    async def read_gpus(self) -> Sequence[GpuReading]:
        """Return the source's GPUs."""
        gpus = await self._source.read_gpus()
        self._uuids = {gpu.index: gpu.gpu_uuid for gpu in gpus}
        return gpus
