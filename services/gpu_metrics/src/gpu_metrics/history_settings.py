"""How much history the collector keeps."""

from dataclasses import dataclass

from gpu_metrics.domain.history import History
from gpu_metrics.domain.history_ring import HistoryLengths
from servicekit.settings import setting

__all__ = ["HistorySettings"]

_MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorySettings:
    """How far back each level reaches, how late samples may come, and the memory of it all."""

    minutes_of_seconds: int = setting(
        "GPU_METRICS_HISTORY_SECOND_CELLS_MINUTES",
        default=10,
        minimum=10,
        maximum=1440,
        help="minutes of history in cells of 1 s",
    )
    hours_of_ten_seconds: int = setting(
        "GPU_METRICS_HISTORY_TEN_SECOND_CELLS_HOURS",
        default=6,
        minimum=1,
        maximum=168,
        help="hours of history in cells of 10 s",
    )
    days_of_minutes: int = setting(
        "GPU_METRICS_HISTORY_MINUTE_CELLS_DAYS",
        default=7,
        minimum=1,
        maximum=31,
        help="days of history in cells of 1 min",
    )
    megabytes: int = setting(
        "GPU_METRICS_HISTORY_MEGABYTES",
        default=1536,
        minimum=0,
        maximum=1_000_000,
        help="memory of the history; GPUs beyond have none; 0 keeps none at all",
    )
    sample_window_seconds: float = setting(
        "GPU_METRICS_SAMPLE_WINDOW_SECONDS",
        default=60.0,
        minimum=1.0,
        maximum=240.0,
        help="samples further than this from the collector's clock are dropped",
    )

    def lengths(self) -> HistoryLengths:
        """Return the lengths of the rings."""
        return HistoryLengths(
            seconds=self.minutes_of_seconds * 60,
            ten_seconds=self.hours_of_ten_seconds * 360,
            minutes=self.days_of_minutes * 1440,
            late_seconds=round(self.sample_window_seconds),
        )

    def history(self, started: int) -> History | None:
        """Return an empty history that begins at a second since 1970, None when there is none."""
        if not self.megabytes:
            return None
        return History(self.lengths(), maximum_bytes=self.megabytes * _MEGABYTE, started=started)
