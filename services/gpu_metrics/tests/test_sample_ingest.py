"""Late, out-of-order, duplicated and clock-skewed samples."""

from collections import Counter
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_metrics.domain.fleet import FleetPolicy, FleetView
from gpu_metrics.domain.host_ingest import AcceptedReport, SampleFate
from gpu_metrics.domain.readings import HostReport
from gpu_metrics.domain.samples import FleetMetric, SampleSeries

from .builders import NOON, make_report

NOON_SECONDS = round(NOON.timestamp())
UTILIZATION = FleetMetric.GPU_UTILIZATION_PERMILLE


class Received:
    """A view that keeps what it accepts of each report."""

    def __init__(self, window_seconds: float = 60.0) -> None:
        self.accepted: list[AcceptedReport] = []
        self.view = FleetView(FleetPolicy(sample_window_seconds=window_seconds), self)

    def observe(self, report: HostReport, accepted: AcceptedReport) -> None:
        self.accepted.append(accepted)

    def host_left(self, host_id: str) -> None:
        """Nothing is kept by host."""

    def take(self, report: HostReport, seconds: float = 0.0) -> None:
        """Take a report that arrives `seconds` after noon."""
        self.view.apply(report, seconds, NOON + timedelta(seconds=seconds))

    @property
    def seconds(self) -> list[int]:
        """Return when the accepted samples were taken, in seconds after noon."""
        return [
            second - NOON_SECONDS
            for report in self.accepted
            for series in report.series
            for second, start, end in series.moments
            for _ in range(start, end)
        ]

    @property
    def values(self) -> list[int]:
        return [v for report in self.accepted for series in report.series for v in series.values]

    @property
    def fates(self) -> Counter[SampleFate]:
        return +self.view.fates


def report_with(
    sequence: int,
    at: float,
    times: dict[float, int],
    *,
    clock_ahead: float = 0.0,
    monotonic: float | None = None,
    boot_id: str = "boot-1",
) -> HostReport:
    """Return a report at `at` seconds after noon with a sample at each of `times`."""
    moments = sorted(times)
    offsets = [at - moments[0]] + [later - earlier for earlier, later in pairwise(moments)]
    series = SampleSeries(
        gpu_index=0,
        metric=UTILIZATION,
        offset_microseconds=tuple(round(offset * 1e6) for offset in offsets),
        values=tuple(times[moment] for moment in moments),
    )
    sample_time: datetime = NOON + timedelta(seconds=at + clock_ahead)
    return make_report("i-1", sequence, boot_id=boot_id)._replace(
        sample_time=sample_time,
        series=(series,),
        monotonic_microseconds=round((monotonic if monotonic is not None else 1000 + at) * 1e6),
    )


def test_samples_are_placed_at_the_moments_they_were_taken() -> None:
    received = Received()
    received.take(report_with(1, 10.0, {8.2: 1, 8.9: 2, 9.1: 3}), 10.1)
    assert received.seconds == [8, 8, 9]
    assert received.fates == {SampleFate.ACCEPTED: 3}


def test_a_report_that_comes_twice_counts_once() -> None:
    received = Received()
    for _ in range(2):
        received.take(report_with(1, 10.0, {9.0: 1, 9.5: 2}), 10.0)
    assert received.values == [1, 2]
    assert received.fates[SampleFate.DUPLICATE] == 2


def test_samples_that_two_reports_share_count_once() -> None:
    received = Received()
    received.take(report_with(1, 10.0, {9.0: 1, 9.5: 2}), 10.0)
    received.take(report_with(2, 11.0, {9.5: 2, 10.5: 3}), 11.0)
    assert received.values == [1, 2, 3]
    assert received.fates == {SampleFate.ACCEPTED: 3, SampleFate.DUPLICATE: 1}


def test_samples_sent_again_by_the_agents_next_run_count_once() -> None:
    received = Received()
    received.take(report_with(1, 10.0, {9.0: 1}), 10.0)
    received.take(report_with(1, 11.0, {9.0: 1, 10.2: 2}, boot_id="boot-2"), 11.0)
    assert received.values == [1, 2]


def test_a_report_that_was_overtaken_still_fills_the_hole_it_left() -> None:
    received = Received()
    received.take(report_with(1, 1.0, {0.5: 1}), 1.0)
    received.take(report_with(3, 3.0, {2.5: 3}), 3.0)
    received.take(report_with(2, 2.0, {1.5: 2}), 3.1)
    assert sorted(received.seconds) == [0, 1, 2]
    assert received.fates == {SampleFate.ACCEPTED: 2, SampleFate.OUT_OF_ORDER: 1}
    assert received.view.hosts(3.1)[0].report.sequence == 3


def test_an_overtaken_report_adds_nothing_that_the_later_one_told() -> None:
    received = Received()
    received.take(report_with(1, 1.0, {0.5: 1}), 1.0)
    received.take(report_with(3, 3.0, {1.5: 2, 2.5: 3}), 3.0)
    received.take(report_with(2, 2.0, {1.5: 2}), 3.1)
    assert received.values == [1, 2, 3]
    assert received.fates[SampleFate.DUPLICATE] == 1


def test_samples_older_than_the_window_are_counted_and_dropped() -> None:
    received = Received(window_seconds=60)
    received.take(report_with(1, 100.0, {39.9: 1, 40.1: 2, 99.0: 3}), 100.0)
    assert received.values == [2, 3]
    assert received.fates == {SampleFate.LATE: 1, SampleFate.ACCEPTED: 2}


def test_a_skew_within_the_window_is_accepted_and_put_right() -> None:
    received = Received(window_seconds=60)
    received.take(report_with(1, 10.0, {9.5: 1}, clock_ahead=30), 10.0)
    received.take(report_with(2, 11.0, {10.5: 2}, clock_ahead=30), 11.0)
    assert received.seconds == [9, 10]
    assert received.view.hosts(11.0)[0].clock_skew_seconds == pytest.approx(30)


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
def test_samples_of_a_clock_that_is_off_by_more_are_counted_and_dropped(ahead: float) -> None:
    received = Received(window_seconds=60)
    received.take(report_with(1, 10.0, {9.5: 1}, clock_ahead=ahead), 10.0)
    assert received.values == []
    assert received.fates[SampleFate.SKEWED] == 1
    assert received.view.hosts(10.0)[0].clock_skew_seconds == pytest.approx(ahead)


def test_a_delay_of_the_network_is_no_skew() -> None:
    received = Received()
    for second, delay in enumerate([5.0, 0.0, 4.0, 3.0]):
        received.take(report_with(second + 1, second, {second - 0.5: 1}), second + delay)
    assert received.view.hosts(6.0)[0].clock_skew_seconds == pytest.approx(0.0, abs=1e-6)


def test_a_clock_that_was_set_is_told_from_time_that_passed() -> None:
    received = Received()
    received.take(report_with(1, 0.0, {-0.5: 1}), 0.0)
    received.take(report_with(2, 3600.0, {3599.5: 2}), 3600.0)
    assert received.view.hosts(3600.0)[0].clock_sets == 0
    received.take(report_with(3, 3601.0, {3600.5: 3}, clock_ahead=-20), 3601.0)
    state = received.view.hosts(3601.0)[0]
    assert state.clock_sets == 1
    assert state.clock_skew_seconds == pytest.approx(-20)


def test_a_clock_set_back_loses_and_doubles_no_samples() -> None:
    received = Received()
    received.take(report_with(1, 10.0, {9.2: 1, 9.8: 2}), 10.0)
    received.take(report_with(2, 11.0, {9.8: 2, 10.5: 3}, clock_ahead=-20), 11.0)
    assert received.values == [1, 2, 3]
    assert received.seconds == [9, 9, 10]


def test_a_host_that_started_again_is_heard_at_once() -> None:
    received = Received()
    received.take(report_with(1, 10.0, {9.5: 1}, monotonic=90_000.0), 10.0)
    received.take(report_with(1, 70.0, {69.5: 2}, monotonic=20.0, boot_id="boot-2"), 70.0)
    assert received.values == [1, 2]


def test_an_agent_without_a_monotonic_clock_survives_a_clock_set_back() -> None:
    received = Received()
    received.take(report_with(1, 10.0, {9.5: 1}, monotonic=0), 10.0)
    received.take(report_with(2, 11.0, {10.5: 2}, monotonic=0, clock_ahead=-20), 11.0)
    assert received.values == [1, 2]


@given(st.permutations(range(2, 10)), st.lists(st.integers(1, 9), max_size=12))
def test_whatever_the_order_and_the_repetitions_each_sample_counts_once(
    order: list[int], again: list[int]
) -> None:
    received = Received()
    for sequence in [1, *order, *again]:
        report = report_with(sequence, float(sequence), {sequence - 0.5: sequence})
        received.take(report, 10.0)
    assert len(received.values) == len(set(received.values))
    assert sum(received.fates.values()) == 9 + len(again)
    assert 1 in received.values
    assert max(received.values) == 9
