"""Who uses the GPUs, between messages and the domain's values."""

from gaming.gpu_metrics.v1 import fleet_pb2, processes_pb2
from gpu_metrics.domain.processes import GpuProcess, ProcessReading
from gpu_metrics.wire.moments import moment, timestamp

__all__ = ["processes_from_message", "processes_message"]

_TEXTS = (
    "name",
    "container_id",
    "ecs_task_arn",
    "ecs_service",
    "container_name",
    "server_id",
    "model",
    "unknown_because",
)


def processes_from_message(message: processes_pb2.ProcessReading) -> ProcessReading:
    """Return the processes of a host."""
    return ProcessReading(
        read_time=moment(message.read_time),
        processes=tuple(
            GpuProcess(
                process_id=process.process_id,
                gpu_uuid=process.gpu_uuid,
                memory_used_bytes=(
                    process.memory_used_bytes if process.HasField("memory_used_bytes") else None
                ),
                assigned_gpu_uuids=tuple(process.assigned_gpu_uuids),
                **{name: getattr(process, name) for name in _TEXTS},
            )
            for process in message.processes
        ),
        missing=tuple((entry.field, int(entry.reason)) for entry in message.missing),
    )


def processes_message(reading: ProcessReading) -> processes_pb2.ProcessReading:
    """Return the processes of a host as a message."""
    return processes_pb2.ProcessReading(
        read_time=timestamp(reading.read_time),
        processes=[
            processes_pb2.GpuProcess(
                process_id=process.process_id,
                gpu_uuid=process.gpu_uuid,
                memory_used_bytes=process.memory_used_bytes,
                assigned_gpu_uuids=process.assigned_gpu_uuids,
                **{name: getattr(process, name) for name in _TEXTS},
            )
            for process in reading.processes
        ],
        missing=[
            fleet_pb2.MissingReading(field=uuid, reason=fleet_pb2.MissingReason.ValueType(reason))
            for uuid, reason in reading.missing
        ],
    )
