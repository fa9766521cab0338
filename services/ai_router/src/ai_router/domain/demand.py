"""What was asked of each tier, whether it was served or not: the autoscaler's evidence.

Everything counts for the tier a request wanted, wherever it was served, so a tier without a server
shows demand too. Answers from the cache need no capacity and are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from ai_router.domain.tiers import Tier

__all__ = ["DemandLedger", "TierDemand"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TierDemand:
    """One interval of one wanted tier; the last four are as of its end, the others sums over it."""

    tier: Tier
    arrived_requests: int
    arrived_tokens: int
    shed_requests: int
    completed_requests: int
    failed_requests: int
    fallback_requests: int
    running_requests: int
    running_tokens: int
    queued_requests: int
    queued_tokens: int


class _Counters:
    __slots__ = ("arrived", "arrived_tokens", "completed", "failed", "fallback", "shed")

    def __init__(self) -> None:
        self.arrived = self.arrived_tokens = 0
        self.shed = self.completed = self.failed = self.fallback = 0


class DemandLedger:
    """Counts demand per wanted tier from one interval to the next."""

    __slots__ = ("_counters", "_running", "_running_tokens")

    def __init__(self) -> None:
        self._counters = {tier: _Counters() for tier in Tier}
        self._running = dict.fromkeys(Tier, 0)
        self._running_tokens = dict.fromkeys(Tier, 0)

    def arrived(self, tier: Tier, tokens: int) -> None:
        """Counts a request that wants `tier`."""
        counters = self._counters[tier]
        counters.arrived += 1
        counters.arrived_tokens += tokens

    def shed(self, tier: Tier) -> None:
        """Counts a request turned away for lack of capacity or time."""
        self._counters[tier].shed += 1

    def placed(self, tier: Tier, tokens: int) -> None:
        """Counts a request as running."""
        self._running[tier] += 1
        self._running_tokens[tier] += tokens

    def ended(self, tier: Tier, tokens: int) -> None:
        """Counts a request as running no more, whatever came of it."""
        self._running[tier] -= 1
        self._running_tokens[tier] -= tokens

    def completed(self, tier: Tier, served_by: Tier) -> None:
        """Counts an answer, and whether another tier gave it."""
        self._counters[tier].completed += 1
        if served_by is not tier:
            self._counters[tier].fallback += 1

    def failed(self, tier: Tier) -> None:
        """Counts a request whose caller got an error because its servers failed."""
        self._counters[tier].failed += 1

    def close_interval(
        self, queued_requests: dict[Tier, int], queued_tokens: dict[Tier, int]
    ) -> tuple[TierDemand, ...]:
        """Returns the interval that ends now, all tiers, and begins the next one."""
        closed = tuple(
            TierDemand(
                tier=tier,
                arrived_requests=counters.arrived,
                arrived_tokens=counters.arrived_tokens,
                shed_requests=counters.shed,
                completed_requests=counters.completed,
                failed_requests=counters.failed,
                fallback_requests=counters.fallback,
                running_requests=self._running[tier],
                running_tokens=self._running_tokens[tier],
                queued_requests=queued_requests[tier],
                queued_tokens=queued_tokens[tier],
            )
            for tier, counters in self._counters.items()
        )
        self._counters = {tier: _Counters() for tier in Tier}
        return closed
