"""A whole fleet in virtual time: players, router, model servers, Auto Scaling groups, autoscaler.

Every request is simulated, by callbacks on a heap. The policies under test (routing, scaling) are
ports; everything else is this library's one model of the world, the same that runs in real time.
The run is a function of its seed: players, cloud and cold starts draw from separate streams, so a
change of policy leaves the arrivals as they were.

What the simulation itself decides, as the product does: a draining server gets no new requests and
is terminated when it is empty or `drain_timeout_seconds` have passed; a request whose server dies
before its first token is routed again (at most `attempts` times), after it the request has failed.
`frontend_seconds` (network, router, API server) is added to every time to first token.
"""

import math
from collections.abc import Callable

import numpy as np

from fleetsim.arrivals import ArrivalProcess
from fleetsim.cloud import Cloud
from fleetsim.cloud_state import CloudEvent, CloudEventKind
from fleetsim.fleet_observer import FleetObserver, SimulatedHost
from fleetsim.model_server import ModelServer
from fleetsim.prefix_cache import PrefixSegments
from fleetsim.routing import SHED, WAIT, PlayerRequest, Router
from fleetsim.scaling import ScalingOrder, ScalingPolicy
from fleetsim.scaling_group import ScalingGroups
from fleetsim.scaling_group_state import GroupSettings
from fleetsim.simulation_result import Outcome, RequestLog, SeriesPoint, SimulationResult
from fleetsim.simulation_settings import SimulationSettings, TierSettings
from fleetsim.tier_window import TierWindow
from fleetsim.virtual_time import VirtualTime

__all__ = ["FleetSimulation"]


_FINISHED = int(Outcome.FINISHED)


class FleetSimulation:
    """One run. Build it, call `run` once."""

    def __init__(
        self,
        *,
        arrivals: ArrivalProcess,
        router: Router,
        scaler: ScalingPolicy,
        seed: int,
        settings: SimulationSettings | None = None,
    ) -> None:
        self.settings = settings or SimulationSettings()
        self._arrivals = arrivals
        self._router = router
        self._scaler = scaler
        streams = np.random.default_rng(seed).spawn(4)
        self._arrival_rng, cloud_rng, group_rng, self._cold_start_rng = streams
        self.cloud = Cloud(rng=cloud_rng, settings=self.settings.cloud)
        self.groups = ScalingGroups(self.cloud, rng=group_rng)
        self._time = VirtualTime()
        self._hosts: dict[str, SimulatedHost] = {}
        self._tiers = tuple(arrivals.mix.tiers)
        self._windows = {tier: TierWindow(index) for index, tier in enumerate(self._tiers)}
        self._result = SimulationResult(self._tiers, RequestLog(), dict.fromkeys(self._tiers, 0))
        self._observer = FleetObserver(
            settings=self.settings,
            groups=self.groups,
            hosts=self._hosts,
            windows=self._windows,
            router=router,
            players=arrivals.players,
        )
        self._cloud_wake = math.inf
        self._batch: tuple[list[float], list[int], list[int], list[int]] = ([], [], [], [])
        self._batch_position = 0
        self._batch_end = 0.0
        self._request_number = 0
        self._log = self._result.requests
        self._frontend_seconds = self.settings.frontend_seconds
        self._max_tokens = self.settings.max_tokens
        self._shared_tokens = shared = arrivals.lengths.shared_prompt_tokens
        self._tier_limits: list[tuple[int, PrefixSegments]] = [
            (
                self.settings.tiers[tier].profile.max_model_len_tokens - self._max_tokens,
                ((tier, shared),) if shared else (),
            )
            for tier in self._tiers
        ]

    def run(self) -> SimulationResult:
        """Run to the end and return the result. Requests still in flight then are not counted."""
        for tier, tier_settings in self.settings.tiers.items():
            self._create_group(tier, tier_settings)
        self._next_arrival(None)
        self._control(None)
        self._dispatch_all(None)
        self._time.at(self.settings.sample_interval_seconds, self._sample)
        self._time.run_until(self.settings.duration_seconds)
        self._result.arrived = {tier: self._windows[tier].arrived for tier in self._tiers}
        self._result.cost_usd = self.cloud.cost_usd(self._time.now)
        self._result.events_run = self._time.events_run
        return self._result

    def kill(self, time: float, server_id: str) -> None:
        """Schedule a host's sudden death (its group replaces it); for scenarios, before `run`."""
        self._time.at(time, self._kill_now, server_id)

    def at(self, time: float, action: "Callable[[FleetSimulation, float], None]") -> None:
        """Schedule `action(simulation, now)`; for scenarios such as an empty zone."""
        self._time.at(time, lambda _: action(self, self._time.now))

    # -- arrivals ----------------------------------------------------------------------------

    def _next_arrival(self, _: None) -> None:
        """Draw the next chunk of arrivals until there is one, and schedule the first of it."""
        while self._batch_end < self.settings.duration_seconds:
            start = self._batch_end
            end = min(start + self.settings.arrival_chunk_seconds, self.settings.duration_seconds)
            batch = self._arrivals.draw(self._arrival_rng, start, end)
            self._batch_end = end
            if len(batch.times):
                self._batch = (
                    batch.times.tolist(),
                    batch.tier_index.tolist(),
                    batch.prompt_tokens.tolist(),
                    batch.output_tokens.tolist(),
                )
                self._batch_position = 0
                self._time.at(self._batch[0][0], self._arrive)
                return

    def _arrive(self, _: None) -> None:
        position = self._batch_position
        times, tiers, prompts, outputs = self._batch
        time = self._time
        tier_index = tiers[position]
        tier = self._tiers[tier_index]
        longest, segments = self._tier_limits[tier_index]
        prompt_tokens = prompts[position]
        output_tokens = outputs[position]
        prompt_tokens = min(prompt_tokens, longest)
        output_tokens = min(output_tokens, self._max_tokens)
        request = PlayerRequest(
            self._request_number,
            prompt_tokens,
            output_tokens,
            tier=tier,
            max_tokens=self._max_tokens,
            entered_time=time.now,
            prefix_segments=segments if prompt_tokens > self._shared_tokens else (),
        )
        self._request_number += 1
        window = self._windows[tier]
        window.arrived += 1
        window.arrived_tokens += prompt_tokens + output_tokens
        self._batch_position = position = position + 1
        if position < len(times):
            time.at(times[position], self._arrive)
        else:
            self._next_arrival(None)
        self._route(request)

    # -- requests ----------------------------------------------------------------------------

    def _route(self, request: PlayerRequest) -> None:
        chosen = self._router.route(self._time.now, request)
        if chosen == SHED:
            self._miss(request, Outcome.SHED)
        elif chosen != WAIT:
            self._submit(request, chosen)

    def _submit(self, request: PlayerRequest, server_id: str) -> None:
        host = self._hosts[server_id]
        request.server_id = server_id
        request.attempts += 1
        host.in_flight[request] = None
        host.model.submit(self._time.now, request)
        upcoming = host.model.next_event_time()
        if upcoming < host.scheduled:
            host.scheduled = upcoming
            self._time.at(upcoming, self._wake, host)

    def _wake(self, host: SimulatedHost) -> None:
        """A server's next event is due, or was when this was scheduled and has moved since.

        Every server has one such callback scheduled, `host.scheduled`, at or before its next
        event. New work mostly delays that event; then the callback only moves on.
        """
        time = self._time
        now = time.now
        if now != host.scheduled or host.is_gone:
            return
        model = host.model
        upcoming = model.next_event_time()
        finished = None
        if upcoming <= now:
            finished = model.advance(now)
            upcoming = model.next_event_time()
        host.scheduled = upcoming
        if upcoming != math.inf:
            time.at(upcoming, self._wake, host)
        if finished:
            router = self._router
            for request in finished:
                del host.in_flight[request]  # type: ignore[arg-type]  # we submit only these
                router.finished(now, request)  # type: ignore[arg-type]  # as above
                self._finish(request)  # type: ignore[arg-type]  # as above
            self._dispatch(host.tier)
            if host.is_draining and not host.in_flight:
                self._terminate(host)

    def _finish(self, request: PlayerRequest) -> None:
        window = self._windows[request.tier]
        first_token_time = request.first_token_time
        first = first_token_time - request.entered_time + self._frontend_seconds
        tokens = request.output_tokens
        pace = (request.finish_time - first_token_time) / (tokens - 1) if tokens > 1 else math.nan
        window.finish(first, pace)
        self._log.add(self._time.now, first, pace, _FINISHED, window.tier_index)

    def _miss(self, request: PlayerRequest, outcome: Outcome) -> None:
        window = self._windows[request.tier]
        window.miss(outcome)
        self._log.add(self._time.now, math.nan, math.nan, outcome, window.tier_index)

    def _dispatch(self, tier: str) -> None:
        for request, chosen in self._router.dispatch(self._time.now, tier):
            if chosen == SHED:
                self._miss(request, Outcome.SHED)
            else:
                self._submit(request, chosen)

    def _dispatch_all(self, _: None) -> None:
        for tier in self._tiers:
            self._dispatch(tier)
        self._time.at(self._time.now + 1.0, self._dispatch_all)

    # -- hosts -------------------------------------------------------------------------------

    def _create_group(self, tier: str, tier_settings: TierSettings) -> None:
        settings = GroupSettings(
            name=tier,
            instance_types=(tier_settings.profile.instance_type,),
            zones=self.cloud.settings.zones,
            min_size=tier_settings.min_size,
            max_size=tier_settings.max_size,
            on_demand_base_capacity=tier_settings.on_demand_base_capacity,
            on_demand_percentage_above_base=tier_settings.on_demand_percentage_above_base,
            capacity_rebalance=tier_settings.capacity_rebalance,
        )
        start = max(tier_settings.start_size, tier_settings.min_size)
        view = self.groups.create(self._time.now, settings, desired_capacity=start)
        if self.settings.starts_warm:
            for member in view.instances:
                self._add_host(member.instance_id, tier)
                self._ready(member.instance_id)
        self._follow_cloud()

    def _follow_cloud(self) -> None:
        """Handle what the cloud did, and come back when it will do something."""
        now = self._time.now
        for event in self.groups.advance(now):
            self._handle(event)
        upcoming = self.groups.next_event_time()
        if upcoming is not None and upcoming < self._cloud_wake:
            self._cloud_wake = max(upcoming, now)
            self._time.at(self._cloud_wake, self._cloud_tick)

    def _cloud_tick(self, _: None) -> None:
        self._cloud_wake = math.inf
        self._follow_cloud()

    def _handle(self, event: CloudEvent) -> None:
        instance = event.instance
        if instance is None:
            return
        if event.kind is CloudEventKind.INSTANCE_RUNNING:
            if instance.instance_id in self._hosts:
                return
            tier = self.groups.group_name_of(instance.instance_id)
            if tier is not None:
                self._add_host(instance.instance_id, tier)
                profile = self.settings.tiers[tier].profile
                cold_start = profile.cold_start.draw(self._cold_start_rng, start_time=event.time)
                ready_time = max(cold_start.ready_time, self._time.now)
                self._time.at(ready_time, self._ready, instance.instance_id)
        elif event.kind is CloudEventKind.SPOT_INTERRUPTION_NOTICE:
            host = self._hosts.get(instance.instance_id)
            if host is not None and host.is_ready and not host.is_draining:
                # The notice is the instance's own drain order; the group replaces it afterwards.
                host.drain_deadline = instance.termination_time or self._time.now
                self._router.server_draining(self._time.now, host.server_id)
        elif event.kind is CloudEventKind.INSTANCE_SHUTTING_DOWN:
            self._lose(instance.instance_id)

    def _add_host(self, server_id: str, tier: str) -> None:
        profile = self.settings.tiers[tier].profile
        model = ModelServer(
            profile, server_id=server_id, start_time=self._time.now, keeps_histograms=False
        )
        self._hosts[server_id] = SimulatedHost(server_id, tier, model)

    def _ready(self, server_id: str) -> None:
        host = self._hosts.get(server_id)
        if host is None:
            return
        host.is_ready = True
        self._router.server_ready(self._time.now, server_id, host.model.profile)
        if host.is_draining:
            self._router.server_draining(self._time.now, server_id)
        else:
            self._dispatch(host.tier)

    def _lose(self, server_id: str) -> None:
        """The host is gone: what had its first token has failed, the rest is routed again."""
        host = self._hosts.pop(server_id, None)
        if host is None:
            return
        now = self._time.now
        host.is_gone = True
        host.model.fail(now)
        lost = list(host.in_flight)
        for request in lost:
            self._router.finished(now, request)
        if host.is_ready:
            self._router.server_gone(now, server_id)
        for request in lost:
            if math.isnan(request.first_token_time) and request.attempts < self.settings.attempts:
                request.start_over()
                self._route(request)
            else:
                self._miss(request, Outcome.FAILED)

    def _kill_now(self, server_id: str) -> None:
        self.cloud.terminate(self._time.now, [server_id])
        self._follow_cloud()

    def _terminate(self, host: SimulatedHost) -> None:
        """End a drained member by id. One the cloud already takes away needs no help."""
        instance = self.cloud.instance(host.server_id)
        if instance.interruption_notice_time is None and instance.is_alive:
            self.groups.terminate_instance(
                self._time.now, host.server_id, decrement_desired_capacity=True
            )
            self._follow_cloud()

    # -- control -----------------------------------------------------------------------------

    def _control(self, _: None) -> None:
        now = self._time.now
        self._follow_cloud()
        for host in list(self._hosts.values()):
            if host.drain_deadline <= now:
                self._terminate(host)
        observation = self._observer.observe(now)
        for tier, order in self._scaler.decide(observation).items():
            self._apply(now, tier, order)
        for window in self._windows.values():
            window.end_control_interval()
        self._follow_cloud()
        self._time.at(now + self.settings.control_interval_seconds, self._control)

    def _apply(self, now: float, tier: str, order: ScalingOrder) -> None:
        """Bring a tier's staying members to `order.desired`; draining ones leave by themselves."""
        group = self.groups.group(tier)
        self._resume(now, order.resume)
        members = [
            m.instance_id for m in group.instances if m.lifecycle_state.counts_towards_desired
        ]
        hosts = [self._hosts[m] for m in members if m in self._hosts]
        draining = sum(1 for h in hosts if self._is_ordered_drain(h))
        desired = min(max(order.desired, group.settings.min_size), group.settings.max_size)
        surplus = group.desired_capacity - draining - desired
        if surplus <= 0:
            size = min(desired + draining, group.settings.max_size)
            if size > group.desired_capacity:
                self.groups.set_desired_capacity(now, tier, size)
            return
        # What does not serve yet goes first, newest first: nobody would miss it.
        pending = [m for m in members if m not in self._hosts or not self._hosts[m].is_ready]
        for server_id in pending[::-1][:surplus]:
            self.groups.terminate_instance(now, server_id, decrement_desired_capacity=True)
            surplus -= 1
        surplus -= self._drain(now, hosts, order.drain, surplus)
        # A group that could not launch all it wanted has fewer members than its size.
        size = self.groups.group(tier).desired_capacity - surplus
        if surplus > 0 and size >= group.settings.min_size:
            self.groups.set_desired_capacity(now, tier, size)

    def _resume(self, now: float, server_ids: tuple[str, ...]) -> None:
        for server_id in server_ids:
            host = self._hosts.get(server_id)
            if host is not None and self._is_ordered_drain(host):
                host.drain_deadline = math.inf
                if host.is_ready:
                    self._router.server_ready(now, server_id, host.model.profile)

    def _drain(
        self, now: float, hosts: list[SimulatedHost], named: tuple[str, ...], count: int
    ) -> int:
        """Drain up to `count` hosts, named ones first, then the least loaded; return how many."""
        rank = {server_id: position for position, server_id in enumerate(named)}
        ready = [h for h in hosts if h.is_ready and not h.is_draining]
        ready.sort(key=lambda h: (rank.get(h.server_id, len(rank)), len(h.in_flight)))
        chosen = ready[:count]
        for host in chosen:
            host.drain_deadline = now + self.settings.drain_timeout_seconds
            self._router.server_draining(now, host.server_id)
            if not host.in_flight:
                self._terminate(host)
        return len(chosen)

    def _is_ordered_drain(self, host: SimulatedHost) -> bool:
        if not host.is_draining:
            return False
        return self.cloud.instance(host.server_id).interruption_notice_time is None

    # -- samples -----------------------------------------------------------------------------

    def _sample(self, _: None) -> None:
        now = self._time.now
        points = {}
        for tier in self._tiers:
            group = self.groups.group(tier)
            hosts = [h for h in self._hosts.values() if h.tier == tier and h.is_ready]
            points[tier] = self._windows[tier].sample(
                desired=group.desired_capacity,
                launched=len(group.instances),
                ready=sum(1 for h in hosts if not h.is_draining),
                draining=sum(1 for h in hosts if h.is_draining),
                running=sum(h.model.running_count for h in hosts),
                waiting=sum(h.model.waiting_count for h in hosts),
                queued=self._router.queued(tier)[0],
            )
        players = float(self._arrivals.players.players_at(now))
        self._result.series.append(SeriesPoint(now, players, self.cloud.cost_usd(now), points))
        self._time.at(now + self.settings.sample_interval_seconds, self._sample)
