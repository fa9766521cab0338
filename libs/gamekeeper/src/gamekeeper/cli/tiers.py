"""`--tier gold`: tiers by name on the command line and in tables."""

from __future__ import annotations

from enum import StrEnum

from gaming.common.v1 import tier_pb2

__all__ = ["TierName", "tier_label", "tier_number"]


class TierName(StrEnum):
    """The tiers by name."""

    GOLD = "gold"
    SILVER = "silver"
    BRONZE = "bronze"


def tier_number(tier: TierName | None) -> tier_pb2.Tier.ValueType:
    """Returns the contract's value for a tier; unspecified for none."""
    return tier_pb2.TIER_UNSPECIFIED if tier is None else _NUMBERS[tier]


def tier_label(number: int) -> str:
    """Returns a tier's name, or `-` for an unset one."""
    return _LABELS.get(number, "-")


_NUMBERS: dict[TierName, tier_pb2.Tier.ValueType] = {
    TierName.GOLD: tier_pb2.TIER_GOLD,
    TierName.SILVER: tier_pb2.TIER_SILVER,
    TierName.BRONZE: tier_pb2.TIER_BRONZE,
}
_LABELS: dict[int, str] = {number: name.value for name, number in _NUMBERS.items()}
