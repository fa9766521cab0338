"""Snapshots and policies with sensible values, of which a test names only those it is about."""

from typing import Any

from autoscaler.domain.policy import LatencySignal, TierPolicy
from autoscaler.domain.snapshot import Demand, FleetLoad, Instance, InstancePhase, TierSnapshot
from autoscaler.domain.tiers import Tier

__all__ = ["START", "build_demand", "build_instance", "build_policy", "build_tier_snapshot"]

START = 1_800_000_000.0
"""Unix seconds at which tests begin."""


def build_policy(**changes: Any) -> TierPolicy:
    """Return a Gold policy: 10,000 tokens a server filled to 70 %, 600 tokens and 3 s a request."""
    values: dict[str, Any] = {
        "tier": Tier.GOLD,
        "minimum": 0,
        "maximum": 50,
        "default_capacity_tokens": 10_000.0,
        "default_tokens_per_request": 600.0,
        "default_residence_seconds": 3.0,
        "latency_signal": LatencySignal.INTER_TOKEN,
        "latency_target_seconds": 0.016,
        "unloaded_latency_seconds": 0.009,
        "start_seconds": 120.0,
    }
    return TierPolicy(**(values | changes))


def build_instance(number: int = 0, **changes: Any) -> Instance:
    """Return a ready On-Demand instance."""
    values: dict[str, Any] = {
        "instance_id": f"i-{number:04d}",
        "phase": InstancePhase.READY,
        "launch_time": START - 3600,
        "phase_age_seconds": 3000.0,
        "usd_per_hour": 1.006,
        "server_ids": (f"gold-{number}",),
    }
    return Instance(**(values | changes))


def build_demand(tokens: int = 0, **changes: Any) -> Demand:
    """Return demand with `tokens` in flight and the arrivals that go with it by Little's law."""
    rate = tokens / (600.0 * 3.0)
    values: dict[str, Any] = {
        "running_requests": round(tokens / 600),
        "queued_requests": 0,
        "running_tokens": tokens,
        "queued_tokens": 0,
        "arrivals_per_second": rate,
        "arrived_tokens_per_second": rate * 600.0,
        "shed_per_second": 0.0,
        "completed_per_second": rate,
    }
    return Demand(**(values | changes))


def build_tier_snapshot(servers: int = 0, tokens: int = 0, **changes: Any) -> TierSnapshot:
    """Return a Gold tier with ready servers, fresh inputs, a database and no override."""
    values: dict[str, Any] = {
        "tier": Tier.GOLD,
        "group_desired": servers,
        "group_minimum": 0,
        "group_maximum": 100,
        "instances": tuple(build_instance(n) for n in range(servers)),
        "group_age_seconds": 0.0,
        "demand": build_demand(tokens),
        "demand_age_seconds": 1.0,
        "fleet": FleetLoad(
            running_requests=0, waiting_requests=0, reporting_servers=servers, latency=None
        ),
        "fleet_age_seconds": 1.0,
        "players_online": None,
        "players_age_seconds": None,
        "override": None,
        "database_reachable": True,
        "usd_per_hour_per_server": 1.006,
    }
    return TierSnapshot(**(values | changes))
