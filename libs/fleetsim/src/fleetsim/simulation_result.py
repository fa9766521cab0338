"""What a simulated run leaves behind: requests, series over time, totals, and a hash of it all."""

import hashlib
import math
from array import array
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

__all__ = ["Outcome", "RequestLog", "SeriesPoint", "SimulationResult", "TierPoint", "TierTotals"]


class Outcome(IntEnum):
    """How a request ended."""

    FINISHED = 0
    SHED = 1
    FAILED = 2


class RequestLog:
    """One row per ended request, in the order they ended; compact (25 bytes a row)."""

    __slots__ = ("end_time", "first_token_seconds", "outcome", "seconds_per_token", "tier")

    def __init__(self) -> None:
        self.end_time = array("d")
        self.first_token_seconds = array("f")
        self.seconds_per_token = array("f")
        self.outcome = array("b")
        self.tier = array("b")

    def add(
        self, end_time: float, first_token: float, per_token: float, outcome: int, tier: int
    ) -> None:
        """Add a row; latencies in seconds, NaN when there are none."""
        self.end_time.append(end_time)
        self.first_token_seconds.append(first_token)
        self.seconds_per_token.append(per_token)
        self.outcome.append(outcome)
        self.tier.append(tier)

    def __len__(self) -> int:
        return len(self.end_time)

    def column(self, name: str) -> NDArray[np.generic]:
        """Return one column as an array that shares memory."""
        values: array[float] = getattr(self, name)
        return np.frombuffer(values, dtype=values.typecode)


@dataclass(frozen=True, slots=True)
class TierPoint:
    """One tier at one sample; latencies are those of requests finished since the last sample."""

    desired: int
    launched: int
    ready: int
    draining: int
    running: int
    waiting: int
    queued: int
    arrived: int
    finished: int
    shed: int
    failed: int
    first_token_p95_seconds: float
    per_token_p95_seconds: float


@dataclass(frozen=True, slots=True)
class SeriesPoint:
    """The fleet at one sample. `cost_usd` is the sum since the start, in production terms."""

    time: float
    players: float
    cost_usd: float
    tiers: dict[str, TierPoint]


@dataclass(frozen=True, slots=True)
class TierTotals:
    """One tier over the whole run; percentiles are NaN when nothing finished."""

    arrived: int
    finished: int
    shed: int
    failed: int
    first_token_p50_seconds: float
    first_token_p95_seconds: float
    per_token_p50_seconds: float
    per_token_p95_seconds: float


@dataclass(eq=False, slots=True)
class SimulationResult:
    """A finished run. `run_hash` is equal for equal seeds, settings and policies."""

    tiers: tuple[str, ...]
    requests: RequestLog
    arrived: dict[str, int]
    series: list[SeriesPoint] = field(default_factory=list)
    cost_usd: float = 0.0
    events_run: int = 0

    def totals(self, tier: str) -> TierTotals:
        """Sum one tier up."""
        index = self.tiers.index(tier)
        mine = self.requests.column("tier") == index
        outcome = self.requests.column("outcome")[mine]
        done = outcome == Outcome.FINISHED
        first = self.requests.column("first_token_seconds")[mine][done]
        pace = self.requests.column("seconds_per_token")[mine][done]
        pace = pace[~np.isnan(pace.astype(np.float32))]
        return TierTotals(
            arrived=self.arrived[tier],
            finished=int(done.sum()),
            shed=int((outcome == Outcome.SHED).sum()),
            failed=int((outcome == Outcome.FAILED).sum()),
            first_token_p50_seconds=percentile(first, 50),
            first_token_p95_seconds=percentile(first, 95),
            per_token_p50_seconds=percentile(pace, 50),
            per_token_p95_seconds=percentile(pace, 95),
        )

    def run_hash(self) -> str:
        """Return a SHA-256 over every request and every sample."""
        digest = hashlib.sha256()
        log = self.requests
        for values in (
            *(log.end_time, log.first_token_seconds, log.seconds_per_token),
            *(log.outcome, log.tier),
        ):
            digest.update(values.tobytes())
        for point in self.series:
            digest.update(repr(point).encode())
        digest.update(repr((sorted(self.arrived.items()), self.cost_usd)).encode())
        return digest.hexdigest()


def percentile(values: NDArray[np.generic], q: float) -> float:
    """Return a percentile, NaN of nothing."""
    return float(np.percentile(values.astype(np.float64), q)) if len(values) else math.nan
