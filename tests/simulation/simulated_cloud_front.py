"""The cloud as the autoscaler's real AWS adapter sees it, answered from fleetsim's groups."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from botocore.exceptions import ClientError
from simulated_hosts import CLOUD, CloudCall, Fleet
from virtual_loop import START
from virtual_network import Lost, Process

from autoscaler.adapters.aws_scaling_groups import AwsScalingGroups
from autoscaler.domain.tiers import Tier
from fleetsim.errors import ScalingGroupError
from fleetsim.instance_types import Market

__all__ = ["CloudFront", "ObservedGroups"]

_TRIES = 3
_TRY_SECONDS = 3.0
_ANSWER_LOST = "the answer was lost"


class CloudFront:
    """What the autoscaler's AWS adapter takes for the SDK's `autoscaling` and `ec2` clients.

    Like the SDK it tries again when an answer is lost, so the cloud may see a call twice.
    """

    def __init__(self, fleet: Fleet, caller: Process) -> None:
        self._fleet = fleet
        self._caller = caller

    async def describe_auto_scaling_groups(
        self,
        *,
        AutoScalingGroupNames: list[str],  # noqa: N803  # AWS's names, here and below
    ) -> dict[str, Any]:
        def look() -> dict[str, Any]:
            return {"AutoScalingGroups": [self._group(name) for name in AutoScalingGroupNames]}

        return await self._call(look)

    async def set_desired_capacity(
        self,
        *,
        AutoScalingGroupName: str,  # noqa: N803
        DesiredCapacity: int,  # noqa: N803
        HonorCooldown: bool,  # noqa: N803
    ) -> dict[str, Any]:
        name, desired = AutoScalingGroupName, DesiredCapacity

        def change() -> dict[str, Any]:
            self._note(self._called("SetDesiredCapacity", name, desired))
            self._fleet.groups.set_desired_capacity(
                self._fleet.loop.time(), name, desired, honor_cooldown=HonorCooldown
            )
            self._fleet.follow(f"{self._caller.name}: SetDesiredCapacity {desired}")
            return {}

        return await self._call(change)

    async def terminate_instance_in_auto_scaling_group(
        self,
        *,
        InstanceId: str,  # noqa: N803
        ShouldDecrementDesiredCapacity: bool,  # noqa: N803
    ) -> dict[str, Any]:
        groups = self._fleet.groups

        def change() -> dict[str, Any]:
            if (group := groups.group_name_of(InstanceId)) is not None:
                desired = groups.group(group).desired_capacity - 1
                self._note(self._called("TerminateInstance", group, desired, InstanceId))
            self._fleet.groups.terminate_instance(
                self._fleet.loop.time(),
                InstanceId,
                decrement_desired_capacity=ShouldDecrementDesiredCapacity,
            )
            self._fleet.follow(f"{self._caller.name}: TerminateInstance")
            return {}

        return await self._call(change)

    async def describe_auto_scaling_instances(
        self,
        *,
        InstanceIds: list[str],  # noqa: N803
    ) -> dict[str, Any]:
        def look() -> dict[str, Any]:
            names = (self._fleet.groups.group_name_of(i) for i in InstanceIds)
            members = (m for n in names if n for m in self._fleet.groups.group(n).instances)
            found = [m.lifecycle_state.value for m in members if m.instance_id in InstanceIds]
            return {"AutoScalingInstances": [{"LifecycleState": state} for state in found]}

        return await self._call(look)

    async def describe_instances(self, *, InstanceIds: list[str]) -> dict[str, Any]:  # noqa: N803
        def look() -> dict[str, Any]:
            instances = [self._fleet.cloud.instance(i) for i in InstanceIds]
            described = [
                {
                    "InstanceId": i.instance_id,
                    "InstanceLifecycle": "spot" if i.market is Market.SPOT else None,
                    "LaunchTime": START + timedelta(seconds=i.launch_time),
                }
                for i in instances
            ]
            return {"Reservations": [{"Instances": described}]}

        return await self._call(look)

    def _called(self, operation: str, group: str, desired: int, instance_id: str = "") -> CloudCall:
        return CloudCall(
            caller=self._caller.name,
            operation=operation,
            group=group,
            desired=desired,
            instance_id=instance_id,
        )

    def _note(self, call: CloudCall) -> None:
        self._fleet.trace(
            "cloud_call", call.caller, call.operation, call.group, call.desired, call.instance_id
        )
        self._fleet.on_call(call)

    def _group(self, name: str) -> dict[str, Any]:
        self._fleet.follow()
        group = self._fleet.groups.group(name)
        return {
            "AutoScalingGroupName": name,
            "DesiredCapacity": group.desired_capacity,
            "MinSize": group.settings.min_size,
            "MaxSize": group.settings.max_size,
            "Instances": [
                {
                    "InstanceId": member.instance_id,
                    "InstanceType": member.instance_type,
                    "LifecycleState": member.lifecycle_state.value,
                }
                for member in group.instances
            ],
        }

    async def _call(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        def serve(_: Process) -> dict[str, Any]:
            try:
                return work()
            except ScalingGroupError as error:
                raise ClientError(
                    {"Error": {"Code": error.code, "Message": str(error)}}, "call"
                ) from error

        for attempt in range(_TRIES):
            try:
                answer: dict[str, Any] = await self._fleet.network.call(
                    self._caller, CLOUD, serve, timeout=_TRY_SECONDS
                )
            except Lost as lost:
                if attempt == _TRIES - 1:
                    raise OSError(str(lost)) from lost
            else:
                return answer
        raise OSError(_ANSWER_LOST)


class ObservedGroups:
    """The real adapter of the autoscaler's port `ScalingCloud`; tells when a call is handed to it.

    What is under way cannot be called back, so this is the moment that counts.
    """

    def __init__(
        self, real: AwsScalingGroups, fleet: Fleet, caller: str, tell: Callable[[CloudCall], None]
    ) -> None:
        self._real = real
        self._fleet = fleet
        self._caller = caller
        self._tell = tell
        self.describe = real.describe

    async def set_desired(self, tier: Tier, desired: int) -> None:
        """Set the absolute size of a group."""
        self._tell(
            CloudCall(
                caller=self._caller,
                operation="SetDesiredCapacity",
                group=tier.value,
                desired=desired,
            )
        )
        await self._real.set_desired(tier, desired)

    async def terminate(self, instance_id: str) -> None:
        """Terminate one instance."""
        group = self._fleet.groups.group_name_of(instance_id)
        if group is not None:
            self._tell(
                CloudCall(
                    caller=self._caller,
                    operation="TerminateInstance",
                    group=group,
                    desired=self._fleet.groups.group(group).desired_capacity - 1,
                    instance_id=instance_id,
                )
            )
        await self._real.terminate(instance_id)
