"""Names of this service's metrics; dashboards and alarms use these."""

from __future__ import annotations

__all__ = [
    "CACHE_HITS",
    "CACHE_STORED_BYTES",
    "FLEET_AGE_SECONDS",
    "QUEUED_REQUESTS",
    "RUNNING_REQUESTS",
    "SERVERS",
    "SHED_LAST_MINUTE",
    "TTFT_P95",
]

QUEUED_REQUESTS = "ai_router.queued_requests"
RUNNING_REQUESTS = "ai_router.running_requests"
SERVERS = "ai_router.servers"
SHED_LAST_MINUTE = "ai_router.shed_last_minute"
TTFT_P95 = "ai_router.time_to_first_token_p95"
FLEET_AGE_SECONDS = "ai_router.fleet_age"
CACHE_HITS = "ai_router.cache_hits"
CACHE_STORED_BYTES = "ai_router.cache_stored"
