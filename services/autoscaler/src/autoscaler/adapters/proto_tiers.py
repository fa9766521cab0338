"""Tiers between the contract's numbers and the domain's names."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from autoscaler.domain.tiers import Tier
from gaming.common.v1 import tier_pb2

__all__ = ["TIER_OF_WIRE", "WIRE_OF_TIER"]

WIRE_OF_TIER = MappingProxyType(
    {
        Tier.GOLD: tier_pb2.TIER_GOLD,
        Tier.SILVER: tier_pb2.TIER_SILVER,
        Tier.BRONZE: tier_pb2.TIER_BRONZE,
    }
)
TIER_OF_WIRE: Mapping[int, Tier] = MappingProxyType(
    {wire: tier for tier, wire in WIRE_OF_TIER.items()}
)
