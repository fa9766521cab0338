"""What happened in the simulated cloud, numbered, for readers in other processes."""

import threading
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["EventFeed", "FeedPage"]

_EVENTS_KEPT = 10_000
_PAGE_SIZE = 500


@dataclass(frozen=True, slots=True)
class FeedPage:
    """Events after a reader's position, oldest first.

    `complete` is False when events between the position and the first one here are lost (the
    feed keeps the last 10,000) or the position is of another run (`epoch` differs): the reader
    then takes stock anew.
    """

    epoch: str
    events: tuple[Mapping[str, Any], ...]
    next_sequence: int
    complete: bool


class EventFeed:
    """A bounded, numbered sequence of events; readers wait for the next ones. Thread-safe."""

    def __init__(self, *, capacity: int = _EVENTS_KEPT) -> None:
        self.epoch = uuid.uuid4().hex
        self._events: deque[Mapping[str, Any]] = deque(maxlen=capacity)
        self._last_sequence = 0
        self._changed = threading.Condition()
        self._closed = False

    @property
    def last_sequence(self) -> int:
        """The number of the newest event; 0 before the first."""
        with self._changed:
            return self._last_sequence

    def append(self, event: Mapping[str, Any]) -> None:
        """Adds an event under the next number, counted from 1."""
        with self._changed:
            self._last_sequence += 1
            self._events.append({"sequence": self._last_sequence, **event})
            self._changed.notify_all()

    def close(self) -> None:
        """Lets every waiting reader go; later reads do not wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def read(self, after: int, *, timeout_seconds: float, limit: int = _PAGE_SIZE) -> FeedPage:
        """Up to `limit` events numbered above `after`, waiting for the first one if need be."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._last_sequence != after, timeout=timeout_seconds
            )
            oldest = self._events[0]["sequence"] if self._events else self._last_sequence + 1
            unknown_position = after > self._last_sequence
            start = 0 if unknown_position else after
            events = tuple(e for e in self._events if e["sequence"] > start)[:limit]
            return FeedPage(
                self.epoch,
                events,
                events[-1]["sequence"] if events else self._last_sequence,
                complete=not unknown_position and after >= oldest - 1,
            )
