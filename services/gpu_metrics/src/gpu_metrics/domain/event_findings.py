"""What the events of a host's journal say that needs attention. Pure; time is an argument.

The same events in the same order say the same at every collector, also when they are read again
after a restart: what has been over for long is not told anew.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from gpu_metrics.domain.alert_findings import Finding
from gpu_metrics.domain.alerts import AlertKind, Condition
from gpu_metrics.domain.gpu_events import GpuEvent, GpuEventKind, Severity
from gpu_metrics.domain.host_state import HostState

__all__ = ["HostNews", "TellingEvent"]

_TELLING = {
    GpuEventKind.GPU_LOST: AlertKind.GPU_LOST,
    GpuEventKind.GPU_HUNG: AlertKind.GPU_HUNG,
    GpuEventKind.DRIVER_MISMATCH: AlertKind.DRIVER_UNREACHABLE,
}
# An event this old needs a reading that confirms it: its end may just not have arrived yet.
_NEWS_SECONDS = 30.0
# A GPU has a handful of codes at most; an agent cannot fill the collector with them.
_REMEMBERED = 256


@dataclass(frozen=True, slots=True)
class TellingEvent:
    """An event of a host, and the name of its place in the journal."""

    host_id: str
    name: str
    event: GpuEvent


@dataclass(frozen=True, slots=True)
class _Told:
    finding: Finding
    time: datetime


class HostNews:
    """What the events of one host have told so far and is not over.

    An XID is over once it has not come again for `quiet_seconds`; after that it is another one.
    """

    __slots__ = ("_moments", "_quiet_seconds", "_states")

    def __init__(self, quiet_seconds: float) -> None:
        self._quiet_seconds = quiet_seconds
        self._states: OrderedDict[Condition, _Told] = OrderedDict()
        self._moments: OrderedDict[Condition, _Told] = OrderedDict()

    def take(self, told: TellingEvent) -> None:
        """Take the next event."""
        event, host_id = told.event, told.host_id
        kind = _TELLING.get(event.kind)
        if kind is not None:
            part = "" if kind is AlertKind.DRIVER_UNREACHABLE else event.gpu_uuid
            self._over(event.gpu_uuid)
            self._keep(self._states, Condition(kind, host_id, part), told)
        elif event.kind is GpuEventKind.GPU_BACK:
            self._over(event.gpu_uuid)
        elif event.kind is GpuEventKind.DRIVER_RELOADED:
            self._states.clear()
        elif event.kind is GpuEventKind.XID and event.severity in _ACTION:
            condition = Condition(AlertKind.XID, host_id, event.gpu_uuid, event.xid)
            before = self._moments.get(condition)
            quiet = timedelta(seconds=self._quiet_seconds)
            if before is not None and event.time - before.time < quiet:
                self._moments[condition] = replace(before, time=event.time)
                self._moments.move_to_end(condition)
            else:
                self._keep(self._moments, condition, told)

    def contradict(self, answers: Callable[[str], bool], state: HostState) -> None:
        """Forget what later readings disprove: a GPU that answers is neither lost nor hung."""
        if not self._states:
            return
        for condition, told in list(self._states.items()):
            if state.report.sample_time > told.time and answers(condition.part_id):
                del self._states[condition]

    def findings(self, time: datetime) -> Iterator[Finding]:
        """Yield what holds now; what is no news any more is not `at_once`."""
        for told in self._states.values():
            yield replace(told.finding, at_once=_age(told.time, time) < _NEWS_SECONDS)
        for told in self._moments.values():
            if _age(told.time, time) < self._quiet_seconds:
                yield told.finding

    def seconds_to_next_end(self, time: datetime) -> float | None:
        """Return how long until the next of what was told does not matter any more.

        None when nothing matters any more.
        """
        if not self._states and not self._moments:
            return None
        told = (*self._states.values(), *self._moments.values())
        left = [self._quiet_seconds - _age(each.time, time) for each in told]
        return min((seconds for seconds in left if seconds > 0), default=None)

    def _over(self, gpu_uuid: str) -> None:
        for condition in [each for each in self._states if each.part_id in ("", gpu_uuid)]:
            del self._states[condition]

    @staticmethod
    def _keep(
        kept: OrderedDict[Condition, _Told], condition: Condition, told: TellingEvent
    ) -> None:
        kept[condition] = _Told(
            Finding(
                condition,
                partial(_sentence, told.event),
                told.name,
                named=True,
                at_once=True,
                severity=_severity(told),
            ),
            told.event.time,
        )
        kept.move_to_end(condition)
        if len(kept) > _REMEMBERED:
            kept.popitem(last=False)


_ACTION = frozenset({Severity.WARNING, Severity.CRITICAL})


def _severity(told: TellingEvent) -> Severity | None:
    return told.event.severity if told.event.kind is GpuEventKind.XID else None


def _sentence(event: GpuEvent) -> str:
    text = event.description or event.kind.name.replace("_", " ").capitalize()
    if event.kind is GpuEventKind.XID and "XID" not in text.upper():
        text = f"XID {event.xid}: {text}"
    text = text.rstrip(".")
    action = event.recommended_action.rstrip(".")
    return f"{text}. {action[0].upper()}{action[1:]}." if action else f"{text}."


def _age(then: datetime, now: datetime) -> float:
    """Return seconds since then; a moment of a clock that is ahead is now."""
    return max(0.0, (now - then).total_seconds())
