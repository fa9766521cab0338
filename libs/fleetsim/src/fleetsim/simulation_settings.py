"""How a simulated run is set up."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fleetsim.cloud_state import CloudSettings
from fleetsim.profiles import PROFILES, ModelServerProfile

__all__ = ["SimulationSettings", "TierSettings"]


@dataclass(frozen=True, slots=True)
class TierSettings:
    """One tier's servers and group."""

    profile: ModelServerProfile
    min_size: int = 0
    max_size: int = 60
    start_size: int = 1
    on_demand_base_capacity: int = 0
    on_demand_percentage_above_base: int = 100
    capacity_rebalance: bool = False


def _default_tiers() -> dict[str, TierSettings]:
    return {tier: TierSettings(profile) for tier, profile in PROFILES.items()}


@dataclass(frozen=True, slots=True)
class SimulationSettings:
    """How a run is set up. Durations are production seconds; no time is compressed here.

    With `starts_warm` the first servers of each tier are ready at time 0.
    """

    duration_seconds: float = 3600.0
    control_interval_seconds: float = 15.0
    sample_interval_seconds: float = 60.0
    drain_timeout_seconds: float = 120.0
    frontend_seconds: float = 0.006
    max_tokens: int = 400
    attempts: int = 3
    starts_warm: bool = True
    arrival_chunk_seconds: float = 60.0
    tiers: Mapping[str, TierSettings] = field(default_factory=_default_tiers)
    cloud: CloudSettings = field(default_factory=CloudSettings)
