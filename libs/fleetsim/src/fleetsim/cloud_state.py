"""What the cloud consists of: instances, the events that happen to them, and a region's settings.

State names and reason codes are EC2's (EC2 API reference, "Instance lifecycle" and
"StateReason").
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from fleetsim.instance_types import Market
from fleetsim.zone_stock import ALWAYS_IN_STOCK, PoolStock

__all__ = ["CloudEvent", "CloudEventKind", "CloudSettings", "Instance", "InstanceState"]


class InstanceState(StrEnum):
    """EC2's names of the states an instance passes through."""

    PENDING = "pending"
    RUNNING = "running"
    SHUTTING_DOWN = "shutting-down"
    TERMINATED = "terminated"


class CloudEventKind(StrEnum):
    """What happened in the cloud."""

    INSTANCE_PENDING = "instance-pending"
    INSTANCE_RUNNING = "instance-running"
    INSTANCE_SHUTTING_DOWN = "instance-shutting-down"
    INSTANCE_TERMINATED = "instance-terminated"
    REBALANCE_RECOMMENDED = "rebalance-recommended"
    SPOT_INTERRUPTION_NOTICE = "spot-interruption-notice"
    SPOT_OUT_OF_STOCK = "spot-out-of-stock"
    SPOT_IN_STOCK = "spot-in-stock"


@dataclass(frozen=True, slots=True)
class CloudEvent:
    """Something that happened at `time`. `instance` is as it was right after; None for stock."""

    time: float
    kind: CloudEventKind
    instance: "Instance | None" = None
    instance_type: str = ""
    zone: str = ""


@dataclass(frozen=True, slots=True)
class Instance:
    """One EC2 instance at one moment. Times are None until they have happened.

    `termination_time` is when a noticed Spot instance will be shut down. `state_reason` holds
    EC2's (code, message) once the instance leaves `running`.
    """

    instance_id: str
    instance_type: str
    zone: str
    market: Market
    private_ip_address: str
    usd_per_hour: float
    launch_time: float
    tags: Mapping[str, str]
    state: InstanceState = InstanceState.PENDING
    running_time: float | None = None
    shutting_down_time: float | None = None
    terminated_time: float | None = None
    rebalance_time: float | None = None
    interruption_notice_time: float | None = None
    termination_time: float | None = None
    state_reason: tuple[str, str] | None = None

    @property
    def is_alive(self) -> bool:
        """True while pending or running."""
        return self.state in (InstanceState.PENDING, InstanceState.RUNNING)


@dataclass(frozen=True, slots=True)
class CloudSettings:
    """How one region behaves. Durations are production seconds, before time compression.

    `stock` gives the pool of an (instance type, zone); other pools follow `default_stock`.
    A log-normal delay is described by its median and sigma.
    """

    zones: tuple[str, ...] = ("us-east-1a", "us-east-1b", "us-east-1c")
    launch_median_seconds: float = 20.0
    launch_sigma: float = 0.5
    shutdown_median_seconds: float = 30.0
    shutdown_sigma: float = 0.4
    spot_notice_seconds: float = 120.0
    rebalance_probability: float = 0.5
    rebalance_lead_seconds: float = 600.0
    interruption_spread_seconds: float = 30.0
    terminated_visible_seconds: float = 3600.0
    default_stock: PoolStock = ALWAYS_IN_STOCK
    stock: Mapping[tuple[str, str], PoolStock] = field(default_factory=dict)
