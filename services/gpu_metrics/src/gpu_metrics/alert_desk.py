"""Where the collector's alerts are kept: raised as reports and events come, listed, followed.

Alerts are judged right after the report that causes them, by a task of its own: nothing here stands
in the way of reports, and those that come within a few milliseconds are judged together.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

import structlog

from gpu_metrics import metric_names
from gpu_metrics.domain.alert_book import AlertBook, Moment
from gpu_metrics.domain.alerts import Alert, AlertChange, AlertChangeKind
from gpu_metrics.domain.fleet import RevisionTooOld
from gpu_metrics.domain.gpu_events import GpuEvent
from gpu_metrics.domain.readings import HostReport
from gpu_metrics.feed import FleetFeed
from servicekit.clock import Clock
from servicekit.paging import Page, decode_page_token, encode_page_token
from servicekit.streams import ResumableLog
from servicekit.telemetry import Telemetry

__all__ = ["AlertDesk", "AlertStep"]

log = structlog.get_logger(__name__)

_TIME_SECONDS = 0.5
# Reports come in bursts; a look for each would be dear where a thousand hosts report.
_GATHER_SECONDS = 0.005

Changes = tuple[AlertChange, ...]


@dataclass(frozen=True, slots=True)
class AlertStep:
    """One step of a subscription: all that stand, what changed, or nothing (a heartbeat)."""

    token: str
    alerts: tuple[Alert, ...] = ()
    snapshot: bool = False


class AlertDesk:
    """Judges the view and the events, and tells who follows. One event loop owns it."""

    def __init__(
        self,
        feed: FleetFeed,
        book: AlertBook,
        *,
        clock: Clock,
        telemetry: Telemetry,
        epoch: str,
        heartbeat_seconds: float = 5.0,
        runbook_base_url: str = "deploy/runbooks/gpu",
    ) -> None:
        self.runbook_base_url = runbook_base_url
        self._feed = feed
        self._book = book
        self._clock = clock
        self._revision = 0
        self._log = ResumableLog[Changes](
            clock=clock, epoch=epoch, heartbeat_seconds=heartbeat_seconds
        )
        self._listeners: list[Callable[[AlertChange], None]] = []
        self._alerts = telemetry.counter(
            metric_names.ALERTS, unit="1", description="alerts of the fleet, by kind and state"
        )

    def add_listener(self, listener: Callable[[AlertChange], None]) -> None:
        """Tell `listener` of every change from now on."""
        self._listeners.append(listener)

    async def run(self) -> None:
        """Look at the view whenever it changes, and twice a second at what time has ended."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_view())
            tasks.create_task(self._watch_time())

    async def _watch_view(self) -> None:
        while True:
            self.look()
            await self._feed.changed()
            await self._clock.sleep(_GATHER_SECONDS)

    async def _watch_time(self) -> None:
        while True:
            await self._clock.sleep(_TIME_SECONDS)
            # Who falls silent changes the view by that alone.
            self.look()
            self._tell(self._book.pass_time(self._now()))

    def look(self) -> None:
        """Judge what changed in the view since the last look."""
        now = self._now()
        try:
            changes = self._feed.changes_since(self._revision)
            hosts, removed = changes.changed, changes.removed_host_ids
            self._revision = changes.revision
        except RevisionTooOld:
            hosts = self._feed.hosts()
            present = {state.host.host_id for state in hosts}
            removed = tuple(each for each in self._book.host_ids() if each not in present)
            self._revision = max((state.revision for state in hosts), default=0)
        self._tell(self._book.look(hosts, removed, now))

    def take_events(self, report: HostReport, events: tuple[GpuEvent, ...]) -> None:
        """Judge new events of a host's journal."""
        host_id = report.host.host_id
        self._tell(self._book.take_events(host_id, report.journal_id, events, self._now()))

    def acknowledge(self, alert_id: str, *, who: str, note: str) -> Alert:
        """Note who looks after an alert; raises `AlertNotFound` or `AlertEnded`."""
        change = self._book.acknowledge(alert_id, who=who, note=note, now=self._now())
        if change is not None:
            self._tell((change,))
        return self._book.find(alert_id)

    def page(
        self, *, include_cleared: bool, host_id: str, page_size: int, page_token: str
    ) -> Page[Alert]:
        """Return a page of those that stand, then of those that ended, the gravest first.

        Raises `InvalidPageToken`.
        """
        scope = ("alerts", str(include_cleared), host_id)
        after = decode_page_token(page_token, scope, (int, int, int, str))
        alerts: Iterable[Alert] = self._book.standing()
        if include_cleared:
            alerts = (*alerts, *self._book.ended())
        later = sorted(
            (
                alert
                for alert in alerts
                if (not host_id or alert.condition.host_id == host_id)
                and (after is None or _order(alert) > tuple(after))
            ),
            key=_order,
        )
        page = tuple(later[:page_size])
        more = len(later) > page_size
        return Page(page, encode_page_token(scope, _order(page[-1])) if more else "")

    async def follow(self, resume_token: str) -> AsyncIterator[AlertStep]:
        """Yield all that stand, or with a token what changed since, then changes and heartbeats.

        Raises `ResumeTokenTooOld` at the first step, `SlowSubscriber` and `ShuttingDown` later.
        """
        changes = self._log.subscribe(resume_token)
        if not resume_token:
            standing = tuple(sorted(self._book.standing(), key=_order))
            yield AlertStep(self._log.latest_token, standing, snapshot=True)
        async for step in changes:
            yield AlertStep(step.token, tuple(change.alert for change in step.item or ()))

    def _now(self) -> Moment:
        return Moment(self._clock.monotonic(), self._clock.now())

    def _tell(self, changes: Changes) -> None:
        for change in changes:
            condition = change.alert.condition
            kind = condition.kind.name.lower()
            self._alerts.add(1, {"kind": kind, "state": change.kind.value})
            write = log.warning if change.kind is AlertChangeKind.RAISED else log.info
            write(
                "fleet_alert",
                alert_id=change.alert.alert_id,
                kind=kind,
                state=change.kind.value,
                host_id=condition.host_id,
                part_id=condition.part_id or None,
                reason=change.reason or change.alert.reason,
            )
        if changes:
            self._log.publish(changes)
        for listener in self._listeners:
            for change in changes:
                listener(change)


def _order(alert: Alert) -> tuple[int, int, int, str]:
    """Return what alerts are ordered by: standing, the gravest, the newest first."""
    raised = round(alert.raise_time.timestamp() * 1_000_000)
    return int(not alert.stands), -alert.severity.value, -raised, alert.alert_id
