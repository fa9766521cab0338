"""Samples wait as they came before they become cells: nobody can tell, and they are bounded."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaming.gpu_metrics.v1 import gpu_metrics_pb2
from gpu_metrics import wire
from gpu_metrics.domain.fleet import FleetPolicy, FleetView
from gpu_metrics.domain.history import GPU_METRICS, History
from gpu_metrics.domain.history_ring import HistoryLengths
from gpu_metrics.domain.host_ingest import AcceptedReport, AcceptedSeries
from gpu_metrics.domain.pending_samples import (
    MOST_PIECES,
    MOST_SAMPLES,
    MOST_SECONDS,
    PendingSamples,
)
from gpu_metrics.domain.readings import GpuReading, HostReport
from gpu_metrics.domain.samples import FleetMetric, PackedSeries, SampleSeries

from .builders import NOON, make_report

NOON_SECONDS = round(NOON.timestamp())
LENGTHS = HistoryLengths(seconds=600, ten_seconds=360, minutes=600, late_seconds=60)
GPUS = 2
UTILIZATION = FleetMetric.GPU_UTILIZATION_PERMILLE


def gpu(index: int, value: int) -> GpuReading:
    return GpuReading(
        gpu_uuid=f"GPU-{index}",
        index=index,
        utilization_permille=value,
        memory_utilization_permille=value // 2,
        memory_used_bytes=value * 2**20,
        power_milliwatts=value * 300,
        temperature_celsius=40,
        sm_clock_megahertz=1700,
    )


@st.composite
def reports(draw: st.DrawFn, sequence: int) -> HostReport:
    """Return a report whose figures are told by a block, one by one, or by readings alone."""
    at = sequence * 1_000_000 + draw(st.sampled_from([0, 300_000, -20_000_000, 12_000_000]))
    offsets = (900_000, *[100_000] * draw(st.integers(0, 9)))
    told = draw(st.sets(st.sampled_from([(n, m) for n in range(GPUS) for m in GPU_METRICS])))
    if draw(st.booleans()):
        told = {(n, m) for n in range(GPUS) for m in GPU_METRICS}
    values = tuple(draw(st.integers(0, 1000)) for _ in offsets)
    series = [SampleSeries(n, m, offsets, values) for n, m in sorted(told)]
    return make_report(
        "i-1", sequence, gpus=tuple(gpu(n, draw(st.integers(0, 1000))) for n in range(GPUS))
    )._replace(
        sample_time=NOON + timedelta(microseconds=at),
        monotonic_microseconds=10**9 + at,
        series=tuple(series),
    )


@st.composite
def runs(draw: st.DrawFn) -> list[HostReport]:
    """Return reports that may overtake each other or get lost, none later than cells wait for."""
    sequences = draw(st.lists(st.integers(1, 25), min_size=2, max_size=16, unique=True))
    if draw(st.booleans()):
        sequences.sort()
    return [draw(reports(sequence)) for sequence in sequences]


def cells_of(history: History) -> Iterator[tuple[str, int, int, list[float]]]:
    for number in range(GPUS):
        for metric in GPU_METRICS:
            subject = history.gpu(f"GPU-{number}")
            if subject is not None:
                found = subject.cells(metric, NOON_SECONDS - 100, NOON_SECONDS + 100, 1)
                for second, fields in found:
                    yield subject.key, metric.value, second, list(fields)


@settings(max_examples=30)
@given(runs())
def test_who_asks_seldom_is_told_what_one_is_told_who_asks_all_the_time(
    told: list[HostReport],
) -> None:
    collectors = []
    for _ in range(2):
        history = History(LENGTHS, maximum_bytes=10**9, started=NOON_SECONDS)
        collectors.append((FleetView(FleetPolicy(sample_window_seconds=60.0), history), history))
    (seldom, history), (often, asked) = collectors
    for turn, report in enumerate(told):
        message = wire.report_message(report).SerializeToString()
        for view in (seldom, often):
            came = gpu_metrics_pb2.StreamReportsRequest.FromString(message)
            view.apply(
                wire.lazy_report_from_message(came),
                float(turn),
                NOON + timedelta(seconds=report.sequence),
            )
        for _ in cells_of(asked):
            pass
    expected = list(cells_of(asked))
    found = list(cells_of(history))
    assert [each[:3] for each in found] == [each[:3] for each in expected]
    for of_one, of_other in zip(found, expected, strict=True):
        assert of_one[3] == pytest.approx(of_other[3], rel=1e-5)


def waiting(pending: PendingSamples) -> int:
    return sum(len(piece.values) for piece in pending._pieces)


def test_no_more_waits_than_is_allowed_however_a_host_reports() -> None:
    history = History(LENGTHS, maximum_bytes=10**9, started=NOON_SECONDS)
    gpus = tuple(gpu(n, 500) for n in range(GPUS))
    report = make_report("i-1", 1, gpus=gpus)
    pending = None
    for turn in range(2000):
        # All of one second, as a clock that stands still would have it.
        samples = (7,) * (turn % 500 + 1)
        series = AcceptedSeries(0, UTILIZATION, ((NOON_SECONDS, 0, len(samples)),), samples)
        history.observe(report, AcceptedReport(NOON_SECONDS, (series,)))
        pending = history._hosts["i-1"].pending
        assert len(pending._pieces) <= MOST_PIECES
        assert waiting(pending) <= MOST_SAMPLES
    assert pending is not None


def test_samples_wait_for_a_few_seconds_at_most() -> None:
    history = History(LENGTHS, maximum_bytes=10**9, started=NOON_SECONDS)
    report = make_report("i-1", 1, gpus=(gpu(0, 500),))
    for second in range(NOON_SECONDS, NOON_SECONDS + 60):
        history.observe(report, AcceptedReport(second))
        moments = [piece.moments[0][0] for piece in history._hosts["i-1"].pending._pieces]
        assert second - min(moments, default=second) < MOST_SECONDS


def test_what_nobody_knows_of_a_block_does_not_wait_with_it() -> None:
    series = [SampleSeries(0, metric, (5, 1), (1, 2)) for metric in GPU_METRICS]
    message = wire.report_message(make_report("i-1", 1)._replace(series=tuple(series)))
    unknown = b"\xfa\x3f\x80\x80\x04" + bytes(65536)
    block = message.sample_blocks[0].SerializeToString() + unknown
    message.sample_blocks[0].ParseFromString(block)
    told = wire.lazy_report_from_message(message).series
    assert isinstance(told, PackedSeries)
    (of_block,) = told.blocks
    assert list(of_block.numbers()) == [1, 2] * len(GPU_METRICS)
    assert len(of_block.values.encoded) < 100  # type: ignore[union-attr]  # the bytes it keeps
