"""What is known of one tier at one moment. Times are Unix seconds, ages are seconds."""

from dataclasses import dataclass
from enum import StrEnum

from autoscaler.domain.latency import Histogram
from autoscaler.domain.overrides import Override
from autoscaler.domain.policy import TierPolicy
from autoscaler.domain.tiers import Tier

__all__ = ["Demand", "FleetLoad", "Instance", "InstancePhase", "TierSnapshot"]


class InstancePhase(StrEnum):
    """What an instance of the group does for requests."""

    PENDING = "pending"
    """It was asked for and has not taken requests yet."""
    READY = "ready"
    """It takes requests, as the fleet feed says."""
    UNRESPONSIVE = "unresponsive"
    """It took requests and is silent or unhealthy now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One live member of a tier's Auto Scaling group, joined with what the feed tells of it."""

    instance_id: str
    phase: InstancePhase
    launch_time: float
    phase_age_seconds: float
    """How long it has been in this phase, as far as this replica has seen."""
    usd_per_hour: float
    server_ids: tuple[str, ...] = ()
    load_requests: int = 0
    """Requests running and waiting on it; 0 when unknown."""
    interruption_time: float | None = None
    is_draining: bool = False

    @property
    def is_interrupted(self) -> bool:
        """Whether the cloud announced to take it back."""
        return self.interruption_time is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What was asked of the tier, summed over the routers, wherever it was served."""

    running_requests: int
    queued_requests: int
    running_tokens: int
    queued_tokens: int
    arrivals_per_second: float
    arrived_tokens_per_second: float
    shed_per_second: float
    completed_per_second: float

    @property
    def is_wanted(self) -> bool:
        """Whether anybody asks for the tier."""
        return (
            self.running_requests > 0
            or self.queued_requests > 0
            or self.arrivals_per_second > 0
            or self.shed_per_second > 0
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetLoad:
    """The tier's load as its servers report it; None where no server reported it."""

    running_requests: int | None
    waiting_requests: int | None
    reporting_servers: int
    latency: Histogram | None
    """The latency the tier promises, over the collector's window."""

    @property
    def requests(self) -> int:
        """Requests on the servers, running and waiting."""
        return (self.running_requests or 0) + (self.waiting_requests or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSnapshot:
    """Everything a decision about one tier is based on."""

    tier: Tier
    group_desired: int
    group_minimum: int
    group_maximum: int
    instances: tuple[Instance, ...]
    """Live members of the group, draining ones included, terminating ones not."""
    group_age_seconds: float
    demand: Demand | None
    demand_age_seconds: float | None
    """Age of the oldest router's last report; None while one of them has never reported."""
    fleet: FleetLoad | None
    fleet_age_seconds: float | None
    players_online: int | None
    players_age_seconds: float | None
    override: Override | None
    database_reachable: bool
    usd_per_hour_per_server: float
    """What one more server costs."""
    affordable_servers: int | None = None
    """How many servers the budget allows this tier; None: no limit known."""

    @property
    def draining(self) -> tuple[Instance, ...]:
        """Instances that finish their work before they go."""
        return tuple(i for i in self.instances if i.is_draining)

    @property
    def staying(self) -> tuple[Instance, ...]:
        """Instances that were not chosen to go."""
        return tuple(i for i in self.instances if not i.is_draining)

    @property
    def current(self) -> int:
        """Servers there and asked for, less the ones on their way out.

        More may be there than the group's size says: a late call of a former leader made it
        smaller, and scale-in protection kept them. They are drained like any others.
        """
        return max(0, max(self.group_desired, len(self.instances)) - len(self.draining))

    @property
    def unlaunched(self) -> int:
        """Servers asked for that the cloud has not begun to start."""
        return max(0, self.group_desired - len(self.instances))

    @property
    def ready(self) -> tuple[Instance, ...]:
        """Servers that take requests and stay."""
        return tuple(i for i in self.staying if i.phase is InstancePhase.READY)

    def fresh_demand(self, policy: TierPolicy) -> Demand | None:
        """What was asked, unless it is too old to learn from."""
        return self.demand if _fresh(self.demand_age_seconds, policy.demand_stale_seconds) else None

    def fresh_fleet(self, policy: TierPolicy) -> FleetLoad | None:
        """What the servers show, unless it is too old to learn from."""
        return self.fleet if _fresh(self.fleet_age_seconds, policy.fleet_stale_seconds) else None

    def fresh_players(self, policy: TierPolicy) -> int | None:
        """Players online, unless the count is too old."""
        fresh = _fresh(self.players_age_seconds, policy.players_stale_seconds)
        return self.players_online if fresh else None

    def stale_inputs(self, policy: TierPolicy) -> tuple[str, ...]:
        """Name the inputs without which nothing is taken away, with their ages."""
        return tuple(
            f"{name} {'never seen' if age is None else f'{age:.0f} s old'} (limit {limit:.0f} s)"
            for name, age, limit in (
                ("fleet feed", self.fleet_age_seconds, policy.fleet_stale_seconds),
                ("demand stream", self.demand_age_seconds, policy.demand_stale_seconds),
                ("scaling group", self.group_age_seconds, policy.fleet_stale_seconds),
            )
            if not _fresh(age, limit)
        )


def _fresh(age_seconds: float | None, limit_seconds: float) -> bool:
    return age_seconds is not None and age_seconds <= limit_seconds
