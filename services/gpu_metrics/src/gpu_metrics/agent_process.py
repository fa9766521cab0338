"""The agent's composition root."""

import os
import re
import socket
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import structlog

from gpu_metrics.adapters.attributed_processes import AttributedProcesses, ServedModel
from gpu_metrics.adapters.collector_link import CollectorLink
from gpu_metrics.adapters.configured_host import ConfiguredHost
from gpu_metrics.adapters.dcgm_page import DcgmPage
from gpu_metrics.adapters.ec2_host import Ec2Host, instance_id
from gpu_metrics.adapters.ecs_host import EcsHost
from gpu_metrics.adapters.ecs_tasks import EcsTasks
from gpu_metrics.adapters.event_journal_file import open_journal
from gpu_metrics.adapters.imds import InstanceMetadata
from gpu_metrics.adapters.known_gpus import KnownGpus
from gpu_metrics.adapters.nvml import NvmlGpus
from gpu_metrics.adapters.proc_tree import ProcTree
from gpu_metrics.adapters.process_cost import CostMeter
from gpu_metrics.adapters.vllm_server import ScrapedServer, VllmServer
from gpu_metrics.agent import Agent
from gpu_metrics.agent_settings import AgentSettings, ModelServerAddress
from gpu_metrics.domain.readings import Host
from gpu_metrics.journal import EventJournal
from gpu_metrics.ports import (
    DriverMismatch,
    DriverSource,
    GpuEventSource,
    GpuSource,
    HostSource,
    ProcessSource,
)
from servicekit.channels import open_channel
from servicekit.runtime import ServiceRuntime, run_service

__all__ = ["EXIT_DRIVER_MISMATCH", "main"]

EXIT_DRIVER_MISMATCH = 3
"""The GPU driver was replaced under the agent; a new process can read the GPUs again."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Sources:
    """What the GPUs are read from; one source may stand in several places."""

    gpus: list[GpuSource] = field(default_factory=list)
    events: list[GpuEventSource] = field(default_factory=list)
    drivers: list[DriverSource] = field(default_factory=list)
    processes: ProcessSource | None = None
    background: list[Callable[[], Awaitable[None]]] = field(default_factory=list)


async def run_agent(settings: AgentSettings, runtime: ServiceRuntime) -> None:
    """Report on this host until told to stop.

    Raises `DriverMismatch` when only a new process can read the GPUs again.
    """
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        host = await _identify(settings, runtime, session)
        journal = _journal(settings, host.host_id, stack)
        sources = _Sources()
        host_source: HostSource = ConfiguredHost(host)
        if settings.imds_enabled:
            ec2 = host_source = Ec2Host(
                host,
                _metadata(settings, runtime, session),
                clock=runtime.clock,
                journal=journal,
                poll_seconds=settings.spot_poll_seconds,
            )
            sources.events.append(ec2)
            sources.background.append(ec2.run)
        ecs = EcsTasks(
            session,
            clock=runtime.clock,
            agent_url=settings.ecs_agent_url,
            task_url=settings.ecs_metadata_url,
        )
        ecs_host = EcsHost(host_source, ecs, clock=runtime.clock)
        sources.background.append(ecs_host.run)
        servers = [
            VllmServer(
                _scraped(address, host.host_id, settings.advertised_host),
                session,
                clock=runtime.clock,
                timeout_seconds=settings.scrape_timeout_seconds,
            )
            for address in settings.model_servers
        ]
        _add_gpus(sources, settings, runtime, session, stack, journal, ecs, servers)
        links: list[CollectorLink] = []
        for target in settings.collectors:
            link = CollectorLink(
                await stack.enter_async_context(open_channel(target, settings.channel)),
                name=target,
                clock=runtime.clock,
                jitter=runtime.random,
                telemetry=runtime.telemetry,
                journal=journal,
                before=links,
            )
            links.append(link)
        agent = Agent(
            host=ecs_host,
            gpus=sources.gpus,
            servers=servers,
            sinks=links,
            clock=runtime.clock,
            boot_id=uuid.uuid4().hex,
            journal=journal,
            event_sources=sources.events,
            drivers=sources.drivers,
            measure_cost=CostMeter(drivers=sources.drivers, links=links, journal=journal),
            processes=sources.processes,
            background=sources.background,
            interval_seconds=settings.report_interval_seconds,
            start_delay_seconds=runtime.random.uniform(0, settings.report_interval_seconds),
        )
        await agent.run(runtime.stopping)


def _add_gpus(  # noqa: PLR0917  # a part of the composition above, and all of its things
    sources: _Sources,
    settings: AgentSettings,
    runtime: ServiceRuntime,
    session: aiohttp.ClientSession,
    stack: AsyncExitStack,
    journal: EventJournal,
    ecs: EcsTasks,
    servers: Sequence[VllmServer],
) -> None:
    """Add the driver, and dcgm-exporter's page after it: of a figure the driver's word counts."""
    watched: Callable[[], dict[int, str]] = dict
    if settings.nvml_enabled:
        nvml = NvmlGpus(
            clock=runtime.clock,
            timeout_seconds=settings.nvml_timeout_seconds,
            hung_after_seconds=settings.nvml_hung_after_seconds,
        )
        stack.callback(nvml.close)
        known = KnownGpus(nvml)
        processes = AttributedProcesses(
            nvml,
            proc=ProcTree(settings.process_root),
            ecs=ecs,
            clock=runtime.clock,
            gpu_uuids=lambda: known.uuids,
            servers=lambda: [
                ServedModel(server.server_id, _port(server.scrape_url), server.model)
                for server in servers
            ],
        )
        stack.callback(processes.close)
        sources.gpus.append(known)
        sources.events.append(nvml)
        sources.drivers.append(nvml)
        sources.processes = processes
        sources.background.append(processes.run)
        watched = lambda: known.uuids  # noqa: E731  # the other branch has a function ready
    if settings.dcgm_url is not None:
        dcgm = DcgmPage(
            settings.dcgm_url,
            session,
            clock=runtime.clock,
            journal=journal,
            timeout_seconds=settings.scrape_timeout_seconds,
            sees_xids=lambda gpu_uuid: gpu_uuid in watched().values(),
        )
        sources.gpus.append(dcgm)
        sources.events.append(dcgm)


def _metadata(
    settings: AgentSettings, runtime: ServiceRuntime, session: aiohttp.ClientSession
) -> InstanceMetadata:
    return InstanceMetadata(
        session,
        clock=runtime.clock,
        base_url=settings.imds_url,
        timeout_seconds=settings.imds_timeout_seconds,
    )


async def _identify(
    settings: AgentSettings, runtime: ServiceRuntime, session: aiohttp.ClientSession
) -> Host:
    """Return the host as the settings have it, its id asked of EC2 where they have none."""
    host_id = settings.host_id
    if not host_id and settings.imds_enabled:
        host_id = await instance_id(_metadata(settings, runtime, session))
    return Host(
        host_id=host_id or socket.gethostname(),
        instance_type=settings.instance_type,
        availability_zone=settings.availability_zone,
        purchase_option=settings.purchase_option,
    )


def _journal(settings: AgentSettings, host_id: str, stack: AsyncExitStack) -> EventJournal:
    """Return the host's journal, in memory where the directory cannot be written."""
    directory = settings.state_directory / _directory_name(host_id)
    try:
        journal, file = open_journal(
            directory, bound=settings.journal_events, machine_boot_id=_machine_boot_id()
        )
    except OSError as error:
        log.warning(
            "journal_in_memory",
            directory=str(directory),
            cause=os.strerror(error.errno) if error.errno else type(error).__name__,
            explanation="events that no collector has yet are lost when the agent ends; set "
            "GPU_METRICS_STATE_DIRECTORY to a directory of this agent's own",
        )
        return EventJournal(bound=settings.journal_events)
    stack.callback(file.close)
    log.info("journal_opened", directory=str(directory), journal_id=journal.journal_id)
    return journal


def _machine_boot_id() -> str:
    """Return what names this run of the machine's kernel, empty where it has no such name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _directory_name(host_id: str) -> str:
    """Return a file name that no other host id has."""
    plain = re.sub(r"[^A-Za-z0-9.-]", lambda found: f"_{ord(found[0]):x}_", host_id)
    return plain if plain.strip(".") else f"host-{plain}"


def _scraped(address: ModelServerAddress, host_id: str, advertised_host: str) -> ScrapedServer:
    parts, port = urlsplit(address.url), _port(address.url)
    endpoint = f"{parts.scheme}://{advertised_host}:{port}" if advertised_host else address.url
    return ScrapedServer(
        server_id=f"{host_id}:{port}",
        tier=address.tier,
        scrape_url=address.url,
        endpoint_url=endpoint,
    )


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def main() -> int:
    """Run an agent with the settings of the environment and return the exit code."""
    mismatched = False

    async def run(settings: AgentSettings, runtime: ServiceRuntime) -> None:
        nonlocal mismatched
        try:
            await run_agent(settings, runtime)
        except DriverMismatch:
            mismatched = True
            log.error(  # noqa: TRY400  # there is nothing to see in the traceback
                "driver_mismatch",
                explanation="the GPU driver was replaced; a new process can read it again",
            )

    code = run_service("gpu_metrics_agent", AgentSettings, run)
    return EXIT_DRIVER_MISMATCH if mismatched and code == 0 else code
