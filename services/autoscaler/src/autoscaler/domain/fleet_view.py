"""The fleet as the collector's feed shows it, and the groups as the cloud shows them."""

from dataclasses import dataclass, field

from autoscaler.domain.latency import Histogram
from autoscaler.domain.tiers import Tier

__all__ = [
    "FleetHost",
    "FleetServer",
    "FleetTier",
    "FleetView",
    "GroupInstance",
    "ScalingGroup",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetServer:
    """One model server; counts are None where the server did not report them."""

    server_id: str
    tier: Tier
    is_ready: bool
    running_requests: int | None
    waiting_requests: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetHost:
    """One host; `interruption_time` is Unix seconds."""

    host_id: str
    is_fresh: bool
    is_spot: bool | None
    interruption_time: float | None
    servers: tuple[FleetServer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetTier:
    """A tier as a whole, over fresh hosts, with latencies merged by the collector."""

    running_requests: int | None
    waiting_requests: int | None
    fresh_servers: int
    ready_servers: int
    first_token: Histogram | None
    inter_token: Histogram | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetView:
    """Everything the feed shows; `age_seconds` is None before the first message."""

    hosts: dict[str, FleetHost] = field(default_factory=dict)
    tiers: dict[Tier, FleetTier] = field(default_factory=dict)
    age_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupInstance:
    """One member of an Auto Scaling group; `launch_time` is Unix seconds."""

    instance_id: str
    instance_type: str
    is_spot: bool
    launch_time: float
    is_leaving: bool
    """On its way out, or set aside: not part of the group's size."""
    is_in_service: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingGroup:
    """An Auto Scaling group as the cloud described it; `read_time` is Unix seconds."""

    name: str
    desired: int
    minimum: int
    maximum: int
    instances: tuple[GroupInstance, ...]
    read_time: float

    @property
    def live(self) -> tuple[GroupInstance, ...]:
        """Members that are not on their way out."""
        return tuple(i for i in self.instances if not i.is_leaving)
