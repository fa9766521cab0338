"""Which hosts a reader of the fleet view wants."""

from dataclasses import dataclass, fields

from gpu_metrics.domain.host_state import HostState
from gpu_metrics.domain.readings import Tier, gpu_uuids

__all__ = ["EVERYTHING", "FleetFilter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetFilter:
    """Wants a host that has one of each kind that is named; a kind of which none is named is free.

    A host is wanted whole: with all its GPUs and servers, and not the named ones alone.
    """

    tiers: frozenset[Tier] = frozenset()
    host_ids: frozenset[str] = frozenset()
    server_ids: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    gpu_uuids: frozenset[str] = frozenset()

    @property
    def by_tier_alone(self) -> bool:
        """Return whether hosts are told apart by their tiers at most."""
        return not (self.host_ids or self.server_ids or self.models or self.gpu_uuids)

    def matches(self, state: HostState) -> bool:
        """Return whether the host is wanted as it is now."""
        servers = state.report.servers
        return (
            (not self.tiers or not self.tiers.isdisjoint(state.tiers))
            and (not self.host_ids or state.host.host_id in self.host_ids)
            and (not self.server_ids or any(each.server_id in self.server_ids for each in servers))
            and (not self.models or any(each.model in self.models for each in servers))
            and (not self.gpu_uuids or not self.gpu_uuids.isdisjoint(gpu_uuids(state.report.gpus)))
        )

    def may_have_matched(self, host_id: str, tiers_ever: frozenset[Tier]) -> bool:
        """Return False where the host was surely never wanted, by what is remembered of it."""
        return (not self.host_ids or host_id in self.host_ids) and (
            not self.tiers or not self.tiers.isdisjoint(tiers_ever)
        )

    def names(self) -> tuple[tuple[str, ...], ...]:
        """Return what is named, by kind and in order, the same for equal filters."""
        return tuple(
            tuple(sorted(str(each) for each in getattr(self, field.name))) for field in fields(self)
        )


EVERYTHING = FleetFilter()
