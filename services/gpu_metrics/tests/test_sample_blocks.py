"""Samples in blocks mean what the same samples mean one figure at a time."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaming.gpu_metrics.v1 import gpu_metrics_pb2, samples_pb2
from gpu_metrics import wire
from gpu_metrics.domain.fleet import FleetPolicy, FleetView
from gpu_metrics.domain.history import GPU_METRICS, History
from gpu_metrics.domain.history_ring import HistoryLengths
from gpu_metrics.domain.host_ingest import SampleFate
from gpu_metrics.domain.readings import GpuReading, HostReport
from gpu_metrics.domain.samples import FleetMetric, SampleSeries, packed
from servicekit.errors import InvalidRequest

from .builders import NOON, make_report

NOON_SECONDS = round(NOON.timestamp())
LENGTHS = HistoryLengths(seconds=600, ten_seconds=360, minutes=600, late_seconds=60)
GPUS = tuple(GpuReading(gpu_uuid=f"GPU-{index}", index=index) for index in range(2))


class Collector:
    """A view with a history, and what its history holds in the end."""

    def __init__(self) -> None:
        self.history = History(LENGTHS, maximum_bytes=10**9, started=NOON_SECONDS)
        self.view = FleetView(FleetPolicy(sample_window_seconds=20.0), self.history)

    @property
    def cells(self) -> dict[tuple[str, FleetMetric], list[tuple[int, tuple[float, ...]]]]:
        for gpu in list(self.history.gpus()):
            self.history.fold(gpu)
        return {
            (gpu.key, metric): list(gpu.cells(metric, NOON_SECONDS - 60, NOON_SECONDS + 60, 1))
            for gpu in self.history.gpus()
            for metric in GPU_METRICS
        }

    @property
    def fates(self) -> Counter[SampleFate]:
        return +self.view.fates


def series_of(
    offsets: tuple[int, ...], first: int, figures: Sequence[tuple[int, FleetMetric]]
) -> tuple[SampleSeries, ...]:
    return tuple(
        SampleSeries(gpu_index, metric, offsets, tuple(range(first, first + len(offsets))))
        for gpu_index, metric in figures
    )


FIGURES = st.lists(
    # A GPU too many and a figure of servers among them: the history passes those over.
    st.sampled_from(
        [
            (0, FleetMetric.GPU_UTILIZATION_PERMILLE),
            (1, FleetMetric.GPU_POWER_MILLIWATTS),
            (2, FleetMetric.GPU_POWER_MILLIWATTS),
            (1, FleetMetric.RUNNING_REQUESTS),
        ]
    ),
    min_size=1,
    max_size=4,
    unique=True,
)


@st.composite
def runs_of_reports(draw: st.DrawFn) -> list[HostReport]:
    """Return reports mostly in order, at times lost, overtaken, repeated or from another hour."""
    sequence, told = 1, []
    for _ in range(draw(st.integers(2, 6))):
        told.append(draw(reports(sequence)))
        sequence = max(1, sequence + draw(st.sampled_from([1, 1, 1, 1, 2, 0, -1])))
    return told


@st.composite
def reports(draw: st.DrawFn, sequence: int) -> HostReport:
    at = sequence * 1_000_000 + draw(st.sampled_from([0, 0, 0, 250_000, 50_000_000]))
    sampled: list[SampleSeries] = []
    taken: set[tuple[int, FleetMetric]] = set()
    for _ in range(draw(st.integers(1, 2))):
        figures = [each for each in draw(FIGURES) if each not in taken]
        taken.update(figures)
        steps = draw(st.lists(st.integers(1, 700_000), max_size=6))
        offsets = (sum(steps) + draw(st.integers(0, 300_000)), *steps)
        sampled += series_of(offsets, draw(st.integers(0, 900)), figures)
    return make_report("i-1", sequence, gpus=GPUS)._replace(
        sample_time=NOON + timedelta(microseconds=at),
        monotonic_microseconds=10**9 + at,
        series=tuple(sampled),
    )


@given(runs_of_reports())
def test_blocks_count_as_the_same_samples_do_figure_by_figure(told: list[HostReport]) -> None:
    one_by_one, in_blocks = Collector(), Collector()
    for number, report in enumerate(told):
        now, arrived = float(number), NOON + timedelta(seconds=number)
        one_by_one.view.apply(report, now, arrived)
        in_blocks.view.apply(report._replace(series=packed(report.series)), now, arrived)
    assert in_blocks.fates == one_by_one.fates
    assert in_blocks.cells == one_by_one.cells


def test_figures_of_the_same_moments_are_sent_as_one_block() -> None:
    shared = series_of((9, 3), 1, [(0, GPU_METRICS[0]), (1, GPU_METRICS[3])])
    apart = series_of((8,), 1, [(0, GPU_METRICS[5])])
    report = make_report("i-1", 1, gpus=GPUS)._replace(series=(*apart, *shared))
    message = wire.report_message(report)
    assert [len(block.metrics) for block in message.sample_blocks] == [2]
    assert len(message.series) == 1
    assert tuple(wire.lazy_report_from_message(message).series) == report.series


def test_a_block_weighs_less_than_its_figures_apart() -> None:
    offsets = (900_000, *[100_000] * 9)
    shared = series_of(offsets, 500, [(gpu, metric) for gpu in range(8) for metric in GPU_METRICS])
    report = wire.report_message(make_report("i-1", 1)._replace(series=shared))
    apart = [
        samples_pb2.SampleSeries(
            gpu_index=each.gpu_index,
            metric=samples_pb2.FleetMetric.ValueType(each.metric),
            offset_microseconds=each.offset_microseconds,
            values=each.values,
        )
        for each in shared
    ]
    assert report.sample_blocks[0].ByteSize() < 0.5 * sum(each.ByteSize() for each in apart)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"values": [1, 2, 3]}, "values"),
        ({"values": []}, "values"),
        ({"gpu_indexes": [0]}, "metrics"),
        ({"gpu_indexes": [0, 64]}, "gpu_indexes"),
        ({"metrics": [1, 0]}, "metrics"),
        ({"metrics": [1, 99]}, "metrics"),
        ({"gpu_indexes": [1, 1], "metrics": [4, 4]}, "metrics"),
    ],
)
def test_a_block_that_does_not_fit_together_is_refused(
    changes: dict[str, list[int]], field: str
) -> None:
    parts: dict[str, list[int]] = {
        "offset_microseconds": [5, 1],
        "gpu_indexes": [0, 1],
        "metrics": [1, 1],
        "values": [1, 2, 3, 4],
        **changes,
    }
    block = samples_pb2.SampleBlock(
        offset_microseconds=parts["offset_microseconds"],
        gpu_indexes=parts["gpu_indexes"],
        values=parts["values"],
    )
    block.metrics.extend(samples_pb2.FleetMetric.ValueType(each) for each in parts["metrics"])
    message = gpu_metrics_pb2.StreamReportsRequest(sample_blocks=[block])
    with pytest.raises(InvalidRequest) as refused:
        wire.lazy_report_from_message(message)
    assert refused.value.code.name == "INVALID_ARGUMENT"
    assert [each.field for each in refused.value.field_violations] == [f"sample_blocks.{field}"]
