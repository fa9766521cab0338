"""When requests arrive, for which tier, and how long they are.

Arrivals are a Poisson process whose rate follows the players online; real services are burstier.
The index of dispersion (variance over mean of counts) says how much: 1 is Poisson, and production
services are above it (the median over a week of 10-minute windows of one large service's clients
was 7.3).

    NOTICE. The figure 7.3 is derived from ServeGen (alibaba/ServeGen, m-large, week 1), licensed
    under Apache-2.0.

Bursts come from a gamma-distributed rate per window (a negative binomial count), so the mean stays
what the curve says.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleetsim.players import PlayerCurve
from fleetsim.token_lengths import GAME_DIALOGUE, TokenLengths

__all__ = ["ArrivalBatch", "ArrivalProcess", "TierMix"]


@dataclass(frozen=True, slots=True)
class TierMix:
    """Which share of requests wants which tier. Shares are normalised; none may be negative."""

    tiers: tuple[str, ...] = ("gold", "silver", "bronze")
    shares: tuple[float, ...] = (0.6, 0.3, 0.1)

    def probabilities(self) -> NDArray[np.float64]:
        """Return the normalised shares. Raises ValueError when they make no distribution."""
        shares = np.asarray(self.shares, dtype=np.float64)
        if len(shares) != len(self.tiers) or np.any(shares < 0) or shares.sum() <= 0:
            raise ValueError("one non-negative share per tier, not all zero")
        return np.asarray(shares / shares.sum(), dtype=np.float64)


@dataclass(frozen=True, eq=False, slots=True)
class ArrivalBatch:
    """Requests of one window as equally long arrays, ascending in time.

    `tier_index` points into the mix's tiers.
    """

    times: NDArray[np.float64]
    tier_index: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ArrivalProcess:
    """Turns players into requests.

    `requests_per_player_per_second` is the figure that decides the bill; 0.05 at peak is the
    default and 0.01-0.1 the range to consider. `index_of_dispersion` is that of counts in one
    window of `window_seconds`.
    """

    players: PlayerCurve
    requests_per_player_per_second: float = 0.05
    index_of_dispersion: float = 1.0
    window_seconds: float = 10.0
    lengths: TokenLengths = GAME_DIALOGUE
    mix: TierMix = TierMix()

    def draw(self, rng: np.random.Generator, start: float, end: float) -> ArrivalBatch:
        """Draw every request in [start, end). The same generator state gives the same requests."""
        times: list[NDArray[np.float64]] = []
        for index in range(max(1, math.ceil((end - start) / self.window_seconds))):
            low = start + index * self.window_seconds
            times.append(self._window_times(rng, low, min(low + self.window_seconds, end)))
        joined = np.concatenate(times)
        count = len(joined)
        tiers = rng.choice(len(self.mix.tiers), size=count, p=self.mix.probabilities())
        prompt = self.lengths.prompt.draw(rng, count)
        output = self.lengths.output.draw(rng, count)
        return ArrivalBatch(joined, tiers, prompt, output)

    def _window_times(
        self, rng: np.random.Generator, low: float, high: float
    ) -> NDArray[np.float64]:
        rates = self.players.players_at([low, (low + high) / 2, high])
        rates = rates * self.requests_per_player_per_second
        # Simpson's rule: exact for the curves between two recorded points, close for the others.
        mean = float((rates[0] + 4 * rates[1] + rates[2]) / 6 * (high - low))
        if mean <= 0:
            return np.empty(0)
        if self.index_of_dispersion > 1:
            excess = self.index_of_dispersion - 1
            mean = float(rng.gamma(mean / excess, excess))
        count = int(rng.poisson(mean))
        u = rng.random(count)
        slope = (rates[2] - rates[0]) / max(rates[0] + rates[2], 1e-12)
        if abs(slope) > 1e-9:
            # Inverse of the distribution function of a linear density on the unit interval.
            u = (np.sqrt((1 - slope) ** 2 + 4 * slope * u) - (1 - slope)) / (2 * slope)
        return np.sort(low + u * (high - low))
