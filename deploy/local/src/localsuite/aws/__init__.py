"""A local AWS: capacity from a simulation in time, everything else from moto."""

from localsuite.aws.account import DEFAULT_TIERS, TierCapacity, group_name, seed_account
from localsuite.aws.region import TIER_TAG, HostLifecycle, Region
from localsuite.aws.server import LocalAwsServer

__all__ = [
    "DEFAULT_TIERS",
    "TIER_TAG",
    "HostLifecycle",
    "LocalAwsServer",
    "Region",
    "TierCapacity",
    "group_name",
    "seed_account",
]
