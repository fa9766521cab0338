"""What the fleet costs and what its players pay for."""

import math
from collections.abc import Mapping

from autoscaler.domain.policy import BudgetPolicy
from autoscaler.domain.tiers import Tier

__all__ = ["affordable_servers", "usd_per_player_month"]


def affordable_servers(
    tier: Tier,
    *,
    players_online: int | None,
    usd_per_hour_by_tier: Mapping[Tier, float],
    usd_per_hour_per_server: float,
    budget: BudgetPolicy,
) -> int | None:
    """Return how many servers the tier may grow to; None when no ceiling can be told.

    What the other tiers cost at present is taken from the whole; the tier's floor holds in any
    case. Without a current player count there is no ceiling but the tier's maximum: turning
    players away because a report is late would be the worse mistake.
    """
    if players_online is None:
        return None
    allowed = budget.usd_per_hour(players_online)
    if allowed is None or usd_per_hour_per_server <= 0:
        return None
    others = sum(cost for other, cost in usd_per_hour_by_tier.items() if other is not tier)
    affordable = math.floor((allowed - others) / usd_per_hour_per_server)
    return max(affordable, budget.floor_servers.get(tier, 0))


def usd_per_player_month(
    usd_per_hour: float, players_online: int | None, budget: BudgetPolicy
) -> float | None:
    """Return what one player costs in a month at the present rate; None without players."""
    if not players_online:
        return None
    return usd_per_hour * budget.hours_per_month / players_online
