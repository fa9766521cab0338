"""A whole router on a free port, in the process of the test."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count

import grpc.aio

from ai_router.adapters.openai_model_server import OpenAiModelServer
from ai_router.config import AiRouterSettings
from ai_router.demand_feed import DemandFeed
from ai_router.domain.answer_cache import AnswerCache
from ai_router.domain.fleet_directory import FleetDirectory
from ai_router.domain.routing import RoutingDesk
from ai_router.ports import FleetSource
from ai_router.router import Router
from ai_router.servicer import AiRouterServicer
from gaming.ai_router.v1 import ai_router_pb2, ai_router_pb2_grpc
from servicekit.clock import SystemClock
from servicekit.server import ServiceRegistration
from servicekit.settings import load_settings
from servicekit.testing import serve_for_test

__all__ = ["RunningRouter", "run_router"]


@dataclass(frozen=True, slots=True)
class RunningRouter:
    """The router, where it listens, its channel and its generated client."""

    router: Router
    address: str
    channel: grpc.aio.Channel
    stub: ai_router_pb2_grpc.AiRouterServiceAsyncStub


@asynccontextmanager
async def run_router(
    source: FleetSource, environ: Mapping[str, str] | None = None
) -> AsyncIterator[RunningRouter]:
    """Runs a router that follows `source`; `environ` has its settings and its server's."""
    settings = load_settings(AiRouterSettings, dict(environ or {}))
    clock = SystemClock()
    profiles = settings.tiers.profiles()
    directory = FleetDirectory(profiles, settings.directory_policy(), order_seed=1)
    desk = RoutingDesk(directory, profiles, settings.routing_policy())
    demand = DemandFeed(
        desk,
        clock,
        router_id="router-under-test",
        epoch=f"{random.getrandbits(64):x}",  # a name, no secret
        interval_seconds=settings.demand_interval_seconds,
    )
    client = OpenAiModelServer(settings.timeouts(), packing=settings.packing())
    cache = AnswerCache(settings.cache_bytes, settings.cache_ttl_seconds)
    router = Router(desk, cache, client, clock, settings.router_policy())
    numbers = count(1)
    servicer = AiRouterServicer(router, demand, clock, lambda: f"request-{next(numbers)}")
    registration = ServiceRegistration.of(
        ai_router_pb2_grpc.add_AiRouterServiceServicer_to_server,
        servicer,
        ai_router_pb2.DESCRIPTOR.services_by_name["AiRouterService"],
    )
    async with (
        client,
        serve_for_test([registration], **dict(environ or {})) as (server, channel),
        asyncio.TaskGroup() as group,
    ):
        tasks = [
            group.create_task(router.follow(source)),
            group.create_task(router.check_queues()),
            group.create_task(demand.run()),
        ]
        try:
            stub = ai_router_pb2_grpc.AiRouterServiceStub(channel)
            yield RunningRouter(router, server.address, channel, stub)
        finally:
            for task in tasks:
                task.cancel()
