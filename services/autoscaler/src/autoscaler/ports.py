"""What the autoscaler needs from outside. Adapters implement these; tests bring in-memory ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from autoscaler.domain.decision import DecisionRecord
from autoscaler.domain.demand_window import DemandView
from autoscaler.domain.drains import Drain
from autoscaler.domain.fleet_view import FleetView, ScalingGroup
from autoscaler.domain.observation import Players
from autoscaler.domain.overrides import Override
from autoscaler.domain.player_counts import PlayerShare
from autoscaler.domain.tiers import Tier
from servicekit.errors import InvalidRequest

__all__ = [
    "CloudError",
    "DecisionFilter",
    "DecisionJournal",
    "DecisionPage",
    "DemandFeed",
    "DrainStore",
    "FleetFeed",
    "JournalTail",
    "LeaderLease",
    "LeaseView",
    "OverrideStore",
    "PlayerStore",
    "RequestIdReused",
    "RouterDrains",
    "ScalingCloud",
    "Stores",
    "TierReport",
]


class CloudError(Exception):
    """The cloud refused or did not answer; `message` is for operators and journals."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RequestIdReused(InvalidRequest):
    """A request id came a second time with another request."""

    reason = "REQUEST_ID_REUSED"


class FleetFeed(Protocol):
    """What the collector says of the fleet."""

    def view(self) -> FleetView:
        """Return the last state with its age."""
        ...


class DemandFeed(Protocol):
    """What the routers say was asked."""

    def view(self) -> DemandView:
        """Return the sums over all routers with the age of the oldest."""
        ...


class RouterDrains(Protocol):
    """Takes model servers out of the routers' choice, and puts them back."""

    async def drain(self, server_id: str, lease_seconds: float) -> dict[str, int | None]:
        """Ask every router; return the requests still running per router, None for no answer."""
        ...

    async def resume(self, server_id: str) -> None:
        """Ask every router to use the server again; a router that misses it does so by itself."""
        ...


class ScalingCloud(Protocol):
    """The groups of instances, one per tier."""

    async def describe(self) -> dict[Tier, ScalingGroup]:
        """Return every tier's group as it is now; a tier whose group does not exist is left out.

        Raises CloudError.
        """
        ...

    async def set_desired(self, tier: Tier, desired: int) -> None:
        """Set the absolute size of a group; repeats are harmless. Raises CloudError."""
        ...

    async def terminate(self, instance_id: str) -> None:
        """Terminate one instance and shrink its group by it.

        An instance that is gone or going already is left alone and nothing shrinks again.
        Raises CloudError.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TierReport:
    """A tier as the leader last saw it."""

    record: DecisionRecord
    minimum: int
    maximum: int
    usd_per_hour: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionFilter:
    """Which decisions are wanted; times are Unix seconds, None means all."""

    tier: Tier | None = None
    changes_only: bool = False
    start_time: float | None = None
    end_time: float | None = None
    before_id: str | None = None


@dataclass(frozen=True, slots=True)
class DecisionPage:
    """Decisions, newest first, and whether there are more."""

    records: tuple[DecisionRecord, ...]
    has_more: bool


@dataclass(frozen=True, slots=True)
class JournalTail:
    """Decisions in the order they became known, and where to go on."""

    records: tuple[DecisionRecord, ...]
    position: int


class DecisionJournal(Protocol):
    """Every decision, with what it was based on. All methods raise DatabaseAway."""

    async def save(self, record: DecisionRecord) -> None:
        """Write a decision, or what came of one that was written; repeats are harmless."""
        ...

    async def save_reports(self, reports: Sequence[TierReport]) -> None:
        """Keep the latest view of each tier, for replicas that do not lead."""
        ...

    async def reports(self) -> dict[Tier, TierReport]:
        """Return the latest view of each tier."""
        ...

    async def get(self, decision_id: str) -> DecisionRecord | None:
        """Return one decision."""
        ...

    async def list_page(self, wanted: DecisionFilter, limit: int) -> DecisionPage:
        """Return decisions whose outcome is known, newest first."""
        ...

    async def tail(self, position: int | None, limit: int) -> JournalTail:
        """Return what became known after `position`, with a few repeats of what was before.

        None gives the end and no records.
        """
        ...

    async def close_intents(self, before_epoch: int, message: str) -> int:
        """Mark intents of earlier leaders as failed; return how many there were."""
        ...

    async def delete_before(self, time: float) -> int:
        """Delete decisions older than `time`; return how many went."""
        ...


class DrainStore(Protocol):
    """Drains under way, which outlive a leader. All methods raise DatabaseAway.

    Only the lead of the latest epoch writes. A leader that was frozen between its look at the lease
    and its write would otherwise leave a drain behind that its successor knows nothing of.
    """

    async def save_drain(self, drain: Drain, epoch: int) -> bool:
        """Keep a drain; False when the lease is of another epoch. Repeats are harmless."""
        ...

    async def end_drain(self, instance_id: str, epoch: int) -> bool:
        """Forget a drain; False when the lease is of another epoch. Repeats are harmless."""
        ...

    async def drains(self) -> dict[str, Drain]:
        """Return all drains by instance id."""
        ...


class OverrideStore(Protocol):
    """Operators' holds. All methods raise DatabaseAway."""

    async def overrides(self, now: float) -> dict[Tier, Override]:
        """Return the holds in force."""
        ...

    async def set_override(
        self, tier: Tier, override: Override, request_id: str, now: float
    ) -> Override:
        """Set a hold and return it as set; a repeated request returns the first answer.

        Raises RequestIdReused when the request id belongs to another request.
        """
        ...

    async def clear_override(
        self, tier: Tier, request_id: str, cleared_by: str, now: float
    ) -> Override | None:
        """End the hold in force and return it; a repeated request returns the first answer.

        Raises RequestIdReused when the request id belongs to another request.
        """
        ...


class PlayerStore(Protocol):
    """Players online. All methods raise DatabaseAway."""

    async def report_players(self, players: Players, reported_by: str) -> Players:
        """Keep a count unless a newer one is there; return the one in force."""
        ...

    async def report_share(self, share: PlayerShare) -> None:
        """Keep what one service counted unless a newer count of it is there."""
        ...

    async def players(self) -> Players | None:
        """Return the count in force; see `players_in_force`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseView:
    """The lease after a try: who holds it, and since which change of hands."""

    holder: str
    epoch: int


class LeaderLease(Protocol):
    """One row that says who leads; expiry is compared in database time. Raises DatabaseAway."""

    async def acquire(self, holder: str, ttl_seconds: float) -> LeaseView:
        """Take or renew the lease if it is free, expired or one's own; return it as it is then."""
        ...

    async def release(self, holder: str) -> None:
        """Let the next one lead at once; does nothing for others' leases."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """Everything the database keeps."""

    journal: DecisionJournal
    drains: DrainStore
    overrides: OverrideStore
    players: PlayerStore
    lease: LeaderLease
