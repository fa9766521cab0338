"""The fleet as the collector tells it, and what about it is worth a line. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from gaming.common.v1 import tier_pb2
from gaming.gpu_metrics.v1 import fleet_pb2, gpu_metrics_pb2

__all__ = ["TIERS", "FleetPicture", "TierServers", "tier_name"]

TIERS: tuple[str, ...] = ("gold", "silver", "bronze")
_NAMES: dict[tier_pb2.Tier.ValueType, str] = {
    tier_pb2.TIER_GOLD: "gold",
    tier_pb2.TIER_SILVER: "silver",
    tier_pb2.TIER_BRONZE: "bronze",
}


def tier_name(tier: tier_pb2.Tier.ValueType) -> str:
    """Returns `gold`, `silver` or `bronze`; `any` for an unset tier."""
    return _NAMES.get(tier, "any")


@dataclass(frozen=True, slots=True)
class TierServers:
    """The model servers of one tier, counted by what they are doing."""

    ready: int = 0
    starting: int = 0
    unhealthy: int = 0
    stale: int = 0
    interrupted: int = 0
    gpus: int = 0


@dataclass(slots=True)
class FleetPicture:
    """All hosts by id, kept up from snapshots and deltas."""

    hosts: dict[str, fleet_pb2.HostView] = field(default_factory=dict)
    _noticed: set[str] = field(default_factory=set)
    _silent: set[str] = field(default_factory=set)

    def apply(self, update: gpu_metrics_pb2.WatchFleetResponse) -> list[str]:
        """Takes in one message of the feed and returns what people should hear about it."""
        remarks: list[str] = []
        if update.HasField("snapshot"):
            gone = set(self.hosts) - {host.host.host_id for host in update.snapshot.hosts}
            remarks += self._remove(gone)
            remarks += self._take(update.snapshot.hosts)
        elif update.HasField("delta"):
            remarks += self._take(update.delta.changed_hosts)
            remarks += self._remove(update.delta.removed_host_ids)
        return remarks

    def servers(self, tier: str) -> TierServers:
        """Counts a tier's servers; a server on a silent host is stale and nothing else."""
        counts = dict.fromkeys(
            ("ready", "starting", "unhealthy", "stale", "interrupted", "gpus"), 0
        )
        for view in self.hosts.values():
            for server in view.servers:
                if tier_name(server.tier) != tier:
                    continue
                if view.host.HasField("interruption_time"):
                    counts["interrupted"] += 1
                if view.freshness == fleet_pb2.FRESHNESS_STALE:
                    counts["stale"] += 1
                    continue
                counts["gpus"] += len(server.gpu_uuids)
                state = _STATES.get(server.state)
                if state is not None:
                    counts[state] += 1
        return TierServers(**counts)

    @property
    def gpus(self) -> int:
        """GPUs of all hosts, silent ones included."""
        return sum(len(view.gpus) for view in self.hosts.values())

    def _take(self, views: Iterable[fleet_pb2.HostView]) -> list[str]:
        remarks = []
        for view in views:
            host_id = view.host.host_id
            self.hosts[host_id] = view
            if view.host.HasField("interruption_time") and host_id not in self._noticed:
                self._noticed.add(host_id)
                remarks.append(f"Spot notice: the cloud takes {_described(view)} back")
            if view.freshness == fleet_pb2.FRESHNESS_STALE:
                if host_id not in self._silent:
                    self._silent.add(host_id)
                    remarks.append(f"{_described(view)} has gone silent; its readings are stale")
            else:
                self._silent.discard(host_id)
        return remarks

    def _remove(self, host_ids: Iterable[str]) -> list[str]:
        remarks = []
        for host_id in host_ids:
            view = self.hosts.pop(host_id, None)
            if view is not None and host_id in self._noticed:
                remarks.append(f"{_described(view)} is gone, taken back by the cloud")
            elif view is not None and host_id in self._silent:
                remarks.append(f"{_described(view)} is gone; it stayed silent too long")
            self._noticed.discard(host_id)
            self._silent.discard(host_id)
        return remarks


_STATES = {
    fleet_pb2.MODEL_SERVER_STATE_READY: "ready",
    fleet_pb2.MODEL_SERVER_STATE_STARTING: "starting",
    fleet_pb2.MODEL_SERVER_STATE_UNHEALTHY: "unhealthy",
}


def _described(view: fleet_pb2.HostView) -> str:
    tiers = {tier_name(server.tier) for server in view.servers}
    kind = f"{'/'.join(sorted(tiers))} " if tiers else ""
    return f"{kind}host {view.host.host_id}"
