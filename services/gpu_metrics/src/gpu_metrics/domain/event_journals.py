"""The events that a collector holds of every host's journals: bounded, in order, each once.

An event that does not follow the newest one held is not taken: its sender is told up to where all
were, and starts again from there. Only what the host's journal has given up itself is passed over.
Sequences that nobody has any more, given up by the journal or by this store, are gaps that a reader
sees between its position and the next event.
"""

from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from gpu_metrics.domain.gpu_events import GpuEvent, JournalPosition

__all__ = ["EventBounds", "EventJournals", "HeldEvent", "Journal", "JournalKey"]

JournalKey = tuple[str, str]
"""A host's id and its journal's."""

# A host gets another journal only when it lost the one before. Of older ones nothing is remembered.
_JOURNALS_PER_HOST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class EventBounds:
    """How many events are held; beyond that the oldest are given up.

    `in_all` is a bound over all hosts. When it is reached the host with the most events gives up,
    so that a host that reports without end costs no other host its events. Of `hosts`, the one that
    has been quiet for longest is forgotten first.
    """

    per_host: int = 16_384
    in_all: int = 131_072
    hosts: int = 4096


@dataclass(frozen=True, slots=True)
class HeldEvent:
    """An event, and when the collector took it in."""

    event: GpuEvent
    receive_time: datetime


class Journal:
    """What is held of one journal of one host."""

    __slots__ = ("_events", "journal_id", "newest", "revision")

    def __init__(self, journal_id: str) -> None:
        self.journal_id = journal_id
        self.newest = 0
        self.revision = 0
        self._events: deque[HeldEvent] = deque()

    def __len__(self) -> int:
        return len(self._events)

    def append(self, held: HeldEvent) -> None:
        """Take an event later than the newest; what is between the two nobody has any more."""
        self._events.append(held)
        self.newest = held.event.sequence

    def give_up(self, count: int) -> None:
        """Drop the oldest events."""
        for _ in range(count):
            self._events.popleft()

    def after(self, position: int, limit: int) -> tuple[HeldEvent, ...]:
        """Return at most `limit` events after `position`, in order.

        Sequences between two of them, or between the position and the first, were given up. None
        are left when the position is before `newest` and nothing is returned.
        """
        if position >= self.newest:
            return ()
        first = bisect_right(self._events, position, key=_sequence)
        return tuple(islice(self._events, first, first + limit))


def _sequence(held: HeldEvent) -> int:
    return held.event.sequence


class _Host:
    """The journals of one host, the present one last."""

    __slots__ = ("count", "journals")

    def __init__(self) -> None:
        self.journals: OrderedDict[str, Journal] = OrderedDict()
        self.count = 0


class EventJournals:
    """Every host's events, and what changed since a revision."""

    def __init__(self, bounds: EventBounds | None = None) -> None:
        self.bounds = bounds or EventBounds()
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self._changed: OrderedDict[JournalKey, Journal] = OrderedDict()
        self._revision = 0
        self._count = 0
        self._given_up = 0

    @property
    def revision(self) -> int:
        """Return the number of the last change."""
        return self._revision

    @property
    def count(self) -> int:
        """Return how many events are held."""
        return self._count

    @property
    def given_up(self) -> int:
        """Return how many events were dropped for the bounds so far."""
        return self._given_up

    def newest(self, host_id: str, journal_id: str) -> int:
        """Return the sequence up to which every event of a journal was taken, 0 when none was."""
        host = self._hosts.get(host_id)
        journal = host.journals.get(journal_id) if host is not None else None
        return journal.newest if journal is not None else 0

    def take(
        self,
        host_id: str,
        journal_id: str,
        events: Iterable[GpuEvent],
        *,
        oldest_sequence: int,
        receive_time: datetime,
    ) -> tuple[GpuEvent, ...]:
        """Take what follows the newest event held and return what was new.

        `oldest_sequence` is the oldest one that the host's journal still has. Events at or below
        the newest are known already; one that leaves a gap ends the taking, unless the gap is what
        the journal gave up.
        """
        host = self._hosts.get(host_id)
        journal = host.journals.get(journal_id) if host is not None else None
        newest = journal.newest if journal is not None else 0
        reach = max(newest, oldest_sequence - 1)
        new: list[GpuEvent] = []
        for event in events:
            if event.sequence == reach + 1:
                new.append(event)
                reach = event.sequence
            elif event.sequence > reach:
                break
        if not new:
            return ()
        host, journal = self._journal(host_id, journal_id)
        for event in new:
            journal.append(HeldEvent(event, receive_time))
        host.count += len(new)
        self._count += len(new)
        self._touch(host_id, journal)
        self._keep_bounds(host)
        return tuple(new)

    def changed_since(self, revision: int) -> list[tuple[str, Journal]]:
        """Return the hosts and journals that changed after `revision`, earliest change first."""
        changed: list[tuple[str, Journal]] = []
        for (host_id, _), journal in reversed(self._changed.items()):
            if journal.revision <= revision:
                break
            changed.append((host_id, journal))
        changed.reverse()
        return changed

    def positions(self) -> Iterator[JournalPosition]:
        """Yield the newest position of every journal."""
        for (host_id, journal_id), journal in self._changed.items():
            yield JournalPosition(host_id, journal_id, journal.newest)

    def _journal(self, host_id: str, journal_id: str) -> tuple[_Host, Journal]:
        host = self._hosts.get(host_id)
        if host is None:
            host = self._hosts[host_id] = _Host()
            if len(self._hosts) > self.bounds.hosts:
                self._forget_host(next(iter(self._hosts)))
        journal = host.journals.get(journal_id)
        if journal is None:
            journal = host.journals[journal_id] = Journal(journal_id)
            if len(host.journals) > _JOURNALS_PER_HOST:
                old_id, old = host.journals.popitem(last=False)
                self._count_out(host, len(old))
                self._changed.pop((host_id, old_id), None)
        return host, journal

    def _touch(self, host_id: str, journal: Journal) -> None:
        self._revision += 1
        journal.revision = self._revision
        key = (host_id, journal.journal_id)
        self._changed[key] = journal
        self._changed.move_to_end(key)
        self._hosts.move_to_end(host_id)

    def _keep_bounds(self, host: _Host) -> None:
        self._give_up(host, host.count - self.bounds.per_host)
        if self._count > self.bounds.in_all:
            # A part at once: to look for the largest host is not for every event.
            largest = max(self._hosts.values(), key=lambda each: each.count)
            spare = self._count - self.bounds.in_all
            self._give_up(largest, max(spare, largest.count // 16))

    def _give_up(self, host: _Host, excess: int) -> None:
        for journal in host.journals.values():
            part = min(excess, len(journal))
            if part > 0:
                journal.give_up(part)
                self._count_out(host, part)
                excess -= part

    def _forget_host(self, host_id: str) -> None:
        host = self._hosts.pop(host_id)
        for journal_id, journal in host.journals.items():
            self._count_out(host, len(journal))
            self._changed.pop((host_id, journal_id), None)

    def _count_out(self, host: _Host, events: int) -> None:
        host.count -= events
        self._count -= events
        self._given_up += events
