"""Players online over time: an evening, a day, or a recorded trace.

Curves give players at a production time in seconds; a compressed run multiplies its own time by
its compression before it asks. The shapes are idealised: an evening is a raised cosine (smooth
start, one peak, smooth end), a day two harmonics with the peak in the evening and a trough in the
early morning, the pattern every published series of concurrent players shows.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["DayCurve", "EveningCurve", "PlayerCurve", "Surge", "TraceCurve"]

_DAY_SECONDS = 86_400.0


class PlayerCurve(Protocol):
    """Players online as a function of production seconds."""

    @property
    def duration_seconds(self) -> float:
        """How long the curve is."""

    def players_at(self, seconds: ArrayLike) -> NDArray[np.float64]:
        """Return players online at each time; never negative, 0 outside a finite curve."""


@dataclass(frozen=True, slots=True)
class Surge:
    """Extra players for a while (a streamer, an event): up at once, down at once.

    `ratio` is relative to the peak: 0.4 adds 40 % of the peak.
    """

    start_seconds: float
    duration_seconds: float
    ratio: float

    def ratio_at(self, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the extra share of the peak at each time, with ramps of a tenth at both ends."""
        ramp = self.duration_seconds / 10
        end = self.start_seconds + self.duration_seconds
        rise = (seconds - self.start_seconds) / ramp
        fall = (end - seconds) / ramp
        return self.ratio * np.clip(np.minimum(rise, fall), 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class EveningCurve:
    """0 -> peak -> 0, with an optional surge on top (the total may then exceed the peak)."""

    peak_players: float
    duration_seconds: float
    surge: Surge | None = None

    def players_at(self, seconds: ArrayLike) -> NDArray[np.float64]:
        """Return players online at each time."""
        times = np.asarray(seconds, dtype=np.float64)
        inside = (times >= 0) & (times <= self.duration_seconds)
        shape = np.sin(math.pi * times / self.duration_seconds) ** 2
        if self.surge is not None:
            shape = shape + self.surge.ratio_at(times)
        return np.where(inside, self.peak_players * shape, 0.0)


@dataclass(frozen=True, slots=True)
class DayCurve:
    """A day that repeats: peak at `peak_hour` local time, `trough_ratio` of it about 12 h apart."""

    peak_players: float
    trough_ratio: float = 0.25
    peak_hour: float = 20.5
    duration_seconds: float = _DAY_SECONDS

    def players_at(self, seconds: ArrayLike) -> NDArray[np.float64]:
        """Return players online at each time (seconds since local midnight, any number of days)."""
        times = np.asarray(seconds, dtype=np.float64)
        phase = 2 * math.pi * (times / _DAY_SECONDS - self.peak_hour / 24)
        # The second harmonic narrows the peak and widens the trough, as real days have it.
        wave = (np.cos(phase) + 0.25 * np.cos(2 * phase)) / 1.25
        share = self.trough_ratio + (1 - self.trough_ratio) * np.clip((wave + 0.6) / 1.6, 0, 1)
        inside = (times >= 0) & (times <= self.duration_seconds)
        return np.where(inside, self.peak_players * share, 0.0)


@dataclass(frozen=True, eq=False)
class TraceCurve:
    """A recorded series, linear between its points; times ascend from about 0.

    Raises ValueError when the series is empty, unsorted or negative.
    """

    times_seconds: NDArray[np.float64]
    players: NDArray[np.float64]

    def __post_init__(self) -> None:
        if len(self.times_seconds) != len(self.players) or len(self.players) == 0:
            raise ValueError("times and players must be equally long and not empty")
        if np.any(np.diff(self.times_seconds) <= 0) or np.any(self.players < 0):
            raise ValueError("times must ascend and players must not be negative")

    @property
    def duration_seconds(self) -> float:
        """The last time of the series."""
        return float(self.times_seconds[-1])

    def players_at(self, seconds: ArrayLike) -> NDArray[np.float64]:
        """Return players online at each time."""
        times = np.asarray(seconds, dtype=np.float64)
        return np.interp(times, self.times_seconds, self.players, left=0.0, right=0.0)
