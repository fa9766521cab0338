"""What an Auto Scaling group consists of: settings, members, activities.

Names and meanings are those of the EC2 Auto Scaling API reference (LifecycleState, Activity,
InstancesDistribution).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = [
    "ActivityStatus",
    "GroupInstance",
    "GroupSettings",
    "GroupView",
    "HookKind",
    "LifecycleHook",
    "LifecycleState",
    "ScalingActivity",
    "TerminationPolicy",
]


class LifecycleState(StrEnum):
    """Where a member stands in its group's life cycle."""

    PENDING = "Pending"
    PENDING_WAIT = "Pending:Wait"
    PENDING_PROCEED = "Pending:Proceed"
    IN_SERVICE = "InService"
    TERMINATING = "Terminating"
    TERMINATING_WAIT = "Terminating:Wait"
    TERMINATING_PROCEED = "Terminating:Proceed"
    TERMINATED = "Terminated"

    @property
    def counts_towards_desired(self) -> bool:
        """True from launch until termination begins."""
        return self in _COUNTED


_COUNTED = frozenset(
    {
        LifecycleState.PENDING,
        LifecycleState.PENDING_WAIT,
        LifecycleState.PENDING_PROCEED,
        LifecycleState.IN_SERVICE,
    }
)


class HookKind(StrEnum):
    """The two transitions a lifecycle hook can hold."""

    LAUNCHING = "autoscaling:EC2_INSTANCE_LAUNCHING"
    TERMINATING = "autoscaling:EC2_INSTANCE_TERMINATING"


class ActivityStatus(StrEnum):
    """Status codes of a scaling activity (the ones this model produces)."""

    PRE_IN_SERVICE = "PreInService"
    MID_LIFECYCLE_ACTION = "MidLifecycleAction"
    IN_PROGRESS = "InProgress"
    SUCCESSFUL = "Successful"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


class TerminationPolicy(StrEnum):
    """Which member goes first when a group shrinks (after zone balance and market balance)."""

    DEFAULT = "Default"
    OLDEST_INSTANCE = "OldestInstance"
    NEWEST_INSTANCE = "NewestInstance"


@dataclass(frozen=True, slots=True)
class LifecycleHook:
    """Holds members in a :Wait state until completed or timed out. Seconds are production's."""

    name: str
    kind: HookKind
    heartbeat_timeout_seconds: float = 3600.0
    default_result_continues: bool = False


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """One Auto Scaling group as configured.

    `instance_types` is a priority list: the first type with stock in the chosen zone is launched.
    The two On-Demand fields are those of a mixed instances policy; with the defaults everything
    is On-Demand. Cooldown is in production seconds.
    """

    name: str
    instance_types: tuple[str, ...]
    zones: tuple[str, ...]
    min_size: int
    max_size: int
    on_demand_base_capacity: int = 0
    on_demand_percentage_above_base: int = 100
    capacity_rebalance: bool = False
    new_instances_protected_from_scale_in: bool = False
    default_cooldown_seconds: float = 300.0
    termination_policy: TerminationPolicy = TerminationPolicy.DEFAULT
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GroupInstance:
    """One member of a group at one moment. `market` and times are found on the cloud instance."""

    instance_id: str
    instance_type: str
    zone: str
    lifecycle_state: LifecycleState
    is_healthy: bool
    protected_from_scale_in: bool


@dataclass(frozen=True, slots=True)
class ScalingActivity:
    """One attempt to launch or terminate a member. Times in seconds; `progress` 0-100."""

    activity_id: str
    group_name: str
    description: str
    cause: str
    start_time: float
    status: ActivityStatus
    progress: int
    instance_id: str | None = None
    end_time: float | None = None
    status_message: str = ""


@dataclass(frozen=True, slots=True)
class GroupView:
    """A group as DescribeAutoScalingGroups would show it."""

    settings: GroupSettings
    desired_capacity: int
    instances: tuple[GroupInstance, ...]
    created_time: float
    suspended_processes: frozenset[str]
    is_deleting: bool
