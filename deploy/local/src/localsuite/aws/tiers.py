"""The capacity of the suite's tiers: which groups there are and how they are told apart."""

from dataclasses import dataclass

__all__ = ["DEFAULT_CLUSTER", "DEFAULT_TIERS", "TIER_TAG", "TierCapacity", "group_name"]

TIER_TAG = "gamekeeper:tier"
"""The tag that says which tier a group and its instances serve."""

DEFAULT_CLUSTER = "gamekeeper"
"""The ECS cluster that every host belongs to."""


@dataclass(frozen=True, slots=True)
class TierCapacity:
    """The Auto Scaling group of one tier.

    The first of `instance_types` is preferred, the others are used when it is out of stock.
    `on_demand_base_capacity` instances are On-Demand; of those above, the given percentage.
    """

    tier: str
    instance_types: tuple[str, ...]
    min_size: int
    max_size: int
    desired_capacity: int
    on_demand_base_capacity: int = 0
    on_demand_percentage_above_base: int = 100
    # A smaller size alone then ends no server: the autoscaler drains it and ends it by id.
    protected_from_scale_in: bool = True


DEFAULT_TIERS = (
    TierCapacity("gold", ("g5.xlarge",), 0, 50, 1, 1, 50),
    TierCapacity("silver", ("g5.2xlarge",), 0, 30, 1, 1, 50),
    TierCapacity("bronze", ("c5.4xlarge",), 0, 8, 0),
)
"""Maxima for 10,000 players; half of what is above the first GPU is Spot."""


def group_name(tier: str) -> str:
    """The name of a tier's Auto Scaling group."""
    return f"gamekeeper-{tier}"
