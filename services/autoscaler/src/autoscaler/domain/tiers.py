"""The three tiers of model servers."""

from enum import StrEnum

__all__ = ["TIERS", "Tier"]


class Tier(StrEnum):
    """A class of model servers with one model and one latency target."""

    GOLD = "gold"
    SILVER = "silver"
    BRONZE = "bronze"


TIERS = (Tier.GOLD, Tier.SILVER, Tier.BRONZE)
"""All tiers, the one that is decided first in front."""
