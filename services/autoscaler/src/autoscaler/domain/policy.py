"""What an operator configures: how a tier may be sized, and how fast."""

from dataclasses import dataclass
from enum import StrEnum

from autoscaler.domain.tiers import Tier

__all__ = ["BudgetPolicy", "LatencySignal", "TierPolicy"]


class LatencySignal(StrEnum):
    """Which latency a tier promises."""

    INTER_TOKEN = "inter_token"  # noqa: S105 - a name, not a password
    FIRST_TOKEN = "first_token"  # noqa: S105 - a name, not a password


@dataclass(frozen=True, slots=True, kw_only=True)
class TierPolicy:
    """The rules for one tier; every duration is in seconds and is time, never a count of rounds.

    Capacity is in tokens in flight (prompt and output, running and waiting), because GPU
    utilisation says little about how full a model server is.
    """

    tier: Tier
    minimum: int
    maximum: int
    default_capacity_tokens: float
    """Tokens in flight one server carries within its latency target, until it is measured."""
    default_tokens_per_request: float
    default_residence_seconds: float
    """How long a request is in the system, from arrival to its last token, without queueing."""
    latency_signal: LatencySignal
    latency_target_seconds: float
    unloaded_latency_seconds: float
    """The same latency on an idle server; the capacity estimate is a line from here."""
    start_seconds: float
    """From asking for a server until it takes requests, until it is measured."""

    target_utilization: float = 0.7
    capacity_bounds_ratio: float = 2.0
    """A measured capacity stays within the default divided and multiplied by this."""
    capacity_minimum_load_ratio: float = 0.25
    """Below this share of the default capacity, latency says nothing about capacity."""
    capacity_minimum_observations: int = 200

    smoothing_seconds: float = 30.0
    fast_smoothing_seconds: float = 5.0
    trend_seconds: float = 120.0
    trend_damping: float = 0.5
    """Share of the trend that is believed: trends seldom last (damped trend, Gardner and
    McKenzie 1985), and a sudden step looks like one at first."""
    learning_seconds: float = 300.0
    maximum_forecast_growth: float = 2.0
    """A forecast is at most this many times the present arrival rate."""

    panic_ratio: float = 1.0
    """Panic starts when demand exceeds this many times the full capacity of the servers there."""
    panic_window_seconds: float = 60.0

    stabilization_seconds: float = 300.0
    scale_in_interval_seconds: float = 60.0
    scale_in_step_ratio: float = 0.3
    """At most this share of the servers (at least one) leaves per interval."""
    idle_to_zero_seconds: float = 900.0

    fleet_stale_seconds: float = 15.0
    demand_stale_seconds: float = 15.0
    players_stale_seconds: float = 120.0

    overdue_factor: float = 2.0
    """A server that is not ready after this many start times is replaced."""
    unresponsive_grace_seconds: float = 60.0
    """A server that was ready and is silent or unhealthy for this long is replaced."""
    replace_failed_ratio: float = 0.34
    """At most this share of the servers (at least one) counts as failed at a time."""

    drain_deadline_seconds: float = 120.0
    interruption_drain_lead_seconds: float = 45.0
    """An interrupted server is drained at the latest this long before the cloud takes it."""
    interruption_margin_seconds: float = 10.0
    """It is given back this long before, so that the group does not replace it again."""

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.maximum:
            raise ValueError("0 <= minimum <= maximum does not hold")
        if not 0 < self.target_utilization <= 1:
            raise ValueError("target_utilization is a share above 0")
        if self.latency_target_seconds <= self.unloaded_latency_seconds:
            raise ValueError("an idle server must be faster than the latency target")


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetPolicy:
    """What the fleet may cost.

    The ceiling stops growth and never takes a server away. Every tier may grow to its floor
    whatever that costs: with few players even one server per tier costs more per head than the
    budget, and they are to be served all the same. The default floors (3 Gold, 2 Silver, 1
    Bronze) are the sizes planned for up to 500 players, about $6.1 an hour; the ceiling of $8 per
    player and month passes that at some 560 players online.
    """

    usd_per_player_month: float | None
    """None: no ceiling."""
    floor_servers: dict[Tier, int]
    hours_per_month: float = 730.0

    def usd_per_hour(self, players_online: int) -> float | None:
        """What all tiers together may cost with so many players; None without a ceiling."""
        if self.usd_per_player_month is None:
            return None
        return players_online * self.usd_per_player_month / self.hours_per_month
