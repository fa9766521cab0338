"""Who uses the GPUs; what could not be found out is empty, and nothing is guessed."""

from dataclasses import dataclass, replace
from datetime import datetime

__all__ = ["GpuProcess", "ProcessReading"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process on a GPU; `memory_used_bytes` is None when the driver does not tell."""

    process_id: int
    gpu_uuid: str
    memory_used_bytes: int | None = None
    name: str = ""
    container_id: str = ""
    ecs_task_arn: str = ""
    ecs_service: str = ""
    container_name: str = ""
    server_id: str = ""
    model: str = ""
    assigned_gpu_uuids: tuple[str, ...] = ()
    unknown_because: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessReading:
    """The processes of a host at one moment.

    `missing` holds, by the UUID of a GPU whose processes could not be read, the number of the
    `MissingReason`.
    """

    read_time: datetime
    processes: tuple[GpuProcess, ...] = ()
    missing: tuple[tuple[str, int], ...] = ()

    def of_gpu(self, gpu_uuid: str) -> "ProcessReading":
        """Return what concerns one GPU alone; an empty UUID means all."""
        if not gpu_uuid:
            return self
        return replace(
            self,
            processes=tuple(each for each in self.processes if each.gpu_uuid == gpu_uuid),
            missing=tuple(entry for entry in self.missing if entry[0] == gpu_uuid),
        )
