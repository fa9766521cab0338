"""How many players are online through the evening: a curve of the simulation library's."""

from __future__ import annotations

import numpy as np

from fleetsim.players import PlayerCurve, TraceCurve

__all__ = ["evening_curve", "players_online"]

# Share of the evening against share of the peak: the doors open, a first plateau, a surge (an event
# in the game: half the peak joins within a twenty-fifth of the evening), prime time, the way home.
_KNOTS = np.array(
    [
        (0.00, 0.00),
        (0.05, 0.03),
        (0.28, 0.42),
        (0.36, 0.48),
        (0.40, 0.97),
        (0.46, 1.00),
        (0.66, 0.90),
        (0.78, 0.40),
        (0.90, 0.06),
        (1.00, 0.00),
    ]
)


def evening_curve(*, peak_players: int, duration_seconds: float) -> TraceCurve:
    """Returns players online by seconds of this run; 0 at both ends and outside."""
    return TraceCurve(_KNOTS[:, 0] * duration_seconds, _KNOTS[:, 1] * peak_players)


def players_online(curve: PlayerCurve, at_seconds: float) -> int:
    """Returns the whole players online at a moment."""
    return round(float(curve.players_at(at_seconds)))
