"""Servers that will not serve much longer, or do not serve at all, and when to let them go."""

import math
from dataclasses import dataclass

from autoscaler.domain.policy import TierPolicy
from autoscaler.domain.snapshot import Instance, InstancePhase, TierSnapshot

__all__ = ["Replacement", "find_replacements"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """The servers to replace: kept until their replacement is ready, or drained now."""

    interrupted: tuple[Instance, ...]
    """Announced by the cloud to be taken back, soonest first."""
    failed: tuple[Instance, ...]
    """Never became ready, or fell silent for good; longest first."""
    drain_now: tuple[Instance, ...]

    @property
    def kept(self) -> int:
        """How many stay for now; each is covered by one server more."""
        return len(self.interrupted) + len(self.failed) - len(self.drain_now)


def find_replacements(
    snapshot: TierSnapshot,
    policy: TierPolicy,
    now: float,
    *,
    needed: int,
    start_seconds: float,
    may_take_away: bool,
) -> Replacement:
    """Tell which servers need replacing and which of them may be drained now.

    A server goes once the good ones carry the need without it; an interrupted one goes at the
    latest shortly before the cloud takes it, so that its requests end in order. When the fleet
    feed is stale nobody counts as failed, and a cut between many hosts and the collector can make
    only a share of the tier look failed at a time.
    """
    interrupted = sorted(
        (i for i in snapshot.staying if i.interruption_time is not None),
        key=lambda i: (i.interruption_time or 0.0, i.instance_id),
    )
    failed: list[Instance] = []
    if snapshot.fresh_fleet(policy) is not None:
        failed = [
            i
            for i in snapshot.staying
            if not i.is_interrupted and _has_failed(i, policy, now, start_seconds)
        ]
        failed.sort(key=lambda i: (-i.phase_age_seconds, i.instance_id))
        limit = max(1, math.floor(len(snapshot.staying) * policy.replace_failed_ratio))
        failed = failed[:limit]
    doomed = {i.instance_id for i in (*interrupted, *failed)}
    good = sum(1 for i in snapshot.ready if i.instance_id not in doomed)
    drain: list[Instance] = []
    if may_take_away:
        drain = [
            i for i in (*interrupted, *failed) if good >= needed or _is_imminent(i, policy, now)
        ]
    return Replacement(interrupted=tuple(interrupted), failed=tuple(failed), drain_now=tuple(drain))


def _has_failed(instance: Instance, policy: TierPolicy, now: float, start_seconds: float) -> bool:
    if instance.phase is InstancePhase.READY:
        return False
    if instance.phase_age_seconds <= policy.unresponsive_grace_seconds:
        return False  # also: this replica, or the collector, has only just begun to look
    if instance.phase is InstancePhase.PENDING:
        return now - instance.launch_time > start_seconds * policy.overdue_factor
    return True


def _is_imminent(instance: Instance, policy: TierPolicy, now: float) -> bool:
    if instance.interruption_time is None:
        return False
    return instance.interruption_time - now <= policy.interruption_drain_lead_seconds
