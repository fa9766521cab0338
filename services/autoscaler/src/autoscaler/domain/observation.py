"""Joins what the cloud, the fleet feed and the routers say into the snapshot of one tier."""

from dataclasses import dataclass, replace

from autoscaler.domain.demand_window import DemandView
from autoscaler.domain.fleet_view import FleetHost, FleetTier, FleetView, ScalingGroup
from autoscaler.domain.overrides import Override
from autoscaler.domain.policy import LatencySignal, TierPolicy
from autoscaler.domain.prices import PriceTable
from autoscaler.domain.snapshot import FleetLoad, Instance, InstancePhase, TierSnapshot

__all__ = ["PhaseMemory", "Players", "build_snapshot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Players:
    """Players online as the game counted them at `count_time` (Unix seconds)."""

    online: int
    count_time: float


@dataclass(frozen=True, slots=True)
class PhaseMemory:
    """Which phase each instance was last seen in, and since when."""

    phases: dict[str, tuple[InstancePhase, float]]

    def seen(self, phases: dict[str, InstancePhase], now: float) -> "PhaseMemory":
        """Take in the phases of one look; instances that are gone are forgotten."""
        kept: dict[str, tuple[InstancePhase, float]] = {}
        for instance_id, phase in phases.items():
            before = self.phases.get(instance_id)
            kept[instance_id] = before if before and before[0] is phase else (phase, now)
        return PhaseMemory(kept)

    def was_ready(self, instance_id: str) -> bool:
        """Whether the instance ever took requests as far as is remembered."""
        phase = self.phases.get(instance_id)
        return phase is not None and phase[0] is not InstancePhase.PENDING


def build_snapshot(
    *,
    policy: TierPolicy,
    group: ScalingGroup,
    fleet: FleetView,
    demand: DemandView,
    players: Players | None,
    draining_ids: frozenset[str],
    memory: PhaseMemory,
    override: Override | None,
    database_reachable: bool,
    prices: PriceTable,
    price_per_server: float,
    now: float,
) -> tuple[TierSnapshot, PhaseMemory]:
    """Return the snapshot of one tier and what to remember of its instances' phases.

    An instance serves when the feed says so. While the feed is stale, phases stay as they were:
    silence of the collector is no news of the servers.
    """
    feed_is_fresh = (
        fleet.age_seconds is not None and fleet.age_seconds <= policy.fleet_stale_seconds
    )
    phases = {
        member.instance_id: _phase(
            fleet.hosts.get(member.instance_id),
            policy,
            memory,
            member.instance_id,
            feed_is_fresh=feed_is_fresh,
        )
        for member in group.live
    }
    memory = memory.seen(phases, now)
    instances = tuple(
        _instance(
            Instance(
                instance_id=member.instance_id,
                phase=phases[member.instance_id],
                launch_time=member.launch_time,
                phase_age_seconds=now - memory.phases[member.instance_id][1],
                usd_per_hour=prices.of(member),
                is_draining=member.instance_id in draining_ids,
            ),
            fleet.hosts.get(member.instance_id),
            policy,
        )
        for member in group.live
    )
    snapshot = TierSnapshot(
        tier=policy.tier,
        group_desired=group.desired,
        group_minimum=group.minimum,
        group_maximum=group.maximum,
        instances=instances,
        group_age_seconds=max(0.0, now - group.read_time),
        demand=demand.tiers.get(policy.tier),
        demand_age_seconds=demand.age_seconds,
        fleet=_load(fleet.tiers.get(policy.tier), policy, fleet.age_seconds),
        fleet_age_seconds=fleet.age_seconds,
        players_online=players.online if players else None,
        players_age_seconds=max(0.0, now - players.count_time) if players else None,
        override=override,
        database_reachable=database_reachable,
        usd_per_hour_per_server=price_per_server,
    )
    return snapshot, memory


def _phase(
    host: FleetHost | None,
    policy: TierPolicy,
    memory: PhaseMemory,
    instance_id: str,
    *,
    feed_is_fresh: bool,
) -> InstancePhase:
    known = memory.phases.get(instance_id)
    if not feed_is_fresh and known is not None:
        return known[0]
    if host is not None and host.is_fresh:
        if any(s.tier is policy.tier and s.is_ready for s in host.servers):
            return InstancePhase.READY
    elif host is not None and any(s.is_ready for s in host.servers):
        # Stale, but ready when last heard of: also for a replica that has only just started.
        return InstancePhase.UNRESPONSIVE
    if memory.was_ready(instance_id):
        return InstancePhase.UNRESPONSIVE
    return InstancePhase.PENDING


def _instance(instance: Instance, host: FleetHost | None, policy: TierPolicy) -> Instance:
    if host is None:
        return instance
    servers = [s for s in host.servers if s.tier is policy.tier]
    return replace(
        instance,
        server_ids=tuple(s.server_id for s in servers),
        load_requests=sum((s.running_requests or 0) + (s.waiting_requests or 0) for s in servers),
        interruption_time=host.interruption_time,
    )


def _load(
    tier: FleetTier | None, policy: TierPolicy, feed_age_seconds: float | None
) -> FleetLoad | None:
    if feed_age_seconds is None:
        return None
    if tier is None:
        return FleetLoad(
            running_requests=None, waiting_requests=None, reporting_servers=0, latency=None
        )
    by_signal = {
        LatencySignal.INTER_TOKEN: tier.inter_token,
        LatencySignal.FIRST_TOKEN: tier.first_token,
    }
    return FleetLoad(
        running_requests=tier.running_requests,
        waiting_requests=tier.waiting_requests,
        reporting_servers=tier.ready_servers,
        latency=by_signal[policy.latency_signal],
    )
