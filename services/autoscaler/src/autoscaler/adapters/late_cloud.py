"""The cloud, opened beside a server that answers already."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from types import TracebackType
from typing import Self

from autoscaler.domain.fleet_view import ScalingGroup
from autoscaler.domain.tiers import Tier
from autoscaler.ports import ScalingCloud

__all__ = ["LateCloud"]


class LateCloud:
    """A ScalingCloud that waits for `opening` where it is asked before it was opened.

    The AWS SDK and its description of EC2 take a second of CPU to load. Whoever asks for a tier
    or a decision needs neither.
    """

    def __init__(self, opening: Callable[[], AbstractAsyncContextManager[ScalingCloud]]) -> None:
        self._opening = opening
        self._lock = asyncio.Lock()
        self._cloud: ScalingCloud | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Returns itself, not opened yet."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the cloud, if it was opened."""
        await self._stack.aclose()

    async def open(self) -> None:
        """Returns once the cloud is open; to be run beside the server, so that no call waits."""
        await self._opened()

    async def describe(self) -> dict[Tier, ScalingGroup]:
        """As ScalingCloud."""
        return await (await self._opened()).describe()

    async def set_desired(self, tier: Tier, desired: int) -> None:
        """As ScalingCloud."""
        await (await self._opened()).set_desired(tier, desired)

    async def terminate(self, instance_id: str) -> None:
        """As ScalingCloud."""
        await (await self._opened()).terminate(instance_id)

    async def _opened(self) -> ScalingCloud:
        async with self._lock:
            if self._cloud is None:
                self._cloud = await self._stack.enter_async_context(self._opening())
            return self._cloud
