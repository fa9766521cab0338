"""The autoscaler's RPCs. Any replica answers all of them; the database carries what must be shared.

Reads of the present come from memory and are served while the database is away; the journal's
past, holds and player counts need it and answer UNAVAILABLE until it is back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from autoscaler.buffered_journal import BufferedJournal
from autoscaler.decision_feed import DecisionFeed
from autoscaler.domain.budget import usd_per_player_month
from autoscaler.domain.decision import DecisionRecord
from autoscaler.domain.observation import Players
from autoscaler.domain.override_rules import check_override
from autoscaler.domain.policy import BudgetPolicy, TierPolicy
from autoscaler.domain.tiers import TIERS, Tier
from autoscaler.leadership import Leadership
from autoscaler.picture import Picture
from autoscaler.ports import DecisionFilter, DemandFeed, FleetFeed, Stores
from autoscaler.proto_codec import (
    decision_to_wire,
    duration_to_wire,
    explanation_to_wire,
    filter_from_wire,
    override_from_wire,
    override_to_wire,
    page_token,
    seconds_of,
    tier_from_wire,
    tier_to_wire,
)
from gaming.autoscaler.v1 import autoscaler_pb2 as pb
from gaming.autoscaler.v1 import autoscaler_pb2_grpc
from servicekit.caller import current_caller
from servicekit.clock import Clock
from servicekit.errors import FieldViolation, InvalidRequest, NotFound

__all__ = ["AutoscalerServicer", "DecisionNotFound", "ServicerSettings"]

_DEFAULT_PAGE_SIZE = 50
_LARGEST_COUNT_LEAD_SECONDS = 60.0


class DecisionNotFound(NotFound):
    """There is no such decision, or the retention has taken it."""

    reason = "DECISION_NOT_FOUND"


class CountFromTheFuture(InvalidRequest):
    """A player count of a later moment would keep out all that follow."""

    reason = "COUNT_FROM_THE_FUTURE"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicerSettings:
    """What the servicer is told."""

    replica_id: str
    dry_run: bool
    policies: Mapping[Tier, TierPolicy]
    budget: BudgetPolicy
    shown_budget_usd_per_player_month: float
    price_source: str


class AutoscalerServicer(autoscaler_pb2_grpc.AutoscalerServiceServicer):
    """Contract on one side, stores and the last known picture on the other."""

    def __init__(
        self,
        settings: ServicerSettings,
        *,
        stores: Stores,
        picture: Picture,
        leadership: Leadership,
        feed: DecisionFeed,
        journal: BufferedJournal,
        fleet: FleetFeed,
        demand: DemandFeed,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._stores = stores
        self._picture = picture
        self._leadership = leadership
        self._feed = feed
        self._journal = journal
        self._fleet = fleet
        self._demand = demand
        self._clock = clock

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:  # noqa: N802 - the contract's name
        """Return this replica's condition, its inputs' ages and the cost of the fleet."""
        players = self._picture.players
        cost = self._picture.usd_per_hour
        online = players.online if players else None
        fleet_age = self._fleet.view().age_seconds
        demand_age = self._demand.view().age_seconds
        return pb.GetStatusResponse(
            replica_id=self._settings.replica_id,
            leader_id=self._leadership.leader_id,
            dry_run=self._settings.dry_run,
            database_reachable=self._leadership.database_reachable,
            buffered_decisions=self._journal.waiting_decisions,
            players_online=online,
            cost_usd_per_hour=cost,
            cost_usd_per_player_month=usd_per_player_month(cost, online, self._settings.budget),
            budget_usd_per_player_month=self._settings.shown_budget_usd_per_player_month,
            price_source=self._settings.price_source,
            fleet_age=None if fleet_age is None else duration_to_wire(fleet_age),
            demand_age=None if demand_age is None else duration_to_wire(demand_age),
        )

    async def GetTier(self, request: pb.GetTierRequest, context: Any) -> pb.GetTierResponse:  # noqa: N802 - the contract's name
        """Return one tier."""
        tier = tier_from_wire(request.tier)
        assert tier is not None  # noqa: S101 - the contract's validation refuses others
        return pb.GetTierResponse(tier=self._state(tier))

    async def ListTiers(self, request: pb.ListTiersRequest, context: Any) -> pb.ListTiersResponse:  # noqa: N802 - the contract's name
        """Return all tiers."""
        return pb.ListTiersResponse(tiers=[self._state(tier) for tier in TIERS])

    async def ListDecisions(  # noqa: N802 - the contract's name
        self, request: pb.ListDecisionsRequest, context: Any
    ) -> pb.ListDecisionsResponse:
        """Return a page of the journal, newest first."""
        page = await self._stores.journal.list_page(
            filter_from_wire(request), request.page_size or _DEFAULT_PAGE_SIZE
        )
        token = page_token(request, page.records[-1].decision_id) if page.has_more else ""
        return pb.ListDecisionsResponse(
            decisions=[decision_to_wire(record) for record in page.records],
            next_page_token=token,
        )

    async def WatchDecisions(  # noqa: N802 - the contract's name
        self, request: pb.WatchDecisionsRequest, context: Any
    ) -> AsyncIterator[pb.WatchDecisionsResponse]:
        """Stream decisions after the resume token, oldest first."""
        async for step in self._feed.subscribe(
            request.resume_token, tier_from_wire(request.tier), changes_only=request.changes_only
        ):
            yield pb.WatchDecisionsResponse(
                resume_token=step.token,
                decision=decision_to_wire(step.item) if step.item else None,
            )

    async def ExplainDecision(  # noqa: N802 - the contract's name
        self, request: pb.ExplainDecisionRequest, context: Any
    ) -> pb.ExplainDecisionResponse:
        """Tell why a decision fell as it did, and what would have changed it."""
        if request.decision_id:
            record = self._feed.recent(request.decision_id)
            record = record or await self._stores.journal.get(request.decision_id)
        else:
            record = await self._latest_change(tier_from_wire(request.tier))
        if record is None:
            raise DecisionNotFound(
                "There is no such decision; ListDecisions shows those the journal still holds."
            )
        return explanation_to_wire(record)

    async def SetOverride(  # noqa: N802 - the contract's name
        self, request: pb.SetOverrideRequest, context: Any
    ) -> pb.SetOverrideResponse:
        """Pin, bound or freeze a tier until a moment."""
        tier = tier_from_wire(request.tier)
        assert tier is not None  # noqa: S101 - the contract's validation refuses others
        override = override_from_wire(request.override, _who(request.override.set_by))
        now = self._now()
        check_override(override, now)
        kept = await self._stores.overrides.set_override(tier, override, request.request_id, now)
        self._picture.overrides = await self._stores.overrides.overrides(now)
        return pb.SetOverrideResponse(override=override_to_wire(kept))

    async def ClearOverride(  # noqa: N802 - the contract's name
        self, request: pb.ClearOverrideRequest, context: Any
    ) -> pb.ClearOverrideResponse:
        """End a tier's hold at once."""
        tier = tier_from_wire(request.tier)
        assert tier is not None  # noqa: S101 - the contract's validation refuses others
        now = self._now()
        ended = await self._stores.overrides.clear_override(tier, request.request_id, _who(""), now)
        self._picture.overrides = await self._stores.overrides.overrides(now)
        return pb.ClearOverrideResponse(cleared=override_to_wire(ended) if ended else None)

    async def ReportPlayers(  # noqa: N802 - the contract's name
        self, request: pb.ReportPlayersRequest, context: Any
    ) -> pb.ReportPlayersResponse:
        """Take the number of players online."""
        now = self._now()
        counted = seconds_of(request.count_time) if request.HasField("count_time") else now
        if counted > now + _LARGEST_COUNT_LEAD_SECONDS:
            violation = FieldViolation("count_time", "must not lie in the future")
            raise CountFromTheFuture(
                "The count is of a later moment than now.", field_violations=[violation]
            )
        reported = Players(online=request.players_online, count_time=counted)
        in_force = await self._stores.players.report_players(reported, _who(""))
        self._picture.players = in_force
        return pb.ReportPlayersResponse(players_online=in_force.online)

    def _state(self, tier: Tier) -> pb.TierState:
        override = self._picture.overrides.get(tier)
        if override is not None and not override.in_force(self._now()):
            override = None
        return tier_to_wire(
            self._settings.policies[tier], self._picture.reports.get(tier), override
        )

    async def _latest_change(self, tier: Tier | None) -> DecisionRecord | None:
        if tier is None:
            violation = FieldViolation("tier", "required when `decision_id` is empty")
            raise InvalidRequest(
                "Name a decision, or a tier to explain its latest change.",
                field_violations=[violation],
            )
        if self._leadership.database_reachable:
            wanted = DecisionFilter(tier=tier, changes_only=True)
            page = await self._stores.journal.list_page(wanted, 1)
            latest = page.records[0] if page.records else None
        else:
            latest = self._feed.latest_change(tier)
        return latest or self._picture.last_decision(tier)

    def _now(self) -> float:
        return self._clock.now().timestamp()


def _who(claimed: str) -> str:
    """Return the caller's identity, or on plaintext loopback what the caller says."""
    caller = current_caller()
    if caller.authenticated:
        return caller.identity
    return claimed or caller.identity
