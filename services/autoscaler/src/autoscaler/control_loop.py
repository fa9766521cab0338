"""One round: look, decide each tier, write the intent, act, write what came of it.

This is the only place that sets the size of anything.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

import structlog

from autoscaler.buffered_journal import BufferedJournal, EndDrain, SaveDecision
from autoscaler.decision_feed import DecisionFeed
from autoscaler.domain.budget import affordable_servers
from autoscaler.domain.control_state import ControlState
from autoscaler.domain.decide import decide
from autoscaler.domain.decision import Decision, DecisionRecord, Outcome, Plan
from autoscaler.domain.demand_window import DemandView
from autoscaler.domain.explain import counterfactuals
from autoscaler.domain.fleet_view import FleetView, ScalingGroup
from autoscaler.domain.journal_rules import (
    JournalPolicy,
    LastEntry,
    decision_id,
    is_worth_writing,
)
from autoscaler.domain.observation import PhaseMemory, Players, build_snapshot
from autoscaler.domain.overrides import Override
from autoscaler.domain.policy import BudgetPolicy, TierPolicy
from autoscaler.domain.prices import PriceTable
from autoscaler.domain.snapshot import TierSnapshot
from autoscaler.domain.tiers import TIERS, Tier
from autoscaler.drain_control import DrainControl
from autoscaler.leadership import Leadership, Role
from autoscaler.metric_names import LoopInstruments
from autoscaler.picture import Picture
from autoscaler.ports import (
    CloudError,
    DemandFeed,
    FleetFeed,
    RouterDrains,
    ScalingCloud,
    Stores,
    TierReport,
)
from servicekit.clock import Clock
from servicekit.postgres import DatabaseAway

__all__ = ["ControlLoop", "LoopSettings"]

log = structlog.get_logger(__name__)

_ID_RANDOM_BITS = 62
_INTENT_LOST = "The replica that decided stopped before the outcome was known."
_LEAD_ENDED = "The lead ended before the cloud had answered; whoever leads decides anew."
_GROUP_CHANGED = "The group changed after it was read; the next round decides anew."


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """What the loop is told."""

    replica_id: str
    policies: Mapping[Tier, TierPolicy]
    instance_types: Mapping[Tier, str]
    budget: BudgetPolicy
    prices: PriceTable
    journal: JournalPolicy
    tick_seconds: float
    buffer_entries: int
    dry_run: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    """What one round looks at."""

    now: float
    groups: Mapping[Tier, ScalingGroup]
    fleet: FleetView
    demand: DemandView
    players: Players | None
    overrides: Mapping[Tier, Override]
    database_reachable: bool
    usd_per_hour: dict[Tier, float]
    """What each tier costs with all that was asked for; grows with this round's decisions."""


class ControlLoop:
    """Decides for as long as this replica leads; keeps the picture current in any case."""

    def __init__(
        self,
        settings: LoopSettings,
        *,
        stores: Stores,
        leadership: Leadership,
        cloud: ScalingCloud,
        routers: RouterDrains,
        fleet: FleetFeed,
        demand: DemandFeed,
        feed: DecisionFeed,
        picture: Picture,
        instruments: LoopInstruments,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._instruments = instruments
        self._settings = settings
        self._stores = stores
        self._leadership = leadership
        self._cloud = cloud
        self._fleet = fleet
        self._demand = demand
        self._feed = feed
        self._picture = picture
        self._clock = clock
        self._rng = rng
        self.journal = BufferedJournal(
            stores.journal,
            stores.drains,
            limit=settings.buffer_entries,
            epoch=lambda: leadership.epoch,
            reachable=lambda: leadership.database_reachable,
        )
        self.drains = DrainControl(routers, cloud, self.journal, tick_seconds=settings.tick_seconds)
        self._prepared_epoch: int | None = None
        self._last_id = (0, 0)
        self._groups: dict[Tier, ScalingGroup] = {}
        self._states: dict[Tier, ControlState] = {}
        self._phases: dict[Tier, PhaseMemory] = {}
        self._written: dict[Tier, LastEntry] = {}
        self._forget()

    async def run(self) -> None:
        """Decide at a steady pace until cancelled; a round that fails does not end the next."""
        while True:
            started = self._clock.monotonic()
            try:
                await self.tick()
            except Exception:
                log.exception("round_failed")
            spent = self._clock.monotonic() - started
            self._instruments.round_took(spent)
            await self._clock.sleep(max(0.0, self._settings.tick_seconds - spent))

    async def tick(self) -> None:
        """One round."""
        role = self._leadership.role
        if role is Role.FOLLOWER:
            self._prepared_epoch = None
            await self._follow()
            return
        if role is Role.LAPSED:
            return
        reachable = role is Role.LEADER and await self._prepare()
        if self._prepared_epoch is None:
            return  # it has just been elected and the database went away: no state, no acts
        reachable = await self._read_holds() and reachable
        now = self._clock.now().timestamp()
        try:
            self._groups = dict(await self._cloud.describe())
        except CloudError as error:
            log.warning("groups_not_described", error=error.message)
        current = _Round(
            now=now,
            groups=self._groups,
            fleet=self._fleet.view(),
            demand=self._demand.view(),
            players=self._picture.players,
            overrides=self._picture.overrides,
            database_reachable=reachable,
            usd_per_hour={t: self._committed_cost(t, g) for t, g in self._groups.items()},
        )
        for tier in TIERS:
            if tier in current.groups:
                await self._decide_tier(tier, current)
            else:
                log.warning("group_missing", tier=tier.value)
        if not self._settings.dry_run:
            await self.drains.progress(
                current.groups,
                current.fleet,
                self._settings.policies,
                take_away_seconds=lambda: self._take_away_seconds() if reachable else 0.0,
                now=now,
            )
        await self._share()

    def _forget(self) -> None:
        """Start with no memory: a leader that takes over watches before it takes anything away."""
        self._groups = {}
        self._states = {tier: ControlState() for tier in TIERS}
        self._phases = {tier: PhaseMemory({}) for tier in TIERS}
        self._written = {}

    async def _follow(self) -> None:
        """Keep the picture current from what the leader writes."""
        await self.journal.flush()
        try:
            self._picture.reports = await self._stores.journal.reports()
            for report in self._picture.reports.values():
                self._feed.remember(report.record)
            await self._read_holds()
        except DatabaseAway:
            log.debug("picture_not_refreshed")

    async def _prepare(self) -> bool:
        """Take over from the last leader; False while the database is away."""
        if not await self.journal.flush():
            return False
        epoch = self._leadership.epoch
        if self._prepared_epoch == epoch:
            return await self._strike_off_strays()
        try:
            lost = await self._stores.journal.close_intents(epoch, _INTENT_LOST)
            drains = await self._stores.drains.drains()
        except DatabaseAway:
            return False
        if self._prepared_epoch is None:
            self._forget()
        self.drains.load(drains)
        self._prepared_epoch = epoch
        log.info("control_taken_over", epoch=epoch, drains=len(drains), lost_intents=lost)
        return True

    async def _strike_off_strays(self) -> bool:
        """End drains that this leader does not know; False while the database is away.

        A write that was given up and sent again may be carried out a second time, late: after the
        drain has ended. The next leader would take such a drain for one under way.
        """
        try:
            written = await self._stores.drains.drains()
        except DatabaseAway:
            return False
        for instance_id in sorted(written.keys() - self.drains.instance_ids):
            log.warning("stray_drain_ended", instance_id=instance_id)
            await self.journal.write(EndDrain(instance_id))
        return True

    async def _read_holds(self) -> bool:
        """Read what operators and the game said; without the database the last known stays."""
        if not self._leadership.database_reachable:
            return False
        now = self._clock.now().timestamp()
        try:
            self._picture.overrides = await self._stores.overrides.overrides(now)
            self._picture.players = await self._stores.players.players()
        except DatabaseAway:
            return False
        return True

    async def _decide_tier(self, tier: Tier, current: _Round) -> None:
        settings = self._settings
        policy = settings.policies[tier]
        snapshot, self._phases[tier] = build_snapshot(
            policy=policy,
            group=current.groups[tier],
            fleet=current.fleet,
            demand=current.demand,
            players=current.players,
            draining_ids=self.drains.instance_ids,
            memory=self._phases[tier],
            override=current.overrides.get(tier),
            database_reachable=current.database_reachable,
            prices=settings.prices,
            price_per_server=self._price(tier),
            now=current.now,
        )
        snapshot = replace(
            snapshot,
            affordable_servers=affordable_servers(
                tier,
                players_online=snapshot.fresh_players(policy),
                usd_per_hour_by_tier=current.usd_per_hour,
                usd_per_hour_per_server=snapshot.usd_per_hour_per_server,
                budget=settings.budget,
            ),
        )
        before = self._states[tier]
        decision, self._states[tier] = decide(snapshot, before, policy, current.now)
        worth_writing = is_worth_writing(
            decision, self._written.get(tier), settings.journal, current.now
        )
        record = DecisionRecord(
            decision_id=self._new_id(current.now),
            decide_time=current.now,
            decision=decision,
            counterfactuals=counterfactuals(decision, snapshot, before, policy, current.now),
            decided_by=settings.replica_id,
            lease_epoch=self._leadership.epoch,
        )
        record = await self._carry_out(record, snapshot, policy, worth_writing=worth_writing)
        if worth_writing or record.outcome is Outcome.APPLIED:
            await self._write_outcome(record)
        else:
            self._feed.remember(record)
        self._instruments.decided(record)
        growth = max(0, decision.desired - decision.previous_desired)
        current.usd_per_hour[tier] += growth * snapshot.usd_per_hour_per_server
        self._picture.reports[tier] = TierReport(
            record=record,
            minimum=policy.minimum,
            maximum=policy.maximum,
            usd_per_hour=settings.prices.of_group(current.groups[tier]),
        )
        per_player = self._states[tier].estimates.requests_per_player_second
        if per_player is not None:
            self._picture.requests_per_player_second[tier] = per_player

    async def _carry_out(
        self,
        record: DecisionRecord,
        snapshot: TierSnapshot,
        policy: TierPolicy,
        *,
        worth_writing: bool,
    ) -> DecisionRecord:
        plan = record.decision.plan
        if plan.is_empty:
            return replace(record, outcome=Outcome.NO_CHANGE)
        if self._settings.dry_run:
            return replace(record, outcome=Outcome.DRY_RUN)
        if worth_writing:
            await self.journal.write(SaveDecision(record))
        try:
            message = await self._act(record, snapshot, policy)
        except CloudError as error:
            return replace(record, outcome=Outcome.FAILED, outcome_message=error.message)
        outcome = Outcome.FAILED if message else Outcome.APPLIED
        return replace(record, outcome=outcome, outcome_message=message)

    async def _act(self, record: DecisionRecord, snapshot: TierSnapshot, policy: TierPolicy) -> str:
        """Resume, set the size, begin drains; return what could not be done, or nothing."""
        plan = record.decision.plan
        for instance_id in plan.resume_instance_ids:
            await self.drains.cancel(instance_id)
        if plan.group_desired is not None:
            await self._set_size(snapshot, plan, plan.group_desired)
        instances = {i.instance_id: i for i in snapshot.instances}
        for instance_id in plan.drain_instance_ids:
            if self._take_away_seconds() <= 0:
                return _LEAD_ENDED
            # A drain must survive this replica, so without the database it does not begin.
            if not await self.drains.start(
                instances[instance_id], policy, record.decision_id, record.decide_time
            ):
                return "The database is away, so no drain was begun."
        return ""

    async def _set_size(self, snapshot: TierSnapshot, plan: Plan, size: int) -> None:
        """Set a group's size if the group is as it was decided on, and while this one leads.

        The cloud checks no fencing token. A leader that was held up between its look and this call
        would undo, with an absolute size, what another leader has done since.
        """
        tier = snapshot.tier
        # The size counts those that are on their way out. One that the cloud took back meanwhile
        # has been replaced already, so the group would have a server too many.
        leaving = {i.instance_id for i in snapshot.draining} | {*plan.drain_instance_ids}
        try:
            async with asyncio.timeout(self._leadership.act_seconds):
                group = (await self._cloud.describe()).get(tier)
                if group is None or group.desired != snapshot.group_desired:
                    raise CloudError(_GROUP_CHANGED)
                if not leaving <= {i.instance_id for i in group.live}:
                    raise CloudError(_GROUP_CHANGED)
                # One that was cut off has no lease to end this: the database may be back and have
                # named another leader while the cloud was asked.
                if self._leadership.role not in (Role.LEADER, Role.CUT_OFF):
                    raise CloudError(_LEAD_ENDED)
                await self._cloud.set_desired(tier, size)
        except TimeoutError:
            raise CloudError(_LEAD_ENDED) from None

    async def _write_outcome(self, record: DecisionRecord) -> None:
        decision = record.decision
        await self.journal.write(SaveDecision(record))
        self._feed.publish(record)
        self._written[decision.tier] = LastEntry(
            time=record.decide_time,
            rule=decision.rule,
            outcome=record.outcome,
            desired=decision.desired,
        )
        if record.is_change:
            _log_decision(record, decision)

    async def _share(self) -> None:
        """Let replicas that do not lead answer as well as this one."""
        if not self._leadership.database_reachable:
            return
        try:
            await self._stores.journal.save_reports(list(self._picture.reports.values()))
        except DatabaseAway:
            log.debug("reports_not_shared")

    def _take_away_seconds(self) -> float:
        leads = self._leadership.role is Role.LEADER
        return (self._leadership.act_seconds or 0.0) if leads else 0.0

    def _committed_cost(self, tier: Tier, group: ScalingGroup) -> float:
        """Return what a group costs once everything it was asked for runs."""
        unlaunched = max(0, group.desired - len(group.live))
        return self._settings.prices.of_group(group) + unlaunched * self._price(tier)

    def _price(self, tier: Tier) -> float:
        instance_type = self._settings.instance_types[tier]
        return self._settings.prices.usd_per_hour(instance_type, is_spot=False)

    def _new_id(self, now: float) -> str:
        """Return an id above all earlier ones of this replica, also when the clock stands still."""
        millisecond, counter = self._last_id
        current = max(int(now * 1000), millisecond)
        counter = counter + 1 if current == millisecond else 0
        self._last_id = (current, counter)
        return decision_id(current, counter, self._rng.getrandbits(_ID_RANDOM_BITS))


def _log_decision(record: DecisionRecord, decision: Decision) -> None:
    log.info(
        "decision_taken",
        tier=decision.tier.value,
        previous=decision.previous_desired,
        desired=decision.desired,
        rule=decision.rule.value,
        outcome=record.outcome.value if record.outcome else None,
        summary=decision.summary,
        error=record.outcome_message or None,
    )
