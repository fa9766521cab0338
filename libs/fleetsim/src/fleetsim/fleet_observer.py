"""What the simulation shows a scaling policy, built the way the product's autoscaler sees it."""

import math
from collections.abc import Mapping

from fleetsim.instance_types import INSTANCE_TYPES, Market
from fleetsim.model_server import ModelServer
from fleetsim.players import PlayerCurve
from fleetsim.routing import PlayerRequest, Router
from fleetsim.scaling import FleetObservation, ObservedServer, ServerPhase, TierObservation
from fleetsim.scaling_group import ScalingGroups
from fleetsim.simulation_settings import SimulationSettings
from fleetsim.tier_window import TierWindow

__all__ = ["FleetObserver", "SimulatedHost"]


class SimulatedHost:
    """A launched instance and, once its cold start is over, the model server on it."""

    __slots__ = (
        "drain_deadline",
        "in_flight",
        "is_gone",
        "is_ready",
        "model",
        "scheduled",
        "server_id",
        "tier",
    )

    def __init__(self, server_id: str, tier: str, model: ModelServer) -> None:
        self.server_id = server_id
        self.tier = tier
        self.model = model
        self.is_ready = False
        self.is_gone = False
        self.drain_deadline = math.inf
        self.scheduled = math.inf
        self.in_flight: dict[PlayerRequest, None] = {}

    @property
    def is_draining(self) -> bool:
        """Whether it finishes its work before it goes."""
        return not math.isinf(self.drain_deadline)


class FleetObserver:
    """Reads groups, hosts, windows and the router; changes nothing."""

    def __init__(
        self,
        *,
        settings: SimulationSettings,
        groups: ScalingGroups,
        hosts: Mapping[str, SimulatedHost],
        windows: Mapping[str, TierWindow],
        router: Router,
        players: PlayerCurve,
    ) -> None:
        self._settings = settings
        self._groups = groups
        self._hosts = hosts
        self._windows = windows
        self._router = router
        self._players = players

    def observe(self, now: float) -> FleetObservation:
        """Return what is known at `now`."""
        interval = self._settings.control_interval_seconds
        tiers = {
            tier: self._tier(now, tier, interval)
            for tier in self._windows
            if tier in self._settings.tiers
        }
        players = int(self._players.players_at(now))
        return FleetObservation(now, interval, players, tiers)

    def _tier(self, now: float, tier: str, interval: float) -> TierObservation:
        group = self._groups.group(tier)
        window = self._windows[tier]
        queued, queued_tokens = self._router.queued(tier)
        first, pace = window.control_latencies()
        instance_type = self._settings.tiers[tier].profile.instance_type
        return TierObservation(
            tier=tier,
            group_desired=group.desired_capacity,
            group_minimum=group.settings.min_size,
            group_maximum=group.settings.max_size,
            servers=tuple(
                self._server(now, member.instance_id)
                for member in group.instances
                if member.lifecycle_state.counts_towards_desired
            ),
            arrivals_per_second=window.control_arrived / interval,
            arrived_tokens_per_second=window.control_arrived_tokens / interval,
            finished_per_second=window.control_finished / interval,
            shed_per_second=window.control_shed / interval,
            queued=queued,
            queued_tokens=queued_tokens,
            time_to_first_token_p95_seconds=first,
            time_per_token_p95_seconds=pace,
            usd_per_hour_per_server=INSTANCE_TYPES[instance_type].usd_per_hour(Market.ON_DEMAND),
        )

    def _server(self, now: float, server_id: str) -> ObservedServer:
        instance = self._groups.cloud.instance(server_id)
        host = self._hosts.get(server_id)
        notice = instance.interruption_notice_time
        if host is None or not host.is_ready:
            phase = ServerPhase.PENDING
            return ObservedServer(server_id, phase, instance.launch_time, 0, 0, 0, 0.0, notice)
        load = host.model.load(now)
        return ObservedServer(
            server_id,
            ServerPhase.DRAINING if host.is_draining else ServerPhase.READY,
            instance.launch_time,
            load.running,
            load.waiting,
            int(load.running_tokens) + load.waiting_tokens,
            load.kv_cache_usage_ratio,
            notice,
        )
