"""Everything the view shows at one moment. Filled by watchers and the supervisor, read by views."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from gaming.ai_router.v1 import ai_router_pb2
from gaming.autoscaler.v1 import autoscaler_pb2
from localsuite.game.feed import GameSample, StoryTurn
from localsuite.observe.bus import BusPicture
from localsuite.observe.fleet import FleetPicture

__all__ = ["Remark", "SuitePicture"]

_KEPT_DECISIONS = 2000
_KEPT_REMARKS = 500


@dataclass(frozen=True, slots=True)
class Remark:
    """One line for people: when (seconds since the evening began), what about, what."""

    at_seconds: float
    kind: str
    text: str


@dataclass(slots=True)
class SuitePicture:
    """The suite as its own RPCs describe it, with the age of each part."""

    monotonic: Callable[[], float] = time.monotonic
    fleet: FleetPicture = field(default_factory=FleetPicture)
    bus: BusPicture = field(default_factory=BusPicture)
    status: autoscaler_pb2.GetStatusResponse | None = None
    autoscaler_tiers: dict[str, autoscaler_pb2.TierState] = field(default_factory=dict)
    router: ai_router_pb2.ListTiersResponse | None = None
    router_tiers: dict[str, ai_router_pb2.RouterTier] = field(default_factory=dict)
    decisions: deque[tuple[float, autoscaler_pb2.Decision]] = field(
        default_factory=lambda: deque(maxlen=_KEPT_DECISIONS)
    )
    remarks: deque[Remark] = field(default_factory=lambda: deque(maxlen=_KEPT_REMARKS))
    story: list[StoryTurn] = field(default_factory=list)
    game: GameSample | None = None
    evening_began: float | None = None
    phase: str = "starting"
    _heard: dict[str, float] = field(default_factory=dict)

    @property
    def evening_seconds(self) -> float:
        """Seconds since the evening began; 0 before."""
        return 0.0 if self.evening_began is None else self.monotonic() - self.evening_began

    def begin_evening(self) -> None:
        """Sets the evening's clock to zero."""
        self.evening_began = self.monotonic()

    def heard_from(self, source: str) -> None:
        """Notes that a service answered just now."""
        self._heard[source] = self.monotonic()

    def silent_seconds(self, source: str) -> float | None:
        """Returns how long ago a service last answered; None when it never did."""
        at = self._heard.get(source)
        return None if at is None else self.monotonic() - at

    def remark(self, kind: str, text: str) -> Remark:
        """Keeps a line for people and returns it."""
        remark = Remark(self.evening_seconds, kind, text)
        self.remarks.append(remark)
        return remark
