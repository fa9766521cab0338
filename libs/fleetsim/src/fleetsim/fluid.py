"""The fleet as flows: arrivals, capacity and queues as rates, one numpy step per control interval.

Where the per-request simulation follows 1.8 million requests, this follows a handful of numbers
per tier, so a month costs a second or two. It answers questions about sizes, cost and shedding over
long times; for percentiles, tails and routing use `simulation`.

Per step and tier: requests arrive at the curve's rate; ready servers finish at most what they
sustain with a full batch (see `most_requests_per_second`); the rest queues, up to a bound, beyond
which it is shed. Time per token is that of the batch which the flow implies by Little's law. A
launched server counts after its expected start-up time, launch latency and cold start together;
a removed one is billed until the step's end. No randomness unless arrivals are over-dispersed.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fleetsim.arrivals import ArrivalProcess
from fleetsim.cloud_state import CloudSettings
from fleetsim.instance_types import INSTANCE_TYPES, Market
from fleetsim.profiles import ModelServerProfile
from fleetsim.scaling import (
    FleetObservation,
    ObservedServer,
    ScalingPolicy,
    ServerPhase,
    TierObservation,
)
from fleetsim.simulation_settings import SimulationSettings

__all__ = ["FluidResult", "FluidSimulation", "FluidTier", "most_requests_per_second"]

_QUEUE_PER_TIER = 100.0


def most_requests_per_second(
    profile: ModelServerProfile, *, uncached_tokens: float, context_tokens: float, output: float
) -> float:
    """Return the throughput of a server whose batch is full, in requests per second.

    A full batch of n gives n tokens a step; prefill takes its share of the time. Memory may hold
    fewer sequences than the batch allows.
    """
    fit = profile.kv_cache_capacity_tokens / max(context_tokens, 1.0)
    batch = min(float(profile.max_running_sequences), fit)
    step = profile.step_seconds(0, batch * context_tokens)
    step += profile.step_per_sequence_seconds * batch
    return 1.0 / (output * step / batch + uncached_tokens / profile.prefill_tokens_per_second)


@dataclass(frozen=True, eq=False, slots=True)
class FluidTier:
    """One tier over time, one entry per step."""

    desired: NDArray[np.float64]
    ready: NDArray[np.float64]
    arrivals_per_second: NDArray[np.float64]
    served_per_second: NDArray[np.float64]
    shed_per_second: NDArray[np.float64]
    queued: NDArray[np.float64]
    seconds_per_token: NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class FluidResult:
    """A finished run; `times` are the ends of the steps."""

    times: NDArray[np.float64]
    players: NDArray[np.float64]
    cost_usd: NDArray[np.float64]
    tiers: Mapping[str, FluidTier]

    def run_hash(self) -> str:
        """Return a SHA-256 over every number of the run."""
        digest = hashlib.sha256()
        for values in (self.times, self.players, self.cost_usd):
            digest.update(values.tobytes())
        for name in sorted(self.tiers):
            tier = self.tiers[name]
            for column in (tier.desired, tier.ready, tier.served_per_second, tier.queued):
                digest.update(column.tobytes())
        return digest.hexdigest()


@dataclass(slots=True)
class _Flow:
    """One tier's present: servers in service, servers on their way, the queue, the batch."""

    profile: ModelServerProfile
    min_size: int
    max_size: int
    uncached_tokens: float
    context_tokens: float
    output_tokens: float
    prompt_tokens: float
    start_seconds: float
    capacity: float
    ready: int
    pending: list[float] = field(default_factory=list)
    queue: float = 0.0
    running: float = 0.0
    served: float = 0.0
    shed: float = 0.0
    arrivals: float = 0.0
    per_token: float = math.nan

    @property
    def desired(self) -> int:
        return self.ready + len(self.pending)

    def resize(self, now: float, size: int) -> None:
        size = min(max(size, self.min_size), self.max_size)
        while self.desired > size and self.pending:
            self.pending.pop()
        self.ready = min(self.ready, size)
        self.pending += [now + self.start_seconds] * (size - self.desired)

    def step(self, now: float, seconds: float, arrivals: float) -> None:
        self.ready += sum(1 for t in self.pending if t <= now)
        self.pending = [t for t in self.pending if t > now]
        self.arrivals = arrivals
        offered = arrivals + self.queue / seconds
        self.served = min(offered, self.ready * self.capacity)
        backlog = max(0.0, offered - self.served) * seconds
        self.queue = min(backlog, _QUEUE_PER_TIER)
        self.shed = (backlog - self.queue) / seconds
        self.running, self.per_token = self._batch()

    def _batch(self) -> tuple[float, float]:
        """Solve batch and time per token together: a larger batch is slower, hence larger."""
        if not self.ready or not self.served:
            return 0.0, math.nan
        rate = self.served / self.ready
        profile = self.profile
        busy = min(0.99, rate * self.uncached_tokens / profile.prefill_tokens_per_second)
        per_sequence = profile.step_per_sequence_seconds
        per_sequence += profile.step_per_kv_token_seconds * self.context_tokens
        # batch = rate * output * per_token and per_token = (base + batch * per_sequence) / idle
        # are linear in each other.
        slope = rate * self.output_tokens * per_sequence / (1 - busy)
        base = profile.step_base_seconds / (1 - busy)
        per_token = base / (1 - slope) if slope < 1 else math.inf
        batch = min(rate * self.output_tokens * per_token, float(profile.max_running_sequences))
        slowest = (profile.step_base_seconds + batch * per_sequence) / (1 - busy)
        return batch * self.ready, min(per_token, slowest)


class FluidSimulation:
    """One run as flows. The scaling policy is the same port the per-request simulation uses.

    `lengths_sample` requests are drawn once to learn the mean lengths of the arrival process.
    """

    def __init__(
        self,
        *,
        arrivals: ArrivalProcess,
        scaler: ScalingPolicy,
        seed: int,
        settings: SimulationSettings | None = None,
        lengths_sample: int = 20_000,
    ) -> None:
        self.settings = settings or SimulationSettings()
        self._arrivals = arrivals
        self._scaler = scaler
        self._rng = np.random.default_rng(seed)
        lengths = arrivals.lengths
        prompt = float(lengths.prompt.draw(self._rng, lengths_sample).mean())
        output = float(lengths.output.draw(self._rng, lengths_sample).mean())
        uncached = max(1.0, prompt - lengths.shared_prompt_tokens)
        self._flows = {
            tier: _flow(self.settings, tier, prompt, uncached, output)
            for tier in arrivals.mix.tiers
        }
        self._shares = dict(
            zip(arrivals.mix.tiers, arrivals.mix.probabilities().tolist(), strict=True)
        )

    def run(self) -> FluidResult:
        """Run to the end and return the series."""
        interval = self.settings.control_interval_seconds
        steps = round(self.settings.duration_seconds / interval)
        times = np.arange(1, steps + 1, dtype=np.float64) * interval
        players = np.asarray(self._arrivals.players.players_at(times - interval / 2))
        rates = players * self._arrivals.requests_per_player_per_second
        if self._arrivals.index_of_dispersion > 1:
            rates = self._disperse(rates, interval)
        rows = {tier: np.zeros((steps, 7)) for tier in self._flows}
        cost = np.zeros(steps)
        spent = 0.0
        for index in range(steps):
            now = float(times[index])
            for tier, flow in self._flows.items():
                flow.step(now, interval, float(rates[index]) * self._shares[tier])
                spent += flow.desired * _usd_per_hour(flow.profile) * interval / 3600
            observation = self._observe(now, interval, int(players[index]))
            for tier, order in self._scaler.decide(observation).items():
                self._flows[tier].resize(now, order.desired)
            for tier, flow in self._flows.items():
                rows[tier][index] = (
                    *(flow.desired, flow.ready, flow.arrivals, flow.served),
                    *(flow.shed, flow.queue, flow.per_token),
                )
            cost[index] = spent
        tiers = {tier: FluidTier(*columns.T.copy()) for tier, columns in rows.items()}
        return FluidResult(times, players, cost, tiers)

    def _disperse(self, rates: NDArray[np.float64], interval: float) -> NDArray[np.float64]:
        excess = self._arrivals.index_of_dispersion - 1
        shape = np.maximum(rates * interval / excess, 1e-9)
        return np.asarray(self._rng.gamma(shape, excess) / interval, dtype=np.float64)

    def _observe(self, now: float, interval: float, players: int) -> FleetObservation:
        tiers = {tier: _observe(flow, tier) for tier, flow in self._flows.items()}
        return FleetObservation(now, interval, players, tiers)


def _flow(
    settings: SimulationSettings, tier: str, prompt: float, uncached: float, output: float
) -> _Flow:
    tier_settings = settings.tiers[tier]
    profile = tier_settings.profile
    context = prompt + output / 2
    capacity = most_requests_per_second(
        profile, uncached_tokens=uncached, context_tokens=context, output=output
    )
    cloud: CloudSettings = settings.cloud
    return _Flow(
        profile=profile,
        min_size=tier_settings.min_size,
        max_size=tier_settings.max_size,
        uncached_tokens=uncached,
        context_tokens=context,
        output_tokens=output,
        prompt_tokens=prompt,
        start_seconds=cloud.launch_median_seconds + profile.cold_start.median_seconds,
        capacity=capacity,
        ready=max(tier_settings.start_size, tier_settings.min_size),
    )


def _usd_per_hour(profile: ModelServerProfile) -> float:
    return INSTANCE_TYPES[profile.instance_type].usd_per_hour(Market.ON_DEMAND)


def _observe(flow: _Flow, tier: str) -> TierObservation:
    running = round(flow.running / flow.ready) if flow.ready else 0
    tokens = round(running * flow.context_tokens)
    usage = min(1.0, tokens / flow.profile.kv_cache_capacity_tokens)
    ready = tuple(
        ObservedServer(f"{tier}-{n}", ServerPhase.READY, 0.0, running, 0, tokens, usage, None)
        for n in range(flow.ready)
    )
    pending = tuple(
        ObservedServer(
            f"{tier}-pending-{n}", ServerPhase.PENDING, at - flow.start_seconds, 0, 0, 0, 0.0, None
        )
        for n, at in enumerate(flow.pending)
    )
    request_tokens = flow.prompt_tokens + flow.output_tokens
    return TierObservation(
        tier=tier,
        group_desired=flow.desired,
        group_minimum=flow.min_size,
        group_maximum=flow.max_size,
        servers=ready + pending,
        arrivals_per_second=flow.arrivals,
        arrived_tokens_per_second=flow.arrivals * request_tokens,
        finished_per_second=flow.served,
        shed_per_second=flow.shed,
        queued=round(flow.queue),
        queued_tokens=round(flow.queue * request_tokens),
        time_to_first_token_p95_seconds=None,
        time_per_token_p95_seconds=None if math.isnan(flow.per_token) else flow.per_token,
        usd_per_hour_per_server=_usd_per_hour(flow.profile),
    )
