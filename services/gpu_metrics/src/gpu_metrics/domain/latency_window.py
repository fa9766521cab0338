"""The observations of the last minute, out of histograms that count since a server started.

Each report's increase over the one before is put into the time slot in which it arrived. A window
is the sum of whole slots, so the window a caller gets reaches back between `window` and `window`
plus one slot.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum

from gpu_metrics.domain.histogram import Histogram, merge

__all__ = ["LatencyWindow", "ObservationOutcome"]


class ObservationOutcome(Enum):
    """How a cumulative histogram related to the one before it."""

    BASELINE = "baseline"
    INCREASE = "increase"
    SERVER_RESTARTED = "server_restarted"
    BOUNDS_CHANGED = "bounds_changed"


@dataclass(slots=True)
class _Slot:
    number: int
    increase: Histogram


class LatencyWindow:
    """One server's recent observations of one latency.

    Memory is bounded: at most `retained_seconds / slot_seconds + 2` slots are kept.
    """

    __slots__ = ("_latest", "_latest_at", "_retained_slots", "_slot_seconds", "_slots")

    def __init__(self, *, slot_seconds: float, retained_seconds: float) -> None:
        self._slot_seconds = slot_seconds
        self._retained_slots = int(retained_seconds / slot_seconds) + 2
        self._slots: deque[_Slot] = deque()
        self._latest: Histogram | None = None
        self._latest_at = 0.0

    def observe(self, cumulative: Histogram, now: float) -> ObservationOutcome:
        """Take in what the server has counted so far and tell how it continued.

        The first histogram seen, and the first after a silence longer than is retained, is only a
        baseline: when its observations were made is not known. After a restart everything counted
        is new. When the bounds change, the slots counted under the old ones are dropped and the
        window starts again, as the two cannot be told apart exactly.
        """
        previous, previous_at = self._latest, self._latest_at
        self._latest, self._latest_at = cumulative, now
        retained_seconds = self._retained_slots * self._slot_seconds
        if previous is None or now - previous_at > retained_seconds:
            return ObservationOutcome.BASELINE
        if previous.bounds != cumulative.bounds:
            self._slots.clear()
            return ObservationOutcome.BOUNDS_CHANGED
        increase = cumulative.since(previous)
        outcome = ObservationOutcome.INCREASE
        if increase is None:
            increase, outcome = cumulative, ObservationOutcome.SERVER_RESTARTED
        self._put(increase, now)
        return outcome

    def _put(self, increase: Histogram, now: float) -> None:
        number = int(now // self._slot_seconds)
        while self._slots and self._slots[0].number <= number - self._retained_slots:
            self._slots.popleft()
        if self._slots and self._slots[-1].number == number:
            self._slots[-1].increase = self._slots[-1].increase.plus(increase)
        else:
            self._slots.append(_Slot(number, increase))

    def recent(self, now: float, window_seconds: float) -> Histogram | None:
        """Return what was observed in the last `window_seconds`, or None without any histogram.

        A server that was seen but had no requests has an empty histogram, not None.
        """
        if self._latest is None:
            return None
        last = int(now // self._slot_seconds)
        first = last - int(window_seconds / self._slot_seconds)
        return self.between(first, last)

    def between(self, first_slot: int, last_slot: int) -> Histogram | None:
        """Return what was observed in the slots from first to last, both included."""
        if self._latest is None:
            return None
        merged = merge(
            slot.increase for slot in self._slots if first_slot <= slot.number <= last_slot
        )
        if merged is not None:
            return merged.histogram
        return Histogram(self._latest.bounds, (0,) * len(self._latest.counts), 0.0)
