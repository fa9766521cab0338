"""What needs attention: the kinds of alerts, how grave they are, and how long they must hold."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from gpu_metrics.domain.gpu_events import Severity
from gpu_metrics.domain.readings import Tier
from servicekit.errors import FailedPrecondition, NotFound

__all__ = [
    "CONFIRMED_KINDS",
    "Alert",
    "AlertChange",
    "AlertChangeKind",
    "AlertEnded",
    "AlertKind",
    "AlertNotFound",
    "AlertPolicy",
    "Condition",
    "alert_id",
]


class AlertNotFound(NotFound):
    """No alert of that id stands, nor is one remembered that ended."""

    reason = "ALERT_NOT_FOUND"


class AlertEnded(FailedPrecondition):
    """The alert has ended; there is nothing left to look after."""

    reason = "ALERT_ENDED"


class AlertKind(Enum):
    """What an alert is about; the numbers are those of `gaming.gpu_metrics.v1.AlertKind`."""

    HOST_SILENT = 1
    HOST_LOST = 2
    GPU_LOST = 3
    SERVER_UNHEALTHY = 4
    GPU_HUNG = 5
    XID = 6
    THERMAL_THROTTLING = 7
    POWER_THROTTLING = 8
    ECC_UNCORRECTED = 9
    CLOCK_SKEW = 10
    DRIVER_UNREACHABLE = 11

    @property
    def slug(self) -> str:
        """Return the kind's name in ids and in the names of runbooks, for example `gpu-lost`."""
        return self.name.lower().replace("_", "-")

    @property
    def severity(self) -> Severity:
        """Return how grave an alert of this kind is; that of an XID is its event's instead."""
        return Severity.WARNING if self in _WARNINGS else Severity.CRITICAL


_WARNINGS = frozenset(
    {
        AlertKind.HOST_SILENT,
        AlertKind.XID,
        AlertKind.THERMAL_THROTTLING,
        AlertKind.POWER_THROTTLING,
        AlertKind.CLOCK_SKEW,
    }
)

CONFIRMED_KINDS = (
    AlertKind.GPU_LOST,
    AlertKind.GPU_HUNG,
    AlertKind.SERVER_UNHEALTHY,
    AlertKind.DRIVER_UNREACHABLE,
)
"""Kinds that readings alone must show for a while: a single late answer is no failure."""

_RAISE_SECONDS: Mapping[AlertKind, float] = {
    # Silence has been waited for by the view already; errors of a moment are there or not.
    AlertKind.HOST_SILENT: 0.0,
    AlertKind.HOST_LOST: 0.0,
    AlertKind.XID: 0.0,
    AlertKind.ECC_UNCORRECTED: 0.0,
    **dict.fromkeys(CONFIRMED_KINDS, 3.0),
    AlertKind.THERMAL_THROTTLING: 10.0,
    AlertKind.POWER_THROTTLING: 10.0,
    AlertKind.CLOCK_SKEW: 10.0,
}
_CLEAR_SECONDS: Mapping[AlertKind, float] = {
    AlertKind.HOST_SILENT: 0.0,
    AlertKind.GPU_LOST: 5.0,
    AlertKind.GPU_HUNG: 5.0,
    AlertKind.SERVER_UNHEALTHY: 5.0,
    AlertKind.DRIVER_UNREACHABLE: 5.0,
    AlertKind.THERMAL_THROTTLING: 30.0,
    AlertKind.POWER_THROTTLING: 30.0,
    AlertKind.CLOCK_SKEW: 30.0,
    # What lasts a moment is over once it has not come again for a while.
    AlertKind.XID: 900.0,
    AlertKind.ECC_UNCORRECTED: 900.0,
    # An instance that was given up hardly ever comes back under the same id.
    AlertKind.HOST_LOST: 86_400.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertPolicy:
    """How long a condition must hold before it is told, and be absent before it has ended.

    `raise_seconds` and `clear_seconds` replace the defaults of the kinds they name. A host's clock
    counts as skewed beyond `skew_seconds`. Of alerts that ended the last `history` are remembered.
    """

    raise_seconds: Mapping[AlertKind, float] = field(default_factory=dict)
    clear_seconds: Mapping[AlertKind, float] = field(default_factory=dict)
    skew_seconds: float = 60.0
    history: int = 1024

    def raise_after(self, kind: AlertKind) -> float:
        """Return how many seconds a condition must hold before it is told."""
        return self.raise_seconds.get(kind, _RAISE_SECONDS[kind])

    def clear_after(self, kind: AlertKind) -> float:
        """Return how many seconds a condition must be absent before it has ended."""
        return self.clear_seconds.get(kind, _CLEAR_SECONDS[kind])


@dataclass(frozen=True, slots=True)
class Condition:
    """What an alert is about, exactly; `part_id` is a GPU's or a server's, else empty."""

    kind: AlertKind
    host_id: str
    part_id: str = ""
    xid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One occurrence of a condition, as it is now; `clear_time` is None while it stands."""

    alert_id: str
    condition: Condition
    severity: Severity
    reason: str
    tiers: tuple[Tier, ...]
    simulated: bool
    last_report_time: datetime
    raise_time: datetime
    clear_time: datetime | None = None
    acknowledged_by: str = ""
    acknowledge_time: datetime | None = None
    note: str = ""

    @property
    def stands(self) -> bool:
        """Return whether the condition has not ended."""
        return self.clear_time is None


class AlertChangeKind(Enum):
    """What happened to an alert."""

    RAISED = "raised"
    CLEARED = "cleared"
    ACKNOWLEDGED = "acknowledged"


@dataclass(frozen=True, slots=True)
class AlertChange:
    """An alert after a change.

    `replaced` says of one that was cleared that a graver one about the same took its place, and
    `reason` why it was cleared.
    """

    kind: AlertChangeKind
    alert: Alert
    reason: str = ""
    replaced: bool = False


def alert_id(condition: Condition, occurrence: str) -> str:
    """Return the id of an occurrence of a condition.

    `occurrence` tells one from the next by what the host itself said (an event of its journal, the
    time of a sample), so that two collectors that see the same give the same id.
    """
    parts = (condition.host_id, condition.part_id, str(condition.xid), occurrence)
    digest = hashlib.sha256("\0".join((condition.kind.slug, *parts)).encode()).hexdigest()
    return f"{condition.kind.slug}-{digest[:20]}"
