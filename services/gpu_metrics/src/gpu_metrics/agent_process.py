"""The agent's composition root."""

import socket
import uuid
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import aiohttp

from gpu_metrics.adapters.collector_link import CollectorLink
from gpu_metrics.adapters.configured_host import ConfiguredHost
from gpu_metrics.adapters.nvml import NvmlGpus
from gpu_metrics.adapters.vllm_server import ScrapedServer, VllmServer
from gpu_metrics.agent import Agent
from gpu_metrics.config import AgentSettings, ModelServerAddress
from gpu_metrics.domain.readings import Host
from servicekit.channels import open_channel
from servicekit.runtime import ServiceRuntime, run_service

__all__ = ["main"]


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


def main() -> int:
    """Run an agent with the settings of the environment and return the exit code."""
    return run_service("gpu_metrics_agent", AgentSettings, run_agent)
