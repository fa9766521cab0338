"""The newest events of one journal, in memory and bounded."""

from collections.abc import Iterable, Sequence

from gpu_metrics.domain.gpu_events import GpuEvent

__all__ = ["EventWindow"]


class EventWindow:
    """Holds at most `bound` events without gaps; older ones are given up, and counted if unheard.

    `acknowledged` is the highest sequence that any collector holds: an event that is given up
    before one did is lost, which `lost` counts.
    """

    def __init__(
        self,
        journal_id: str,
        *,
        bound: int,
        events: Iterable[GpuEvent] = (),
        last_sequence: int = 0,
        acknowledged: int = 0,
    ) -> None:
        self.journal_id = journal_id
        self.acknowledged = acknowledged
        self.lost = 0
        self._bound = bound
        self._events = list(events)
        self._last = self._events[-1].sequence if self._events else last_sequence
        self._trim()
        # What does not fit at the start was given up, and counted, by an earlier run.
        self.lost = 0

    @property
    def last_sequence(self) -> int:
        """Return the sequence of the newest event there ever was, 0 when there was none."""
        return self._last

    @property
    def oldest_sequence(self) -> int:
        """Return the sequence of the oldest event held, or of the next one when none is."""
        return self._events[0].sequence if self._events else self._last + 1

    @property
    def events(self) -> Sequence[GpuEvent]:
        """Return the events that are held, in order."""
        return self._events

    def append(self, events: Sequence[GpuEvent]) -> None:
        """Take the next events. Raises ValueError when they are not the next ones."""
        for event in events:
            if event.sequence != self._last + 1:
                raise ValueError(f"event {event.sequence} does not follow event {self._last}")
            self._events.append(event)
            self._last = event.sequence
        self._trim()

    def after(self, sequence: int, limit: int) -> Sequence[GpuEvent]:
        """Return at most `limit` of the held events after `sequence`, oldest first."""
        if not self._events or sequence >= self._last:
            return ()
        start = max(0, sequence - self._events[0].sequence + 1)
        return self._events[start : start + limit]

    def acknowledge(self, sequence: int) -> None:
        """Note that a collector holds every event up to `sequence`."""
        self.acknowledged = max(self.acknowledged, min(sequence, self._last))

    def _trim(self) -> None:
        excess = len(self._events) - self._bound
        if excess <= 0:
            return
        given_up = self._events[excess - 1].sequence
        self.lost += max(0, given_up - max(self.acknowledged, self._events[0].sequence - 1))
        del self._events[:excess]
