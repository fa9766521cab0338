"""Virtual time: a heap of callbacks that runs hours in seconds, in one fixed order.

Events at the same time run in the order they were scheduled, so a run is a function of its seed.
"""

import heapq
from collections.abc import Callable
from typing import Any

from fleetsim.errors import TimeWentBackwardsError

__all__ = ["VirtualTime"]


class VirtualTime:
    """The engine: `at` schedules, `run_until` runs.

    `now` is the time of the event being run. Handles are not given out: a callback that may have
    become pointless checks that itself, which is cheaper than cancelling.
    """

    __slots__ = ("_heap", "_sequence", "events_run", "now")

    def __init__(self, start_time: float = 0.0) -> None:
        self.now = start_time
        self.events_run = 0
        self._heap: list[tuple[float, int, Callable[..., None], Any]] = []
        self._sequence = 0

    def at(self, time: float, callback: Callable[[Any], None], argument: Any = None) -> None:
        """Call `callback(argument)` at `time`. Raises TimeWentBackwardsError for the past."""
        if time < self.now:
            raise TimeWentBackwardsError(time, self.now)
        self._sequence += 1
        heapq.heappush(self._heap, (time, self._sequence, callback, argument))

    def run_until(self, end_time: float) -> None:
        """Run every event up to and including `end_time`, then stand at `end_time`."""
        heap = self._heap
        pop = heapq.heappop
        events = 0
        while heap and heap[0][0] <= end_time:
            self.now, _, callback, argument = pop(heap)
            callback(argument)
            events += 1
        self.events_run += events
        self.now = max(self.now, end_time)
