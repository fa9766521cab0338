from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from autoscaler.adapters.late_cloud import LateCloud
from autoscaler.domain.fleet_view import ScalingGroup
from autoscaler.domain.tiers import Tier
from autoscaler.ports import CloudError, ScalingCloud


class Cloud:
    """Says what it was asked."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    async def describe(self) -> dict[Tier, ScalingGroup]:
        self.asked.append("describe")
        return {}

    async def set_desired(self, tier: Tier, desired: int) -> None:
        self.asked.append((tier, desired))

    async def terminate(self, instance_id: str) -> None:
        self.asked.append(instance_id)


class Opening:
    """Opens a cloud once `ready` is set; fails while there are `failures`."""

    def __init__(self) -> None:
        self.cloud = Cloud()
        self.opened = self.closed = 0
        self.ready = asyncio.Event()
        self.failures: list[Exception] = []

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[ScalingCloud]:
        await self.ready.wait()
        if self.failures:
            raise self.failures.pop()
        self.opened += 1
        yield self.cloud
        self.closed += 1


async def test_whoever_asks_while_the_cloud_is_being_opened_waits_for_the_one_opening() -> None:
    opening = Opening()
    async with LateCloud(opening) as cloud:
        async with asyncio.TaskGroup() as group:
            group.create_task(cloud.open())
            group.create_task(cloud.describe())
            group.create_task(cloud.set_desired(Tier.GOLD, 3))
            group.create_task(cloud.terminate("i-1"))
            opening.ready.set()
        assert (opening.opened, opening.closed) == (1, 0)
    assert opening.closed == 1
    assert opening.cloud.asked == ["describe", (Tier.GOLD, 3), "i-1"]


async def test_a_cloud_that_nobody_asked_is_neither_opened_nor_closed() -> None:
    opening = Opening()
    async with LateCloud(opening):
        pass
    assert (opening.opened, opening.closed) == (0, 0)


async def test_an_opening_that_failed_is_tried_again_by_the_next_who_asks() -> None:
    opening = Opening()
    opening.ready.set()
    opening.failures = [CloudError("no credentials yet")]
    async with LateCloud(opening) as cloud:
        with pytest.raises(CloudError, match="no credentials yet"):
            await cloud.describe()
        await cloud.describe()
    assert (opening.opened, opening.closed) == (1, 1)
