"""The Auto Scaling adapter against the local AWS: real SDK, real wire, real refusals."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from autoscaler.adapters.aws_scaling_groups import AwsScalingGroups, open_aws_scaling_groups
from autoscaler.domain.tiers import Tier
from autoscaler.ports import CloudError
from localsuite.aws.account import seed_account
from localsuite.aws.region import Region
from localsuite.aws.server import LocalAwsServer
from localsuite.aws.tiers import TierCapacity, group_name
from servicekit.clock import SystemClock

GROUPS = {tier: group_name(tier.value) for tier in Tier}


@dataclass
class Cloud:
    groups: AwsScalingGroups
    server: LocalAwsServer

    @property
    def gold(self) -> Any:
        return self.server.region.groups.group(group_name("gold"))

    def fail(self, operation: str, error_code: str, count: int) -> None:
        self.server.front.faults.add(
            {"operation": operation, "error_code": error_code, "count": count}
        )


@pytest.fixture
async def cloud(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cloud]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")
    async with AsyncExitStack() as stack:
        server = LocalAwsServer(Region(seed=11, time_compression=500.0))
        server.start()
        stack.callback(server.stop)
        tiers = (
            TierCapacity("gold", ("g5.xlarge",), 1, 6, 3, 1, 0),
            TierCapacity("silver", ("g5.2xlarge",), 0, 4, 0),
        )
        await asyncio.to_thread(seed_account, server.endpoint, tiers)
        groups = await stack.enter_async_context(open_groups(server.endpoint))
        yield Cloud(groups, server)


def open_groups(endpoint: str, timeout_seconds: float = 10.0) -> Any:
    return open_aws_scaling_groups(
        GROUPS,
        clock=SystemClock(),
        region="us-east-1",
        endpoint_url=endpoint,
        timeout_seconds=timeout_seconds,
    )


async def in_service(cloud: Cloud, count: int) -> list[str]:
    async with asyncio.timeout(20):
        while True:
            gold = (await cloud.groups.describe())[Tier.GOLD]
            ids = [i.instance_id for i in gold.live if i.is_in_service]
            if len(ids) == count:
                return ids
            await asyncio.sleep(0.05)


async def test_groups_are_described_with_what_was_bought(cloud: Cloud) -> None:
    await in_service(cloud, 3)
    described = await cloud.groups.describe()
    assert set(described) == {Tier.GOLD, Tier.SILVER}  # Bronze's group does not exist
    gold = described[Tier.GOLD]
    assert (gold.desired, gold.minimum, gold.maximum) == (3, 1, 6)
    assert sorted(i.is_spot for i in gold.instances) == [False, True, True]
    assert {i.instance_type for i in gold.instances} == {"g5.xlarge"}
    assert all(abs(i.launch_time - gold.read_time) < 60 for i in gold.instances)


async def test_sizes_are_absolute_and_repeats_harmless(cloud: Cloud) -> None:
    for _ in range(2):
        await cloud.groups.set_desired(Tier.GOLD, 5)
    assert cloud.gold.desired_capacity == 5
    await in_service(cloud, 5)


async def test_what_aws_refuses_is_told_in_its_own_words(cloud: Cloud) -> None:
    with pytest.raises(CloudError) as caught:
        await cloud.groups.set_desired(Tier.GOLD, 7)
    assert "ValidationError" in caught.value.message
    assert "above max value 6" in caught.value.message
    with pytest.raises(CloudError, match="SetDesiredCapacity was refused"):
        await cloud.groups.set_desired(Tier.BRONZE, 1)


async def test_an_instance_is_terminated_once_however_often_it_is_asked_for(cloud: Cloud) -> None:
    victim = (await in_service(cloud, 3))[0]
    for _ in range(3):
        await cloud.groups.terminate(victim)
    assert cloud.gold.desired_capacity == 2
    assert victim not in await in_service(cloud, 2)
    await cloud.groups.terminate(victim)
    await cloud.groups.terminate("i-0123456789abcdef0")
    assert cloud.gold.desired_capacity == 2


async def test_the_groups_minimum_is_not_passed(cloud: Cloud) -> None:
    first, second, third = await in_service(cloud, 3)
    await cloud.groups.terminate(first)
    await cloud.groups.terminate(second)
    with pytest.raises(CloudError, match="minSize"):
        await cloud.groups.terminate(third)
    assert cloud.gold.desired_capacity == 1


async def test_throttling_is_waited_out(cloud: Cloud) -> None:
    cloud.fail("SetDesiredCapacity", "Throttling", 2)
    await cloud.groups.set_desired(Tier.GOLD, 4)
    assert cloud.gold.desired_capacity == 4


async def test_throttling_without_end_is_told(cloud: Cloud) -> None:
    cloud.fail("SetDesiredCapacity", "Throttling", 50)
    with pytest.raises(CloudError, match=r"Throttling|not answered in time"):
        await cloud.groups.set_desired(Tier.GOLD, 4)
    assert cloud.gold.desired_capacity == 3


async def test_without_ec2_the_groups_are_still_described(cloud: Cloud) -> None:
    cloud.fail("DescribeInstances", "AccessDenied", 1)
    gold = (await cloud.groups.describe())[Tier.GOLD]
    assert len(gold.instances) == 3
    assert not any(i.is_spot for i in gold.instances)
    again = (await cloud.groups.describe())[Tier.GOLD]
    assert sum(i.is_spot for i in again.instances) == 2


async def test_a_cloud_that_does_not_answer_is_given_up_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with open_groups(endpoint, timeout_seconds=0.5) as groups:
            started = asyncio.get_running_loop().time()
            with pytest.raises(CloudError, match="not answered in time"):
                await groups.describe()
            assert asyncio.get_running_loop().time() - started < 5
    async with open_groups("http://127.0.0.1:1", timeout_seconds=5.0) as groups:
        with pytest.raises(CloudError):
            await groups.describe()
