"""What a fleet source tells the router about model servers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ai_router.domain.tiers import Tier

__all__ = ["FleetView", "Readiness", "ServerReport"]


class Readiness(Enum):
    """What the source says about a server."""

    READY = "ready"
    STARTING = "starting"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerReport:
    """One model server as its source last saw it.

    Attributes:
        server_id: stable name, unique in the fleet.
        endpoint_url: base of its OpenAI-compatible API, without `/v1`.
        tier: the tier it serves.
        model: the model's name as requests must give it.
        readiness: what the source says it is doing.
        stale: the source has not heard of it for a while; the readings are its last.
        heard_at: when the source last heard of it, in the router's monotonic seconds.
        running_requests: requests in its batch; None when not known.
        waiting_requests: requests waiting in the server; None when not known.
        kv_cache_used_tokens: tokens in its KV cache; None when not known.
        kv_cache_capacity_tokens: tokens its KV cache holds; None when not known.
        interruption_at: when the cloud takes its host back (monotonic seconds); None without
            notice.
    """

    server_id: str
    endpoint_url: str
    tier: Tier
    model: str
    readiness: Readiness = Readiness.READY
    stale: bool = False
    heard_at: float = 0.0
    running_requests: int | None = None
    waiting_requests: int | None = None
    kv_cache_used_tokens: int | None = None
    kv_cache_capacity_tokens: int | None = None
    interruption_at: float | None = None


@dataclass(frozen=True, slots=True)
class FleetView:
    """All servers a source knows at one moment, at most one report per server id."""

    servers: tuple[ServerReport, ...] = ()
