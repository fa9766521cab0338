"""The events of a host, numbered, kept and handed to every collector from where it stands.

An event counts as taken once `EventJournal.append` returns: it is on disk by then, where there is a
disk to write to. No collector sees it earlier, so a number that a collector knows is never given to
another event after a crash.
"""

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import structlog

from gpu_metrics.domain.event_window import EventWindow
from gpu_metrics.domain.gpu_events import GpuEvent, GpuEventKind, ObservedEvent
from gpu_metrics.domain.plain_text import plain_text
from gpu_metrics.domain.xid_counts import XidCounts

__all__ = ["DEFAULT_BOUND", "EventBatch", "EventJournal", "JournalStore"]

DEFAULT_BOUND = 16_384
"""Events that a journal holds."""

log = structlog.get_logger(__name__)


class JournalStore(Protocol):
    """Keeps events where they survive the process."""

    async def append(self, events: Sequence[GpuEvent], acknowledged: int) -> None:
        """Return once the events are safe; raises OSError or TimeoutError when they are not."""
        ...

    async def compact(
        self, events: Sequence[GpuEvent], counts: XidCounts, acknowledged: int
    ) -> None:
        """Keep only these events, after which `counts` hold; raises as `append` does."""
        ...


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Events of one journal that a collector lacks, in order; `oldest_sequence` is still held."""

    journal_id: str
    oldest_sequence: int
    events: tuple[GpuEvent, ...]


class EventJournal:
    """Numbers events, counts XIDs, keeps the newest `bound` events for collectors that lack them.

    Without a store, or once it fails, events are kept in memory alone, under another journal id:
    the one on disk must not go on with numbers that the disk does not know.
    """

    def __init__(
        self,
        *,
        bound: int = DEFAULT_BOUND,
        store: JournalStore | None = None,
        window: EventWindow | None = None,
        xid_counts: XidCounts | None = None,
    ) -> None:
        self._bound = bound
        self._store = store
        # The last one is written to; one before it has only collectors to serve that are behind.
        self._windows = [window or _new_window(bound)]
        self._xid_counts = xid_counts or XidCounts()
        self._events_in_store = len(self._windows[0].events)
        self._appending = asyncio.Lock()
        self._listeners: list[Callable[[], None]] = []

    @property
    def journal_id(self) -> str:
        """Return the id of the journal that is written to now."""
        return self._windows[-1].journal_id

    @property
    def lost_events(self) -> int:
        """Return how many events were given up in this run before any collector held them."""
        return sum(window.lost for window in self._windows)

    @property
    def xid_counts(self) -> XidCounts:
        """Return how many XIDs each GPU had; not to be changed."""
        return self._xid_counts

    def holds(
        self, kind: GpuEventKind, *, time: datetime | None = None, due_time: datetime | None = None
    ) -> bool:
        """Return whether an event of this kind, with these times where given, is held."""
        return any(
            event.kind is kind and time in (None, event.time) and due_time in (None, event.due_time)
            for window in self._windows
            for event in window.events
        )

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever there are new events."""
        self._listeners.append(listener)

    async def append(self, observed: Sequence[ObservedEvent]) -> tuple[GpuEvent, ...]:
        """Return the events as numbered, once they are safe."""
        if not observed:
            return ()
        async with self._appending:
            counts = self._xid_counts.copy()
            xids = [counts.observe(each.kind, each.gpu_uuid, each.xid) for each in observed]
            events = _numbered(observed, xids, self._windows[-1].last_sequence + 1)
            if self._store is not None and not await self._stored(self._store, events):
                events = _numbered(observed, xids, 1)
            self._xid_counts = counts
            self._windows[-1].append(events)
            await self._compact_when_due(len(events))
        for listener in self._listeners:
            listener()
        return events

    def next_batch(self, positions: Mapping[str, int], limit: int) -> EventBatch | None:
        """Return the oldest events that a collector at `positions` lacks, None when it has all.

        `positions` are the acknowledged sequences by journal id.
        """
        for window in self._windows:
            events = window.after(positions.get(window.journal_id, 0), limit)
            if events:
                return EventBatch(window.journal_id, window.oldest_sequence, tuple(events))
        return None

    def acknowledge(self, journal_id: str, sequence: int) -> None:
        """Note that one collector holds every event of a journal up to `sequence`."""
        for window in self._windows:
            if window.journal_id == journal_id:
                window.acknowledge(sequence)

    async def _stored(self, store: JournalStore, events: Sequence[GpuEvent]) -> bool:
        """Store the events; where that fails, begin another journal in memory and return False."""
        try:
            await store.append(events, self._windows[-1].acknowledged)
        except (OSError, TimeoutError) as error:
            log.error(  # noqa: TRY400  # a full disk needs no traceback
                "journal_unwritable",
                cause=type(error).__name__,
                explanation="events of this run are kept in memory alone from now on",
            )
            self._store = None
            self._windows.append(_new_window(self._bound))
            return False
        return True

    async def _compact_when_due(self, added: int) -> None:
        self._events_in_store += added
        if self._store is None or self._events_in_store <= 2 * self._bound:
            return
        window = self._windows[-1]
        try:
            await self._store.compact(window.events, self._xid_counts, window.acknowledged)
        except (OSError, TimeoutError) as error:
            # The journal as it was still holds everything; it is tried again later.
            log.warning("journal_not_compacted", cause=type(error).__name__)
            self._events_in_store = self._bound
            return
        self._events_in_store = len(window.events)


def _new_window(bound: int) -> EventWindow:
    return EventWindow(uuid.uuid4().hex, bound=bound)


def _numbered(
    observed: Sequence[ObservedEvent], xid_counts: Sequence[int], first_sequence: int
) -> tuple[GpuEvent, ...]:
    return tuple(
        GpuEvent(
            sequence=first_sequence + position,
            kind=each.kind,
            time=each.time,
            # An event that collectors must refuse would hold up all after it for ever.
            gpu_uuid=plain_text(each.gpu_uuid, 80),
            xid=each.xid & 0xFFFFFFFF,
            severity=each.severity,
            recommended_action=plain_text(each.recommended_action, 128),
            description=plain_text(each.description, 256),
            due_time=each.due_time,
            xid_count=count,
        )
        for position, (each, count) in enumerate(zip(observed, xid_counts, strict=True))
    )
