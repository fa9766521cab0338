"""The product's own routing and scaling policies, plugged into the simulated world.

Only translation happens here: every choice is made by `ai_router.domain` and `autoscaler.domain`,
as in the running services.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache

from ai_router.config import TierSettings as RouterTierSettings
from ai_router.domain.errors import DeadlineUnreachable, NoCapacity, Overloaded
from ai_router.domain.fleet import FleetView as RouterFleetView
from ai_router.domain.fleet import ServerReport
from ai_router.domain.fleet_directory import DirectoryPolicy, FleetDirectory
from ai_router.domain.generation import ChatMessage, ChatRole, GenerationRequest
from ai_router.domain.routing import RoutingDesk, RoutingPolicy
from ai_router.domain.ticket import Placement, Ticket
from ai_router.domain.tiers import Tier as RouterTier
from autoscaler.config import AutoscalerSettings
from autoscaler.domain.budget import affordable_servers
from autoscaler.domain.control_state import ControlState
from autoscaler.domain.decide import decide
from autoscaler.domain.decision import Decision
from autoscaler.domain.demand_window import DemandInterval, DemandWindow, TierCounts
from autoscaler.domain.fleet_view import (
    FleetHost,
    FleetServer,
    FleetTier,
    FleetView,
    GroupInstance,
    ScalingGroup,
)
from autoscaler.domain.latency import Histogram
from autoscaler.domain.observation import PhaseMemory, Players, build_snapshot
from autoscaler.domain.tiers import TIERS, Tier
from fleetsim.profiles import ModelServerProfile
from fleetsim.routing import SHED, WAIT, PlayerRequest
from fleetsim.scaling import (
    FleetObservation,
    ObservedServer,
    ScalingOrder,
    ServerPhase,
    TierObservation,
)
from servicekit.settings import load_settings

__all__ = ["ProductRouter", "ProductScaler"]

_ROUTER_TIERS = {tier.name.lower(): tier for tier in RouterTier}
_CHARACTERS_PER_TOKEN = 4
_LONGEST_TEXT = "a bit " * 10_000
_SPOT_NOTICE_SECONDS = 120.0


# vLLM's own bucket bounds of its two latency histograms, the fine part of them.
_BOUNDS_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.025, 0.04, 0.05, 0.06, 0.075, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3),
    *(0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)


class LatencyWindow:
    """Latencies of the last minute, as the collector hands them on: a histogram."""

    def __init__(self, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._values: deque[tuple[float, int]] = deque()
        self._counts = [0] * (len(_BOUNDS_SECONDS) + 1)

    def add(self, now: float, seconds: float) -> None:
        bucket = bisect_left(_BOUNDS_SECONDS, seconds)
        self._values.append((now, bucket))
        self._counts[bucket] += 1

    def histogram(self, now: float) -> Histogram:
        while self._values and self._values[0][0] < now - self._seconds:
            self._counts[self._values.popleft()[1]] -= 1
        return Histogram(_BOUNDS_SECONDS, tuple(self._counts))


class ProductRouter:
    """`ai_router`'s routing desk as the simulation's router."""

    def __init__(self) -> None:
        profiles = load_settings(RouterTierSettings, {}).profiles()
        self.desk = RoutingDesk(
            FleetDirectory(profiles, DirectoryPolicy()), profiles, RoutingPolicy()
        )
        self.longest_queue = 0
        self.pace = {tier: LatencyWindow() for tier in RouterTier}
        self.first_token = {tier: LatencyWindow() for tier in RouterTier}
        self._servers: dict[str, ServerReport] = {}
        self._waiting: dict[Ticket, PlayerRequest] = {}
        self._pushed_out: list[PlayerRequest] = []

    def server_ready(self, now: float, server_id: str, profile: ModelServerProfile) -> None:
        self._servers[server_id] = ServerReport(
            server_id=server_id,
            endpoint_url=f"http://{server_id}",
            tier=_router_tier(profile.tier),
            model=profile.model_name,
            heard_at=now,
            kv_cache_capacity_tokens=profile.kv_cache_capacity_tokens,
        )
        self._apply(now)
        self.desk.directory.resume(server_id, now)

    def server_draining(self, now: float, server_id: str) -> None:
        self.desk.directory.drain(server_id, 3600.0, now)

    def server_gone(self, now: float, server_id: str) -> None:
        self._servers.pop(server_id, None)
        self._apply(now)

    def route(self, now: float, request: PlayerRequest) -> str:
        if request.context is None:
            asked = _generation_request(request.prompt_tokens, request.tier, request.max_tokens)
            ticket = self.desk.draft(asked, now)
            self.desk.admit(ticket)
        else:
            ticket = request.context.ticket
        try:
            offer = self.desk.offer(ticket, now)
        except (Overloaded, DeadlineUnreachable, NoCapacity):
            return SHED
        if offer.pushed_out is not None:
            self._pushed_out.append(self._waiting.pop(offer.pushed_out[0]))
        if offer.placement is None:
            self._waiting[ticket] = request
            self.longest_queue = max(self.longest_queue, len(self._waiting))
            return WAIT
        request.context = offer.placement
        return offer.placement.server_id

    def finished(self, now: float, request: PlayerRequest) -> None:
        placement: Placement = request.context
        if math.isnan(request.finish_time):
            self.desk.fail(placement, now, unreachable=True, fault=True)
            return
        self.first_token[placement.tier].add(now, request.first_token_time - placement.placed_at)
        if request.output_tokens > 1:
            generating = request.finish_time - request.first_token_time
            self.pace[placement.tier].add(now, generating / (request.output_tokens - 1))
        self.desk.complete(
            placement,
            now,
            first_token_at=request.first_token_time,
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
        )

    def dispatch(self, now: float, tier: str) -> Iterable[tuple[PlayerRequest, str]]:
        del tier  # the desk serves all its queues at once
        if not self._waiting and not self._pushed_out:
            return ()
        done = [(request, SHED) for request in self._pushed_out]
        self._pushed_out.clear()
        for dispatched in self.desk.dispatch(now):
            request = self._waiting.pop(dispatched.ticket)
            if dispatched.placement is None:
                done.append((request, SHED))
            else:
                request.context = dispatched.placement
                done.append((request, dispatched.placement.server_id))
        return done

    def queued(self, tier: str) -> tuple[int, int]:
        queue = self.desk.queued(_router_tier(tier))
        return len(queue), queue.tokens

    def _apply(self, now: float) -> None:
        self.desk.directory.apply(RouterFleetView(tuple(self._servers.values())), now)


class ProductScaler:
    """`autoscaler`'s control law with its default settings as the simulation's scaling policy."""

    def __init__(self, router: ProductRouter, environ: Mapping[str, str] | None = None) -> None:
        settings = load_settings(
            AutoscalerSettings,
            {"AUTOSCALER_DATABASE_URL": "postgresql://nobody@localhost/none", **(environ or {})},
        )
        self.decisions: list[tuple[float, Decision]] = []
        self._router = router
        self._policies = settings.policies()
        self._budget = settings.budget()
        self._prices = settings.prices.table()
        self._window = DemandWindow(
            ("router",),
            window_seconds=settings.pace.demand_window_seconds,
            forget_seconds=60.0,
        )
        self._states = {tier: ControlState() for tier in TIERS}
        self._phases = {tier: PhaseMemory({}) for tier in TIERS}
        self._draining: set[str] = set()

    def decide(self, observation: FleetObservation) -> Mapping[str, ScalingOrder]:
        now = observation.now
        self._window.add("router", self._demand(observation))
        groups = {Tier(name): _group(seen, now) for name, seen in observation.tiers.items()}
        fleet = self._fleet(observation)
        costs = {tier: self._prices.of_group(group) for tier, group in groups.items()}
        return {
            tier.value: self._decide_tier(tier, groups[tier], fleet, costs, observation)
            for tier in groups
        }

    def _decide_tier(
        self,
        tier: Tier,
        group: ScalingGroup,
        fleet: FleetView,
        costs: dict[Tier, float],
        observation: FleetObservation,
    ) -> ScalingOrder:
        now = observation.now
        policy = self._policies[tier]
        price = observation.tiers[tier.value].usd_per_hour_per_server
        members = {member.instance_id for member in group.instances}
        snapshot, self._phases[tier] = build_snapshot(
            policy=policy,
            group=group,
            fleet=fleet,
            demand=self._window.view(now),
            players=Players(online=observation.players_online, count_time=now),
            draining_ids=frozenset(self._draining & members),
            memory=self._phases[tier],
            override=None,
            database_reachable=True,
            prices=self._prices,
            price_per_server=price,
            now=now,
        )
        affordable = affordable_servers(
            tier,
            players_online=observation.players_online,
            usd_per_hour_by_tier=costs,
            usd_per_hour_per_server=price,
            budget=self._budget,
        )
        snapshot = replace(snapshot, affordable_servers=affordable)
        decision, self._states[tier] = decide(snapshot, self._states[tier], policy, now)
        costs[tier] += max(0, decision.desired - decision.previous_desired) * price
        if decision.desired != decision.previous_desired:
            self.decisions.append((now, decision))
        plan = decision.plan
        self._draining.difference_update(plan.resume_instance_ids)
        self._draining.update(plan.drain_instance_ids)
        return ScalingOrder(
            desired=decision.desired,
            drain=plan.drain_instance_ids,
            resume=plan.resume_instance_ids,
        )

    def _demand(self, observation: FleetObservation) -> DemandInterval:
        counted = self._router.desk.close_demand_interval()
        return DemandInterval(
            duration_seconds=observation.interval_seconds,
            received_time=observation.now,
            tiers={
                Tier(demand.tier.name.lower()): TierCounts(
                    arrived_requests=demand.arrived_requests,
                    arrived_tokens=demand.arrived_tokens,
                    shed_requests=demand.shed_requests,
                    completed_requests=demand.completed_requests,
                    running_requests=demand.running_requests,
                    running_tokens=demand.running_tokens,
                    queued_requests=demand.queued_requests,
                    queued_tokens=demand.queued_tokens,
                )
                for demand in counted
            },
        )

    def _fleet(self, observation: FleetObservation) -> FleetView:
        now = observation.now
        hosts = {
            server.server_id: _host(Tier(name), server)
            for name, seen in observation.tiers.items()
            for server in seen.servers
            if server.phase is not ServerPhase.PENDING
        }
        tiers = {
            Tier(name): FleetTier(
                running_requests=sum(s.running for s in seen.servers),
                waiting_requests=sum(s.waiting for s in seen.servers),
                fresh_servers=seen.ready,
                ready_servers=seen.ready,
                first_token=self._router.first_token[_router_tier(name)].histogram(now),
                inter_token=self._router.pace[_router_tier(name)].histogram(now),
            )
            for name, seen in observation.tiers.items()
        }
        return FleetView(hosts=hosts, tiers=tiers, age_seconds=0.0)


def _router_tier(name: str) -> RouterTier:
    return _ROUTER_TIERS[name]


@lru_cache(maxsize=32_768)
def _generation_request(prompt_tokens: int, tier: str, max_tokens: int) -> GenerationRequest:
    """Returns a request of that size; requests are values, so equal ones may be one object."""
    text = _LONGEST_TEXT[: prompt_tokens * _CHARACTERS_PER_TOKEN]
    return GenerationRequest(
        request_id="",
        messages=(ChatMessage(ChatRole.USER, text),),
        tier=_router_tier(tier),
        max_output_tokens=max_tokens,
    )


def _group(seen: TierObservation, now: float) -> ScalingGroup:
    return ScalingGroup(
        name=seen.tier,
        desired=seen.group_desired,
        minimum=seen.group_minimum,
        maximum=seen.group_maximum,
        instances=tuple(
            GroupInstance(
                instance_id=server.server_id,
                instance_type="",
                is_spot=False,
                launch_time=server.launch_time,
                is_leaving=False,
                is_in_service=server.phase is not ServerPhase.PENDING,
            )
            for server in seen.servers
        ),
        read_time=now,
    )


def _host(tier: Tier, server: ObservedServer) -> FleetHost:
    notice = server.interruption_notice_time
    return FleetHost(
        host_id=server.server_id,
        is_fresh=True,
        is_spot=notice is not None,
        interruption_time=None if notice is None else notice + _SPOT_NOTICE_SECONDS,
        servers=(
            FleetServer(
                server_id=server.server_id,
                tier=tier,
                is_ready=True,
                running_requests=server.running,
                waiting_requests=server.waiting,
            ),
        ),
    )
