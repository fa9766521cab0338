"""The routers' demand streams: every configured task watched, summed with the oldest one's age."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterable, Mapping

import grpc.aio

from autoscaler.adapters.proto_tiers import TIER_OF_WIRE
from autoscaler.domain.demand_window import (
    DemandInterval,
    DemandView,
    DemandWindow,
    TierCounts,
)
from gaming.ai_router.v1 import ai_router_pb2, ai_router_pb2_grpc
from servicekit.clock import Clock
from servicekit.watching import watch

__all__ = ["WatchedDemand"]


class WatchedDemand:
    """What all routers were asked; `run` keeps it current."""

    def __init__(
        self,
        channels: Mapping[str, grpc.aio.Channel],
        *,
        clock: Clock,
        jitter: random.Random,
        window_seconds: float,
        forget_seconds: float,
        idle_timeout_seconds: float = 15.0,
    ) -> None:
        self._stubs = {
            target: ai_router_pb2_grpc.AiRouterServiceStub(channel)
            for target, channel in channels.items()
        }
        self._clock = clock
        self._jitter = jitter
        self._idle_timeout_seconds = idle_timeout_seconds
        self._window = DemandWindow(
            tuple(channels), window_seconds=window_seconds, forget_seconds=forget_seconds
        )

    def view(self) -> DemandView:
        """Return the sums over all routers with the age of the oldest."""
        return self._window.view(self._clock.monotonic())

    async def run(self) -> None:
        """Watch all routers until cancelled."""
        async with asyncio.TaskGroup() as group:
            for target in self._stubs:
                group.create_task(self._watch(target))

    def take(self, target: str, message: ai_router_pb2.WatchDemandResponse) -> None:
        """Take in one message of one router; one without an interval is a sign of life."""
        seconds = (message.end_time.ToNanoseconds() - message.start_time.ToNanoseconds()) / 1e9
        if seconds <= 0:
            return
        self._window.add(
            target,
            DemandInterval(
                duration_seconds=seconds,
                received_time=self._clock.monotonic(),
                tiers={
                    TIER_OF_WIRE[t.tier]: TierCounts(
                        arrived_requests=t.arrived_requests,
                        arrived_tokens=t.arrived_tokens,
                        shed_requests=t.shed_requests,
                        completed_requests=t.completed_requests,
                        running_requests=t.running_requests,
                        running_tokens=t.running_tokens,
                        queued_requests=t.queued_requests,
                        queued_tokens=t.queued_tokens,
                    )
                    for t in message.tiers
                    if t.tier in TIER_OF_WIRE
                },
            ),
        )

    async def _watch(self, target: str) -> None:
        stub = self._stubs[target]

        def open_stream(token: str) -> AsyncIterable[ai_router_pb2.WatchDemandResponse]:
            return stub.WatchDemand(ai_router_pb2.WatchDemandRequest(resume_token=token))

        async for message in watch(
            open_stream,
            token_of=lambda m: m.resume_token,
            clock=self._clock,
            name=f"demand {target}",
            idle_timeout_seconds=self._idle_timeout_seconds,
            jitter=self._jitter,
        ):
            self.take(target, message)
