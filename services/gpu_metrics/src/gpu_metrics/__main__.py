"""Starts the agent of a GPU host, or the collector: `python -m gpu_metrics agent|collector`."""

import os
import socket
import sys
import uuid
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import aiohttp

from gpu_metrics.adapters.cloudwatch import CloudWatchAggregates
from gpu_metrics.adapters.collector_link import CollectorLink
from gpu_metrics.adapters.configured_host import ConfiguredHost
from gpu_metrics.adapters.nvml import NvmlGpus
from gpu_metrics.adapters.vllm_server import ScrapedServer, VllmServer
from gpu_metrics.agent import Agent
from gpu_metrics.config import (
    COLLECTOR_DEFAULT_ADDRESS,
    AgentSettings,
    CollectorSettings,
    ModelServerAddress,
)
from gpu_metrics.domain.fleet import FleetView
from gpu_metrics.domain.readings import Host
from gpu_metrics.feed import FleetFeed
from gpu_metrics.publisher import AggregatePublisher
from gpu_metrics.servicer import registrations
from servicekit.channels import open_channel
from servicekit.runtime import ServiceRuntime, run_service

_USAGE = """usage: python -m gpu_metrics agent|collector

agent      reads this host's GPUs and model servers and reports to the collectors
collector  keeps the view of the fleet and shows it to everybody who watches

Settings come from the environment and are listed at start."""


async def run_collector(settings: CollectorSettings, runtime: ServiceRuntime) -> None:
    """Serve the fleet view until told to stop."""
    view = FleetView(settings.fleet_policy())
    feed = FleetFeed(
        view,
        clock=runtime.clock,
        telemetry=runtime.telemetry,
        epoch=uuid.uuid4().hex[:12],
        heartbeat_seconds=settings.heartbeat_seconds,
        maintenance_seconds=min(0.5, settings.stale_after_seconds / 10),
    )
    tasks = [feed.maintain]
    if settings.cloudwatch_enabled:
        publisher = AggregatePublisher(
            view,
            CloudWatchAggregates(
                namespace=settings.cloudwatch_namespace,
                region=settings.aws_region,
                endpoint_url=settings.aws_endpoint_url,
                timeout_seconds=5.0,
            ),
            clock=runtime.clock,
            telemetry=runtime.telemetry,
            interval_seconds=settings.cloudwatch_interval_seconds,
        )
        tasks.append(publisher.run)
    await runtime.serve(registrations(feed, runtime.clock), settings.server, *tasks)


async def run_agent(settings: AgentSettings, runtime: ServiceRuntime) -> None:
    """Report on this host until told to stop."""
    host = Host(
        host_id=settings.host_id or socket.gethostname(),
        instance_type=settings.instance_type,
        availability_zone=settings.availability_zone,
        purchase_option=settings.purchase_option,
    )
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        channels = [
            (target, await stack.enter_async_context(open_channel(target, settings.channel)))
            for target in settings.collectors
        ]
        gpus = []
        if settings.nvml_enabled:
            nvml = NvmlGpus(clock=runtime.clock, timeout_seconds=settings.nvml_timeout_seconds)
            stack.callback(nvml.close)
            gpus.append(nvml)
        agent = Agent(
            host=ConfiguredHost(host),
            gpus=gpus,
            servers=[
                VllmServer(
                    _scraped(address, host.host_id, settings.advertised_host),
                    session,
                    clock=runtime.clock,
                    timeout_seconds=settings.scrape_timeout_seconds,
                )
                for address in settings.model_servers
            ],
            sinks=[
                CollectorLink(
                    channel,
                    name=target,
                    clock=runtime.clock,
                    jitter=runtime.random,
                    telemetry=runtime.telemetry,
                )
                for target, channel in channels
            ],
            clock=runtime.clock,
            boot_id=uuid.uuid4().hex,
            interval_seconds=settings.report_interval_seconds,
            start_delay_seconds=runtime.random.uniform(0, settings.report_interval_seconds),
        )
        await agent.run(runtime.stopping)


def _scraped(address: ModelServerAddress, host_id: str, advertised_host: str) -> ScrapedServer:
    parts = urlsplit(address.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    endpoint = f"{parts.scheme}://{advertised_host}:{port}" if advertised_host else address.url
    return ScrapedServer(
        server_id=f"{host_id}:{port}",
        tier=address.tier,
        scrape_url=address.url,
        endpoint_url=endpoint,
    )


def main(arguments: list[str]) -> int:
    """Run the role named by the only argument and return the exit code."""
    if arguments == ["agent"]:
        return run_service("gpu_metrics_agent", AgentSettings, run_agent)
    if arguments == ["collector"]:
        environ = {"GAMEKEEPER_LISTEN_ADDRESS": COLLECTOR_DEFAULT_ADDRESS, **os.environ}
        return run_service("gpu_metrics", CollectorSettings, run_collector, environ=environ)
    helped = arguments in (["--help"], ["-h"])
    print(_USAGE, file=sys.stdout if helped else sys.stderr)
    return 0 if helped else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
