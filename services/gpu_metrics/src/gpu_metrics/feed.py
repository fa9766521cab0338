"""The collector's one fleet view, shared by the agents that report and everybody who watches.

A subscription remembers nothing but the revision it has sent, so a slow subscriber holds no
queue: while it is not reading, changes to the same host replace each other, and its next message
carries only the latest state of each changed host. Memory is bounded by the view itself.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

import structlog

from gpu_metrics import metric_names
from gpu_metrics.domain.aggregate import TierAggregate
from gpu_metrics.domain.fleet import Acknowledgement, ApplyOutcome, FleetChanges, FleetView
from gpu_metrics.domain.fleet_filter import EVERYTHING, FleetFilter
from gpu_metrics.domain.history import History
from gpu_metrics.domain.host_state import Freshness, HostState
from gpu_metrics.domain.readings import HostReport, Tier
from gpu_metrics.resume_token import ResumeToken
from servicekit.clock import Clock
from servicekit.telemetry import Telemetry

__all__ = ["FleetFeed", "FleetNow", "FleetUpdate"]

log = structlog.get_logger(__name__)

_NOTABLE_OUTCOMES = frozenset(
    {
        ApplyOutcome.JOINED,
        ApplyOutcome.AGENT_RESTARTED,
        ApplyOutcome.LEFT,
        ApplyOutcome.IGNORED_SUPERSEDED,
    }
)
# Subscribers share the aggregates of a revision; the latency windows slide on all the same.
_AGGREGATE_SECONDS = 0.25
# How often what is long gone leaves the history; hundreds of thousands of rings are looked at.
_HISTORY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class FleetNow:
    """The hosts of a filter and the aggregates of its tiers at one moment."""

    hosts: tuple[HostState, ...]
    aggregates: tuple[TierAggregate, ...]
    time: datetime


@dataclass(frozen=True, slots=True)
class FleetUpdate:
    """One step of a subscription: all there is, what changed, or neither (a heartbeat)."""

    token: str
    time: datetime
    revision: int
    snapshot: FleetNow | None = None
    changes: FleetChanges | None = None
    aggregates: tuple[TierAggregate, ...] = ()


class FleetFeed:
    """Applies reports to the view and lets any number of readers follow it.

    `epoch` names this run of the collector; resume tokens of other runs are refused. Not
    thread-safe: one event loop owns it.
    """

    def __init__(
        self,
        view: FleetView,
        *,
        clock: Clock,
        telemetry: Telemetry,
        epoch: str,
        history: History | None = None,
        heartbeat_seconds: float = 5.0,
        maintenance_seconds: float = 0.5,
    ) -> None:
        self._view = view
        self.history = history
        self._clock = clock
        self._epoch = epoch
        self._heartbeat_seconds = heartbeat_seconds
        self._maintenance_seconds = maintenance_seconds
        self._changed: asyncio.Event | None = None
        self._aggregates: tuple[TierAggregate, ...] = ()
        self._aggregates_of: tuple[int, int] | None = None
        # Counted here and told at each look: an instrument costs as much as taking in a report.
        self._outcomes: Counter[ApplyOutcome] = Counter()
        self._host_counts: tuple[tuple[float, str], ...] = ()
        self._reports = telemetry.counter(
            metric_names.REPORTS_RECEIVED, unit="1", description="reports received, by outcome"
        )
        self._samples = telemetry.counter(
            metric_names.SAMPLES_RECEIVED, unit="1", description="samples received, by outcome"
        )
        self._coarsened = telemetry.counter(
            metric_names.LATENCY_BOUNDS_DIFFER,
            unit="1",
            description="tier aggregates merged from differing histogram bounds",
        )
        self._history_figures = (0.0, 0.0)
        telemetry.gauge(
            metric_names.HISTORY_BYTES,
            lambda: [(self._history_figures[0], {})],
            unit="By",
            description="memory of the history's cells",
        )
        telemetry.gauge(
            metric_names.HISTORY_REFUSED,
            lambda: [(self._history_figures[1], {})],
            unit="1",
            description="samples without a history, as its memory is full",
        )
        telemetry.gauge(
            metric_names.FLEET_HOSTS,
            # Read by the exporter's thread, so it gets finished figures and not the view.
            lambda: [(count, {"freshness": name}) for count, name in self._host_counts],
            unit="1",
            description="hosts in the view, by freshness",
        )

    def apply(self, report: HostReport) -> Acknowledgement:
        """Take in a report. Raises `FleetFull` when the view cannot hold another host."""
        acknowledgement = self._view.apply(report, self._advance(), self._clock.now())
        outcome = acknowledgement.outcome
        self._outcomes[outcome] += 1
        if outcome in _NOTABLE_OUTCOMES:
            log.info(
                "host_reported",
                outcome=outcome.value,
                host_id=report.host.host_id,
                boot_id=report.boot_id,
                sequence=report.sequence,
            )
        self._wake_watchers()
        return acknowledgement

    def changes_since(self, revision: int) -> FleetChanges:
        """Return what a reader at `revision` has to change; raises `RevisionTooOld`."""
        return self._view.changes_since(revision, self._advance())

    async def changed(self) -> None:
        """Return once the view has changed after this call."""
        await self._next_change().wait()

    async def maintain(self) -> None:
        """Mark silent hosts stale and drop expired ones, until cancelled."""
        history_due = 0.0
        while True:
            self._count_hosts()
            self._tell_counts()
            if self._clock.monotonic() >= history_due:
                self._tend_history()
                history_due = self._clock.monotonic() + _HISTORY_SECONDS
            await self._clock.sleep(self._maintenance_seconds)

    def _tend_history(self) -> None:
        if self.history is not None:
            self.history.expire(int(self._clock.now().timestamp()))
            refused = float(self.history.refused_samples)
            if refused and not self._history_figures[1]:
                log.warning("history_full", maximum_figures=self.history.maximum_figures)
            self._history_figures = (float(self.history.bytes_held), refused)

    def _tell_counts(self) -> None:
        for outcome, count in self._outcomes.items():
            self._reports.add(count, {"outcome": outcome.value})
        self._outcomes.clear()
        for fate, count in self._view.fates.items():
            self._samples.add(count, {"outcome": fate.value})
        self._view.fates.clear()

    def _advance(self) -> float:
        """Bring the view to the present, telling what that did, and return the present."""
        now = self._clock.monotonic()
        stale, expired = self._view.advance(now)
        for host_id in stale:
            log.warning("host_stale", host_id=host_id)
        for host_id in expired:
            log.warning("host_expired", host_id=host_id)
        if stale or expired:
            self._wake_watchers()
        return now

    def now(self, wanted: FleetFilter = EVERYTHING) -> FleetNow:
        """Return what is wanted of the fleet as it is."""
        hosts = self._view.hosts(self._advance(), wanted)
        return FleetNow(hosts, self._current_aggregates(wanted.tiers), self._clock.now())

    def hosts(self) -> tuple[HostState, ...]:
        """Return all hosts as they are, ordered by id."""
        return self._view.hosts(self._advance())

    async def watch(
        self, wanted: FleetFilter, resume_token: str, minimum_interval_seconds: float
    ) -> AsyncIterator[FleetUpdate]:
        """Yield a snapshot, then what changed, at most one update per interval, and heartbeats.

        With a resume token the first update is what changed since. Every accepted report counts
        as a change of its host, as does turning stale. Raises `ResumeTokenTooOld` (at the first
        step) when the token cannot be continued, and later when the subscriber read so slowly
        that hosts it should drop are no longer known.
        """
        if resume_token:
            position = ResumeToken.resume(resume_token, epoch=self._epoch, wanted=wanted).revision
            update = self._update_since(position, wanted)
        else:
            snapshot = self.now(wanted)
            token = self._token(self._view.revision, wanted)
            update = FleetUpdate(token, snapshot.time, self._view.revision, snapshot=snapshot)
        while True:
            yield update
            await self._clock.sleep(minimum_interval_seconds)
            await self._change_after(update.revision, wanted)
            update = self._update_since(update.revision, wanted)

    def _update_since(self, revision: int, wanted: FleetFilter) -> FleetUpdate:
        changes = self._view.changes_since(revision, self._advance(), wanted)
        token, time = self._token(changes.revision, wanted), self._clock.now()
        if changes.empty:
            return FleetUpdate(token, time, changes.revision)
        aggregates = self._current_aggregates(wanted.tiers)
        return FleetUpdate(token, time, changes.revision, changes=changes, aggregates=aggregates)

    def _token(self, revision: int, wanted: FleetFilter) -> str:
        return ResumeToken(self._epoch, revision, wanted).encode()

    async def _change_after(self, revision: int, wanted: FleetFilter) -> None:
        """Return once something of what is wanted changed, or when a heartbeat is due."""
        heartbeat = asyncio.ensure_future(self._clock.sleep(self._heartbeat_seconds))
        try:
            while not heartbeat.done():
                if not self._view.changes_since(revision, self._advance(), wanted).empty:
                    return
                changed = asyncio.ensure_future(self._next_change().wait())
                try:
                    await asyncio.wait({changed, heartbeat}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
        finally:
            heartbeat.cancel()

    def _next_change(self) -> asyncio.Event:
        if self._changed is None:
            self._changed = asyncio.Event()
        return self._changed

    def _wake_watchers(self) -> None:
        # Mostly nobody waits: watchers sleep out their interval first.
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def _current_aggregates(self, tiers: frozenset[Tier]) -> tuple[TierAggregate, ...]:
        now = self._advance()
        key = (self._view.revision, int(now / _AGGREGATE_SECONDS))
        if self._aggregates_of != key:
            self._aggregates = self._view.aggregates(now)
            self._aggregates_of = key
            for aggregate in self._aggregates:
                if aggregate.latency_coarsened:
                    self._coarsened.add(1, {"tier": aggregate.tier.name})
        return tuple(each for each in self._aggregates if not tiers or each.tier in tiers)

    def _count_hosts(self) -> None:
        hosts = self._view.hosts(self._advance())
        self._host_counts = tuple(
            (float(sum(state.freshness is freshness for state in hosts)), freshness.name.lower())
            for freshness in Freshness
        )
