"""What instances cost."""

from dataclasses import dataclass

from autoscaler.domain.fleet_view import GroupInstance, ScalingGroup

__all__ = ["PriceTable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceTable:
    """Prices per instance type in USD per hour; Spot is a share of On-Demand unless listed."""

    on_demand_usd_per_hour: dict[str, float]
    spot_usd_per_hour: dict[str, float]
    spot_price_ratio: float
    fallback_usd_per_hour: float
    """For types the table does not know: rather too dear than free."""

    def usd_per_hour(self, instance_type: str, *, is_spot: bool) -> float:
        """Return what one instance costs per hour."""
        on_demand = self.on_demand_usd_per_hour.get(instance_type, self.fallback_usd_per_hour)
        if not is_spot:
            return on_demand
        return self.spot_usd_per_hour.get(instance_type, on_demand * self.spot_price_ratio)

    def of(self, instance: GroupInstance) -> float:
        """Return what a member of a group costs per hour."""
        return self.usd_per_hour(instance.instance_type, is_spot=instance.is_spot)

    def of_group(self, group: ScalingGroup) -> float:
        """Return what all instances of a group cost per hour, those shutting down not counted."""
        return sum(self.of(i) for i in group.live)
