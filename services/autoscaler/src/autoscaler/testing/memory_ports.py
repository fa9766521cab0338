"""Cloud, fleet feed, demand and routers in memory, for tests of the control loop."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

from autoscaler.domain.demand_window import DemandView
from autoscaler.domain.fleet_view import FleetView, GroupInstance, ScalingGroup
from autoscaler.domain.tiers import Tier
from autoscaler.ports import CloudError

__all__ = ["MemoryCloud", "MemoryRouters", "StaticDemand", "StaticFleet"]


class MemoryCloud:
    """Auto Scaling groups that launch at once; `now` is Unix seconds."""

    def __init__(
        self, now: Callable[[], float], sizes: dict[Tier, int], *, maximum: int = 100
    ) -> None:
        self._now = now
        self._numbers = itertools.count(1)
        self.is_reachable = True
        self.launches = True
        self.on_call: Callable[[str], None] | None = None
        """Called with each operation's name before it happens; may raise instead of it."""
        self.calls: list[tuple[str, Tier, int | str]] = []
        self.groups = {
            tier: ScalingGroup(
                name=tier.value,
                desired=0,
                minimum=0,
                maximum=maximum,
                instances=(),
                read_time=now(),
            )
            for tier in sizes
        }
        for tier, size in sizes.items():
            self._resize(tier, size)

    async def describe(self) -> dict[Tier, ScalingGroup]:
        """Return every group as it is now."""
        self._check("DescribeAutoScalingGroups")
        return {t: replace(g, read_time=self._now()) for t, g in self.groups.items()}

    async def set_desired(self, tier: Tier, desired: int) -> None:
        """Set the absolute size; refused outside the group's bounds, as AWS refuses it."""
        self._check("SetDesiredCapacity")
        group = self.groups[tier]
        if not group.minimum <= desired <= group.maximum:
            raise CloudError("SetDesiredCapacity was refused: ValidationError: outside the bounds")
        self.calls.append(("set_desired", tier, desired))
        self._resize(tier, desired)

    async def terminate(self, instance_id: str) -> None:
        """Remove one instance and shrink its group; one that is gone already is fine."""
        self._check("TerminateInstanceInAutoScalingGroup")
        for tier, group in self.groups.items():
            if any(i.instance_id == instance_id for i in group.instances):
                self.calls.append(("terminate", tier, instance_id))
                self.groups[tier] = replace(
                    group,
                    desired=group.desired - 1,
                    instances=tuple(i for i in group.instances if i.instance_id != instance_id),
                )

    def instance_ids(self, tier: Tier) -> list[str]:
        """Return the members of a tier's group."""
        return [i.instance_id for i in self.groups[tier].instances]

    def _resize(self, tier: Tier, desired: int) -> None:
        group = self.groups[tier]
        kept = group.instances[:desired]
        missing = desired - len(kept) if self.launches else 0
        launched = tuple(
            GroupInstance(
                instance_id=f"i-{tier.value}-{next(self._numbers):03d}",
                instance_type="g5.xlarge",
                is_spot=False,
                launch_time=self._now(),
                is_leaving=False,
                is_in_service=True,
            )
            for _ in range(missing)
        )
        self.groups[tier] = replace(group, desired=desired, instances=(*kept, *launched))

    def _check(self, operation: str) -> None:
        if self.on_call is not None:
            self.on_call(operation)
        if not self.is_reachable:
            raise CloudError(f"{operation} was not answered in time")


class MemoryRouters:
    """Routers that answer what a test put into `running`; None means no answer."""

    def __init__(self) -> None:
        self.running: dict[str, int | None] = {}
        self.draining: set[str] = set()
        self.resumed: list[str] = []

    async def drain(self, server_id: str, lease_seconds: float) -> dict[str, int | None]:
        """Mark the server as draining and tell what runs on it."""
        self.draining.add(server_id)
        return {"router": self.running.get(server_id, 0)}

    async def resume(self, server_id: str) -> None:
        """Mark the server as in use again."""
        self.draining.discard(server_id)
        self.resumed.append(server_id)


class StaticFleet:
    """A fleet feed that says what a test put into it."""

    def __init__(self, view: FleetView) -> None:
        self.current = view

    def view(self) -> FleetView:
        """Return it."""
        return self.current


class StaticDemand:
    """A demand feed that says what a test put into it."""

    def __init__(self, view: DemandView) -> None:
        self.current = view

    def view(self) -> DemandView:
        """Return it."""
        return self.current
