"""The EC2 instance types the suite uses: shape and reference price.

Prices are US dollars per hour, Linux, us-east-1. The On-Demand figures are the reference prices
the product's cost promise is stated against ($1.006 for a Gold GPU, and so on). Spot prices move
all the time; each figure here is one fixed reference. The g6.xlarge figure is the middle of the
observed $0.26-0.44 by region; the others apply the same fraction (0.43) of On-Demand, which is an
assumption and not a quotation. Shapes are those of AWS's published instance type tables.
"""

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

__all__ = ["INSTANCE_TYPES", "InstanceType", "Market"]

# g6.xlarge: 0.35 (middle of the observed 0.26-0.44) of 0.805.
_SPOT_FRACTION_OF_ON_DEMAND = 0.43


class Market(StrEnum):
    """How an instance is bought."""

    ON_DEMAND = "on-demand"
    SPOT = "spot"


@dataclass(frozen=True, slots=True)
class InstanceType:
    """One EC2 instance type. `gpu_name` is None when it has no GPU."""

    name: str
    vcpus: int
    memory_gib: float
    gpu_name: str | None
    gpu_memory_gib: float
    on_demand_usd_per_hour: float
    spot_usd_per_hour: float

    def usd_per_hour(self, market: Market) -> float:
        """Return the reference price in one market."""
        return self.spot_usd_per_hour if market is Market.SPOT else self.on_demand_usd_per_hour


def _instance_type(
    name: str,
    vcpus: int,
    memory_gib: float,
    on_demand: float,
    *,
    gpu: str | None = None,
    gpu_memory_gib: float = 0.0,
    spot: float | None = None,
) -> InstanceType:
    spot_price = round(on_demand * _SPOT_FRACTION_OF_ON_DEMAND, 4) if spot is None else spot
    return InstanceType(name, vcpus, memory_gib, gpu, gpu_memory_gib, on_demand, spot_price)


INSTANCE_TYPES: MappingProxyType[str, InstanceType] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            _instance_type("g5.xlarge", 4, 16, 1.006, gpu="NVIDIA A10G", gpu_memory_gib=24),
            _instance_type("g5.2xlarge", 8, 32, 1.212, gpu="NVIDIA A10G", gpu_memory_gib=24),
            _instance_type(
                "g6.xlarge", 4, 16, 0.805, gpu="NVIDIA L4", gpu_memory_gib=24, spot=0.35
            ),
            _instance_type("c5.4xlarge", 16, 32, 0.68),
        )
    }
)
