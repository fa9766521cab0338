"""How many servers the demand needs, before any rule about when to act on it."""

import math
from dataclasses import dataclass

from autoscaler.domain.estimates import Estimates, is_wanted, raw_tokens
from autoscaler.domain.policy import TierPolicy
from autoscaler.domain.snapshot import TierSnapshot

__all__ = ["Requirement", "require"]

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """The servers needed and the arithmetic behind it; tokens are tokens in flight."""

    servers: int
    demand_tokens: float
    router_tokens: float
    fleet_tokens: float
    smoothed_tokens: float
    forecast_tokens: float
    arrivals_now: float
    arrivals_forecast: float
    forecast_basis: str
    horizon_seconds: float
    residence_seconds: float
    tokens_per_request: float
    capacity_tokens: float
    in_panic: bool
    panic_triggered: bool
    """Whether demand exceeds the full capacity right now, not only within the panic window."""
    is_wanted: bool
    """Whether the tier is asked for now or, when it has servers, was within the idle time."""


def require(
    estimates: Estimates,
    snapshot: TierSnapshot,
    policy: TierPolicy,
    now: float,
    *,
    panic_until: float,
    use_forecast: bool = True,
) -> Requirement:
    """Return the servers that demand needs at the target utilisation.

    Demand is the larger of what is in flight (smoothed) and what Little's law gives for the
    arrival rate expected when a server asked for now would be ready: arrivals per second x
    residence time x tokens per request. In panic the unsmoothed figures count.
    """
    per_request = estimates.request_tokens(policy)
    residence = estimates.residence_seconds(policy)
    capacity = estimates.capacity(policy)
    routers, servers = raw_tokens(snapshot, policy, per_request)
    raw = max(routers, servers)
    horizon = estimates.startup_seconds(policy)
    level, fast = estimates.arrivals or 0.0, estimates.arrivals_fast or 0.0
    expected, basis = _forecast(estimates, snapshot, policy, horizon, use_forecast=use_forecast)
    tokens_per_arrival_rate = residence * per_request
    urgent = max(raw, fast * tokens_per_arrival_rate)
    triggered = urgent > policy.panic_ratio * capacity * max(1, snapshot.current)
    panic = triggered or now < panic_until
    forecast = expected * tokens_per_arrival_rate
    demand = max(estimates.tokens or 0.0, forecast)
    if panic:
        demand = max(demand, urgent)
    wanted = is_wanted(snapshot, policy)
    if not wanted and snapshot.current > 0 and estimates.idle_since is not None:
        wanted = now - estimates.idle_since < policy.idle_to_zero_seconds
    count = math.ceil(demand / (capacity * policy.target_utilization) - _ROUNDING)
    return Requirement(
        servers=max(1, count) if wanted else 0,
        demand_tokens=demand,
        router_tokens=routers,
        fleet_tokens=servers,
        smoothed_tokens=estimates.tokens or 0.0,
        forecast_tokens=forecast,
        arrivals_now=level,
        arrivals_forecast=expected,
        forecast_basis=basis,
        horizon_seconds=horizon,
        residence_seconds=residence,
        tokens_per_request=per_request,
        capacity_tokens=capacity,
        in_panic=panic,
        panic_triggered=triggered,
        is_wanted=wanted,
    )


def _forecast(
    estimates: Estimates,
    snapshot: TierSnapshot,
    policy: TierPolicy,
    horizon: float,
    *,
    use_forecast: bool,
) -> tuple[float, str]:
    level = estimates.arrivals or 0.0
    if not use_forecast:
        return level, "no forecast"
    trend = max(0.0, estimates.arrivals_trend - estimates.arrivals_noise)
    expected, basis = level + policy.trend_damping * trend * horizon, "trend"
    per_player = estimates.requests_per_player_second
    players = snapshot.fresh_players(policy)
    if players and per_player:
        by_players = players * per_player
        if by_players > expected:
            expected, basis = by_players, "players online"
    return min(expected, level * policy.maximum_forecast_growth), basis
