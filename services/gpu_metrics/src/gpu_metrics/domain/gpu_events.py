"""What happens to GPUs and their hosts: events of a journal, each with a number of its own."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

__all__ = ["GpuEvent", "GpuEventKind", "JournalPosition", "ObservedEvent", "Severity"]


class GpuEventKind(Enum):
    """What happened; the numbers are those of the protocol."""

    XID = 1
    GPU_LOST = 2
    GPU_BACK = 3
    GPU_HUNG = 4
    DRIVER_RELOADED = 5
    DRIVER_MISMATCH = 6
    SPOT_INTERRUPTION = 7
    REBALANCE_RECOMMENDATION = 8


class Severity(Enum):
    """How grave an event or an alert is; the numbers are those of the protocol."""

    UNKNOWN = 0
    INFO = 1
    WARNING = 2
    CRITICAL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedEvent:
    """What a source saw happen, before the journal gave it a number.

    `driver_epoch` is that of the GPU's readings; 0 is an unknown one.
    """

    kind: GpuEventKind
    time: datetime
    gpu_uuid: str = ""
    xid: int = 0
    severity: Severity = Severity.UNKNOWN
    recommended_action: str = ""
    description: str = ""
    due_time: datetime | None = None
    driver_epoch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuEvent:
    """One thing that happened; `sequence` counts the events of a journal from 1, without gaps."""

    sequence: int
    kind: GpuEventKind
    time: datetime
    gpu_uuid: str = ""
    xid: int = 0
    severity: Severity = Severity.UNKNOWN
    recommended_action: str = ""
    description: str = ""
    due_time: datetime | None = None
    xid_count: int = 0


@dataclass(frozen=True, slots=True)
class JournalPosition:
    """A place in a host's journal: the last event taken."""

    host_id: str
    journal_id: str
    sequence: int
