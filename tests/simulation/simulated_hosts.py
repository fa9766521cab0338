"""GPU hosts in virtual time: fleetsim's cloud and model servers behind the services' own adapters.

Each running instance of fleetsim's Auto Scaling groups boots, reports to the collector as an agent
does, and answers routers' requests from a fleetsim model server.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from random import Random
from typing import Any

import numpy as np
from virtual_loop import START, NodeClock
from virtual_network import Network, Process

from ai_router.domain.generation import FinishReason, GenerationRequest
from ai_router.ports import AnswerEnd, AnswerPiece, FailureKind, ModelServerFailure
from fleetsim.cloud import Cloud
from fleetsim.cloud_state import CloudEventKind, CloudSettings, Instance
from fleetsim.cold_start import ColdStartProfile
from fleetsim.instance_types import Market
from fleetsim.model_server import ModelServer
from fleetsim.profiles import PROFILES, ModelServerProfile
from fleetsim.scaling_group import ScalingGroups
from fleetsim.scaling_group_state import GroupSettings
from fleetsim.server_request import ServerRequest
from gpu_metrics.domain.readings import (
    Host,
    HostReport,
    ModelServerReading,
    ModelServerState,
    PurchaseOption,
)
from gpu_metrics.domain.readings import Tier as ReportedTier
from gpu_metrics.feed import FleetFeed

__all__ = [
    "CLOUD",
    "COLLECTOR",
    "CloudCall",
    "Fleet",
    "ModelServers",
    "ReportTaker",
    "SimulatedHost",
]

CLOUD, COLLECTOR = "cloud", "collector"

_REPORT_SECONDS = 5.0
_FIRST_TOKEN_CHECK_SECONDS = 0.2

PROFILE_CHANGES: dict[str, dict[str, Any]] = {
    "gold": {"step_base_seconds": 0.02, "max_running_sequences": 12},
    "silver": {"step_base_seconds": 0.03, "max_running_sequences": 12},
    "bronze": {"step_base_seconds": 0.05, "prefill_tokens_per_second": 2000.0},
}
COLD_START = ColdStartProfile(
    boot_seconds=4.0, image_pull_seconds=0.0, weights_load_seconds=6.0, warm_up_seconds=4.0
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudCall:
    """A call that changed, or was to change, a group, as the cloud saw it."""

    caller: str
    operation: str
    group: str
    desired: int
    instance_id: str = ""


@dataclass(slots=True, eq=False)
class Attempt:
    """One request on one model server."""

    work: ServerRequest
    text: str
    caller: str
    first: asyncio.Future[None]
    done: asyncio.Future[None]
    accepted: bool = False


class SimulatedHost:
    """One instance: its agent and its model server."""

    def __init__(self, fleet: Fleet, instance: Instance, profile: ModelServerProfile) -> None:
        self.instance_id = instance.instance_id
        self.server_id = f"server-{instance.instance_id}"
        self.tier = profile.tier
        self.model = ModelServer(
            profile,
            server_id=self.server_id,
            start_time=fleet.loop.time(),
            keeps_histograms=False,
        )
        self.is_ready = False
        self.is_gone = False
        self.ready_at = math.inf
        self.running: dict[ServerRequest, Attempt] = {}
        self.process = fleet.process_for(f"agent {self.instance_id}")
        self._fleet = fleet
        self._sequence = 0
        self._scheduled = math.inf

    @property
    def endpoint_url(self) -> str:
        return f"http://{self.server_id}"

    def start_agent(self) -> None:
        """Report now and from time to time until the host is gone."""
        self._report()

    def become_ready(self) -> None:
        if not self.is_gone:
            self.is_ready = True
            self.ready_at = self._fleet.loop.time()
            self._fleet.trace("server_ready", self.instance_id, self.tier)

    def die(self) -> None:
        """The host is gone: connections break, the agent falls silent."""
        self.is_gone = True
        self.is_ready = False
        self.process.kill(silently=True)
        self.model.fail(self._fleet.loop.time())
        for attempt in list(self.running.values()):
            broken = ModelServerFailure(FailureKind.FAILED, "the connection broke")
            self._fleet.loop.call_later(0.01, _fail, attempt.first, broken)
            self._fleet.loop.call_later(0.01, _fail, attempt.done, broken)
        self.running.clear()

    def accept(self, attempt: Attempt) -> None:
        """Take a request in."""
        if attempt.done.done():
            return
        if not self.is_ready:
            refused = ModelServerFailure(FailureKind.UNREACHABLE, "nobody listens")
            _fail(attempt.first, refused)
            return
        now = self._fleet.loop.time()
        attempt.accepted = True
        self.running[attempt.work] = attempt
        self.model.submit(now, attempt.work)
        self._wake_at(self.model.next_event_time())
        self._fleet.loop.call_later(_FIRST_TOKEN_CHECK_SECONDS, self._look, attempt)

    def leave(self, attempt: Attempt) -> None:
        """The caller went away."""
        if self.running.pop(attempt.work, None) is not None:
            self.model.abort(self._fleet.loop.time(), attempt.work)
            self._wake_at(self.model.next_event_time())

    def _look(self, attempt: Attempt) -> None:
        if attempt.first.done() or attempt.work not in self.running:
            return
        now = self._fleet.loop.time()
        if self.model.generated_tokens(attempt.work, now) > 0:
            _resolve(attempt.first)
        else:
            self._fleet.loop.call_later(_FIRST_TOKEN_CHECK_SECONDS, self._look, attempt)

    def _wake_at(self, time: float) -> None:
        if time < self._scheduled and not math.isinf(time):
            self._scheduled = time
            self._fleet.loop.call_at(max(time, self._fleet.loop.time()), self._wake)

    def _wake(self) -> None:
        if self.is_gone:
            return
        self._scheduled = math.inf
        for work in self.model.advance(self._fleet.loop.time()):
            attempt = self.running.pop(work, None)
            if attempt is not None:
                _resolve(attempt.first)
                _resolve(attempt.done)
        self._wake_at(self.model.next_event_time())

    def _report(self) -> None:
        if self.is_gone:
            return
        self._sequence += 1
        report = self._report_now()
        self._fleet.network.send(
            self.process, COLLECTOR, lambda process: process.services["reports"].take(report)
        )
        self._fleet.loop.call_later(_REPORT_SECONDS, self._report)

    def _report_now(self) -> HostReport:
        instance = self._fleet.cloud.instance(self.instance_id)
        load = self.model.load(self._fleet.loop.time())
        ends = instance.termination_time
        return HostReport(
            host=Host(
                host_id=self.instance_id,
                instance_type=instance.instance_type,
                availability_zone=instance.zone,
                purchase_option=(
                    PurchaseOption.SPOT
                    if instance.market is Market.SPOT
                    else PurchaseOption.ON_DEMAND
                ),
                interruption_time=None if ends is None else START + timedelta(seconds=ends),
                simulated=True,
            ),
            boot_id=f"boot-{self.instance_id}",
            sequence=self._sequence,
            sample_time=self.process.clock.now(),
            servers=(
                ModelServerReading(
                    server_id=self.server_id,
                    endpoint_url=self.endpoint_url,
                    tier=ReportedTier[self.tier.upper()],
                    model=self.model.profile.model_name,
                    state=ModelServerState.READY if self.is_ready else ModelServerState.STARTING,
                    running_requests=load.running,
                    waiting_requests=load.waiting,
                    kv_cache_usage_permille=round(load.kv_cache_usage_ratio * 1000),
                    kv_cache_capacity_tokens=self.model.profile.kv_cache_capacity_tokens,
                ),
            ),
        )


class ReportTaker:
    """The collector's end of agents' reports."""

    def __init__(self, feed: FleetFeed, is_open: Callable[[], bool]) -> None:
        self._feed = feed
        self._is_open = is_open

    def take(self, report: HostReport) -> None:
        if self._is_open():
            self._feed.apply(report)


class Fleet:
    """The cloud, its groups and its hosts; the truth that everybody else hears of late."""

    def __init__(
        self,
        seed: int,
        network: Network,
        *,
        trace: Callable[..., None],
        maximum: dict[str, int],
        start: dict[str, int],
        spot_tiers: frozenset[str],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.network = network
        self.trace = trace
        self.on_terminate: Callable[[SimulatedHost, str], None] = lambda _host, _why: None
        self.on_call: Callable[[CloudCall], None] = lambda _call: None
        self.hosts: dict[str, SimulatedHost] = {}
        self._rng = Random(f"{seed} hosts")  # noqa: S311  # not a secret
        cloud_rng, group_rng, self._cold_rng = np.random.default_rng(seed).spawn(3)
        settings = CloudSettings(
            launch_median_seconds=4.0, shutdown_median_seconds=5.0, spot_notice_seconds=60.0
        )
        self.cloud = Cloud(rng=cloud_rng, settings=settings)
        self.groups = ScalingGroups(self.cloud, rng=group_rng)
        self.profiles = {
            tier: replace(PROFILES[tier], cold_start=COLD_START, **PROFILE_CHANGES[tier])
            for tier in maximum
        }
        self._wake_time = math.inf
        for tier, most in maximum.items():
            spot = tier in spot_tiers
            self.groups.create(
                0.0,
                GroupSettings(
                    name=tier,
                    instance_types=(self.profiles[tier].instance_type,),
                    zones=self.cloud.settings.zones,
                    min_size=0,
                    max_size=most,
                    new_instances_protected_from_scale_in=True,
                    on_demand_base_capacity=1,
                    on_demand_percentage_above_base=0 if spot else 100,
                ),
                desired_capacity=start[tier],
            )
        self.follow()

    def process_for(self, name: str) -> Process:
        return Process(name, self.network, NodeClock(), self._rng)

    def follow(self, why: str = "the cloud") -> None:
        """Let the cloud do what is due and come back when more will be."""
        for event in self.groups.advance(self.loop.time()):
            instance = event.instance
            if instance is None:
                continue
            if event.kind is CloudEventKind.INSTANCE_RUNNING:
                self._boot(instance)
            elif event.kind is CloudEventKind.INSTANCE_SHUTTING_DOWN:
                host = self.hosts.get(instance.instance_id)
                if host is not None:
                    self.trace("host_ends", instance.instance_id, why, len(host.running))
                    self.on_terminate(host, why)
                    del self.hosts[instance.instance_id]
                    host.die()
        upcoming = self.groups.next_event_time()
        if upcoming is not None and upcoming < self._wake_time:
            self._wake_time = max(upcoming, self.loop.time())
            self.loop.call_at(self._wake_time, self._tick)

    def _tick(self) -> None:
        self._wake_time = math.inf
        self.follow()

    def _boot(self, instance: Instance) -> None:
        tier = self.groups.group_name_of(instance.instance_id)
        if tier is None or instance.instance_id in self.hosts:
            return
        profile = self.profiles[tier]
        host = SimulatedHost(self, instance, profile)
        self.hosts[host.instance_id] = host
        start = profile.cold_start.draw(self._cold_rng, start_time=self.loop.time())
        self.loop.call_at(start.booted_time, host.start_agent)
        self.loop.call_at(start.ready_time, host.become_ready)

    def kill(self, host: SimulatedHost) -> None:
        """A host dies for no reason; its group replaces it."""
        self.cloud.terminate(self.loop.time(), [host.instance_id])
        self.follow("a fault")

    def interrupt(self, host: SimulatedHost) -> None:
        """The cloud announces that it takes a Spot host back; On-Demand ones stay."""
        self.cloud.interrupt(self.loop.time(), [host.instance_id])
        self.follow()

    def counts(self, instance_id: str) -> bool:
        """Whether an instance is a member of its group that is not on its way out."""
        name = self.groups.group_name_of(instance_id)
        members = self.groups.group(name).instances if name else ()
        return any(
            m.instance_id == instance_id and m.lifecycle_state.counts_towards_desired
            for m in members
        )

    def members(self, tier: str) -> list[str]:
        """Members of a tier's group that are not on their way out."""
        members = self.groups.group(tier).instances
        return [m.instance_id for m in members if m.lifecycle_state.counts_towards_desired]

    def live(self, tier: str) -> int:
        """How many members of a tier's group are not on their way out."""
        return len(self.members(tier))


class ModelServers:
    """A router's way to the model servers: its `ModelServerClient`."""

    def __init__(self, fleet: Fleet, router: Process, idle_timeout_seconds: float = 10.0) -> None:
        self._fleet = fleet
        self._router = router
        self._idle_timeout_seconds = idle_timeout_seconds

    async def stream(
        self,
        endpoint_url: str,
        model: str,
        request: GenerationRequest,
        first_token_timeout_seconds: float,
    ) -> AsyncGenerator[AnswerPiece, None]:
        """Yield the answer: its text with the first token, its end with the last."""
        loop = self._fleet.loop
        instance_id = endpoint_url.rpartition("server-")[2]
        link = self._fleet.network.link(self._router.name, f"agent {instance_id}")
        output = _output_tokens(request)
        attempt = Attempt(
            ServerRequest(request.request_id, len(request.messages[-1].content) // 4 + 1, output),
            answer_text(request),
            self._router.name,
            loop.create_future(),
            loop.create_future(),
        )
        host = self._fleet.hosts.get(instance_id)
        if host is None:
            await asyncio.sleep(link.weather.latency_seconds)
            raise ModelServerFailure(FailureKind.UNREACHABLE, "nobody listens")
        if not link.loses():
            loop.call_later(link.delay(), host.accept, attempt)
        try:
            try:
                async with asyncio.timeout(first_token_timeout_seconds):
                    await attempt.first
                yield AnswerPiece(attempt.text)
                async with asyncio.timeout(output * 1.0 + self._idle_timeout_seconds):
                    await attempt.done
            except TimeoutError:
                raise ModelServerFailure(FailureKind.FAILED, "silent for too long") from None
            yield AnswerPiece(
                "",
                AnswerEnd(
                    finish_reason=FinishReason.STOP,
                    prompt_tokens=attempt.work.prompt_tokens,
                    output_tokens=output,
                ),
            )
        finally:
            if not attempt.done.done():
                attempt.done.cancel()
            elif not attempt.done.cancelled():
                attempt.done.exception()
            attempt.first.cancel()
            loop.call_later(link.weather.latency_seconds, host.leave, attempt)


def answer_text(request: GenerationRequest) -> str:
    """Return what every model answers: the words of the prompt, as a story would."""
    return f"Thus it is told: {' '.join(m.content for m in request.messages)}"


def _output_tokens(request: GenerationRequest) -> int:
    """Return how long the answer is; the same request always gets the same."""
    drawn = Random(request.messages[-1].content).expovariate(1 / 60.0)  # noqa: S311  # no secret
    return max(2, min(request.max_output_tokens, int(drawn)))


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # its reader may have gone; then nobody else needs to know
