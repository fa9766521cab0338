"""Events of a host's journal, between messages and the domain's values."""

from gaming.gpu_metrics.v1 import events_pb2
from gpu_metrics.domain.gpu_events import GpuEvent, GpuEventKind, JournalPosition, Severity
from gpu_metrics.wire.moments import moment, timestamp

__all__ = ["event_from_message", "event_message", "position_from_message", "position_message"]


def event_from_message(message: events_pb2.GpuEvent) -> GpuEvent:
    """Return an event."""
    return GpuEvent(
        sequence=message.sequence,
        kind=GpuEventKind(message.kind),
        time=moment(message.time),
        gpu_uuid=message.gpu_uuid,
        xid=message.xid,
        severity=Severity(message.severity),
        recommended_action=message.recommended_action,
        description=message.description,
        due_time=moment(message.due_time) if message.HasField("due_time") else None,
        xid_count=message.xid_count,
    )


def event_message(event: GpuEvent) -> events_pb2.GpuEvent:
    """Return an event as a message."""
    return events_pb2.GpuEvent(
        sequence=event.sequence,
        kind=events_pb2.GpuEventKind.ValueType(event.kind.value),
        time=timestamp(event.time),
        gpu_uuid=event.gpu_uuid,
        xid=event.xid,
        severity=events_pb2.Severity.ValueType(event.severity.value),
        recommended_action=event.recommended_action,
        description=event.description,
        due_time=timestamp(event.due_time) if event.due_time is not None else None,
        xid_count=event.xid_count,
    )


def position_from_message(message: events_pb2.JournalPosition) -> JournalPosition:
    """Return a place in a journal."""
    return JournalPosition(message.host_id, message.journal_id, message.sequence)


def position_message(position: JournalPosition) -> events_pb2.JournalPosition:
    """Return a place in a journal as a message."""
    return events_pb2.JournalPosition(
        host_id=position.host_id, journal_id=position.journal_id, sequence=position.sequence
    )
