"""What the control law remembers of a tier between two decisions."""

from dataclasses import dataclass, field, replace

from autoscaler.domain.estimates import Estimates

__all__ = ["ControlState"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlState:
    """The memory of one tier. A new leader starts with an empty one and therefore holds first."""

    estimates: Estimates = field(default_factory=Estimates)
    recommendations: tuple[tuple[float, int], ...] = ()
    """(time, servers needed), times ascending and sizes descending: the sliding maximum."""
    fresh_since: float | None = None
    """Since when all inputs have been fresh without a gap."""
    panic_until: float = float("-inf")
    last_scale_in_time: float | None = None

    def with_recommendation(self, now: float, needed: int, window: float) -> "ControlState":
        """Remember what is needed now, and forget what is older than the window."""
        kept = tuple(
            (time, size)
            for time, size in self.recommendations
            if time >= now - window and size > needed
        )
        return replace(self, recommendations=(*kept, (now, needed)))

    def highest_recommendation(self) -> int:
        """The most servers needed at any time within the window."""
        return max((size for _, size in self.recommendations), default=0)

    def with_freshness(self, now: float, *, fresh: bool) -> "ControlState":
        """Note whether all inputs are fresh; a gap starts the observation anew."""
        if not fresh:
            return replace(self, fresh_since=None)
        return self if self.fresh_since is not None else replace(self, fresh_since=now)

    def observed_seconds(self, now: float) -> float:
        """How long the inputs have been fresh without a gap."""
        return 0.0 if self.fresh_since is None else now - self.fresh_since
