"""Which of a host's samples are taken, whatever order and however late they arrive in.

A sample counts once. It is taken when it is at most a window old, or at most a window ahead of the
collector's clock; all others are counted, by why, and dropped. Reports that arrive out of order
still fill the hole they left; reports and samples that were there before are duplicates.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum, StrEnum
from functools import partial
from itertools import accumulate

from gpu_metrics.domain.host_clock import ClockOutcome, HostClock
from gpu_metrics.domain.readings import HostReport
from gpu_metrics.domain.samples import FleetMetric, SampleSeries

__all__ = [
    "AcceptedReport",
    "AcceptedSeries",
    "HostIngest",
    "ReportOrder",
    "SampleFate",
    "microseconds_of",
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SECOND = 1_000_000
_CORRECTED_FROM_MICROSECONDS = _SECOND
_REMEMBERED_SEQUENCES = 64


def microseconds_of(time: datetime) -> int:
    """Return an aware moment in microseconds since 1970."""
    return (time - _EPOCH) // _MICROSECOND


class ReportOrder(Enum):
    """How a report's number relates to those that came before."""

    NEWEST = "newest"
    OUT_OF_ORDER = "out_of_order"
    DUPLICATE = "duplicate"
    TOO_OLD = "too_old"


class SampleFate(StrEnum):
    """What became of a sample."""

    ACCEPTED = "accepted"
    OUT_OF_ORDER = "accepted_out_of_order"
    DUPLICATE = "dropped_duplicate"
    LATE = "dropped_late"
    SKEWED = "dropped_clock_skewed"


@dataclass(frozen=True, slots=True)
class AcceptedSeries:
    """Samples of one figure of one GPU: seconds since 1970 by the collector's clock, and values."""

    gpu_index: int
    metric: FleetMetric
    seconds: list[int]
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AcceptedReport:
    """What of a report goes into the history.

    `reading_second` is when its newest readings were taken by the collector's clock, None when
    they are not taken.
    """

    reading_second: int | None
    series: tuple[AcceptedSeries, ...] = ()


class HostIngest:
    """Judges the reports of one run of one host's agent.

    Memory is one number per figure of each GPU, and as much again after reports went missing.
    """

    __slots__ = (
        "_clock",
        "_gaps",
        "_has_monotonic",
        "_highest",
        "_jumped",
        "_newest",
        "_seen",
        "_window",
        "clock_sets",
    )

    def __init__(self, window_seconds: float, clock: HostClock | None = None) -> None:
        self._window = round(window_seconds * _SECOND)
        self._clock = clock or HostClock()
        self._highest = 0
        self._seen = 0
        self._jumped = False
        self._has_monotonic = False
        self._newest: dict[int, int] = {}
        self._gaps: dict[int, tuple[int, int]] = {}
        self.clock_sets = 0

    def next_run(self) -> "HostIngest":
        """Return the judge of another run of the same host's agent.

        What the host's clock is like is still known, and so is up to when it told its samples.
        """
        following = HostIngest(self._window / _SECOND, self._clock)
        following._newest = self._newest
        following._has_monotonic = self._has_monotonic
        return following

    @property
    def clock_skew_seconds(self) -> float:
        """Return by how much the host's clock is ahead of the collector's; negative: behind."""
        return self._clock.skew / _SECOND

    def order(self, sequence: int) -> ReportOrder:
        """Return how the number of a report relates to those before, and remember it."""
        if sequence > self._highest:
            self._seen = ((self._seen << (sequence - self._highest)) | 1) & (
                (1 << _REMEMBERED_SEQUENCES) - 1
            )
            self._jumped = 0 < self._highest < sequence - 1
            self._highest = sequence
            return ReportOrder.NEWEST
        back = self._highest - sequence
        if back >= _REMEMBERED_SEQUENCES:
            return ReportOrder.TOO_OLD
        if self._seen >> back & 1:
            return ReportOrder.DUPLICATE
        self._seen |= 1 << back
        return ReportOrder.OUT_OF_ORDER

    def accept(
        self, report: HostReport, order: ReportOrder, received: int, fates: Counter[SampleFate]
    ) -> AcceptedReport:
        """Return the samples that count, and count what became of every one in `fates`.

        `received` is in microseconds since 1970. The report must be `NEWEST` or `OUT_OF_ORDER`.
        """
        sample_time = microseconds_of(report.sample_time)
        monotonic = report.monotonic_microseconds
        if order is ReportOrder.NEWEST:
            self._follow_clock(sample_time, monotonic, received)
        skew = self._clock.skew
        # Clocks that NTP keeps are nearer than can be told over a network: those are believed.
        correction = skew if abs(skew) >= _CORRECTED_FROM_MICROSECONDS else 0
        series: list[AcceptedSeries] = []
        if report.series:
            placing = _Placing(
                in_order=order is ReportOrder.NEWEST,
                # Samples are told apart by the clock that nobody sets, where the agent tells it.
                timeline=monotonic or sample_time,
                sample_time=sample_time,
                received=received,
                correction=correction,
            )
            for each in report.series:
                accepted = self._accept_series(each, placing, fates)
                if accepted is not None:
                    series.append(accepted)
        fate = self._fate(received - sample_time, in_order=order is ReportOrder.NEWEST)
        fates[fate] += len(report.gpus)
        if fate in _TAKEN:
            return AcceptedReport((sample_time - correction) // _SECOND, tuple(series))
        return AcceptedReport(None, tuple(series))

    def _follow_clock(self, sample_time: int, monotonic: int, received: int) -> None:
        outcome = self._clock.observe(sample_time, monotonic, received)
        self.clock_sets += outcome is ClockOutcome.WALL_CLOCK_SET
        has_monotonic = monotonic > 0
        if (
            outcome is ClockOutcome.HOST_RESTARTED
            or (outcome is ClockOutcome.WALL_CLOCK_SET and not has_monotonic)
            or has_monotonic is not self._has_monotonic
        ):
            # Times of before are of another count than those that come.
            self._newest, self._gaps = {}, {}
        self._has_monotonic = has_monotonic

    def _accept_series(
        self, series: SampleSeries, placing: "_Placing", fates: Counter[SampleFate]
    ) -> AcceptedSeries | None:
        offsets = series.offset_microseconds
        if not offsets:
            return None
        key = series.gpu_index << 8 | series.metric.value
        times = list(accumulate(offsets[1:], initial=placing.timeline - offsets[0]))
        values = series.values
        newest = self._newest.get(key)
        if newest is None or (placing.in_order and times[0] > newest):
            if newest is not None and self._jumped:
                self._gaps[key] = (newest, times[0])
            self._newest[key] = times[-1]
        else:
            after, before = newest, times[-1] + 1
            if not placing.in_order:
                after, before = self._gaps.get(key, (newest, newest))
            kept = [place for place, time in enumerate(times) if after < time < before]
            fates[SampleFate.DUPLICATE] += len(times) - len(kept)
            times, values = [times[place] for place in kept], tuple(values[i] for i in kept)
            if not times:
                return None
            self._newest[key] = max(newest, times[-1])
        return self._place(series, times, values, placing, fates)

    def _place(
        self,
        series: SampleSeries,
        times: list[int],
        values: tuple[int, ...],
        placing: "_Placing",
        fates: Counter[SampleFate],
    ) -> AcceptedSeries | None:
        """Put samples where they belong by the collector's clock; drop those outside the window."""
        judge = partial(self._fate, in_order=placing.in_order)
        to_host = placing.sample_time - placing.timeline
        first, last = times[0] + to_host, times[-1] + to_host
        fate = judge(placing.received - first)
        if fate is not judge(placing.received - last):
            judged = [
                (judge(placing.received - time - to_host), time, value)
                for time, value in zip(times, values, strict=True)
            ]
            kept = [entry for entry in judged if entry[0] in _TAKEN]
            fates.update(entry[0] for entry in judged)
            times, values = [entry[1] for entry in kept], tuple(entry[2] for entry in kept)
        else:
            fates[fate] += len(times)
            if fate not in _TAKEN:
                return None
        shift = to_host - placing.correction
        seconds = [(time + shift) // _SECOND for time in times]
        return AcceptedSeries(series.gpu_index, series.metric, seconds, values)

    def _fate(self, age: int, *, in_order: bool) -> SampleFate:
        if -self._window <= age <= self._window:
            return SampleFate.ACCEPTED if in_order else SampleFate.OUT_OF_ORDER
        if age < 0 or abs(self._clock.skew) > self._window:
            return SampleFate.SKEWED
        return SampleFate.LATE


@dataclass(frozen=True, slots=True)
class _Placing:
    in_order: bool
    timeline: int
    sample_time: int
    received: int
    correction: int


_TAKEN = frozenset({SampleFate.ACCEPTED, SampleFate.OUT_OF_ORDER})
