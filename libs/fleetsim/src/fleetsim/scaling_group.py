"""Auto Scaling groups over the simulated cloud, as a pure state that steps through time.

A group launches and terminates towards its desired capacity the way EC2 Auto Scaling does
(EC2 Auto Scaling user guide): sizes outside min/max are refused, launches are balanced over
zones, a mixed instances policy splits On-Demand and Spot (fractions round up to On-Demand) and
never falls back from Spot to On-Demand, a member that dies is replaced, scale-in spares protected
members, lifecycle hooks hold members, and every attempt leaves a scaling activity.

Simplified: no weights, warm pools, standby, instance refresh, scheduled actions or scaling
policies; the reaction to a difference is immediate (its few seconds are part of the cloud's
launch latency); a failed launch is tried again after 15 s, then twice as long each time up to
5 minutes (AWS documents retries without publishing its schedule), production seconds.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from fleetsim.activity_log import ActivityLog
from fleetsim.cloud import Cloud
from fleetsim.cloud_state import CloudEvent, CloudEventKind
from fleetsim.errors import ScalingGroupError
from fleetsim.group_reconciler import (
    FIRST_RETRY_SECONDS,
    GROUP_TAG,
    Group,
    GroupReconciler,
    Member,
    iso_time,
)
from fleetsim.instance_types import INSTANCE_TYPES
from fleetsim.scaling_group_state import (
    GroupSettings,
    GroupView,
    LifecycleHook,
    LifecycleState,
    ScalingActivity,
)

__all__ = ["GROUP_TAG", "ScalingGroups"]


class ScalingGroups:
    """The Auto Scaling service of one region, and the only caller of its cloud's `advance`.

    Every mutating call first moves time to `now`. Errors are ScalingGroupError with AWS's code
    (`ValidationError`, `AlreadyExists`, `ResourceInUse`, `ScalingActivityInProgress`).
    """

    def __init__(self, cloud: Cloud, *, rng: np.random.Generator) -> None:
        self.cloud = cloud
        self._groups: dict[str, Group] = {}
        self._group_of: dict[str, str] = {}
        self._outbox: list[CloudEvent] = []
        self._log = ActivityLog(rng)
        self._reconciler = GroupReconciler(cloud, self._log, self._group_of)

    # -- time --------------------------------------------------------------------------------

    def advance(self, now: float) -> list[CloudEvent]:
        """Move groups and cloud to `now`; return the cloud's events since the last call."""
        self._catch_up(now)
        events, self._outbox = self._outbox, []
        return events

    def next_event_time(self) -> float | None:
        """When something will next happen by itself; None when nothing is due."""
        if self._outbox:
            return self.cloud.now
        times = [t for t in (self.cloud.next_event_time(), self._next_own_time()) if t is not None]
        return min(times) if times else None

    # -- groups ------------------------------------------------------------------------------

    def create(
        self, now: float, settings: GroupSettings, *, desired_capacity: int | None = None
    ) -> GroupView:
        """Create a group and start launching towards its desired capacity (default: minimum)."""
        self._catch_up(now)
        if settings.name in self._groups:
            raise ScalingGroupError(
                "AlreadyExists",
                f"AutoScalingGroup by this name already exists - A group with the name "
                f"{settings.name} already exists",
            )
        _check_settings(settings, self.cloud.settings.zones)
        desired = settings.min_size if desired_capacity is None else desired_capacity
        _check_desired_between(desired, settings)
        group = Group(settings, desired, now)
        group.reason = (
            f"At {iso_time(now)} a user request created an AutoScalingGroup changing the desired "
            f"capacity from 0 to {desired}."
        )
        self._groups[settings.name] = group
        self._reconciler.reconcile(now, group)
        return self.group(settings.name)

    def update(
        self, now: float, name: str, *, desired_capacity: int | None = None, **changes: Any
    ) -> GroupView:
        """Change fields of GroupSettings and, or, the desired capacity.

        As in AWS, a new min above (max below) the present desired capacity moves it along when
        no desired capacity is given; a given one outside min/max is refused.
        """
        self._catch_up(now)
        group = self._find(name)
        settings = replace(group.settings, **changes)
        _check_settings(settings, self.cloud.settings.zones)
        if desired_capacity is None:
            desired = min(max(group.desired, settings.min_size), settings.max_size)
        else:
            desired = desired_capacity
            _check_desired_between(desired, settings)
        group.settings = settings
        if desired != group.desired:
            self._set_desired(now, group, desired, "update of AutoScalingGroup constraints to")
        self._reconciler.reconcile(now, group)
        return self.group(name)

    def set_desired_capacity(
        self, now: float, name: str, desired_capacity: int, *, honor_cooldown: bool = False
    ) -> None:
        """Set the size to aim for. Refused outside min/max, or in cooldown when honoured."""
        self._catch_up(now)
        group = self._find(name)
        low, high = group.settings.min_size, group.settings.max_size
        if desired_capacity > high:
            raise ScalingGroupError(
                "ValidationError",
                f"New SetDesiredCapacity value {desired_capacity} is above max value {high} "
                "for the AutoScalingGroup.",
            )
        if desired_capacity < low:
            raise ScalingGroupError(
                "ValidationError",
                f"New SetDesiredCapacity value {desired_capacity} is below min value {low} "
                "for the AutoScalingGroup.",
            )
        if honor_cooldown and now < group.cooldown_until:
            raise ScalingGroupError(
                "ScalingActivityInProgress", "The group is in its cooldown period."
            )
        if desired_capacity != group.desired:
            self._set_desired(now, group, desired_capacity, "explicitly set group desired capacity")
        self._reconciler.reconcile(now, group)

    def terminate_instance(
        self, now: float, instance_id: str, *, decrement_desired_capacity: bool
    ) -> ScalingActivity:
        """Terminate one member by id, with or without replacement; return the activity.

        Scale-in protection does not apply to it, as in AWS. A member already terminating gives
        its present activity.
        """
        self._catch_up(now)
        group, member = self._find_member(instance_id)
        if member.terminate_activity_id is not None:
            return self._log.get(member.terminate_activity_id)
        if decrement_desired_capacity and group.desired <= group.settings.min_size:
            raise ScalingGroupError(
                "ValidationError",
                f"Currently, desiredSize equals minSize ({group.settings.min_size}). Terminating "
                "instance without replacement will violate group's min size constraint. Either "
                "set shouldDecrementDesiredCapacity flag to false or lower group's min size.",
            )
        cause = (
            f"At {iso_time(now)} instance {instance_id} was taken out of service in response to a "
        )
        cause += "user request"
        if decrement_desired_capacity:
            cause += f", shrinking the capacity from {group.desired} to {group.desired - 1}"
            group.desired -= 1
            group.cooldown_until = now + self._reconciler.compressed(
                group.settings.default_cooldown_seconds
            )
        self._reconciler.begin_termination(now, group, member, cause + ".")
        self._reconciler.reconcile(now, group)
        activity_id = member.terminate_activity_id
        assert activity_id is not None  # noqa: S101 - set by _begin_termination
        return self._log.get(activity_id)

    def set_instance_protection(
        self, now: float, name: str, instance_ids: Iterable[str], *, protected: bool
    ) -> None:
        """Protect members from scale-in, or stop protecting them. All ids must be members."""
        self._catch_up(now)
        group = self._find(name)
        ids = list(instance_ids)
        for instance_id in ids:
            if instance_id not in group.members:
                raise _no_managed_instance(instance_id)
        for instance_id in ids:
            member = group.members[instance_id]
            member.view = replace(member.view, protected_from_scale_in=protected)

    def set_instance_health(self, now: float, instance_id: str, *, is_healthy: bool) -> None:
        """Report a member's health; an unhealthy one is terminated and replaced."""
        self._catch_up(now)
        group, member = self._find_member(instance_id)
        member.view = replace(member.view, is_healthy=is_healthy)
        if not is_healthy and member.terminate_activity_id is None:
            cause = (
                f"At {iso_time(now)} an instance was taken out of service in response to a user "
            )
            self._reconciler.begin_termination(now, group, member, cause + "health-check.")
            self._reconciler.reconcile(now, group)

    def suspend(self, now: float, name: str, *processes: str) -> None:
        """Suspend processes; this model knows Launch, Terminate and ReplaceUnhealthy."""
        self._catch_up(now)
        self._find(name).suspended.update(processes or ("Launch", "Terminate", "ReplaceUnhealthy"))

    def resume(self, now: float, name: str, *processes: str) -> None:
        """Resume suspended processes (all of them without names)."""
        self._catch_up(now)
        group = self._find(name)
        group.suspended.difference_update(processes or tuple(group.suspended))
        self._reconciler.reconcile(now, group)

    def put_lifecycle_hook(self, now: float, name: str, hook: LifecycleHook) -> None:
        """Add or replace a hook; it applies to transitions that begin from now on."""
        self._catch_up(now)
        self._find(name).hooks[hook.name] = hook

    def complete_lifecycle_action(
        self, now: float, instance_id: str, *, continues: bool = True
    ) -> None:
        """Let a held member go on; `continues=False` abandons a launching one."""
        self._catch_up(now)
        group, member = self._find_member(instance_id)
        self._reconciler.leave_wait(now, group, member, continues=continues)
        self._reconciler.reconcile(now, group)

    def record_lifecycle_heartbeat(self, now: float, instance_id: str) -> None:
        """Extend a held member's timeout by the hook's heartbeat timeout."""
        self._catch_up(now)
        group, member = self._find_member(instance_id)
        if not math.isinf(member.wait_until):
            hook = self._reconciler.hook_for(group, member)
            if hook is not None:
                member.wait_until = now + self._reconciler.compressed(
                    hook.heartbeat_timeout_seconds
                )

    def delete(self, now: float, name: str, *, force: bool = False) -> None:
        """Delete a group; with members left it needs `force`, which terminates them."""
        self._catch_up(now)
        group = self._find(name)
        if group.members and not force:
            raise ScalingGroupError(
                "ResourceInUse",
                "You cannot delete an AutoScalingGroup while there are instances or pending Spot "
                "instance request(s) still in the group.",
            )
        group.is_deleting = True
        group.desired = 0
        cause = f"At {iso_time(now)} a user request force deleted an AutoScalingGroup."
        for member in list(group.counted()):
            self._reconciler.begin_termination(now, group, member, cause)
        self._forget_if_deleted(group)

    def group(self, name: str) -> GroupView:
        """Return one group as it is now."""
        group = self._find(name)
        return GroupView(
            group.settings,
            group.desired,
            tuple(m.view for m in group.members.values()),
            group.created_time,
            frozenset(group.suspended),
            group.is_deleting,
        )

    def groups(self) -> list[GroupView]:
        """Return every group, by name."""
        return [self.group(name) for name in sorted(self._groups)]

    def group_name_of(self, instance_id: str) -> str | None:
        """Return the group an instance is a member of, if any."""
        return self._group_of.get(instance_id)

    def activities(self, name: str) -> list[ScalingActivity]:
        """Return a group's activities, newest first (the last 1000)."""
        self._find(name)
        return self._log.newest_first(name)

    # -- time, inside ------------------------------------------------------------------------

    def _catch_up(self, now: float) -> None:
        while True:
            times = (self.cloud.next_event_time(), self._next_own_time())
            due = [t for t in times if t is not None and t <= now]
            if not due:
                break
            time = max(min(due), self.cloud.now)
            for event in self.cloud.advance(time):
                self._outbox.append(event)
                self._react(event)
            for group in list(self._groups.values()):
                self._handle_timeouts(time, group)
                self._reconciler.reconcile(time, group)
        self.cloud.advance(now)

    def _next_own_time(self) -> float | None:
        soonest = math.inf
        for group in self._groups.values():
            soonest = min(soonest, group.retry_time)
            for member in group.members.values():
                soonest = min(soonest, member.wait_until)
        return None if math.isinf(soonest) else soonest

    def _handle_timeouts(self, time: float, group: Group) -> None:
        if group.retry_time <= time:
            group.retry_time = math.inf
        for member in list(group.members.values()):
            if member.wait_until <= time:
                hook = self._reconciler.hook_for(group, member)
                continues = hook is not None and hook.default_result_continues
                self._reconciler.leave_wait(time, group, member, continues=continues)

    def _react(self, event: CloudEvent) -> None:
        instance = event.instance
        if instance is None:
            return
        group = self._groups.get(self._group_of.get(instance.instance_id, ""))
        if group is None:
            return
        member = group.members[instance.instance_id]
        if event.kind is CloudEventKind.INSTANCE_RUNNING:
            if member.view.lifecycle_state is LifecycleState.PENDING:
                self._reconciler.enter_service_or_wait(event.time, group, member)
        elif event.kind is CloudEventKind.INSTANCE_SHUTTING_DOWN:
            if member.terminate_activity_id is None:
                cause = (
                    f"At {iso_time(event.time)} an instance was taken out of service in "
                    "response to an EC2 health check indicating it has been terminated or stopped."
                )
                member.view = replace(member.view, is_healthy=False)
                self._reconciler.begin_termination(event.time, group, member, cause)
        elif event.kind is CloudEventKind.INSTANCE_TERMINATED:
            if member.terminate_activity_id is not None:
                self._log.finish(event.time, member.terminate_activity_id)
            del group.members[instance.instance_id]
            del self._group_of[instance.instance_id]
            self._forget_if_deleted(group)
        elif event.kind is CloudEventKind.REBALANCE_RECOMMENDED and (
            group.settings.capacity_rebalance
        ):
            group.extra += 1

    # -- bookkeeping -------------------------------------------------------------------------

    def _set_desired(self, time: float, group: Group, desired: int, how: str) -> None:
        group.reason = (
            f"At {iso_time(time)} a user request {how} changing the desired capacity from "
            f"{group.desired} to {desired}."
        )
        group.desired = desired
        group.retry_time = math.inf
        group.retry_seconds = FIRST_RETRY_SECONDS
        group.cooldown_until = time + self._reconciler.compressed(
            group.settings.default_cooldown_seconds
        )

    def _forget_if_deleted(self, group: Group) -> None:
        if group.is_deleting and not group.members:
            self._log.forget_group(group.settings.name)
            self._groups.pop(group.settings.name, None)

    def _find(self, name: str) -> Group:
        group = self._groups.get(name)
        if group is None:
            raise ScalingGroupError(
                "ValidationError",
                f"AutoScalingGroup name not found - AutoScalingGroup {name} not found",
            )
        return group

    def _find_member(self, instance_id: str) -> tuple[Group, Member]:
        name = self._group_of.get(instance_id)
        if name is None:
            raise _no_managed_instance(instance_id)
        group = self._groups[name]
        return group, group.members[instance_id]


def _check_settings(settings: GroupSettings, region_zones: tuple[str, ...]) -> None:
    problems = []
    if settings.min_size < 0 or settings.max_size < 0:
        problems.append("Sizes must not be negative")
    elif settings.min_size > settings.max_size:
        problems.append(
            f"Max bound, {settings.max_size}, must be greater than or equal to min bound, "
            f"{settings.min_size}"
        )
    if not settings.zones or any(zone not in region_zones for zone in settings.zones):
        problems.append(f"Invalid Availability Zones {list(settings.zones)}")
    unknown = [t for t in settings.instance_types if t not in INSTANCE_TYPES]
    if unknown or not settings.instance_types:
        problems.append(f"The specified instance types are invalid: {unknown}")
    if not 0 <= settings.on_demand_percentage_above_base <= 100:
        problems.append("OnDemandPercentageAboveBaseCapacity must be between 0 and 100")
    if problems:
        raise ScalingGroupError("ValidationError", "; ".join(problems))


def _check_desired_between(desired: int, settings: GroupSettings) -> None:
    if not settings.min_size <= desired <= settings.max_size:
        raise ScalingGroupError(
            "ValidationError",
            f"Desired capacity:{desired} must be between the specified min size:"
            f"{settings.min_size} and max size:{settings.max_size}",
        )


def _no_managed_instance(instance_id: str) -> ScalingGroupError:
    return ScalingGroupError(
        "ValidationError",
        f"Instance Id not found - No managed instance found for instance ID: {instance_id}",
    )
