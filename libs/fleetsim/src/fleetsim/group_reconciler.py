"""How an Auto Scaling group gets to its desired capacity, and how one member lives.

The rules are those of the EC2 Auto Scaling user guide; see `scaling_group` for what is modelled
and what is simplified.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from fleetsim.activity_log import ActivityLog
from fleetsim.cloud import Cloud
from fleetsim.cloud_state import Instance
from fleetsim.errors import InsufficientCapacityError
from fleetsim.instance_types import Market
from fleetsim.scaling_group_state import (
    ActivityStatus,
    GroupInstance,
    GroupSettings,
    HookKind,
    LifecycleHook,
    LifecycleState,
    TerminationPolicy,
)

__all__ = ["FIRST_RETRY_SECONDS", "GROUP_TAG", "Group", "GroupReconciler", "Member", "iso_time"]

GROUP_TAG = "aws:autoscaling:groupName"
"""The tag every member's instance carries, as in AWS."""

FIRST_RETRY_SECONDS = 15.0
_LONGEST_RETRY_SECONDS = 300.0


@dataclass(slots=True)
class Member:
    """A member of a group and what is under way with it."""

    view: GroupInstance
    market: Market
    launch_time: float
    activity_id: str
    wait_until: float = math.inf
    terminate_activity_id: str | None = None


@dataclass(slots=True)
class Group:
    """A group's settings, members and pending retry. `extra` counts early replacements."""

    settings: GroupSettings
    desired: int
    created_time: float
    members: dict[str, Member] = field(default_factory=dict)
    hooks: dict[str, LifecycleHook] = field(default_factory=dict)
    suspended: set[str] = field(default_factory=set)
    retry_time: float = math.inf
    retry_seconds: float = FIRST_RETRY_SECONDS
    cooldown_until: float = -math.inf
    extra: int = 0
    is_deleting: bool = False
    reason: str = ""

    def counted(self) -> list[Member]:
        """Return the members that count towards the desired capacity."""
        return [m for m in self.members.values() if m.view.lifecycle_state.counts_towards_desired]


class GroupReconciler:
    """Moves groups towards their desired capacity; owns no time and no list of groups."""

    def __init__(self, cloud: Cloud, log: ActivityLog, group_of: dict[str, str]) -> None:
        self.cloud = cloud
        self.log = log
        self.group_of = group_of

    def compressed(self, production_seconds: float) -> float:
        """Return production seconds as seconds of this cloud's time."""
        return production_seconds / self.cloud.time_compression

    # -- towards the desired capacity --------------------------------------------------------

    def reconcile(self, time: float, group: Group) -> None:
        """Launch or terminate until the group has what it wants, or cannot."""
        if group.is_deleting:
            return
        self._retire_rebalanced(time, group)
        counted = group.counted()
        if group.extra and len(counted) <= group.desired:
            room = max(group.settings.max_size, math.ceil(group.desired * 1.1)) - len(counted)
            group.extra = min(group.extra, room)
        goal = group.desired + group.extra
        if len(counted) < goal and "Launch" not in group.suspended:
            if math.isinf(group.retry_time):
                self._launch_towards(time, group, goal)
        elif len(counted) > goal and "Terminate" not in group.suspended:
            self._shrink_to(time, group, goal)

    def _retire_rebalanced(self, time: float, group: Group) -> None:
        """Take a member at risk out of service once its early replacement serves."""
        if not group.extra:
            return
        in_service = [
            m for m in group.counted() if m.view.lifecycle_state is LifecycleState.IN_SERVICE
        ]
        at_risk = [
            m
            for m in in_service
            if self.cloud.instance(m.view.instance_id).rebalance_time is not None
        ]
        group.extra = min(group.extra, len(at_risk))
        for member in at_risk[: max(0, len(in_service) - group.desired)]:
            group.extra = max(0, group.extra - 1)
            cause = (
                f"At {iso_time(time)} an instance was taken out of service in response to an EC2 "
                "instance rebalance recommendation."
            )
            self.begin_termination(time, group, member, cause)

    def _launch_towards(self, time: float, group: Group, goal: int) -> None:
        while len(counted := group.counted()) < goal:
            market = self._next_market(group, counted)
            before = len(counted)
            cause = (
                f"{group.reason} At {iso_time(time)} an instance was started in response to a "
                f"difference between desired and actual capacity, increasing the capacity from "
                f"{before} to {before + 1}."
            ).strip()
            try:
                instance = self._launch_one(time, group, counted, market)
            except InsufficientCapacityError as error:
                self._record_failed_launch(time, group, cause, market, error)
                group.retry_time = time + self.compressed(group.retry_seconds)
                group.retry_seconds = min(group.retry_seconds * 2, _LONGEST_RETRY_SECONDS)
                return
            group.retry_seconds = FIRST_RETRY_SECONDS
            activity_id = self.log.record(
                time,
                group.settings.name,
                f"Launching a new EC2 instance: {instance.instance_id}",
                cause,
                status=ActivityStatus.PRE_IN_SERVICE,
                instance_id=instance.instance_id,
            )
            view = GroupInstance(
                instance.instance_id,
                instance.instance_type,
                instance.zone,
                LifecycleState.PENDING,
                is_healthy=True,
                protected_from_scale_in=group.settings.new_instances_protected_from_scale_in,
            )
            group.members[instance.instance_id] = Member(view, market, time, activity_id)
            self.group_of[instance.instance_id] = group.settings.name

    def _launch_one(
        self, time: float, group: Group, counted: list[Member], market: Market
    ) -> Instance:
        """Try zones by fewest members, and in each the instance types by priority."""
        members_in = Counter(m.view.zone for m in counted)
        settings = group.settings
        refusal: InsufficientCapacityError | None = None
        tags: Mapping[str, str] = {**settings.tags, GROUP_TAG: settings.name}
        for zone in sorted(settings.zones, key=lambda z: members_in[z]):
            for instance_type in settings.instance_types:
                try:
                    return self.cloud.launch(
                        time, instance_type=instance_type, zone=zone, market=market, tags=tags
                    )
                except InsufficientCapacityError as error:
                    refusal = refusal or error
        assert refusal is not None  # noqa: S101 - zones and types are never empty
        raise refusal

    def _next_market(self, group: Group, counted: list[Member]) -> Market:
        on_demand = sum(1 for m in counted if m.market is Market.ON_DEMAND)
        wanted = _on_demand_share(group.settings, len(counted) + 1)
        return Market.ON_DEMAND if on_demand < wanted else Market.SPOT

    def _shrink_to(self, time: float, group: Group, goal: int) -> None:
        while len(counted := group.counted()) > goal:
            candidates = [m for m in counted if not m.view.protected_from_scale_in]
            if not candidates:
                return
            member = self._first_to_go(group, counted, candidates)
            cause = (
                f"{group.reason} At {iso_time(time)} an instance was taken out of service in "
                "response to a difference between desired and actual capacity, shrinking the "
                f"capacity from {len(counted)} to {len(counted) - 1}."
            ).strip()
            self.begin_termination(time, group, member, cause)

    @staticmethod
    def _first_to_go(group: Group, counted: list[Member], candidates: list[Member]) -> Member:
        """Zone balance first, then market balance, then the group's termination policy."""
        in_zone = Counter(m.view.zone for m in counted)
        fullest = max(in_zone[m.view.zone] for m in candidates)
        candidates = [m for m in candidates if in_zone[m.view.zone] == fullest]
        policy = group.settings.termination_policy
        if policy is TerminationPolicy.DEFAULT:
            on_demand = sum(1 for m in counted if m.market is Market.ON_DEMAND)
            too_many_on_demand = on_demand > _on_demand_share(group.settings, len(counted) - 1)
            surplus = Market.ON_DEMAND if too_many_on_demand else Market.SPOT
            candidates = [m for m in candidates if m.market is surplus] or candidates
        newest_first = policy is TerminationPolicy.NEWEST_INSTANCE
        pick = max if newest_first else min
        return pick(candidates, key=lambda m: m.launch_time)

    # -- one member's way --------------------------------------------------------------------

    def enter_service_or_wait(self, time: float, group: Group, member: Member) -> None:
        """A launched instance runs: put it in service, or hold it for a launching hook."""
        hook = _hook_of_kind(group, HookKind.LAUNCHING)
        if hook is None:
            self.enter_service(time, member)
            return
        member.view = replace(member.view, lifecycle_state=LifecycleState.PENDING_WAIT)
        member.wait_until = time + self.compressed(hook.heartbeat_timeout_seconds)
        self.log.change(member.activity_id, status=ActivityStatus.MID_LIFECYCLE_ACTION, progress=60)

    def enter_service(self, time: float, member: Member) -> None:
        """Put a member in service."""
        member.view = replace(member.view, lifecycle_state=LifecycleState.IN_SERVICE)
        member.wait_until = math.inf
        self.log.finish(time, member.activity_id)

    def begin_termination(self, time: float, group: Group, member: Member, cause: str) -> None:
        """Terminate a member, or hold it first for a terminating hook."""
        instance_id = member.view.instance_id
        if member.view.lifecycle_state is not LifecycleState.IN_SERVICE:
            self.log.change(member.activity_id, status=ActivityStatus.CANCELLED, end_time=time)
        activity_id = self.log.record(
            time,
            group.settings.name,
            f"Terminating EC2 instance: {instance_id}",
            cause,
            status=ActivityStatus.IN_PROGRESS,
            instance_id=instance_id,
        )
        member.terminate_activity_id = activity_id
        hook = _hook_of_kind(group, HookKind.TERMINATING)
        if hook is not None and self.cloud.instance(instance_id).is_alive:
            member.view = replace(member.view, lifecycle_state=LifecycleState.TERMINATING_WAIT)
            member.wait_until = time + self.compressed(hook.heartbeat_timeout_seconds)
            self.log.change(activity_id, status=ActivityStatus.MID_LIFECYCLE_ACTION)
            return
        member.view = replace(member.view, lifecycle_state=LifecycleState.TERMINATING)
        member.wait_until = math.inf
        self.cloud.terminate(time, [instance_id])

    def leave_wait(self, time: float, group: Group, member: Member, *, continues: bool) -> None:
        """End a hold: completed, abandoned or timed out."""
        state = member.view.lifecycle_state
        member.wait_until = math.inf
        if state is LifecycleState.PENDING_WAIT:
            if continues:
                self.enter_service(time, member)
            else:
                cause = f"At {iso_time(time)} a lifecycle action was abandoned or timed out."
                self.begin_termination(time, group, member, cause)
        elif state is LifecycleState.TERMINATING_WAIT:
            member.view = replace(member.view, lifecycle_state=LifecycleState.TERMINATING_PROCEED)
            self.cloud.terminate(time, [member.view.instance_id])

    @staticmethod
    def hook_for(group: Group, member: Member) -> LifecycleHook | None:
        """Return the hook that holds this member now."""
        terminating = member.view.lifecycle_state is LifecycleState.TERMINATING_WAIT
        return _hook_of_kind(group, HookKind.TERMINATING if terminating else HookKind.LAUNCHING)

    def _record_failed_launch(
        self,
        time: float,
        group: Group,
        cause: str,
        market: Market,
        error: InsufficientCapacityError,
    ) -> None:
        prefix = "Could not launch Spot Instances. " if market is Market.SPOT else ""
        activity_id = self.log.record(
            time,
            group.settings.name,
            "Launching a new EC2 instance",
            cause,
            status=ActivityStatus.FAILED,
        )
        self.log.change(
            activity_id,
            end_time=time,
            progress=100,
            status_message=f"{prefix}{error.code} - {error.message} Launching EC2 instance failed.",
        )


def _hook_of_kind(group: Group, kind: HookKind) -> LifecycleHook | None:
    return next((hook for hook in group.hooks.values() if hook.kind is kind), None)


def _on_demand_share(settings: GroupSettings, size: int) -> int:
    """How many of `size` members are On-Demand; a fraction above the base rounds up."""
    base = min(settings.on_demand_base_capacity, size)
    above = size - base
    return base + math.ceil(above * settings.on_demand_percentage_above_base / 100)


def iso_time(time: float) -> str:
    """Return seconds as AWS writes times in activity causes (taken as Unix time, UTC)."""
    return datetime.fromtimestamp(time, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
