"""The recent latencies of all model servers of one host."""

from collections import Counter
from collections.abc import Iterable

from gpu_metrics.domain.histogram import Histogram
from gpu_metrics.domain.latency_window import LatencyWindow, ObservationOutcome
from gpu_metrics.domain.readings import HistogramReading, ModelServerReading

__all__ = ["HostLatency"]


class HostLatency:
    """Two latency windows per model server; servers that are no longer reported are forgotten.

    `outcomes` counts how histograms continued: restarts and changed bounds show there.
    """

    __slots__ = ("_retained_seconds", "_slot_seconds", "_windows", "outcomes")

    def __init__(self, *, slot_seconds: float, retained_seconds: float) -> None:
        self._slot_seconds = slot_seconds
        self._retained_seconds = retained_seconds
        self._windows: dict[str, tuple[LatencyWindow, LatencyWindow]] = {}
        self.outcomes: Counter[ObservationOutcome] = Counter()

    def observe(self, servers: Iterable[ModelServerReading], now: float) -> None:
        """Take in the histograms of one report."""
        seen: set[str] = set()
        for server in servers:
            seen.add(server.server_id)
            windows = self._windows.get(server.server_id)
            if windows is None:
                windows = self._windows[server.server_id] = (self._window(), self._window())
            self._observe(windows[0], server.time_to_first_token, now)
            self._observe(windows[1], server.inter_token_latency, now)
        for server_id in self._windows.keys() - seen:
            del self._windows[server_id]

    def _window(self) -> LatencyWindow:
        return LatencyWindow(
            slot_seconds=self._slot_seconds, retained_seconds=self._retained_seconds
        )

    def _observe(self, window: LatencyWindow, reading: HistogramReading, now: float) -> None:
        if isinstance(reading, Histogram):
            self.outcomes[window.observe(reading, now)] += 1

    def between(
        self, server_id: str, slots: tuple[int, int]
    ) -> tuple[Histogram | None, Histogram | None]:
        """Return time to first token and time between tokens over the slots, first to last.

        None where no histogram was ever reported.
        """
        windows = self._windows.get(server_id)
        if windows is None:
            return None, None
        return windows[0].between(*slots), windows[1].between(*slots)
