"""Keeps the picture current from the services' RPCs; a service that is away is shown by its age."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime

import grpc

from gaming.ai_router.v1 import ai_router_pb2, ai_router_pb2_grpc
from gaming.autoscaler.v1 import autoscaler_pb2, autoscaler_pb2_grpc
from gaming.gpu_metrics.v1 import gpu_metrics_pb2, gpu_metrics_pb2_grpc
from localsuite.observe.fleet import tier_name
from localsuite.observe.picture import Remark, SuitePicture
from localsuite.ports import Ports
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.watching import watch

__all__ = ["keep_current"]

_POLL_SECONDS = 0.5
_POLL_DEADLINE_SECONDS = 2.0
_STREAM_SECONDS = 3600.0


@contextlib.asynccontextmanager
async def keep_current(
    picture: SuitePicture,
    ports: Ports,
    *,
    on_remark: Callable[[Remark], None],
    on_decision: Callable[[autoscaler_pb2.Decision], None],
) -> AsyncIterator[None]:
    """Keeps `picture` current while the body runs; news are handed on as they come."""
    async with (
        open_channel(ports.address("gpu_metrics")) as metrics_channel,
        open_channel(ports.address("autoscaler")) as autoscaler_channel,
        open_channel(ports.address("ai_router")) as router_channel,
        asyncio.TaskGroup() as group,
    ):
        autoscaler = autoscaler_pb2_grpc.AutoscalerServiceStub(autoscaler_channel)
        router = ai_router_pb2_grpc.AiRouterServiceStub(router_channel)
        metrics = gpu_metrics_pb2_grpc.GpuMetricsServiceStub(metrics_channel)
        tasks = [
            group.create_task(_watch_fleet(metrics, picture, on_remark)),
            group.create_task(_watch_decisions(autoscaler, picture, on_decision)),
            group.create_task(_poll(lambda: _ask_autoscaler(autoscaler, picture))),
            group.create_task(_poll(lambda: _ask_router(router, picture))),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


async def _watch_fleet(
    metrics: gpu_metrics_pb2_grpc.GpuMetricsServiceAsyncStub,
    picture: SuitePicture,
    on_remark: Callable[[Remark], None],
) -> None:
    def open_stream(
        token: str,
    ) -> grpc.aio.UnaryStreamCall[
        gpu_metrics_pb2.WatchFleetRequest, gpu_metrics_pb2.WatchFleetResponse
    ]:
        request = gpu_metrics_pb2.WatchFleetRequest(resume_token=token)
        request.minimum_interval.FromMilliseconds(500)
        return metrics.WatchFleet(request, timeout=_STREAM_SECONDS)

    async for update in watch(
        open_stream,
        token_of=lambda message: message.resume_token,
        clock=SystemClock(),
        name="fleet",
    ):
        picture.heard_from("gpu_metrics")
        for text in picture.fleet.apply(update):
            on_remark(picture.remark("fleet", text))


async def _watch_decisions(
    autoscaler: autoscaler_pb2_grpc.AutoscalerServiceAsyncStub,
    picture: SuitePicture,
    on_decision: Callable[[autoscaler_pb2.Decision], None],
) -> None:
    since = datetime.now(UTC)
    async for update in watch(
        lambda token: autoscaler.WatchDecisions(
            autoscaler_pb2.WatchDecisionsRequest(resume_token=token, changes_only=True),
            timeout=_STREAM_SECONDS,
        ),
        token_of=lambda message: message.resume_token,
        clock=SystemClock(),
        name="decisions",
    ):
        # The feed of an autoscaler that just started may begin with what the run before decided.
        if update.HasField("decision") and update.decision.decide_time.ToDatetime(UTC) >= since:
            picture.decisions.append((picture.evening_seconds, update.decision))
            on_decision(update.decision)


async def _poll(ask: Callable[[], Awaitable[None]]) -> None:
    while True:
        # A service that is away is asked again; the view shows how long it has been silent.
        with contextlib.suppress(grpc.aio.AioRpcError):
            await ask()
        await asyncio.sleep(_POLL_SECONDS)


async def _ask_autoscaler(
    autoscaler: autoscaler_pb2_grpc.AutoscalerServiceAsyncStub, picture: SuitePicture
) -> None:
    tiers = await autoscaler.ListTiers(
        autoscaler_pb2.ListTiersRequest(), timeout=_POLL_DEADLINE_SECONDS
    )
    picture.status = await autoscaler.GetStatus(
        autoscaler_pb2.GetStatusRequest(), timeout=_POLL_DEADLINE_SECONDS
    )
    picture.autoscaler_tiers = {tier_name(tier.tier): tier for tier in tiers.tiers}
    picture.heard_from("autoscaler")


async def _ask_router(
    router: ai_router_pb2_grpc.AiRouterServiceAsyncStub, picture: SuitePicture
) -> None:
    picture.router = await router.ListTiers(
        ai_router_pb2.ListTiersRequest(), timeout=_POLL_DEADLINE_SECONDS
    )
    picture.router_tiers = {tier_name(tier.tier): tier for tier in picture.router.tiers}
    picture.heard_from("ai_router")
