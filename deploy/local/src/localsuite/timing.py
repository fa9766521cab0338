"""How an evening fits into two minutes: one factor for everything that takes minutes.

In production the evening below lasts an hour. Played in `duration_seconds`, every length of that
hour, and every length that is minutes in production (cold starts, stabilisation windows, the Spot
notice, drains, leases), is divided by the same `time_factor`. What a player feels stays real: the
pace of requests and tokens, sampling intervals and RPC deadlines.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EVENING_SECONDS", "Evening", "Incident"]

# The evening as it would be in production.
EVENING_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that goes wrong on purpose, `at_seconds` after the evening's beginning."""

    kind: str
    at_seconds: float
    summary: str


@dataclass(frozen=True, slots=True)
class Evening:
    """One evening: how many players at most, and how long it takes here (seconds)."""

    peak_players: int
    duration_seconds: float
    seed: int

    def __post_init__(self) -> None:
        if self.peak_players < 0 or self.duration_seconds <= 0:
            raise ValueError("an evening has 0 or more players and takes longer than 0 seconds")

    @property
    def time_factor(self) -> float:
        """By how much everything that takes minutes in production is shortened."""
        return EVENING_SECONDS / self.duration_seconds

    def shortened(self, production_seconds: float) -> float:
        """The length here, in seconds, of what takes `production_seconds` in production."""
        return production_seconds / self.time_factor

    def incidents(self) -> tuple[Incident, ...]:
        """The two things that go wrong, in order: a model server dies, the cloud takes a host."""
        return (
            Incident(
                "server_killed",
                self.duration_seconds * 0.42,
                "a model server is killed without warning",
            ),
            Incident(
                "spot_interruption",
                self.duration_seconds * 0.60,
                "the cloud takes a Spot host back, with notice",
            ),
        )

    def phase(self, at_seconds: float) -> str:
        """What the evening is up to, in two or three words for people."""
        share = at_seconds / self.duration_seconds
        for end, name in _PHASES:
            if share < end:
                return name
        return "the world sleeps"


# Shares of the evening; the player curve in `localsuite.game.evening` has the same knots.
_PHASES = (
    (0.05, "doors open"),
    (0.28, "players arrive"),
    (0.36, "early evening"),
    (0.46, "the surge"),
    (0.66, "prime time"),
    (0.90, "players leave"),
    (1.00, "last stragglers"),
)
