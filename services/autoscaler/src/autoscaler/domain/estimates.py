"""What is learned from watching a tier: demand levels, trends, capacity and start-up time.

All averages are exponential in time: a sample that stands for `dt` seconds moves the average by
1 - exp(-dt / time constant), so an irregular pace changes nothing.
"""

import math
from dataclasses import dataclass, replace

from autoscaler.domain.latency import quantile_seconds
from autoscaler.domain.policy import TierPolicy
from autoscaler.domain.snapshot import Demand, InstancePhase, TierSnapshot

__all__ = ["Estimates", "is_wanted", "moved", "observe", "raw_tokens"]

_QUANTILE = 0.95
_LEARNED_BOUNDS_RATIO = 4.0
_MINIMUM_RATE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """The learned numbers of one tier; None until the first sample."""

    observed_at: float | None = None
    tokens: float | None = None
    """Tokens in flight, smoothed."""
    arrivals: float | None = None
    """Requests per second, smoothed."""
    arrivals_fast: float | None = None
    """Requests per second over the last few seconds."""
    arrivals_trend: float = 0.0
    """Change of the arrival rate, requests per second and second."""
    arrivals_noise: float = 0.0
    """What chance alone moves the trend by: one standard deviation."""
    running: float | None = None
    completed_per_second: float | None = None
    tokens_per_request: float | None = None
    requests_per_player_second: float | None = None
    capacity_tokens: float | None = None
    latency_p95_seconds: float | None = None
    start_seconds: float | None = None
    idle_since: float | None = None
    """When the tier was last asked for, or first looked at."""
    pending_launch_times: tuple[tuple[str, float], ...] = ()
    """Instances seen pending with their launch times, to measure start-up."""

    def capacity(self, policy: TierPolicy) -> float:
        """Tokens in flight one server carries within the tier's target."""
        return (
            policy.default_capacity_tokens
            if self.capacity_tokens is None
            else (self.capacity_tokens)
        )

    def request_tokens(self, policy: TierPolicy) -> float:
        """Tokens of one request, prompt and output."""
        if self.tokens_per_request is None:
            return policy.default_tokens_per_request
        return self.tokens_per_request

    def residence_seconds(self, policy: TierPolicy) -> float:
        """How long a request runs: Little's law on what runs and what completes, bounded."""
        default = policy.default_residence_seconds
        if not self.running or not self.completed_per_second:
            return default
        if self.completed_per_second < _MINIMUM_RATE:
            return default
        return _within(self.running / self.completed_per_second, default, _LEARNED_BOUNDS_RATIO)

    def startup_seconds(self, policy: TierPolicy) -> float:
        """From asking for a server until it takes requests."""
        return policy.start_seconds if self.start_seconds is None else self.start_seconds


def moved(previous: float | None, sample: float, elapsed: float, time_constant: float) -> float:
    """Move an exponential average by a sample that stands for `elapsed` seconds."""
    if previous is None:
        return sample
    return previous + (1.0 - math.exp(-elapsed / time_constant)) * (sample - previous)


def observe(before: Estimates, snapshot: TierSnapshot, policy: TierPolicy, now: float) -> Estimates:
    """Return what is known after this snapshot; missing and stale readings teach nothing."""
    elapsed = 0.0 if before.observed_at is None else max(0.0, now - before.observed_at)
    after = replace(before, observed_at=now)
    after = _observe_demand(after, snapshot, policy, elapsed, now)
    after = _observe_capacity(after, snapshot, policy, elapsed)
    return _observe_start(after, snapshot, policy, now)


def raw_tokens(
    snapshot: TierSnapshot, policy: TierPolicy, tokens_per_request: float
) -> tuple[float, float]:
    """Tokens in flight as the routers count them and as the servers show them; stale counts 0."""
    demand, fleet = snapshot.fresh_demand(policy), snapshot.fresh_fleet(policy)
    routers = float(demand.running_tokens + demand.queued_tokens) if demand else 0.0
    servers = fleet.requests * tokens_per_request if fleet else 0.0
    return routers, servers


def is_wanted(snapshot: TierSnapshot, policy: TierPolicy) -> bool:
    """Whether anybody asks for the tier at this moment, as far as fresh readings tell."""
    demand, fleet = snapshot.fresh_demand(policy), snapshot.fresh_fleet(policy)
    return (demand is not None and demand.is_wanted) or (fleet is not None and fleet.requests > 0)


def _observe_demand(
    before: Estimates, snapshot: TierSnapshot, policy: TierPolicy, elapsed: float, now: float
) -> Estimates:
    demand, fleet = snapshot.fresh_demand(policy), snapshot.fresh_fleet(policy)
    after = before
    if demand is not None and demand.arrivals_per_second > 0:
        after = replace(
            after,
            tokens_per_request=_within(
                moved(
                    before.tokens_per_request or policy.default_tokens_per_request,
                    demand.arrived_tokens_per_second / demand.arrivals_per_second,
                    elapsed,
                    policy.learning_seconds,
                ),
                policy.default_tokens_per_request,
                _LEARNED_BOUNDS_RATIO,
            ),
        )
    routers, servers = raw_tokens(snapshot, policy, after.request_tokens(policy))
    if after.idle_since is None or is_wanted(snapshot, policy):
        after = replace(after, idle_since=now)
    if demand is None and fleet is None:
        return after
    after = replace(
        after, tokens=moved(before.tokens, max(routers, servers), elapsed, policy.smoothing_seconds)
    )
    if demand is None:
        return after
    return _observe_arrivals(after, demand, snapshot.fresh_players(policy), policy, elapsed)


def _observe_arrivals(
    before: Estimates, demand: Demand, players: int | None, policy: TierPolicy, elapsed: float
) -> Estimates:
    sample = demand.arrivals_per_second
    level = moved(before.arrivals, sample, elapsed, policy.smoothing_seconds)
    trend, noise = before.arrivals_trend, before.arrivals_noise
    if before.arrivals is not None and elapsed > 0:
        change = (level - before.arrivals) / elapsed
        trend = moved(trend, change, elapsed, policy.trend_seconds)
        # An exponential average over T of Poisson arrivals at rate r varies by sqrt(r / 2T).
        deviation = math.sqrt(before.arrivals / (2 * policy.smoothing_seconds))
        noise = deviation / policy.trend_seconds
    per_player = before.requests_per_player_second
    if players:
        per_player = moved(per_player, sample / players, elapsed, policy.learning_seconds)
    return replace(
        before,
        arrivals=level,
        arrivals_fast=moved(before.arrivals_fast, sample, elapsed, policy.fast_smoothing_seconds),
        arrivals_trend=trend,
        arrivals_noise=noise,
        running=moved(before.running, demand.running_requests, elapsed, policy.smoothing_seconds),
        completed_per_second=moved(
            before.completed_per_second,
            demand.completed_per_second,
            elapsed,
            policy.smoothing_seconds,
        ),
        requests_per_player_second=per_player,
    )


def _observe_capacity(
    before: Estimates, snapshot: TierSnapshot, policy: TierPolicy, elapsed: float
) -> Estimates:
    """Refine the capacity from latency at the load it was seen at.

    Between an idle server and its target the latency is taken for a line in the tokens in flight:
    the slope at the observed load tells where the line meets the target. Batched decoding is close
    to that (each step reads the weights once, and the KV cache of every sequence). Little load
    says nothing, so such readings are passed over.
    """
    fleet = snapshot.fresh_fleet(policy)
    if fleet is None or fleet.latency is None or fleet.reporting_servers == 0:
        return before
    if fleet.latency.observations < policy.capacity_minimum_observations:
        return before
    observed = quantile_seconds(fleet.latency, _QUANTILE)
    if observed is None:
        return before
    after = replace(before, latency_p95_seconds=observed)
    load = fleet.requests * before.request_tokens(policy) / fleet.reporting_servers
    default = policy.default_capacity_tokens
    if load < default * policy.capacity_minimum_load_ratio:
        return after
    slack = policy.latency_target_seconds - policy.unloaded_latency_seconds
    slope = (observed - policy.unloaded_latency_seconds) / load
    bound = policy.capacity_bounds_ratio
    measured = default * bound if slope <= 0 else _within(slack / slope, default, bound)
    return replace(
        after,
        capacity_tokens=_within(
            moved(before.capacity(policy), measured, elapsed, policy.learning_seconds),
            default,
            bound,
        ),
    )


def _observe_start(
    before: Estimates, snapshot: TierSnapshot, policy: TierPolicy, now: float
) -> Estimates:
    known = dict(before.pending_launch_times)
    pending: list[tuple[str, float]] = []
    estimate = before.start_seconds
    for instance in snapshot.instances:
        if instance.phase is InstancePhase.PENDING:
            pending.append((instance.instance_id, instance.launch_time))
        elif instance.phase is InstancePhase.READY and instance.instance_id in known:
            took = now - known[instance.instance_id]
            base = policy.start_seconds if estimate is None else estimate
            # One start tells much and proves little: a third of the way.
            estimate = _within(base + (took - base) / 3, policy.start_seconds, 4.0)
    return replace(before, start_seconds=estimate, pending_launch_times=tuple(pending))


def _within(value: float, default: float, ratio: float) -> float:
    return min(max(value, default / ratio), default * ratio)
