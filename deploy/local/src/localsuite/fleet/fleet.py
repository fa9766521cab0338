"""All simulated hosts: made and unmade as the local AWS launches and terminates instances."""

import asyncio
import random
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import aiohttp
import grpc.aio
import numpy as np
import structlog

from fleetsim.cold_start import ColdStart, ColdStartPhase
from fleetsim.profiles import PROFILES, ModelServerProfile
from fleetsim.vllm_http import ServerStatus, SimulatedFleetServer
from gpu_metrics.adapters.collector_link import CollectorLink
from gpu_metrics.adapters.vllm_server import ScrapedServer, VllmServer
from gpu_metrics.agent import Agent
from gpu_metrics.domain.readings import Tier
from gpu_metrics.journal import EventJournal
from localsuite.fleet.gpu_host import SimulatedGpus, SimulatedHost, SimulatedHostIdentity
from localsuite.fleet.instance_feed import (
    FleetInstance,
    InstanceChange,
    InstanceFeed,
    StockTaking,
)
from servicekit.clock import Clock
from servicekit.telemetry import Telemetry

__all__ = ["FleetSettings", "NoSuchServerError", "SimulatedFleet"]

log = structlog.get_logger(__name__)


class NoSuchServerError(Exception):
    """No server fits what was asked for; the text says what was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """How the fleet is played. `time_compression` divides the cold starts' phases."""

    seed: int = 0
    time_compression: float = 1.0
    report_interval_seconds: float = 1.0
    scrape_timeout_seconds: float = 0.8


class SimulatedFleet:
    """One simulated model server and one real agent per running instance.

    The agents share an HTTP session and one gRPC channel per collector, which carries up to the
    100 streams a collector takes on one connection; everything else each has for itself, as on a
    host of its own.
    """

    def __init__(
        self,
        servers: SimulatedFleetServer,
        channels: Mapping[str, grpc.aio.Channel],
        session: aiohttp.ClientSession,
        *,
        settings: FleetSettings,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._servers = servers
        self._channels = channels
        self._session = session
        self._settings = settings
        self._clock = clock
        self._telemetry = telemetry
        # Staggers agents and jitters reconnections; no secret depends on it.
        self._random = random.Random(settings.seed)  # noqa: S311  # see above
        self._hosts: dict[str, SimulatedHost] = {}
        self._group: asyncio.TaskGroup | None = None

    @property
    def host_count(self) -> int:
        """Return how many hosts are switched on."""
        return len(self._hosts)

    def servers(self) -> Sequence[ServerStatus]:
        """Return every model server as it is now."""
        return self._servers.servers()

    async def run(self, feed: InstanceFeed, stopping: asyncio.Event) -> None:
        """Play what happens to the instances until `stopping` is set; hosts then leave in order."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            following = group.create_task(self._follow(feed))
            await stopping.wait()
            following.cancel()
            for host in self._hosts.values():
                host.shut_down()

    async def _follow(self, feed: InstanceFeed) -> None:
        async for change in feed.follow():
            if isinstance(change, StockTaking):
                await self._take_stock(change.running)
            else:
                await self._apply(*change)

    async def _take_stock(self, running: Sequence[FleetInstance]) -> None:
        present = {instance.instance_id for instance in running}
        for instance_id in self._hosts.keys() - present:
            await self._switch_off(instance_id, failed=False)
        for instance in running:
            await self._switch_on(instance)

    async def _apply(self, change: InstanceChange, instance: FleetInstance) -> None:
        if change is InstanceChange.RUNNING:
            await self._switch_on(instance)
        elif change is InstanceChange.GONE:
            await self._switch_off(instance.instance_id, failed=instance.failed)
        elif host := self._hosts.get(instance.instance_id):
            if instance.termination_time is not None:
                host.identity.interrupt(instance.termination_time)
            log.info("interruption_notice", host_id=instance.instance_id)

    async def _switch_on(self, instance: FleetInstance) -> None:
        if instance.instance_id in self._hosts or self._group is None:
            return
        if instance.tier not in PROFILES:
            log.warning("instance_without_tier", host_id=instance.instance_id, tier=instance.tier)
            return
        profile = replace(PROFILES[instance.tier], instance_type=instance.instance_type)
        cold_start = self._cold_start(instance, profile)
        server_id = f"{instance.tier}-{instance.instance_id[-8:]}"
        url = await self._servers.add_server(server_id, profile, cold_start=cold_start)
        identity = SimulatedHostIdentity(instance, self._clock)
        host = SimulatedHost(
            instance,
            server_id=server_id,
            identity=identity,
            agent=self._agent(instance, identity, server_id, url, profile.model_name),
            boot_seconds=max(0.0, cold_start.booted_time - self._servers.now()),
        )
        self._hosts[instance.instance_id] = host
        host.start(self._group)
        log.info(
            "host_switched_on",
            host_id=instance.instance_id,
            server_id=server_id,
            endpoint_url=url,
            ready_in_seconds=round(cold_start.ready_time - self._servers.now(), 1),
        )

    def _cold_start(self, instance: FleetInstance, profile: ModelServerProfile) -> ColdStart:
        # By instance and not by order, so that a fleet started again draws the same.
        seed = [self._settings.seed, zlib.crc32(instance.instance_id.encode())]
        return profile.cold_start.draw(
            np.random.default_rng(seed),
            start_time=instance.running_time,
            time_compression=self._settings.time_compression,
        )

    def _agent(
        self,
        instance: FleetInstance,
        identity: SimulatedHostIdentity,
        server_id: str,
        url: str,
        model: str,
    ) -> Agent:
        scraped = ScrapedServer(
            server_id=server_id,
            tier=Tier[instance.tier.upper()],
            scrape_url=url,
            endpoint_url=url,
            model=model,
        )
        journal = EventJournal()
        return Agent(
            host=identity,
            journal=journal,
            event_sources=[identity],
            gpus=[SimulatedGpus(self._servers, server_id)],
            servers=[
                VllmServer(
                    scraped,
                    self._session,
                    clock=self._clock,
                    timeout_seconds=self._settings.scrape_timeout_seconds,
                )
            ],
            sinks=[
                CollectorLink(
                    channel,
                    name=target,
                    clock=self._clock,
                    jitter=self._random,
                    telemetry=self._telemetry,
                    journal=journal,
                )
                for target, channel in self._channels.items()
            ],
            clock=self._clock,
            boot_id=f"{self._random.getrandbits(64):016x}-{self._clock.now().timestamp():.6f}",
            interval_seconds=self._settings.report_interval_seconds,
            start_delay_seconds=self._random.uniform(0, self._settings.report_interval_seconds),
        )

    async def _switch_off(self, instance_id: str, *, failed: bool) -> None:
        host = self._hosts.pop(instance_id, None)
        if host is None:
            return
        if failed:
            host.fail()
        else:
            host.shut_down()
        # Killed without a restart, the server is gone already.
        with suppress(KeyError):
            await self._servers.remove_server(host.server_id, abrupt=True)
        log.info("host_switched_off", host_id=instance_id, failed=failed)

    async def kill_server(
        self, *, server_id: str | None = None, tier: str | None = None, restart: bool = True
    ) -> ServerStatus:
        """Kill a model server's process at once and return what it was.

        Every connection is reset; the host and its agent live on. With `restart` the container is
        started again on its host, on the same port, and loads its weights anew. Without a
        `server_id` the oldest ready server of the tier, or of all, is taken. Raises
        `NoSuchServerError`.
        """
        status = self._choose(server_id, tier)
        host = next(each for each in self._hosts.values() if each.server_id == status.server_id)
        await self._servers.remove_server(status.server_id, abrupt=True)
        log.warning("server_killed", server_id=status.server_id, restart=restart)
        # The instance may have been terminated while connections were reset.
        if restart and host.instance.instance_id in self._hosts:
            profile = replace(PROFILES[status.tier], instance_type=status.instance_type)
            cold_start = self._cold_start(host.instance, profile)
            await self._servers.add_server(
                status.server_id,
                profile,
                cold_start=replace(
                    cold_start,
                    start_time=self._servers.now(),
                    boot_seconds=0.0,
                    image_pull_seconds=0.0,
                ),
                port=int(status.endpoint_url.rpartition(":")[2]),
            )
        return status

    def _choose(self, server_id: str | None, tier: str | None) -> ServerStatus:
        for status in self._servers.servers():
            if server_id is not None:
                if status.server_id == server_id:
                    return status
            elif status.phase is ColdStartPhase.READY and tier in (None, status.tier):
                return status
        wanted = server_id or f"a ready server of tier {tier or 'any'}"
        raise NoSuchServerError(f"there is no {wanted}")
