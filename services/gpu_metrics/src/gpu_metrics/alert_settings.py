"""The collector's settings for alerts and events."""

from dataclasses import dataclass

from gpu_metrics.domain.alerts import CONFIRMED_KINDS, AlertKind, AlertPolicy
from gpu_metrics.domain.event_journals import EventBounds
from servicekit.settings import setting

__all__ = ["AlertSettings", "HoldTime", "parse_hold_times"]

_LONGEST_HOLD_SECONDS = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class HoldTime:
    """How many seconds a kind of alert is waited for."""

    kind: AlertKind
    seconds: float

    def __str__(self) -> str:
        return f"{self.kind.slug}={self.seconds:g}"


def parse_hold_times(text: str) -> tuple[HoldTime, ...]:
    """Return the times of a list like `gpu-lost=0,thermal-throttling=30`.

    Raises ValueError saying what is allowed.
    """
    kinds = {kind.slug: kind for kind in AlertKind}
    times = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        slug, _, digits = entry.partition("=")
        try:
            seconds = float(digits)
        except ValueError:
            seconds = -1.0
        if slug not in kinds or not 0 <= seconds <= _LONGEST_HOLD_SECONDS:
            raise ValueError(
                "must be kind=seconds entries separated by commas, for example gpu-lost=0; kinds "
                f"are {', '.join(kinds)}"
            )
        times.append(HoldTime(kinds[slug], seconds))
    return tuple(times)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertSettings:
    """When something is told, what is remembered of it, and how many events are held."""

    confirm_seconds: float = setting(
        "GPU_METRICS_ALERT_CONFIRM_SECONDS",
        default=3.0,
        minimum=0.0,
        maximum=3600,
        help="how long readings must show a failed GPU, driver or model server before it is told",
    )
    raise_seconds: tuple[HoldTime, ...] = setting(
        "GPU_METRICS_ALERT_RAISE_SECONDS",
        default=(),
        parse=parse_hold_times,
        help="how long a condition must hold before it is told, if not the default: kind=seconds",
    )
    clear_seconds: tuple[HoldTime, ...] = setting(
        "GPU_METRICS_ALERT_CLEAR_SECONDS",
        default=(),
        parse=parse_hold_times,
        help="how long it must be absent before it is over, if not the default: kind=seconds",
    )
    history: int = setting(
        "GPU_METRICS_ALERT_HISTORY",
        default=1024,
        minimum=1,
        maximum=100_000,
        help="alerts that ended and are remembered, about 1 kB of memory each",
    )
    runbook_base_url: str = setting(
        "GPU_METRICS_RUNBOOK_BASE_URL",
        default="deploy/runbooks/gpu",
        help="where the runbooks of alerts are; /<kind>.md is appended",
    )
    buffer: int = setting(
        "GPU_METRICS_ALERT_BUFFER",
        default=256,
        minimum=1,
        maximum=100_000,
        help="alerts that wait while the event bus is away; further ones are dropped",
    )
    events_per_host: int = setting(
        "GPU_METRICS_EVENTS_PER_HOST",
        default=16_384,
        minimum=1,
        maximum=1_000_000,
        help="GPU events held of one host; the oldest are given up beyond it",
    )
    events_in_all: int = setting(
        "GPU_METRICS_EVENTS_IN_ALL",
        default=131_072,
        minimum=1,
        maximum=10_000_000,
        help="GPU events held of all hosts, about 0.6 kB of memory each",
    )

    def policy(self, *, skew_seconds: float) -> AlertPolicy:
        """Return how long conditions must hold and be absent, and what skew is too much."""
        confirmed = dict.fromkeys(CONFIRMED_KINDS, self.confirm_seconds)
        return AlertPolicy(
            raise_seconds=confirmed | {hold.kind: hold.seconds for hold in self.raise_seconds},
            clear_seconds={hold.kind: hold.seconds for hold in self.clear_seconds},
            skew_seconds=skew_seconds,
            history=self.history,
        )

    def event_bounds(self) -> EventBounds:
        """Return how many GPU events are held."""
        return EventBounds(per_host=self.events_per_host, in_all=self.events_in_all)
