"""The collector's events of all hosts, and everybody who follows them.

A subscription is a position per journal, so a slow subscriber holds no queue: it reads on from
what is held, and when that was given up meanwhile it is told how many events it missed.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

import structlog

from gpu_metrics import metric_names
from gpu_metrics.domain.event_journals import EventJournals, HeldEvent, Journal, JournalKey
from gpu_metrics.domain.gpu_events import GpuEvent, JournalPosition
from gpu_metrics.domain.readings import HostReport
from servicekit.clock import Clock
from servicekit.telemetry import Telemetry

__all__ = ["EventListener", "EventStore", "FollowedEvent"]

log = structlog.get_logger(__name__)

EventListener = Callable[[HostReport, tuple[GpuEvent, ...]], None]
"""Is told at once what of a report's events was new."""

# So many events of a journal are sent before it is another journal's turn.
_TURN_EVENTS = 64


@dataclass(frozen=True, slots=True)
class FollowedEvent:
    """One step of a subscription: an event, or a position alone, or neither (a heartbeat)."""

    position: JournalPosition | None = None
    held: HeldEvent | None = None
    lost: int = 0


class EventStore:
    """Takes the events of reports and lets any number of readers follow them.

    Not thread-safe: one event loop owns it.
    """

    def __init__(
        self,
        journals: EventJournals,
        *,
        clock: Clock,
        telemetry: Telemetry,
        heartbeat_seconds: float = 5.0,
        listeners: Iterable[EventListener] = (),
    ) -> None:
        self._journals = journals
        self._clock = clock
        self._heartbeat_seconds = heartbeat_seconds
        self._listeners = tuple(listeners)
        self._changed = asyncio.Event()
        self._closed = False
        self._taken = telemetry.counter(
            metric_names.EVENTS_TAKEN, unit="1", description="GPU events taken in, by kind"
        )
        self._given_up = telemetry.counter(
            metric_names.EVENTS_GIVEN_UP,
            unit="1",
            description="GPU events dropped to keep within the bounds",
        )

    def take(self, report: HostReport) -> int:
        """Take a report's events and return up to which sequence all of its journal are held."""
        host_id, journal_id = report.host.host_id, report.journal_id
        if not journal_id:
            return 0
        if report.events:
            given_up = self._journals.given_up
            new = self._journals.take(
                host_id,
                journal_id,
                report.events,
                oldest_sequence=report.oldest_event_sequence,
                receive_time=self._clock.now(),
            )
            if new:
                self._tell(report, new)
            if self._journals.given_up > given_up:
                self._given_up.add(self._journals.given_up - given_up)
        return self._journals.newest(host_id, journal_id)

    def _tell(self, report: HostReport, new: tuple[GpuEvent, ...]) -> None:
        for event in new:
            self._taken.add(1, {"kind": event.kind.name.lower()})
        self._changed.set()
        self._changed = asyncio.Event()
        for listener in self._listeners:
            listener(report, new)

    async def follow(
        self,
        positions: Iterable[JournalPosition],
        *,
        host_id: str = "",
        only_new: bool = False,
    ) -> AsyncIterator[FollowedEvent]:
        """Yield what follows the positions, each journal in order, and heartbeats while idle.

        The first heartbeat comes as soon as all that was held at the start was sent. A journal
        without a position starts at its beginning. With `only_new` one that is known starts at its
        present end, which is told first. Without a host id all hosts are followed.
        """
        cursors = {(each.host_id, each.journal_id): each.sequence for each in positions}
        for present in tuple(self._journals.positions()) if only_new else ():
            key = (present.host_id, present.journal_id)
            if key not in cursors and host_id in ("", present.host_id):
                cursors[key] = present.sequence
                yield FollowedEvent(present)
        seen, caught_up = 0, False
        while True:
            news = self._journals.changed_since(seen)
            seen = self._journals.revision
            pending = [each for each in news if not host_id or each[0] == host_id]
            while pending:
                unfinished = []
                for host, journal in pending:
                    for step in _steps(host, journal, cursors):
                        yield step
                    if cursors.get((host, journal.journal_id), 0) < journal.newest:
                        unfinished.append((host, journal))
                pending = unfinished
            if not caught_up:
                caught_up = True
                yield FollowedEvent()
            elif seen == self._journals.revision and not await self._change():
                yield FollowedEvent()

    async def _change(self) -> bool:
        """Return whether something changed before a heartbeat is due."""
        changed = asyncio.ensure_future(self._changed.wait())
        heartbeat = asyncio.ensure_future(self._clock.sleep(self._heartbeat_seconds))
        try:
            await asyncio.wait({changed, heartbeat}, return_when=asyncio.FIRST_COMPLETED)
            return changed.done()
        finally:
            changed.cancel()
            heartbeat.cancel()


def _steps(
    host_id: str, journal: Journal, cursors: dict[JournalKey, int]
) -> Iterable[FollowedEvent]:
    """Yield a turn of one journal and move its cursor with every step."""
    key = (host_id, journal.journal_id)
    cursor = cursors.get(key, 0)
    events = journal.after(cursor, _TURN_EVENTS)
    for held in events:
        sequence = held.event.sequence
        position = JournalPosition(host_id, journal.journal_id, sequence)
        lost, cursor = sequence - cursor - 1, sequence
        cursors[key] = sequence
        yield FollowedEvent(position, held, lost)
    if not events and cursor < journal.newest:
        # All that was left to read was given up.
        lost = journal.newest - cursor
        cursors[key] = journal.newest
        yield FollowedEvent(JournalPosition(host_id, *key[1:], journal.newest), None, lost)
