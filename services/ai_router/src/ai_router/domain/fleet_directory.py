"""The servers this router may use: what the feed says of them joined with its own experience.

The feed says which servers exist. Whether one takes requests also depends on what the router itself
knows: its circuit breaker, drains asked for, an announced interruption. When the feed falls silent
the last view stays in force, so a dead collector takes no server away (static stability); a server
that died meanwhile is found out by its breaker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from ai_router.domain.circuit_breaker import BreakerPolicy, CircuitBreaker, CircuitState
from ai_router.domain.errors import UnknownServer
from ai_router.domain.fleet import FleetView, Readiness, ServerReport
from ai_router.domain.server_selection import ServerPool
from ai_router.domain.tiers import Tier, TierProfile

__all__ = ["DirectoryPolicy", "FleetDirectory", "ServerState", "ServerStatus"]

_MOST_SERVERS = 10_000
# Tokens assumed of another router's request when nothing tells: a short dialogue turn.
_UNKNOWN_REQUEST_TOKENS = 512


class ServerState(Enum):
    """Whether a server takes requests from this router."""

    READY = "ready"
    DRAINING = "draining"
    BROKEN = "broken"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryPolicy:
    """How much the feed's word is worth, and how failures are judged.

    Attributes:
        stale_use_seconds: a server silent to the collector is still used this long, on own
            evidence.
        feed_trust_seconds: load of others is taken from the feed only while it is at most this old.
        interruption_margin_seconds: this long before its host is taken back a server gets no more.
        breaker: when failing servers are left alone.
    """

    stale_use_seconds: float = 120.0
    feed_trust_seconds: float = 10.0
    interruption_margin_seconds: float = 60.0
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """One server as the router sees it now, with the reason for its state in a few words."""

    report: ServerReport
    state: ServerState
    reason: str
    running_requests: int
    running_tokens: int
    capacity_tokens: int


class _Known:
    __slots__ = (
        "breaker",
        "capacity",
        "drain_until",
        "earlier_peak",
        "foreign_tokens",
        "peak",
        "report",
    )

    def __init__(self, report: ServerReport, policy: BreakerPolicy) -> None:
        self.report = report
        self.breaker = CircuitBreaker(policy)
        self.capacity = 0
        self.drain_until: float | None = None
        self.foreign_tokens = 0
        # The most requests and tokens this router had on the server since its last reading, and in
        # the interval before: what a reading that is a second or two old may show of our own work.
        self.peak = (0, 0)
        self.earlier_peak = (0, 0)

    def own_at_most(self) -> tuple[int, int]:
        """Returns the most requests and tokens of our own that a reading may show."""
        (requests, tokens), (earlier_requests, earlier_tokens) = self.peak, self.earlier_peak
        return max(requests, earlier_requests), max(tokens, earlier_tokens)


class FleetDirectory:
    """Keeps one `ServerPool` per tier in step with the feed, drains and failures.

    Every method that takes `now` takes monotonic seconds that never go back.
    """

    def __init__(
        self,
        profiles: Mapping[Tier, TierProfile],
        policy: DirectoryPolicy,
        *,
        order_seed: int = 0,
    ) -> None:
        self._profiles = profiles
        self._policy = policy
        self._known: dict[str, _Known] = {}
        self._pools = {tier: ServerPool(order_seed) for tier in Tier}
        self._models: dict[Tier, frozenset[str]] = {tier: frozenset() for tier in Tier}
        self._applied_at: float | None = None
        self._next_change = float("inf")

    # From the feed

    def apply(self, view: FleetView, now: float) -> None:
        """Makes `view` the fleet: servers not in it get no more requests, running ones finish."""
        reports = {report.server_id: report for report in view.servers[:_MOST_SERVERS]}
        for server_id in [name for name in self._known if name not in reports]:
            self._pools[self._known.pop(server_id).report.tier].remove(server_id)
        for report in reports.values():
            self._adopt(report)
        for tier in Tier:
            models = frozenset(r.model for r in reports.values() if r.tier is tier)
            # The last known models stay: a cached answer outlives the tier's last server.
            self._models[tier] = models or self._models[tier]
        self._applied_at = now
        self._update_all(now)

    def feed_age_seconds(self, now: float) -> float | None:
        """Returns how old the view in force is; None when there was none yet."""
        return None if self._applied_at is None else max(0.0, now - self._applied_at)

    def confirm(self, now: float) -> None:
        """Takes in that the feed lives and nothing changed."""
        if self._applied_at is not None:
            self._applied_at = now

    # From the router's own work

    def assign(self, server_id: str, tier: Tier, tokens: int) -> None:
        """Counts a request on the server."""
        pool = self._pools[tier]
        pool.assign(server_id, tokens)
        known = self._known.get(server_id)
        if known is not None:
            requests, total = pool.running(server_id)
            known.peak = (max(known.peak[0], requests), max(known.peak[1], total))

    def release(self, server_id: str, tier: Tier, tokens: int) -> None:
        """Takes a request off the server again."""
        self._pools[tier].release(server_id, tokens)

    def record_success(self, server_id: str, started_at: float, now: float) -> None:
        """Takes in that the server answered a request begun at `started_at`."""
        known = self._known.get(server_id)
        if known is not None:
            closed = known.breaker.state(now) is CircuitState.CLOSED
            known.breaker.record_success(started_at)
            if not closed:
                self._update(known, now)

    def record_failure(self, server_id: str, now: float, *, unreachable: bool = False) -> None:
        """Takes in that the server failed a request."""
        known = self._known.get(server_id)
        if known is not None:
            known.breaker.record_failure(now, unreachable=unreachable)
            self._update(known, now)

    # From the operator and the autoscaler

    def drain(self, server_id: str, lease_seconds: float, now: float) -> int:
        """Stops new requests to the server until the lease ends; returns how many still run.

        Raises:
            UnknownServer: the feed shows no such server.
        """
        known = self._get(server_id)
        known.drain_until = now + lease_seconds
        self._update(known, now)
        return self._pools[known.report.tier].running(server_id)[0]

    def resume(self, server_id: str, now: float) -> ServerState:
        """Ends a drain and returns the server's state after that.

        Raises:
            UnknownServer: the feed shows no such server.
        """
        known = self._get(server_id)
        known.drain_until = None
        self._update(known, now)
        return self._judge(known, now)[0]

    # What it looks like

    def refresh(self, now: float) -> bool:
        """Lets what only time changes take effect; returns whether anything may have changed."""
        if now < self._next_change:
            return False
        self._update_all(now)
        return True

    def pool(self, tier: Tier) -> ServerPool:
        """Returns the tier's pool."""
        return self._pools[tier]

    def report(self, server_id: str) -> ServerReport:
        """Returns the latest report of a server that is in the fleet.

        Raises:
            UnknownServer: the feed shows no such server.
        """
        return self._get(server_id).report

    def models(self, tier: Tier) -> frozenset[str]:
        """Returns the models of the tier's servers, or of its last ones when it has none now."""
        return self._models[tier]

    def statuses(self, tier: Tier, now: float) -> Iterator[ServerStatus]:
        """Yields the tier's servers ordered by id."""
        for server_id in sorted(self._known):
            known = self._known[server_id]
            if known.report.tier is not tier:
                continue
            state, reason = self._judge(known, now)
            requests, tokens = self._pools[tier].running(server_id)
            yield ServerStatus(
                report=known.report,
                state=state,
                reason=reason,
                running_requests=requests,
                running_tokens=tokens,
                capacity_tokens=known.capacity,
            )

    # Inside

    def _get(self, server_id: str) -> _Known:
        known = self._known.get(server_id)
        if known is None:
            raise UnknownServer(
                "no model server of that name is in the fleet; ListTiers shows those that are",
                metadata={"server_id": server_id},
            )
        return known

    def _adopt(self, report: ServerReport) -> None:
        known = self._known.get(report.server_id)
        if known is not None and known.report == report:
            return
        if known is None:
            known = self._known[report.server_id] = _Known(report, self._policy.breaker)
        elif known.report.tier is not report.tier:
            self._pools[known.report.tier].remove(report.server_id)
        elif known.report.endpoint_url != report.endpoint_url:
            # Another process behind the same name: what the old one did is no evidence.
            known.breaker = CircuitBreaker(self._policy.breaker)
        known.report = report
        profile = self._profiles[report.tier]
        kv_capacity = report.kv_cache_capacity_tokens
        known.capacity = min(profile.capacity_tokens, kv_capacity or profile.capacity_tokens)
        self._pools[report.tier].put(
            report.server_id, known.capacity, profile.request_limit, eligible=False
        )
        known.foreign_tokens = self._measure_foreign(known)
        pool = self._pools[report.tier]
        known.earlier_peak, known.peak = known.peak, pool.running(report.server_id)

    def _update_all(self, now: float) -> None:
        self._next_change = float("inf")
        for known in self._known.values():
            self._update(known, now)

    def _update(self, known: _Known, now: float) -> None:
        report = known.report
        pool = self._pools[report.tier]
        state, _ = self._judge(known, now)
        probing = known.breaker.state(now) is CircuitState.PROBING
        limit = 1 if probing else self._profiles[report.tier].request_limit
        pool.set_request_limit(report.server_id, limit)
        age = self.feed_age_seconds(now)
        trusted = age is not None and age <= self._policy.feed_trust_seconds and not report.stale
        pool.set_foreign_tokens(report.server_id, known.foreign_tokens if trusted else 0)
        pool.set_eligible(report.server_id, state is ServerState.READY)
        self._next_change = min(self._next_change, self._changes_at(known, now))

    def _judge(self, known: _Known, now: float) -> tuple[ServerState, str]:
        report, policy = known.report, self._policy
        if known.drain_until is not None and now < known.drain_until:
            return ServerState.DRAINING, "a drain was asked for"
        if (
            report.interruption_at is not None
            and now >= report.interruption_at - policy.interruption_margin_seconds
        ):
            return ServerState.DRAINING, "the cloud takes its host back soon"
        if report.readiness is Readiness.STARTING:
            return ServerState.UNAVAILABLE, "it is starting"
        if report.readiness is Readiness.UNHEALTHY:
            return ServerState.UNAVAILABLE, "its agent reports it unhealthy"
        if report.stale and now - report.heard_at > policy.stale_use_seconds:
            return ServerState.UNAVAILABLE, "nothing was heard of it for too long"
        circuit = known.breaker.state(now)
        if circuit is CircuitState.OPEN:
            return ServerState.BROKEN, "it failed lately and is left alone for a moment"
        if circuit is CircuitState.PROBING:
            return ServerState.READY, "it failed lately and is tried with one request"
        return ServerState.READY, "it takes requests"

    def _changes_at(self, known: _Known, now: float) -> float:
        report, policy = known.report, self._policy
        moments = [known.drain_until, known.breaker.retry_at]
        if report.interruption_at is not None:
            moments.append(report.interruption_at - policy.interruption_margin_seconds)
        if report.stale:
            moments.append(report.heard_at + policy.stale_use_seconds)
        if self._applied_at is not None:
            moments.append(self._applied_at + policy.feed_trust_seconds)
        ahead = (moment for moment in moments if moment is not None and moment > now)
        return min(ahead, default=float("inf"))

    def _measure_foreign(self, known: _Known) -> int:
        """Returns tokens of others: what a reading shows beyond the most we had there lately."""
        report = known.report
        requests, tokens = self._pools[report.tier].running(report.server_id)
        own_requests, own_tokens = known.own_at_most()
        if report.running_requests is None:
            if report.kv_cache_used_tokens is None:
                return 0
            return max(0, report.kv_cache_used_tokens - own_tokens)
        seen = report.running_requests + (report.waiting_requests or 0)
        others = max(0, seen - own_requests)
        if others and report.kv_cache_used_tokens and report.running_requests:
            return others * max(1, report.kv_cache_used_tokens // report.running_requests)
        return others * (tokens // requests if requests else _UNKNOWN_REQUEST_TOKENS)
