"""Which of a host's samples are taken, whatever order and however late they arrive in.

A sample counts once. It is taken when it is at most a window old, or at most a window ahead of the
collector's clock; all others are counted, by why, and dropped. Reports that arrive out of order
still fill the hole they left; reports and samples that were there before are duplicates.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum, StrEnum
from itertools import accumulate, groupby, repeat
from typing import NamedTuple

from gpu_metrics.domain.host_clock import ClockOutcome, HostClock
from gpu_metrics.domain.readings import HostReport
from gpu_metrics.domain.samples import (
    FleetMetric,
    PackedSeries,
    SampleBlock,
    SampleSeries,
    column_of,
)

__all__ = [
    "AcceptedBlock",
    "AcceptedReport",
    "AcceptedSeries",
    "HostIngest",
    "ReportOrder",
    "SampleFate",
    "microseconds_of",
    "moments_of",
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SECOND = 1_000_000
_CORRECTED_FROM_MICROSECONDS = _SECOND
_REMEMBERED_SEQUENCES = 64
# Before every moment that a report can name.
_NEVER = -(1 << 80)


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


Moments = tuple[tuple[int, int, int], ...]
"""Seconds, each with the places of its first sample and of the one after its last."""


class AcceptedSeries(NamedTuple):
    """Samples of one figure of one GPU: their values, and which of them belong to which second.

    `moments` are seconds since 1970 by the collector's clock, each with the places of its first
    sample and of the one after its last.
    """

    gpu_index: int
    metric: FleetMetric
    moments: tuple[tuple[int, int, int], ...]
    values: tuple[int, ...]


def moments_of(seconds: Sequence[int]) -> Moments:
    """Return runs of the same second, of those in order: which, from where, to before where."""
    moments = []
    start = 0
    for second, same in groupby(seconds):
        end = start + len(tuple(same))
        moments.append((second, start, end))
        start = end
    return tuple(moments)


class AcceptedBlock(NamedTuple):
    """A block all of whose samples are taken; its moments are those of an `AcceptedSeries`."""

    moments: tuple[tuple[int, int, int], ...]
    block: SampleBlock


class AcceptedReport(NamedTuple):
    """What of a report goes into the history.

    `reading_second` is when its newest readings were taken by the collector's clock, None when
    they are not taken. Blocks of which samples were dropped are among the series.
    """

    reading_second: int | None
    series: tuple[AcceptedSeries, ...] = ()
    blocks: tuple[AcceptedBlock, ...] = ()


class HostIngest:
    """Judges the reports of one run of one host's agent.

    Memory is one number per figure of each GPU, and as much again after reports went missing.
    """

    __slots__ = (
        "_block",
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
        # The last block's columns and newest moment, where they are not among `_newest` yet. Blocks
        # of a host mostly have the same columns, and then one moment stands for all of them.
        self._block: tuple[tuple[int, ...], int] | None = None
        self._gaps: dict[int, tuple[int, int]] = {}
        self.clock_sets = 0

    def next_run(self) -> "HostIngest":
        """Return the judge of another run of the same host's agent.

        What the host's clock is like is still known, and so is up to when it told its samples.
        """
        following = HostIngest(self._window / _SECOND, self._clock)
        self._settle_block()
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
        blocks: list[AcceptedBlock] = []
        if report.series:
            placing = _Placing(
                in_order=order is ReportOrder.NEWEST,
                # Samples are told apart by the clock that nobody sets, where the agent tells it.
                timeline=monotonic or sample_time,
                sample_time=sample_time,
                received=received,
                correction=correction,
            )
            one_by_one = report.series
            if isinstance(report.series, PackedSeries):
                one_by_one = list(report.series.alone)
                for block in report.series.blocks:
                    if not self._accept_block(block, placing, blocks):
                        one_by_one += block.series()
            for each in one_by_one:
                accepted = self._accept_series(each, placing, fates)
                if accepted is not None:
                    series.append(accepted)
            if placing.accepted:
                fate = SampleFate.ACCEPTED if placing.in_order else SampleFate.OUT_OF_ORDER
                fates[fate] += placing.accepted
        fate = self._fate(received - sample_time, in_order=order is ReportOrder.NEWEST)
        fates[fate] += len(report.gpus)
        if fate in _TAKEN:
            reading_second = (sample_time - correction) // _SECOND
            return AcceptedReport(reading_second, tuple(series), tuple(blocks))
        return AcceptedReport(None, tuple(series), tuple(blocks))

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
            self._newest, self._gaps, self._block = {}, {}, None
        self._has_monotonic = has_monotonic

    def _accept_block(
        self, block: SampleBlock, placing: "_Placing", accepted: list[AcceptedBlock]
    ) -> bool:
        """Take a block as a whole; False when its samples must be looked at one by one.

        That is when some may be known already, lie outside the window, or may leave a gap.
        """
        offsets = block.offset_microseconds
        if not offsets or not block.columns:
            return True
        if self._jumped or not placing.in_order:
            return False
        placed = self._placed(offsets, placing)
        if placed.fate not in _TAKEN:
            return False
        if self._block is not None and self._block[0] == block.columns:
            newest = self._block[1]
        else:
            self._settle_block()
            newest = max(map(self._newest.get, block.columns, repeat(_NEVER)))
        if newest >= placed.first:
            return False
        self._block = (block.columns, placed.last)
        placing.accepted += len(block.values)
        accepted.append(AcceptedBlock(placed.moments, block))
        return True

    def _settle_block(self) -> None:
        if self._block is not None:
            columns, last = self._block
            self._newest.update(dict.fromkeys(columns, last))
            self._block = None

    def _accept_series(
        self, series: SampleSeries, placing: "_Placing", fates: Counter[SampleFate]
    ) -> AcceptedSeries | None:
        offsets = series.offset_microseconds
        if not offsets:
            return None
        placed = self._placed(offsets, placing)
        self._settle_block()
        key = column_of(series.gpu_index, series.metric)
        newest = self._newest.get(key)
        if newest is None or (placing.in_order and placed.first > newest):
            if newest is not None and self._jumped:
                self._gaps[key] = (newest, placed.first)
            self._newest[key] = placed.last
            if placed.fate in _TAKEN:
                placing.accepted += len(offsets)
                return AcceptedSeries(
                    series.gpu_index, series.metric, placed.moments, series.values
                )
            after, before = placed.first - 1, placed.last + 1
        elif placing.in_order:
            after, before = newest, placed.last + 1
            self._newest[key] = max(newest, placed.last)
        else:
            after, before = self._gaps.get(key, (newest, newest))
        return self._pick(series, placing, (after, before), fates)

    def _placed(self, offsets: tuple[int, ...], placing: "_Placing") -> "_Placed":
        placed = placing.placed.get(offsets)
        if placed is None:
            times = list(accumulate(offsets[1:], initial=placing.timeline - offsets[0]))
            placed = placing.placed[offsets] = self._place(times, placing)
        return placed

    def _place(self, times: list[int], placing: "_Placing") -> "_Placed":
        """Put samples that all series may share where they belong by the collector's clock."""
        to_host = placing.sample_time - placing.timeline
        age = placing.received - to_host
        first = self._fate(age - times[0], in_order=placing.in_order)
        last = self._fate(age - times[-1], in_order=placing.in_order)
        shift = to_host - placing.correction
        second, later = (times[0] + shift) // _SECOND, (times[-1] + shift) // _SECOND
        if second == later:
            moments: Moments = ((second, 0, len(times)),)
        elif second + 1 == later:
            begins = bisect_left(times, later * _SECOND - shift)
            moments = ((second, 0, begins), (later, begins, len(times)))
        else:
            moments = moments_of([(time + shift) // _SECOND for time in times])
        return _Placed(times[0], times[-1], first if first is last else None, moments)

    def _pick(
        self,
        series: SampleSeries,
        placing: "_Placing",
        wanted: tuple[int, int],
        fates: Counter[SampleFate],
    ) -> AcceptedSeries | None:
        """Take of a series what lies between two times and in the window, one by one."""
        offsets = series.offset_microseconds
        to_host = placing.sample_time - placing.timeline
        seconds, values = [], []
        times = accumulate(offsets[1:], initial=placing.timeline - offsets[0])
        for time, value in zip(times, series.values, strict=True):
            if not wanted[0] < time < wanted[1]:
                fates[SampleFate.DUPLICATE] += 1
                continue
            fate = self._fate(placing.received - time - to_host, in_order=placing.in_order)
            fates[fate] += 1
            if fate in _TAKEN:
                seconds.append((time + to_host - placing.correction) // _SECOND)
                values.append(value)
        if not seconds:
            return None
        return AcceptedSeries(series.gpu_index, series.metric, moments_of(seconds), tuple(values))

    def _fate(self, age: int, *, in_order: bool) -> SampleFate:
        if -self._window <= age <= self._window:
            return SampleFate.ACCEPTED if in_order else SampleFate.OUT_OF_ORDER
        if age < 0 or abs(self._clock.skew) > self._window:
            return SampleFate.SKEWED
        return SampleFate.LATE


@dataclass(slots=True)
class _Placing:
    in_order: bool
    timeline: int
    sample_time: int
    received: int
    correction: int
    # Series of a report mostly share their moments, so those are placed once.
    placed: dict[tuple[int, ...], "_Placed"] = field(default_factory=dict)
    accepted: int = 0


class _Placed(NamedTuple):
    """Samples of some moments; `fate` is None where they do not all share one."""

    first: int
    last: int
    fate: SampleFate | None
    moments: tuple[tuple[int, int, int], ...]


_TAKEN = frozenset({SampleFate.ACCEPTED, SampleFate.OUT_OF_ORDER})
