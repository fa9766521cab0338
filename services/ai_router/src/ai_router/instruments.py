"""The router's gauges, read at each export."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ai_router import metric_names as names
from ai_router.domain.tiers import Tier
from ai_router.router import Router
from servicekit.clock import Clock
from servicekit.telemetry import Telemetry

__all__ = ["register_instruments"]

_Values = Iterable[tuple[float, dict[str, str]]]


def register_instruments(telemetry: Telemetry, router: Router, clock: Clock) -> None:
    """Registers a gauge for everything that dashboards and alarms look at."""
    desk, cache = router.desk, router.cache

    def per_tier(value: dict[Tier, float]) -> _Values:
        return [(number, {"tier": tier.name.lower()}) for tier, number in value.items()]

    def servers() -> _Values:
        now = clock.monotonic()
        counts = Counter(
            (tier.name.lower(), status.state.value)
            for tier in Tier
            for status in desk.directory.statuses(tier, now)
        )
        return [(n, {"tier": tier, "state": state}) for (tier, state), n in counts.items()]

    def running() -> _Values:
        now = clock.monotonic()
        return per_tier(
            {t: sum(s.running_requests for s in desk.directory.statuses(t, now)) for t in Tier}
        )

    def first_token() -> _Values:
        now = clock.monotonic()
        measured = {t: desk.activity[t].summary(now).first_token_p95_seconds for t in Tier}
        return per_tier({tier: p95 for tier, p95 in measured.items() if p95 is not None})

    def shed() -> _Values:
        now = clock.monotonic()
        return per_tier({tier: desk.activity[tier].summary(now).shed for tier in Tier})

    def fleet_age() -> _Values:
        age = router.fleet_age_seconds()
        return [] if age is None else [(age, {})]

    gauges = [
        (
            names.QUEUED_REQUESTS,
            "{request}",
            "Requests that wait for a server.",
            lambda: per_tier({tier: len(desk.queued(tier)) for tier in Tier}),
        ),
        (names.RUNNING_REQUESTS, "{request}", "Requests on the tier's servers.", running),
        (names.SERVERS, "{server}", "Model servers by state.", servers),
        (names.SHED_LAST_MINUTE, "{request}", "Requests turned away in a minute.", shed),
        (names.TTFT_P95, "s", "Time to first token at P95.", first_token),
        (names.FLEET_AGE_SECONDS, "s", "Age of the fleet view in force.", fleet_age),
        (
            names.CACHE_HITS,
            "{request}",
            "Requests answered from the cache.",
            lambda: [(float(cache.hits), {})],
        ),
        (
            names.CACHE_STORED_BYTES,
            "By",
            "Room that cached answers take.",
            lambda: [(float(cache.stored_bytes), {})],
        ),
    ]
    for name, unit, description, read in gauges:
        telemetry.gauge(name, read, unit=unit, description=description)
