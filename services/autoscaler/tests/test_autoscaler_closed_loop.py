"""The control law against a small model of a tier: what it decides changes what it sees."""

import math
import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from autoscaler.domain.control_state import ControlState
from autoscaler.domain.decide import decide
from autoscaler.domain.policy import TierPolicy
from autoscaler.domain.snapshot import Demand, FleetLoad, Instance, InstancePhase, TierSnapshot
from autoscaler.testing.builders import START, build_policy, build_tier_snapshot

TOKENS, RESIDENCE, CAPACITY, TICK = 600, 3.0, 10_000.0, 5.0


@dataclass
class Tier:
    """Servers that take `start_seconds` to start and carry so many tokens each.

    Work above what ready servers carry waits; it is served when there is room again.
    """

    policy: TierPolicy
    start_seconds: float = 90.0
    seed: int = 1
    launched: dict[str, float] = field(default_factory=dict)
    number: int = 0
    backlog: float = 0.0
    state: ControlState = field(default_factory=ControlState)
    now: float = START
    sizes: list[int] = field(default_factory=list)
    ready_sizes: list[int] = field(default_factory=list)
    overloaded_ticks: int = 0
    server_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.noise = random.Random(self.seed)  # noqa: S311 - a model's noise, no secret

    def resize(self, size: int) -> None:
        while len(self.launched) < size:
            self.number += 1
            self.launched[f"i-{self.number:04d}"] = self.now

    def run(self, seconds: float, rate_at: Any) -> None:
        end = self.now + seconds
        while self.now < end:
            self.tick(rate_at(self.now - START))

    def tick(self, rate: float) -> None:
        self.now += TICK
        count = self.noise.gauss(rate * TICK, math.sqrt(max(rate * TICK, 1e-9)))
        arrivals = max(0.0, count) / TICK if rate > 0 else 0.0
        ready = [i for i, at in self.launched.items() if self.now - at >= self.start_seconds]
        room = len(ready) * CAPACITY / TOKENS  # requests at once
        inflight = arrivals * RESIDENCE + self.backlog
        running = min(inflight, room)
        # What waits now is what could not start; servers finish running / residence a second.
        self.backlog = max(0.0, self.backlog + (arrivals - running / RESIDENCE) * TICK)
        self.overloaded_ticks += self.backlog > 1
        self.server_seconds += len(self.launched) * TICK
        snapshot = self.look(ready, arrivals, running)
        decision, self.state = decide(snapshot, self.state, self.policy, self.now)
        for instance_id in decision.plan.drain_instance_ids:
            del self.launched[instance_id]
        self.resize(decision.desired)
        self.sizes.append(decision.desired)
        self.ready_sizes.append(len(ready))

    def look(self, ready: list[str], arrivals: float, running: float) -> TierSnapshot:
        instances = tuple(
            Instance(
                instance_id=i,
                phase=InstancePhase.READY if i in ready else InstancePhase.PENDING,
                launch_time=at,
                phase_age_seconds=self.now - at,
                usd_per_hour=1.0,
            )
            for i, at in self.launched.items()
        )
        demand = Demand(
            running_requests=round(running),
            queued_requests=round(self.backlog),
            running_tokens=round(running * TOKENS),
            queued_tokens=round(self.backlog * TOKENS),
            arrivals_per_second=arrivals,
            arrived_tokens_per_second=arrivals * TOKENS,
            shed_per_second=0.0,
            completed_per_second=running / RESIDENCE,
        )
        fleet = FleetLoad(
            running_requests=round(running),
            waiting_requests=0,
            reporting_servers=len(ready),
            latency=None,
        )
        return replace(
            build_tier_snapshot(),
            instances=instances,
            group_desired=len(instances),
            demand=demand,
            fleet=fleet,
        )


def seconds_until(sizes: list[int], wanted: int) -> float:
    return next(n for n, size in enumerate(sizes) if size >= wanted) * TICK


def test_from_nothing_to_ten_ready_servers_in_less_than_five_minutes() -> None:
    tier = Tier(build_policy())
    tier.run(600, lambda _: 39.0)  # 39 x 3 s x 600 tokens = 70,200: ten servers at 70 %
    assert seconds_until(tier.ready_sizes, 10) < 300


def test_from_ten_to_one_in_less_than_fifteen_minutes() -> None:
    tier = Tier(build_policy(minimum=1))
    tier.resize(10)
    tier.run(900, lambda _: 39.0)
    tier.sizes.clear()
    tier.run(900, lambda _: 0.5)
    assert tier.sizes[-1] == 1
    assert min(tier.sizes[:50]) >= 10  # not before the window has passed


def test_constant_noisy_load_is_not_followed_up_and_down() -> None:
    tier = Tier(build_policy())
    tier.run(1800, lambda _: 20.0)
    tier.sizes.clear()
    tier.overloaded_ticks = 0
    tier.run(7200, lambda _: 20.0)
    changes = sum(a != b for a, b in zip(tier.sizes, tier.sizes[1:], strict=False))
    assert changes <= 4
    assert tier.overloaded_ticks == 0
    assert max(tier.sizes) <= 1.5 * 20 * RESIDENCE * TOKENS / (CAPACITY * 0.7)


def test_an_evening_is_served_without_keeping_the_peak_all_night() -> None:
    """0 to 40 requests/s and back over four hours: capacity follows, and ends at zero."""

    def rate(seconds: float) -> float:
        return 40 * max(0.0, math.sin(math.pi * seconds / 14_400)) if seconds < 14_400 else 0.0

    tier = Tier(build_policy())
    tier.run(6 * 3600, rate)
    assert tier.sizes[-1] == 0
    assert tier.overloaded_ticks * TICK < 240  # the very first start, from zero
    ideal = sum(
        math.ceil(rate(n * TICK) * RESIDENCE * TOKENS / (CAPACITY * 0.7)) * TICK
        for n in range(int(6 * 3600 / TICK))
    )
    assert tier.server_seconds < 1.3 * ideal


def test_a_surge_is_answered_within_a_start_time() -> None:
    tier = Tier(build_policy())
    tier.run(1800, lambda _: 10.0)
    before = len(tier.sizes)
    tier.run(600, lambda _: 30.0)
    need = math.ceil(30 * RESIDENCE * TOKENS / (CAPACITY * 0.7))
    assert seconds_until(tier.sizes[before:], need - 1) <= 60
    assert seconds_until(tier.ready_sizes[before:], need - 1) <= 60 + 90 + TICK


def test_flapping_inputs_never_take_anything_away() -> None:
    tier = Tier(build_policy(minimum=1))
    tier.resize(6)
    stale = False

    original = tier.look

    def look(ready: Any, arrivals: Any, running: Any) -> Any:
        nonlocal stale
        stale = not stale
        snapshot = original(ready, arrivals, running)
        return replace(snapshot, demand_age_seconds=60.0) if stale else snapshot

    tier.look = look  # type: ignore[method-assign]  # the test's own model
    tier.run(3600, lambda _: 0.5)
    assert min(tier.sizes) == 6


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_start_up_time_is_measured(seed: Any) -> None:
    tier = Tier(build_policy(start_seconds=120.0), start_seconds=60.0, seed=seed)
    tier.run(600, lambda s: 5.0 if s < 300 else 30.0)
    measured = tier.state.estimates.start_seconds
    assert measured is not None
    assert measured < 100.0
