"""A whole replica inside a test: real server, real adapters, real tasks."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc.aio

from autoscaler.config import AutoscalerSettings
from autoscaler.service import Replica, open_autoscaler
from gaming.autoscaler.v1 import autoscaler_pb2_grpc
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.server import RpcServer
from servicekit.settings import load_settings

__all__ = ["RunningReplica", "quick_environment", "run_replica"]


def quick_environment(**environ: str) -> dict[str, str]:
    """Return settings under which minutes take tenths of seconds."""
    return {
        "AUTOSCALER_TICK_SECONDS": "0.1",
        "AUTOSCALER_SMOOTHING_SECONDS": "0.2",
        "AUTOSCALER_FAST_SMOOTHING_SECONDS": "0.1",
        "AUTOSCALER_TREND_SECONDS": "2",
        "AUTOSCALER_DEMAND_WINDOW_SECONDS": "0.5",
        "AUTOSCALER_STABILIZATION_SECONDS": "0.5",
        "AUTOSCALER_SCALE_IN_INTERVAL_SECONDS": "0.2",
        "AUTOSCALER_IDLE_TO_ZERO_SECONDS": "0.5",
        "AUTOSCALER_PANIC_WINDOW_SECONDS": "0.5",
        "AUTOSCALER_LEASE_SECONDS": "2",
        "AUTOSCALER_LEASE_RENEW_SECONDS": "0.3",
        "AUTOSCALER_JOURNAL_POLL_SECONDS": "0.1",
        "AUTOSCALER_JOURNAL_RULE_CHANGE_SECONDS": "0.2",
        "AUTOSCALER_GOLD_MINIMUM": "0",
        "AUTOSCALER_SILVER_MINIMUM": "0",
        "AUTOSCALER_GOLD_CAPACITY_TOKENS": "16000",
        "AUTOSCALER_SILVER_CAPACITY_TOKENS": "14000",
        "AUTOSCALER_BRONZE_CAPACITY_TOKENS": "4000",
        "AWS_REGION": "us-east-1",
        **environ,
    }


@dataclass(slots=True)
class RunningReplica:
    """A replica at work."""

    replica: Replica
    server: RpcServer
    channel: grpc.aio.Channel
    stub: autoscaler_pb2_grpc.AutoscalerServiceAsyncStub


@asynccontextmanager
async def run_replica(environ: Mapping[str, str], name: str) -> AsyncIterator[RunningReplica]:
    """Run a replica with the settings of `environ` until the block ends."""
    settings = load_settings(AutoscalerSettings, environ)
    clock = SystemClock()
    async with open_autoscaler(
        settings,
        replica_id=name,
        clock=clock,
        rng=random.Random(name),  # noqa: S311 - jitter and ids in tests
    ) as replica:
        server = RpcServer(replica.registrations, settings.server, clock=clock)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_run(task)) for task in replica.tasks]
            await server.start()
            await server.set_serving(True)
            try:
                async with open_channel(server.address) as channel:
                    stub = autoscaler_pb2_grpc.AutoscalerServiceStub(channel)
                    yield RunningReplica(replica, server, channel, stub)
            finally:
                await server.stop(0)
                for task in tasks:
                    task.cancel()


async def _run(task: Callable[[], Awaitable[None]]) -> None:
    await task()
