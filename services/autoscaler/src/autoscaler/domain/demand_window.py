"""Demand of several routers over the last seconds, each with its age."""

from collections import deque
from dataclasses import dataclass

from autoscaler.domain.snapshot import Demand
from autoscaler.domain.tiers import TIERS, Tier

__all__ = ["DemandInterval", "DemandView", "DemandWindow", "TierCounts"]

_MAXIMUM_INTERVALS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TierCounts:
    """What one router counted of one tier: counts over the interval, gauges at its end."""

    arrived_requests: int = 0
    arrived_tokens: int = 0
    shed_requests: int = 0
    completed_requests: int = 0
    running_requests: int = 0
    running_tokens: int = 0
    queued_requests: int = 0
    queued_tokens: int = 0


_NOTHING = TierCounts()


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandInterval:
    """One router's report; `received_time` is Unix seconds by our own clock."""

    duration_seconds: float
    received_time: float
    tiers: dict[Tier, TierCounts]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandView:
    """Demand per tier, and how old the oldest router's report is (None: one never reported)."""

    tiers: dict[Tier, Demand]
    age_seconds: float | None
    router_ages_seconds: dict[str, float | None]


class DemandWindow:
    """Rates over the last seconds per router; memory is bounded by time and by count.

    A router silent for longer than `forget_seconds` no longer adds to the sums: what it last said
    would otherwise be counted for ever. It still makes the whole view old, so nothing is taken
    away on the strength of the rest.
    """

    def __init__(
        self, routers: tuple[str, ...], *, window_seconds: float, forget_seconds: float
    ) -> None:
        self._window_seconds = window_seconds
        self._forget_seconds = forget_seconds
        self._intervals: dict[str, deque[DemandInterval]] = {
            router: deque(maxlen=_MAXIMUM_INTERVALS) for router in routers
        }

    def add(self, router: str, interval: DemandInterval) -> None:
        """Take in a report of one of the configured routers."""
        intervals = self._intervals[router]
        intervals.append(interval)
        while intervals[0].received_time < interval.received_time - self._window_seconds:
            intervals.popleft()

    def view(self, now: float) -> DemandView:
        """Return the sums over all routers as of now."""
        ages = {
            router: (max(0.0, now - intervals[-1].received_time) if intervals else None)
            for router, intervals in self._intervals.items()
        }
        current = [
            list(intervals)
            for router, intervals in self._intervals.items()
            if (age := ages[router]) is not None and age <= self._forget_seconds
        ]
        known = [age for age in ages.values() if age is not None]
        oldest = max(known) if known and len(known) == len(ages) else None
        return DemandView(
            tiers={tier: _sum(tier, current) for tier in TIERS} if known else {},
            age_seconds=oldest,
            router_ages_seconds=ages,
        )


def _sum(tier: Tier, routers: list[list[DemandInterval]]) -> Demand:
    running = queued = running_tokens = queued_tokens = 0
    arrivals = tokens = shed = completed = 0.0
    for intervals in routers:
        latest = intervals[-1].tiers.get(tier, _NOTHING)
        running += latest.running_requests
        queued += latest.queued_requests
        running_tokens += latest.running_tokens
        queued_tokens += latest.queued_tokens
        seconds = sum(i.duration_seconds for i in intervals)
        if seconds <= 0:
            continue
        counts = [i.tiers.get(tier, _NOTHING) for i in intervals]
        arrivals += sum(c.arrived_requests for c in counts) / seconds
        tokens += sum(c.arrived_tokens for c in counts) / seconds
        shed += sum(c.shed_requests for c in counts) / seconds
        completed += sum(c.completed_requests for c in counts) / seconds
    return Demand(
        running_requests=running,
        queued_requests=queued,
        running_tokens=running_tokens,
        queued_tokens=queued_tokens,
        arrivals_per_second=arrivals,
        arrived_tokens_per_second=tokens,
        shed_per_second=shed,
        completed_per_second=completed,
    )
