"""The Auto Scaling groups of the tiers, through the AWS API.

Sizes are set as absolute numbers and instances are terminated by id, so a repeat, or a second
leader for a moment, changes nothing. What exists is always read back from AWS.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import structlog
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from autoscaler.domain.fleet_view import GroupInstance, ScalingGroup
from autoscaler.domain.tiers import Tier
from autoscaler.ports import CloudError
from messaging.adapters.aws_sessions import open_session
from servicekit.clock import Clock

__all__ = ["AwsScalingGroups", "open_aws_scaling_groups"]

log = structlog.get_logger(__name__)

_TERMINATING = ("Terminating", "Terminated", "Detaching", "Detached")
# In standby a member serves nothing and is not part of the group's size.
_NOT_COUNTED = (*_TERMINATING, "EnteringStandby", "Standby")
_MESSAGE_CHARACTERS = 300
_DESCRIBE_BATCH = 100
_CONNECT_TIMEOUT_SECONDS = 3.0
_ATTEMPTS = 4


class AwsScalingGroups:
    """One Auto Scaling group a tier. All methods raise CloudError."""

    def __init__(
        self,
        autoscaling: Any,
        ec2: Any,
        groups: Mapping[Tier, str],
        *,
        clock: Clock,
        timeout_seconds: float,
    ) -> None:
        self._autoscaling = autoscaling
        self._ec2 = ec2
        self._tier_of_group = {name: tier for tier, name in groups.items()}
        self._groups = dict(groups)
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        # What EC2 tells of an instance never changes, so it is asked once: (is Spot, launch time).
        self._facts: dict[str, tuple[bool, float]] = {}

    async def describe(self) -> dict[Tier, ScalingGroup]:
        """Return every tier's group as it is now; a tier whose group does not exist is left out."""
        now = self._clock.now().timestamp()
        with _cloud_errors("DescribeAutoScalingGroups"):
            async with asyncio.timeout(self._timeout_seconds):
                found: list[dict[str, Any]] = []
                token: dict[str, str] = {}
                while True:
                    page = await self._autoscaling.describe_auto_scaling_groups(
                        AutoScalingGroupNames=list(self._groups.values()), **token
                    )
                    found += page["AutoScalingGroups"]
                    if not page.get("NextToken"):
                        break
                    token = {"NextToken": page["NextToken"]}
        await self._learn([i["InstanceId"] for g in found for i in g["Instances"]], now)
        return {
            self._tier_of_group[g["AutoScalingGroupName"]]: self._group(g, now)
            for g in found
            if g["AutoScalingGroupName"] in self._tier_of_group
        }

    async def set_desired(self, tier: Tier, desired: int) -> None:
        """Set the absolute size of a group; repeats are harmless."""
        with _cloud_errors("SetDesiredCapacity"):
            async with asyncio.timeout(self._timeout_seconds):
                await self._autoscaling.set_desired_capacity(
                    AutoScalingGroupName=self._groups[tier],
                    DesiredCapacity=desired,
                    HonorCooldown=False,
                )

    async def terminate(self, instance_id: str) -> None:
        """Terminate one instance and shrink its group by it; one that is gone already is fine."""
        if await self._is_leaving(instance_id):
            return
        try:
            with _cloud_errors("TerminateInstanceInAutoScalingGroup"):
                async with asyncio.timeout(self._timeout_seconds):
                    await self._autoscaling.terminate_instance_in_auto_scaling_group(
                        InstanceId=instance_id, ShouldDecrementDesiredCapacity=True
                    )
        except CloudError:
            # An earlier try may have worked although its answer was lost.
            if await self._is_leaving(instance_id):
                return
            raise

    async def _is_leaving(self, instance_id: str) -> bool:
        with _cloud_errors("DescribeAutoScalingInstances"):
            async with asyncio.timeout(self._timeout_seconds):
                answer = await self._autoscaling.describe_auto_scaling_instances(
                    InstanceIds=[instance_id]
                )
        members = answer["AutoScalingInstances"]
        return not members or members[0]["LifecycleState"].startswith(_TERMINATING)

    async def _learn(self, instance_ids: list[str], now: float) -> None:
        """Ask EC2 about instances not seen before; without an answer they are asked again."""
        alive = set(instance_ids)
        self._facts = {i: fact for i, fact in self._facts.items() if i in alive}
        unknown = [i for i in instance_ids if i not in self._facts]
        for start in range(0, len(unknown), _DESCRIBE_BATCH):
            batch = unknown[start : start + _DESCRIBE_BATCH]
            try:
                with _cloud_errors("DescribeInstances"):
                    async with asyncio.timeout(self._timeout_seconds):
                        answer = await self._ec2.describe_instances(InstanceIds=batch)
            except CloudError as error:
                log.warning("instances_not_described", error=error.message, count=len(batch))
                return
            for reservation in answer["Reservations"]:
                for instance in reservation["Instances"]:
                    launched = instance.get("LaunchTime")
                    self._facts[instance["InstanceId"]] = (
                        instance.get("InstanceLifecycle") == "spot",
                        launched.timestamp() if launched is not None else now,
                    )

    def _group(self, group: Mapping[str, Any], now: float) -> ScalingGroup:
        return ScalingGroup(
            name=group["AutoScalingGroupName"],
            desired=group["DesiredCapacity"],
            minimum=group["MinSize"],
            maximum=group["MaxSize"],
            instances=tuple(self._instance(i, now) for i in group["Instances"]),
            read_time=now,
        )

    def _instance(self, instance: Mapping[str, Any], now: float) -> GroupInstance:
        is_spot, launch_time = self._facts.get(instance["InstanceId"], (False, now))
        state = instance["LifecycleState"]
        return GroupInstance(
            instance_id=instance["InstanceId"],
            instance_type=instance.get("InstanceType", ""),
            is_spot=is_spot,
            launch_time=launch_time,
            is_leaving=state.startswith(_NOT_COUNTED),
            is_in_service=state == "InService",
        )


@asynccontextmanager
async def open_aws_scaling_groups(
    groups: Mapping[Tier, str],
    *,
    clock: Clock,
    region: str,
    endpoint_url: str | None,
    timeout_seconds: float,
) -> AsyncIterator[AwsScalingGroups]:
    """Open the clients; credentials come from the SDK's usual chain.

    Throttling is met by the SDK's adaptive retries: backoff, and a client-side rate that falls
    when AWS says so.
    """
    config = Config(
        connect_timeout=_CONNECT_TIMEOUT_SECONDS,
        read_timeout=timeout_seconds,
        retries={"mode": "adaptive", "total_max_attempts": _ATTEMPTS},
        max_pool_connections=10,
    )
    session = await open_session("autoscaling", "ec2")
    async with AsyncExitStack() as stack:
        autoscaling = await stack.enter_async_context(
            session.create_client(
                "autoscaling", region_name=region, endpoint_url=endpoint_url, config=config
            )
        )
        ec2 = await stack.enter_async_context(
            session.create_client(
                "ec2", region_name=region, endpoint_url=endpoint_url, config=config
            )
        )
        yield AwsScalingGroups(
            autoscaling, ec2, groups, clock=clock, timeout_seconds=timeout_seconds
        )


@contextmanager
def _cloud_errors(operation: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        details = error.response.get("Error", {})
        text = str(details.get("Message", ""))[:_MESSAGE_CHARACTERS]
        raise CloudError(f"{operation} was refused: {details.get('Code', '?')}: {text}") from error
    except TimeoutError as error:
        raise CloudError(f"{operation} was not answered in time") from error
    except (BotoCoreError, OSError) as error:
        raise CloudError(f"{operation} failed: the cloud could not be reached") from error
