"""Counts and latencies of one tier since the last sample and since the last control decision."""

from typing import Any

import numpy as np

from fleetsim.simulation_result import Outcome, TierPoint, percentile

__all__ = ["TierWindow"]


class TierWindow:
    """Running totals with two marks, so that both readers see what is new to them."""

    __slots__ = (
        "_control_mark",
        "_control_start",
        "_first",
        "_pace",
        "_sample_mark",
        "arrived",
        "arrived_tokens",
        "failed",
        "finished",
        "shed",
        "tier_index",
    )

    def __init__(self, tier_index: int) -> None:
        self.tier_index = tier_index
        self.arrived = 0
        self.arrived_tokens = 0
        self.finished = 0
        self.shed = 0
        self.failed = 0
        self._first: list[float] = []
        self._pace: list[float] = []
        self._control_start = 0
        self._control_mark = (0, 0, 0, 0)
        self._sample_mark = (0, 0, 0, 0)

    def finish(self, first_token_seconds: float, seconds_per_token: float) -> None:
        """Count a finished request."""
        self.finished += 1
        self._first.append(first_token_seconds)
        self._pace.append(seconds_per_token)

    def miss(self, outcome: Outcome) -> None:
        """Count a request that was shed or failed."""
        if outcome is Outcome.SHED:
            self.shed += 1
        else:
            self.failed += 1

    @property
    def control_arrived(self) -> int:
        """Arrivals since the last control decision."""
        return self.arrived - self._control_mark[0]

    @property
    def control_arrived_tokens(self) -> int:
        """Tokens, prompt and answer, that arrived since the last control decision."""
        return self.arrived_tokens - self._control_mark[1]

    @property
    def control_finished(self) -> int:
        """Requests finished since the last control decision."""
        return self.finished - self._control_mark[2]

    @property
    def control_shed(self) -> int:
        """Requests shed since the last control decision."""
        return self.shed - self._control_mark[3]

    def control_latencies(self) -> tuple[float | None, float | None]:
        """Return the P95 of time to first token and per token since the last decision."""
        first = self._first[self._control_start :]
        if not first:
            return None, None
        pace = np.asarray(self._pace[self._control_start :])
        pace = pace[~np.isnan(pace)]
        pace_p95 = percentile(pace, 95) if len(pace) else None
        return percentile(np.asarray(first), 95), pace_p95

    def end_control_interval(self) -> None:
        """A decision was made: the next one sees what comes from here on."""
        self._control_mark = (self.arrived, self.arrived_tokens, self.finished, self.shed)
        self._control_start = len(self._first)

    def sample(self, **fleet: Any) -> TierPoint:
        """Return what happened since the last sample together with the fleet's sizes."""
        arrived, finished, shed, failed = self._sample_mark
        pace = np.asarray(self._pace)
        point = TierPoint(
            **fleet,
            arrived=self.arrived - arrived,
            finished=self.finished - finished,
            shed=self.shed - shed,
            failed=self.failed - failed,
            first_token_p95_seconds=percentile(np.asarray(self._first), 95),
            per_token_p95_seconds=percentile(pace[~np.isnan(pace)], 95),
        )
        self._sample_mark = (self.arrived, self.finished, self.shed, self.failed)
        # What the control loop has not read yet stays, for it alone; new samples count from here.
        del self._first[: self._control_start]
        del self._pace[: self._control_start]
        self._control_start = 0
        return point
