"""The latency each tier promises, as the suite's contract words it (gaming.common.v1.Tier)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TARGETS", "LatencyTarget"]


@dataclass(frozen=True, slots=True)
class LatencyTarget:
    """One tier's promise at P95: time per token or time to first token, whichever it is about."""

    per_token: bool
    limit_seconds: float
    words: str

    def measured(
        self, *, first_token_seconds: float | None, per_token_seconds: float | None
    ) -> float | None:
        """Picks the reading the promise is about."""
        return per_token_seconds if self.per_token else first_token_seconds


TARGETS: dict[str, LatencyTarget] = {
    "gold": LatencyTarget(per_token=True, limit_seconds=0.016, words="16 ms per token"),
    "silver": LatencyTarget(per_token=False, limit_seconds=0.250, words="first token in 250 ms"),
    "bronze": LatencyTarget(per_token=False, limit_seconds=5.0, words="an answer in seconds"),
}
