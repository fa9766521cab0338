"""What a zone has in stock of one instance type.

Spot stock is all or nothing per zone: when a zone runs out, every Spot instance of that type
there is interrupted together. Models that interrupt instances independently are optimistic by a
wide margin (measured GPU Spot availability is strongly correlated inside a zone; in one measured
week two of three zones were empty 85 % of the time). So stock is a two-state process whose
sojourns are exponential, one process per (instance type, zone), independent between zones.
"""

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["ALWAYS_IN_STOCK", "SCARCE_SPOT", "PoolStock"]


@dataclass(frozen=True, slots=True)
class PoolStock:
    """Stock of one instance type in one zone. Durations are production seconds.

    `on_demand_limit` and `spot_limit` cap how many of ours may exist there at once (None: no
    limit). With an infinite mean, Spot stock stays as it starts until a scenario changes it.
    """

    on_demand_limit: int | None = None
    spot_limit: int | None = None
    spot_in_stock_at_start: bool = True
    spot_mean_in_stock_seconds: float = math.inf
    spot_mean_out_of_stock_seconds: float = math.inf

    def draw_sojourn_seconds(self, rng: np.random.Generator, *, in_stock: bool) -> float:
        """Draw how long the pool now stays as it is; infinite when it never changes by itself."""
        mean = self.spot_mean_in_stock_seconds if in_stock else self.spot_mean_out_of_stock_seconds
        return math.inf if math.isinf(mean) else float(rng.exponential(mean))


ALWAYS_IN_STOCK = PoolStock()
"""A zone that never runs out by itself."""

SCARCE_SPOT = PoolStock(
    spot_in_stock_at_start=False,
    spot_mean_in_stock_seconds=1.5 * 3600,
    spot_mean_out_of_stock_seconds=8.5 * 3600,
)
"""A bad zone: empty 85 % of the time, as two of three zones were in one measured week. The mean
sojourns are assumptions that give this share."""
