import itertools
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from gpu_metrics.domain.processes import ProcessReading
from gpu_metrics.domain.readings import GpuReading, Host, HostReport, MissingReason
from gpu_metrics.domain.report_merge import MAXIMUM_SAMPLES, merged
from gpu_metrics.domain.samples import FleetMetric, SampleSeries

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
UTILIZATION = FleetMetric.GPU_UTILIZATION_PERMILLE


def series(
    *samples: tuple[int, int], index: int = 0, metric: FleetMetric = UTILIZATION
) -> SampleSeries:
    """A series of (microseconds before the report, value)."""
    ages = [age for age, _ in samples]
    offsets = [ages[0], *(before - after for before, after in itertools.pairwise(ages))]
    return SampleSeries(
        gpu_index=index,
        metric=metric,
        offset_microseconds=tuple(offsets),
        values=tuple(value for _, value in samples),
    )


def ages(found: SampleSeries) -> list[tuple[int, int]]:
    """The inverse of `series`."""
    age, samples = 0, []
    for position, (offset, value) in enumerate(
        zip(found.offset_microseconds, found.values, strict=True)
    ):
        age = offset if position == 0 else age - offset
        samples.append((age, value))
    return samples


def report(
    seconds: float,
    *all_series: SampleSeries,
    gpus: tuple[str, ...] = ("GPU-a",),
    peak: int | MissingReason = MissingReason.NOT_TOLD,
    clock_seconds: float | None = None,
    processes: ProcessReading | None = None,
    leaving: bool = False,
) -> HostReport:
    monotonic = seconds if clock_seconds is None else clock_seconds
    return HostReport(
        host=Host(host_id="i-1"),
        boot_id="boot",
        sequence=1,
        sample_time=NOON + timedelta(seconds=seconds),
        monotonic_microseconds=1 + round(monotonic * 1e6),
        gpus=tuple(
            GpuReading(gpu_uuid=uuid, index=index, peak_utilization_permille=peak)
            for index, uuid in enumerate(gpus)
        ),
        series=all_series,
        processes=processes,
        leaving=leaving,
    )


def test_samples_of_a_replaced_report_keep_their_time() -> None:
    older = report(0, series((900_000, 10), (200_000, 20)))
    newer = report(1.5, series((700_000, 30), (0, 40)))
    (found,) = merged(older, newer).series
    assert ages(found) == [(2_400_000, 10), (1_700_000, 20), (700_000, 30), (0, 40)]


@given(
    old=st.lists(st.tuples(st.integers(0, 900_000), st.integers(0, 1000)), min_size=1),
    new=st.lists(st.tuples(st.integers(0, 900_000), st.integers(0, 1000))),
)
def test_no_sample_is_lost_or_doubled(
    old: list[tuple[int, int]], new: list[tuple[int, int]]
) -> None:
    old, new = sorted(old, reverse=True), sorted(new, reverse=True)
    both = merged(report(0, series(*old)), report(1, *([series(*new)] if new else [])))
    found = [sample for each in both.series for sample in ages(each)]
    assert sorted(found) == sorted([(age + 1_000_000, value) for age, value in old] + new)
    assert found == sorted(found, key=lambda sample: -sample[0])


def test_after_many_replaced_reports_the_newest_samples_are_there_and_no_more_than_fit() -> None:
    held = report(0, series((0, 0)))
    for second in range(1, 3 * MAXIMUM_SAMPLES):
        held = merged(held, report(second, series((0, second))))
    (found,) = held.series
    assert len(found.values) == MAXIMUM_SAMPLES
    assert found.values[-1] == 3 * MAXIMUM_SAMPLES - 1
    assert ages(found)[0][0] == (MAXIMUM_SAMPLES - 1) * 1_000_000


def test_samples_follow_their_gpu_to_another_place_and_go_with_one_that_is_gone() -> None:
    older = report(0, series((0, 1), index=0), series((0, 2), index=1), gpus=("GPU-a", "GPU-b"))
    newer = report(1, series((0, 3), index=0), gpus=("GPU-b",))
    (found,) = merged(older, newer).series
    assert (found.gpu_index, found.values) == (0, (2, 3))


def test_a_clock_that_was_set_does_not_move_samples() -> None:
    older = report(0, series((0, 1)), clock_seconds=100)
    newer = report(-3600, series((0, 2)), clock_seconds=101)
    (found,) = merged(older, newer).series
    assert ages(found) == [(1_000_000, 1), (0, 2)]


def test_a_peak_outlives_the_report_that_saw_it() -> None:
    def peak(older: int | MissingReason, newer: int | MissingReason) -> int | MissingReason:
        both = merged(report(0, peak=older), report(1, peak=newer))
        return both.gpus[0].peak_utilization_permille

    assert peak(900, 100) == 900
    assert peak(100, 900) == 900
    assert peak(900, MissingReason.TIMEOUT) == 900
    assert peak(MissingReason.TIMEOUT, MissingReason.LOST) is MissingReason.LOST


def test_processes_that_were_read_outlive_a_report_without() -> None:
    reading = ProcessReading(read_time=NOON)
    assert merged(report(0, processes=reading), report(1)).processes == reading


def test_a_host_that_leaves_takes_its_samples_along() -> None:
    leaving = report(1, leaving=True)
    assert merged(report(0, series((0, 1))), leaving) == leaving
