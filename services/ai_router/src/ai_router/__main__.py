"""Starts the router: `python -m ai_router`; settings come from the environment (see README)."""

from __future__ import annotations

if __name__ == "__main__":
    # Before all other imports, which it makes cheaper.
    from servicekit.process_start import begin

    begin()

import sys
from contextlib import AsyncExitStack
from uuid import UUID

from ai_router.adapters.collector_fleet import CollectorFleetSource
from ai_router.adapters.openai_model_server import OpenAiModelServer
from ai_router.adapters.static_fleet import StaticFleetSource
from ai_router.config import AiRouterSettings
from ai_router.demand_feed import DemandFeed
from ai_router.domain.answer_cache import AnswerCache
from ai_router.domain.fleet_directory import FleetDirectory
from ai_router.domain.routing import RoutingDesk
from ai_router.instruments import register_instruments
from ai_router.ports import FleetSource
from ai_router.router import Router
from ai_router.servicer import AiRouterServicer
from gaming.ai_router.v1 import ai_router_pb2, ai_router_pb2_grpc
from gaming.gpu_metrics.v1 import gpu_metrics_pb2_grpc
from servicekit.channels import open_channel
from servicekit.runtime import ServiceRuntime, run_service
from servicekit.server import ServiceRegistration


async def main(settings: AiRouterSettings, runtime: ServiceRuntime) -> None:
    """Builds the router and serves until it is told to stop."""
    epoch = UUID(int=runtime.random.getrandbits(128)).hex
    router_id = settings.router_id or f"router-{epoch[:12]}"
    profiles = settings.tiers.profiles()
    directory = FleetDirectory(
        profiles, settings.directory_policy(), order_seed=runtime.random.getrandbits(64)
    )
    desk = RoutingDesk(directory, profiles, settings.routing_policy())
    cache = AnswerCache(settings.cache_bytes, settings.cache_ttl_seconds)
    demand = DemandFeed(
        desk,
        runtime.clock,
        router_id=router_id,
        epoch=epoch,
        interval_seconds=settings.demand_interval_seconds,
    )
    client = OpenAiModelServer(
        settings.timeouts(),
        maximum_connections=settings.maximum_connections,
        api_key=settings.model_server_api_key,
        packing=settings.packing(),
    )
    router = Router(desk, cache, client, runtime.clock, settings.router_policy())
    register_instruments(runtime.telemetry, router, runtime.clock)
    servicer = AiRouterServicer(
        router, demand, runtime.clock, lambda: UUID(int=runtime.random.getrandbits(128)).hex
    )
    registration = ServiceRegistration.of(
        ai_router_pb2_grpc.add_AiRouterServiceServicer_to_server,
        servicer,
        ai_router_pb2.DESCRIPTOR.services_by_name["AiRouterService"],
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(client)
        source: FleetSource
        if settings.static_servers:
            source = StaticFleetSource(settings.static_fleet(), runtime.clock)
        else:
            stubs = [
                gpu_metrics_pb2_grpc.GpuMetricsServiceStub(
                    await stack.enter_async_context(open_channel(address, settings.channel))
                )
                for address in settings.collector_addresses
            ]
            source = CollectorFleetSource(
                stubs[0], runtime.clock, further=stubs[1:], random=runtime.random
            )
        await runtime.serve(
            [registration],
            settings.server,
            lambda: router.follow(source),
            router.check_queues,
            demand.run,
        )


if __name__ == "__main__":
    sys.exit(run_service("ai_router", AiRouterSettings, main))
