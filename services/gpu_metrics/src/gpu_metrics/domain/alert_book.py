"""Which alerts stand and which have ended. Time is an argument; nothing here waits.

A condition is told once it has held for its kind's time, and has ended once it has been absent for
its kind's time; in between it may flicker. What a host's journal tells (a GPU lost or hung, a
driver that does not match) needs no confirmation. While a host is silent nothing is said of what is
on it, but what it tells itself in events; a host that announced its end (a Spot notice, or an agent
that says it leaves) is neither silent nor lost.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime

from gpu_metrics.domain.alert_findings import (
    EccMemory,
    Finding,
    digest_of,
    findings_of,
    report_answers,
)
from gpu_metrics.domain.alerts import (
    Alert,
    AlertChange,
    AlertChangeKind,
    AlertEnded,
    AlertKind,
    AlertNotFound,
    AlertPolicy,
    Condition,
    alert_id,
)
from gpu_metrics.domain.event_findings import HostNews, TellingEvent
from gpu_metrics.domain.gpu_events import GpuEvent
from gpu_metrics.domain.host_state import Freshness, HostState

__all__ = ["AlertBook", "Moment"]

# Of hosts that were given up so many are remembered, to say when one is back.
_LOST_HOSTS_REMEMBERED = 1000
# So many conditions may stand of one host; an agent cannot fill the collector with them.
_CONDITIONS_PER_HOST = 512
_GPUS_PER_HOST = 128
_HOSTS_WITHOUT_REPORTS = 4096


@dataclass(frozen=True, slots=True)
class Moment:
    """Now, by a clock that never goes back and by the calendar."""

    monotonic: float
    time: datetime


class _HostBook:
    """What is known of one host.

    `settled` is the digest of reports that change nothing, None while anything is under way.
    """

    __slots__ = ("absent", "ecc", "gone", "news", "settled", "standing", "state", "suspected")

    def __init__(self, policy: AlertPolicy) -> None:
        self.state: HostState | None = None
        self.gone = False
        self.news = HostNews(policy.clear_after(AlertKind.XID))
        self.ecc: EccMemory = {}
        self.settled: object | None = None
        self.suspected: dict[Condition, tuple[float, str | datetime]] = {}
        self.standing: dict[Condition, Alert] = {}
        self.absent: dict[Condition, float] = {}


class AlertBook:
    """All alerts; every method that may change some returns the changes in order."""

    def __init__(self, policy: AlertPolicy | None = None) -> None:
        self.policy = policy or AlertPolicy()
        self._hosts: dict[str, _HostBook] = {}
        # When time alone will next change something of a host; of most hosts it never does.
        self._due: dict[str, float] = {}
        self._lost: OrderedDict[str, tuple[Alert, float]] = OrderedDict()
        self._ended: OrderedDict[str, Alert] = OrderedDict()

    # --- what is known ---------------------------------------------------------------------------

    def standing(self) -> Iterator[Alert]:
        """Yield the alerts that stand, in no order."""
        for book in self._hosts.values():
            yield from book.standing.values()
        for alert, _ in self._lost.values():
            yield alert

    def host_ids(self) -> tuple[str, ...]:
        """Return the hosts that reported and have not gone since."""
        return tuple(host_id for host_id, book in self._hosts.items() if book.state is not None)

    def ended(self) -> Iterable[Alert]:
        """Return the alerts that ended, as far as they are remembered."""
        return self._ended.values()

    # --- what changes it -------------------------------------------------------------------------

    def look(
        self, changed: Iterable[HostState], removed: Iterable[str], now: Moment
    ) -> tuple[AlertChange, ...]:
        """Return what began and what ended with hosts that changed or went away."""
        changes: list[AlertChange] = []
        for host_id in removed:
            changes += self._host_gone(host_id, now)
        for state in changed:
            changes += self._host_reported(state, now)
        return tuple(changes)

    def take_events(
        self, host_id: str, journal_id: str, events: Iterable[GpuEvent], now: Moment
    ) -> tuple[AlertChange, ...]:
        """Return what began and what ended with new events of a host's journal."""
        book = self._hosts.get(host_id)
        if book is None:
            if len(self._hosts) >= _HOSTS_WITHOUT_REPORTS:
                return ()
            book = self._hosts[host_id] = _HostBook(self.policy)
        for event in events:
            name = f"{journal_id}:{event.sequence}"
            book.news.take(TellingEvent(host_id, name, event))
        return tuple(self._evaluate(host_id, book, now))

    def pass_time(self, now: Moment) -> tuple[AlertChange, ...]:
        """Return what ended by the passing of time alone."""
        changes: list[AlertChange] = []
        for host_id in [each for each, at in self._due.items() if at <= now.monotonic]:
            changes += self._due_host(host_id, self._hosts[host_id], now)
        forget_after = self.policy.clear_after(AlertKind.HOST_LOST)
        for host_id, (alert, since) in list(self._lost.items()):
            if now.monotonic - since < forget_after:
                break
            del self._lost[host_id]
            changes.append(self._end(alert, now, "It has not been seen again."))
        return tuple(changes)

    def acknowledge(self, wanted: str, *, who: str, note: str, now: Moment) -> AlertChange | None:
        """Note who looks after an alert; None when exactly that is noted already.

        Raises `AlertNotFound`, or `AlertEnded` for one that has ended.
        """
        alert = self.find(wanted)
        if not alert.stands:
            raise AlertEnded(
                "The alert has ended; there is nothing left to look after.",
                metadata={"alert_id": wanted},
            )
        if (alert.acknowledged_by, alert.note) == (who, note):
            return None
        alert = replace(alert, acknowledged_by=who, note=note, acknowledge_time=now.time)
        host_id = alert.condition.host_id
        if alert.condition.kind is AlertKind.HOST_LOST:
            self._lost[host_id] = (alert, self._lost[host_id][1])
        else:
            self._hosts[host_id].standing[alert.condition] = alert
        return AlertChange(AlertChangeKind.ACKNOWLEDGED, alert)

    def find(self, wanted: str) -> Alert:
        """Return an alert that stands or is remembered. Raises `AlertNotFound`."""
        found = next((each for each in self.standing() if each.alert_id == wanted), None)
        found = found or self._ended.get(wanted)
        if found is None:
            raise AlertNotFound(
                "No such alert stands or ended lately; list the alerts to see their ids.",
                metadata={"alert_id": wanted},
            )
        return found

    # --- hosts -----------------------------------------------------------------------------------

    def _host_reported(self, state: HostState, now: Moment) -> Iterator[AlertChange]:
        host_id = state.host.host_id
        book = self._hosts.get(host_id)
        if book is None:
            book = self._hosts[host_id] = _HostBook(self.policy)
        book.gone = False
        lost = self._lost.pop(host_id, None)
        if lost is not None:
            yield self._end(lost[0], now, "The host reports again.")
        book.state = state
        if state.freshness is Freshness.FRESH:
            if book.settled is not None and book.settled == self._digest(state):
                return
            book.news.contradict(lambda gpu: report_answers(state.report.gpus, gpu), state)
        yield from self._evaluate(host_id, book, now)

    def _due_host(self, host_id: str, book: _HostBook, now: Moment) -> Iterator[AlertChange]:
        """Return what the passing of time does to a host."""
        del self._due[host_id]
        if book.state is not None and book.state.freshness is Freshness.FRESH:
            # What its last report showed is not confirmed by time, but by the next report.
            yield from self._end_absent(book, now)
            self._plan(host_id, book, now)
            return
        yield from self._evaluate(host_id, book, now)
        recent = book.news.seconds_to_next_end(now.time) is not None
        if book.state is None and not book.standing and not recent:
            # It only ever sent events, or it is gone and may come back.
            self._due.pop(host_id, None)
            del self._hosts[host_id]

    def _plan(self, host_id: str, book: _HostBook, now: Moment) -> None:
        """Note when time alone will next change something of a host."""
        due = math.inf
        if book.state is not None and book.state.freshness is Freshness.STALE:
            for condition, (since, _) in book.suspected.items():
                due = min(due, since + self.policy.raise_after(condition.kind))
        else:
            for condition, since in book.absent.items():
                due = min(due, since + self._absent_for(condition.kind))
        if book.state is None:
            left = book.news.seconds_to_next_end(now.time)
            if left is not None:
                due = min(due, now.monotonic + left)
            elif not book.standing:
                due = now.monotonic
        if due < math.inf:
            self._due[host_id] = due
        else:
            self._due.pop(host_id, None)

    def _host_gone(self, host_id: str, now: Moment) -> Iterator[AlertChange]:
        """End all alerts of a host; of one that was silent being lost takes their place."""
        book = self._hosts.get(host_id)
        if book is None:
            return
        silence = book.standing.pop(Condition(AlertKind.HOST_SILENT, host_id), None)
        if silence is not None:
            yield self._end(silence, now, "The host was given up.", replaced=True)
            lost = self._alert(
                book,
                Finding(
                    Condition(AlertKind.HOST_LOST, host_id),
                    lambda: "The host has been silent for so long that it was given up.",
                    silence.alert_id,
                ),
                silence.alert_id,
                now,
            )
            self._lost[host_id] = (lost, now.monotonic)
            if len(self._lost) > _LOST_HOSTS_REMEMBERED:
                forgotten, _ = self._lost.popitem(last=False)[1]
                yield self._end(forgotten, now, "Too many others were lost since.")
            yield AlertChange(AlertChangeKind.RAISED, lost)
        for alert in book.standing.values():
            yield self._end(alert, now, "The host is gone.")
        news = book.news
        # Its events are told once, so what they said is kept for when it is back.
        book = self._hosts[host_id] = _HostBook(self.policy)
        book.news, book.gone = news, True
        self._plan(host_id, book, now)

    # --- conditions ------------------------------------------------------------------------------

    def _evaluate(self, host_id: str, book: _HostBook, now: Moment) -> Iterator[AlertChange]:
        book.settled = None
        if not book.gone:
            if book.state is not None and book.state.freshness is Freshness.STALE:
                yield from self._evaluate_silent(host_id, book, book.state, now)
            else:
                yield from self._evaluate_report(book, now)
        self._plan(host_id, book, now)

    def _evaluate_report(self, book: _HostBook, now: Moment) -> Iterator[AlertChange]:
        """Compare what holds now with what stands; a host that only sent events has no report."""
        found = self._findings(book, now)
        for finding in found.values():
            yield from self._found(book, finding, now)
        for condition in [each for each in book.suspected if each not in found]:
            del book.suspected[condition]
        for condition in book.standing:
            if condition in found:
                book.absent.pop(condition, None)
            else:
                book.absent.setdefault(condition, now.monotonic)
        yield from self._end_absent(book, now)
        lasting = not any(finding.named for finding in found.values())
        if lasting and book.state is not None and not book.suspected and not book.absent:
            book.settled = self._digest(book.state)

    def _evaluate_silent(
        self, host_id: str, book: _HostBook, state: HostState, now: Moment
    ) -> Iterator[AlertChange]:
        """Tell of the silence, and of what the host's events tell all the same; nothing ends."""
        silent = Condition(AlertKind.HOST_SILENT, host_id)
        book.suspected = {each: at for each, at in book.suspected.items() if each == silent}
        if state.host.interruption_time is None:
            occurrence = f"{state.report.boot_id}:{state.report.sample_time.isoformat()}"
            finding = Finding(silent, lambda: "The host has stopped reporting.", occurrence)
            yield from self._found(book, finding, now)
        for finding in book.news.findings(now.time):
            if finding.at_once:
                yield from self._found(book, finding, now)

    def _digest(self, state: HostState) -> object | None:
        return digest_of(state, skew_seconds=self.policy.skew_seconds)

    def _findings(self, book: _HostBook, now: Moment) -> dict[Condition, Finding]:
        """Return what the host's last report and its events say together."""
        found: dict[Condition, Finding] = {}
        if book.state is not None:
            if len(book.ecc) > _GPUS_PER_HOST:
                book.ecc.clear()
            skew_seconds = self.policy.skew_seconds
            for finding in findings_of(book.state, book.ecc, skew_seconds=skew_seconds):
                found.setdefault(finding.condition, finding)
        for finding in book.news.findings(now.time):
            # An old event may be one whose end has not arrived yet: it raises nothing by itself.
            condition = finding.condition
            if finding.at_once or condition in found or condition in book.standing:
                found[condition] = finding
        return found

    def _found(self, book: _HostBook, finding: Finding, now: Moment) -> Iterator[AlertChange]:
        condition = finding.condition
        if condition in book.standing or len(book.standing) >= _CONDITIONS_PER_HOST:
            return
        first = (now.monotonic, finding.occurrence)
        since, occurrence = book.suspected.setdefault(condition, first)
        held = now.monotonic - since
        if not finding.at_once and held < self.policy.raise_after(condition.kind):
            return
        del book.suspected[condition]
        occurrence = finding.occurrence if finding.named else occurrence
        alert = self._alert(book, finding, occurrence, now)
        book.standing[condition] = alert
        book.absent.pop(condition, None)
        self._ended.pop(alert.alert_id, None)
        yield AlertChange(AlertChangeKind.RAISED, alert)

    def _end_absent(self, book: _HostBook, now: Moment) -> Iterator[AlertChange]:
        if book.state is not None and book.state.freshness is Freshness.STALE:
            return
        for condition, since in list(book.absent.items()):
            if now.monotonic - since >= self._absent_for(condition.kind):
                del book.absent[condition]
                alert = book.standing.pop(condition)
                silent = condition.kind is AlertKind.HOST_SILENT
                reason = "The host reports again." if silent else "It works again, or is gone."
                yield self._end(alert, now, reason)

    def _absent_for(self, kind: AlertKind) -> float:
        # What events tell of has been absent for long enough when they say so.
        return 0.0 if kind is AlertKind.XID else self.policy.clear_after(kind)

    def _alert(
        self, book: _HostBook, finding: Finding, occurrence: str | datetime, now: Moment
    ) -> Alert:
        state = book.state
        tiers = state.tiers if state is not None else frozenset()
        if isinstance(occurrence, datetime):
            occurrence = occurrence.isoformat(timespec="milliseconds")
        return Alert(
            alert_id=alert_id(finding.condition, occurrence),
            condition=finding.condition,
            severity=finding.severity or finding.condition.kind.severity,
            reason=finding.reason(),
            tiers=tuple(sorted(tiers, key=lambda tier: tier.value)),
            simulated=state is not None and state.host.simulated,
            last_report_time=state.receive_time if state is not None else now.time,
            raise_time=now.time,
        )

    def _end(
        self, alert: Alert, now: Moment, reason: str, *, replaced: bool = False
    ) -> AlertChange:
        # Where the calendar was set back nothing ends before it began.
        ended = replace(alert, clear_time=max(now.time, alert.raise_time))
        self._ended[ended.alert_id] = ended
        while len(self._ended) > self.policy.history:
            self._ended.popitem(last=False)
        return AlertChange(AlertChangeKind.CLEARED, ended, reason, replaced)
