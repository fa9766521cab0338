"""How many servers the simulation runs: the port a scaling policy implements, and two plain ones.

Once per control interval the policy sees one observation per tier, which holds what the product's
autoscaler would know (group, instances, load reported by servers, demand seen by routers, players
online), and answers with sizes. It never sees the future or a server's inside.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

__all__ = [
    "FixedFleet",
    "FleetObservation",
    "ObservedServer",
    "ScalingOrder",
    "ScalingPolicy",
    "ServerPhase",
    "TargetConcurrency",
    "TierObservation",
]


class ServerPhase(Enum):
    """What a group's member does for requests."""

    PENDING = "pending"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class ObservedServer:
    """One member of a tier's group. `server_id` is its EC2 instance id."""

    server_id: str
    phase: ServerPhase
    launch_time: float
    running: int
    waiting: int
    tokens: int
    kv_cache_usage_ratio: float
    interruption_notice_time: float | None


@dataclass(frozen=True, slots=True)
class TierObservation:
    """One tier at one control time. Rates are means over the last control interval.

    `queued` and `queued_tokens` wait in the routers. Latencies are those of requests finished in
    the interval, None when there were none.
    """

    tier: str
    group_desired: int
    group_minimum: int
    group_maximum: int
    servers: tuple[ObservedServer, ...]
    arrivals_per_second: float
    arrived_tokens_per_second: float
    finished_per_second: float
    shed_per_second: float
    queued: int
    queued_tokens: int
    time_to_first_token_p95_seconds: float | None
    time_per_token_p95_seconds: float | None
    usd_per_hour_per_server: float

    @property
    def ready(self) -> int:
        """Servers that take requests."""
        return sum(1 for s in self.servers if s.phase is ServerPhase.READY)

    @property
    def requests(self) -> int:
        """Requests on servers and waiting in routers."""
        return self.queued + sum(s.running + s.waiting for s in self.servers)


@dataclass(frozen=True, slots=True)
class FleetObservation:
    """Everything a scaling policy may know at `now`."""

    now: float
    interval_seconds: float
    players_online: int
    tiers: Mapping[str, TierObservation]


@dataclass(frozen=True, slots=True)
class ScalingOrder:
    """What a tier is to have: `desired` servers that stay, draining ones not counted.

    When that is fewer than stay now, the servers named in `drain` go first, then the least loaded.
    `resume` takes draining servers back before new ones are launched.
    """

    desired: int
    drain: tuple[str, ...] = ()
    resume: tuple[str, ...] = ()


class ScalingPolicy(Protocol):
    """Decides sizes; may remember what it has seen."""

    def decide(self, observation: FleetObservation) -> Mapping[str, ScalingOrder]:
        """Return an order per tier; a tier left out keeps its size."""


@dataclass(frozen=True, slots=True)
class FixedFleet:
    """Always the same sizes."""

    sizes: Mapping[str, int]

    def decide(self, observation: FleetObservation) -> Mapping[str, ScalingOrder]:
        """Return the fixed sizes."""
        del observation
        return {tier: ScalingOrder(size) for tier, size in self.sizes.items()}


class TargetConcurrency:
    """A plain law to compare with: requests in flight over a target per server.

    Grows at once; shrinks to the highest need of the last `hold_seconds`, and not before it has
    watched for that long.
    """

    def __init__(self, requests_per_server: Mapping[str, float], *, hold_seconds: float = 300.0):
        self._requests_per_server = requests_per_server
        self._hold_seconds = hold_seconds
        self._needs: dict[str, list[tuple[float, int]]] = {}
        self._first_seen: dict[str, float] = {}

    def decide(self, observation: FleetObservation) -> Mapping[str, ScalingOrder]:
        """Return an order for every tier with a target."""
        orders: dict[str, ScalingOrder] = {}
        for tier, target in self._requests_per_server.items():
            seen = observation.tiers.get(tier)
            if seen is None:
                continue
            need = math.ceil(seen.requests / target)
            if seen.shed_per_second > 0 or seen.arrivals_per_second > 0:
                need = max(need, 1)
            needs = self._needs.setdefault(tier, [])
            needs.append((observation.now, need))
            while needs[0][0] < observation.now - self._hold_seconds:
                needs.pop(0)
            highest = max(n for _, n in needs)
            first_seen = self._first_seen.setdefault(tier, observation.now)
            if observation.now - first_seen < self._hold_seconds:
                staying = sum(1 for s in seen.servers if s.phase is not ServerPhase.DRAINING)
                highest = max(highest, staying)
            size = min(max(highest, seen.group_minimum), seen.group_maximum)
            orders[tier] = ScalingOrder(size)
        return orders
