"""What is set per tier of model servers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from servicekit.settings import setting

__all__ = ["BronzeSettings", "GoldSettings", "SilverSettings", "TierSettings"]


def _tier(tier: str, name: str, default: Any, meaning: str, *, minimum: float | None = None) -> Any:
    return setting(
        f"AUTOSCALER_{tier}_{name}", default=default, help=f"{tier}: {meaning}", minimum=minimum
    )


# By simulation of the reference hosts (g5.xlarge, g5.2xlarge, c5.4xlarge) with short dialogue: the
# mean tokens in flight at the load where P95 just meets the tier's target. The router's limit per
# server is the peak (P95) at the same load, about twice as much.
_CAPACITY = "mean tokens in flight one server carries within its latency target, until measured"
_RESIDENCE = "how long a request runs without queueing, until measured"
_START = "from asking for a server until it takes requests, until measured"
_UNLOADED = "the same latency on an idle server"


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldSettings:
    """Gold: 3B model, at most 16 ms per token at P95 (9 measured on an idle server)."""

    group: str = _tier("GOLD", "GROUP", "gamekeeper-gold", "Auto Scaling group")
    instance_type: str = _tier("GOLD", "INSTANCE_TYPE", "g5.xlarge", "type that is priced")
    minimum: int = _tier("GOLD", "MINIMUM", 1, "least servers", minimum=0)
    maximum: int = _tier("GOLD", "MAXIMUM", 50, "most servers", minimum=0)
    capacity_tokens: float = _tier("GOLD", "CAPACITY_TOKENS", 4_000.0, _CAPACITY, minimum=1)
    tokens_per_request: float = _tier(
        "GOLD", "TOKENS_PER_REQUEST", 600.0, "tokens of a request, until measured", minimum=1
    )
    residence_seconds: float = _tier("GOLD", "RESIDENCE_SECONDS", 3.0, _RESIDENCE, minimum=0.01)
    latency_target_seconds: float = _tier(
        "GOLD", "LATENCY_TARGET_SECONDS", 0.016, "P95 time between tokens", minimum=0.0001
    )
    unloaded_latency_seconds: float = _tier(
        "GOLD", "UNLOADED_LATENCY_SECONDS", 0.009, _UNLOADED, minimum=0.0001
    )
    start_seconds: float = _tier("GOLD", "START_SECONDS", 120.0, _START, minimum=0.1)
    budget_floor: int = _tier(
        "GOLD", "BUDGET_FLOOR", 3, "servers the budget always allows", minimum=0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SilverSettings:
    """Silver: 7B model, first token within 250 ms at P95."""

    group: str = _tier("SILVER", "GROUP", "gamekeeper-silver", "Auto Scaling group")
    instance_type: str = _tier("SILVER", "INSTANCE_TYPE", "g5.2xlarge", "type that is priced")
    minimum: int = _tier("SILVER", "MINIMUM", 1, "least servers", minimum=0)
    maximum: int = _tier("SILVER", "MAXIMUM", 30, "most servers", minimum=0)
    capacity_tokens: float = _tier("SILVER", "CAPACITY_TOKENS", 5_000.0, _CAPACITY, minimum=1)
    tokens_per_request: float = _tier(
        "SILVER", "TOKENS_PER_REQUEST", 700.0, "tokens of a request, until measured", minimum=1
    )
    residence_seconds: float = _tier("SILVER", "RESIDENCE_SECONDS", 7.0, _RESIDENCE, minimum=0.01)
    latency_target_seconds: float = _tier(
        "SILVER", "LATENCY_TARGET_SECONDS", 0.25, "P95 time to first token", minimum=0.0001
    )
    unloaded_latency_seconds: float = _tier(
        "SILVER", "UNLOADED_LATENCY_SECONDS", 0.12, _UNLOADED, minimum=0.0001
    )
    start_seconds: float = _tier("SILVER", "START_SECONDS", 150.0, _START, minimum=0.1)
    budget_floor: int = _tier(
        "SILVER", "BUDGET_FLOOR", 2, "servers the budget always allows", minimum=0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BronzeSettings:
    """Bronze: large or CPU model, an answer within seconds; at zero unless somebody asks."""

    group: str = _tier("BRONZE", "GROUP", "gamekeeper-bronze", "Auto Scaling group")
    instance_type: str = _tier("BRONZE", "INSTANCE_TYPE", "c5.4xlarge", "type that is priced")
    minimum: int = _tier("BRONZE", "MINIMUM", 0, "least servers", minimum=0)
    maximum: int = _tier("BRONZE", "MAXIMUM", 8, "most servers", minimum=0)
    capacity_tokens: float = _tier("BRONZE", "CAPACITY_TOKENS", 1_500.0, _CAPACITY, minimum=1)
    tokens_per_request: float = _tier(
        "BRONZE", "TOKENS_PER_REQUEST", 600.0, "tokens of a request, until measured", minimum=1
    )
    residence_seconds: float = _tier("BRONZE", "RESIDENCE_SECONDS", 30.0, _RESIDENCE, minimum=0.01)
    latency_target_seconds: float = _tier(
        "BRONZE", "LATENCY_TARGET_SECONDS", 20.0, "P95 time to first token", minimum=0.0001
    )
    unloaded_latency_seconds: float = _tier(
        "BRONZE", "UNLOADED_LATENCY_SECONDS", 6.0, _UNLOADED, minimum=0.0001
    )
    start_seconds: float = _tier("BRONZE", "START_SECONDS", 120.0, _START, minimum=0.1)
    budget_floor: int = _tier(
        "BRONZE", "BUDGET_FLOOR", 1, "servers the budget always allows", minimum=0
    )


TierSettings = GoldSettings | SilverSettings | BronzeSettings
