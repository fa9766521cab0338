import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from gpu_metrics.domain.history import History
from gpu_metrics.domain.history_cells import points_of, second_cells
from gpu_metrics.domain.history_query import (
    Aggregation,
    HistoryPoint,
    HistoryQuery,
    HistoryRun,
    MetricOfServers,
    NoSuchPart,
    Scope,
    TooManySteps,
)
from gpu_metrics.domain.history_ring import HistoryLengths, Track, put_cells
from gpu_metrics.domain.host_ingest import AcceptedReport, AcceptedSeries
from gpu_metrics.domain.log_histogram import LogHistogram
from gpu_metrics.domain.readings import GpuReading, MissingReason, Tier
from gpu_metrics.domain.samples import FleetMetric

from .builders import make_report, make_server

START = 1_699_999_200  # a full hour
LENGTHS = HistoryLengths(seconds=600, ten_seconds=360, minutes=600, late_seconds=60)
UTILIZATION = FleetMetric.GPU_UTILIZATION_PERMILLE


def make_history(maximum_bytes: int = 10**9) -> History:
    return History(LENGTHS, maximum_bytes=maximum_bytes, started=START)


def tell(
    history: History,
    second: int,
    *values: int | MissingReason,
    host: str = "i-1",
    tier: Tier = Tier.GOLD,
    **server: int | MissingReason,
) -> None:
    """Report a reading of each of a host's GPUs, `second` seconds after the start."""
    gpus = tuple(
        GpuReading(gpu_uuid=f"GPU-{host}-{index}", index=index, utilization_permille=value)
        for index, value in enumerate(values)
    )
    report = make_report(host, 1, make_server(f"server-{host}", tier, **server), gpus=gpus)
    report = report._replace(monotonic_microseconds=(second + 1000) * 10**6)
    history.observe(report, AcceptedReport(START + second))


def ask(
    history: History,
    start: int,
    end: int,
    *,
    now: int | None = None,
    metric: FleetMetric = UTILIZATION,
    scope: Scope | None = None,
    step: int | None = 1,
    aggregation: Aggregation = Aggregation.MEAN,
) -> list[HistoryPoint]:
    query = HistoryQuery(
        metric=metric,
        scope=scope or Scope(),
        start=START + start,
        end=START + end,
        step=step,
        aggregation=aggregation,
    )
    run = HistoryRun(history, query, START + (end if now is None else now))
    for _ in run.parts():
        pass
    return list(run.points())


def values(points: Iterable[HistoryPoint]) -> list[float | None]:
    return [point.value for point in points]


def put(track: Track, second: int, samples: Sequence[float]) -> None:
    """Put samples of a second, `second` seconds after the start, of a track's first figure."""
    rows = np.full((len(samples), track.width), np.nan)
    rows[:, 0] = samples
    told = second_cells(rows, [(START + second, len(samples))])
    put_cells([(track, 0, track.width)], told)


def test_each_second_tells_what_was_read_in_it() -> None:
    history = make_history()
    for second, value in enumerate((100, 200, 300)):
        tell(history, second, value)
    assert values(ask(history, 0, 3)) == [100, 200, 300]


def test_a_second_without_a_sample_is_unset_and_not_zero() -> None:
    history = make_history()
    tell(history, 0, 100)
    tell(history, 2, 0)
    assert values(ask(history, 0, 3)) == [100, None, 0]


def test_a_reading_that_is_missing_lowers_nothing() -> None:
    history = make_history()
    tell(history, 0, 800, MissingReason.TIMEOUT)
    (point,) = ask(history, 0, 1)
    assert (point.value, point.observed, point.expected) == (800, 1, 2)


def test_a_silent_host_is_expected_until_it_is_given_up() -> None:
    history = make_history()
    for second in range(6):
        tell(history, second, 500, host="i-1")
        if second < 2:
            tell(history, second, 100, host="i-2")
        if second == 4:
            history.host_left("i-2")
    points = ask(history, 0, 6)
    assert values(points) == [300, 300, 500, 500, 500, 500]
    assert [point.observed for point in points] == [2, 2, 1, 1, 1, 1]
    assert [point.expected for point in points] == [2, 2, 2, 2, 2, 1]


def test_reports_of_the_same_second_count_together() -> None:
    history = make_history()
    for value in (100, 200, 900):
        tell(history, 5, value)
    (point,) = ask(history, 5, 6, aggregation=Aggregation.MAXIMUM)
    assert (point.value, point.samples) == (900, 3)


def test_a_series_tells_its_figure_and_the_reading_does_not_count_again() -> None:
    history = make_history()
    gpu = GpuReading(gpu_uuid="GPU-1", index=0, utilization_permille=999, power_milliwatts=7)
    series = AcceptedSeries(0, UTILIZATION, ((START, 0, 2), (START + 1, 2, 3)), (10, 20, 40))
    history.observe(make_report("i-1", 1, gpus=(gpu,)), AcceptedReport(START + 1, (series,)))
    assert values(ask(history, 0, 2)) == [15, 40]
    power = ask(history, 0, 2, metric=FleetMetric.GPU_POWER_MILLIWATTS)
    assert values(power) == [None, 7]


def test_a_burst_between_two_reports_shows_in_the_maximum() -> None:
    history = make_history()
    gpu = GpuReading(gpu_uuid="GPU-1", index=0)
    series = AcceptedSeries(0, UTILIZATION, ((START, 0, 10),), (0,) * 8 + (1000, 0))
    history.observe(make_report("i-1", 1, gpus=(gpu,)), AcceptedReport(START, (series,)))
    assert values(ask(history, 0, 1, aggregation=Aggregation.MAXIMUM)) == [1000]
    assert values(ask(history, 0, 1)) == [100]


@pytest.mark.parametrize(
    ("aggregation", "value"),
    [
        (Aggregation.MEAN, 550),
        (Aggregation.MINIMUM, 100),
        (Aggregation.MAXIMUM, 1000),
        (Aggregation.SUM, 1100),
    ],
)
def test_gpus_are_taken_together(aggregation: Aggregation, value: float) -> None:
    history = make_history()
    tell(history, 0, 100, 1000)
    assert values(ask(history, 0, 1, aggregation=aggregation)) == [value]


@pytest.mark.parametrize(
    ("scope", "value"),
    [
        (Scope(), 300),
        (Scope(gpu_uuid="GPU-i-1-0"), 100),
        (Scope(host_id="i-1"), 200),
        (Scope(server_id="server-i-2"), 500),
        (Scope(tier=Tier.SILVER), 500),
    ],
)
def test_a_part_of_the_fleet_is_asked_for(scope: Scope, value: float) -> None:
    history = make_history()
    tell(history, 0, 100, 300, host="i-1")
    tell(history, 0, 500, host="i-2", tier=Tier.SILVER)
    assert values(ask(history, 0, 1, scope=scope)) == [value]


def test_figures_of_servers_and_the_rate_of_their_tokens() -> None:
    history = make_history()
    for second, tokens in enumerate((1000, 1500, 100, 400)):
        tell(history, second, 0, running_requests=second, generation_tokens_total=tokens)
    running = ask(history, 0, 4, metric=FleetMetric.RUNNING_REQUESTS)
    assert values(running) == [0, 1, 2, 3]
    # A counter that fell is a server that started again, and no rate at all.
    rate = ask(history, 0, 4, metric=FleetMetric.GENERATION_TOKENS_PER_SECOND)
    assert values(rate) == [None, 500, None, 300]


def test_samples_of_long_ago_are_told_in_longer_steps() -> None:
    history = make_history()
    for second in range(7200):
        tell(history, second, second % 60)
    (minute,) = ask(history, 1800, 1860, now=7200, step=1)
    assert (minute.value, minute.samples) == (29.5, 60)
    tens = ask(history, 6000, 6060, now=7200, step=1)
    assert values(tens) == [4.5, 14.5, 24.5, 34.5, 44.5, 54.5]


def test_percentiles_of_long_ago_stay_near_the_exact_ones() -> None:
    history = make_history()
    chosen = random.Random(7)  # noqa: S311  # test data, no secret
    told = [round(chosen.lognormvariate(6, 0.5)) for _ in range(7200)]
    for second, value in enumerate(told):
        tell(history, second, value)
    of_range = sorted(told[3600:7200])
    for aggregation, share in (
        (Aggregation.P50, 0.5),
        (Aggregation.P95, 0.95),
        (Aggregation.P99, 0.99),
    ):
        (point,) = ask(history, 3600, 7200, now=9000, step=3600, aggregation=aggregation)
        assert point.value == pytest.approx(of_range[int(share * 3600) - 1], rel=0.03)


def test_percentiles_over_hosts_are_of_all_samples_and_no_mean_of_percentiles() -> None:
    history = make_history()
    chosen = random.Random(3)  # noqa: S311  # test data, no secret
    told: list[int] = []
    for host in range(50):
        for second in range(20):
            told.append(round(chosen.lognormvariate(4 + host / 25, 0.7)))
            tell(history, second, told[-1], host=f"i-{host}")
    (point,) = ask(history, 0, 20, step=60, aggregation=Aggregation.P95)
    assert point.value == pytest.approx(sorted(told)[949], rel=0.02)
    assert point.samples == 1000


def test_a_step_shorter_than_what_is_kept_is_made_as_long_as_that() -> None:
    history = make_history()
    query = HistoryQuery(metric=UTILIZATION, scope=Scope(), start=START, end=START + 600, step=7)
    assert HistoryRun(history, query, START + 600).step == 7
    assert HistoryRun(history, query, START + 3000).step == 10
    assert HistoryRun(history, query, START + 10_000).step == 60
    assert HistoryRun(history, replace(query, step=None), START + 600).step == 2


def test_more_steps_than_an_answer_holds_are_refused() -> None:
    with pytest.raises(TooManySteps):
        ask(make_history(), 0, 6000, now=0, step=1)


def test_what_was_never_there_is_refused() -> None:
    with pytest.raises(NoSuchPart):
        ask(make_history(), 0, 1, scope=Scope(gpu_uuid="GPU-nowhere"))


def test_a_gpu_has_no_figures_of_servers() -> None:
    with pytest.raises(MetricOfServers):
        ask(
            make_history(),
            0,
            1,
            scope=Scope(gpu_uuid="GPU-1"),
            metric=FleetMetric.RUNNING_REQUESTS,
        )


def test_late_samples_still_reach_the_longer_cells() -> None:
    track = Track(LENGTHS, 1)
    put(track, 50, (10,))
    put(track, 5, (30,))
    put(track, 200, (1,))
    cells = dict(track.cells(0, START, START + 60, 60))
    assert [(fields[0], fields[1]) for fields in cells.values()] == [(2, 20)]
    put(track, 6, (50,))
    assert dict(track.cells(0, START, START + 60, 60)) == cells


def test_after_a_long_silence_what_was_before_is_kept() -> None:
    track = Track(LENGTHS, 1)
    for second in range(100):
        put(track, second, (second,))
    put(track, 20_000, (7,))
    counted = sum(fields[0] for _, fields in track.cells(0, START, START + 20_001, 60))
    assert counted == 101


def test_a_cell_stands_for_as_many_samples_as_it_holds() -> None:
    track = Track(LENGTHS, 1)
    chosen = random.Random(9)  # noqa: S311  # test data, no secret
    for second in range(200):
        put(track, second, [chosen.randint(0, 1000) for _ in range(second % 4 + 1)])
    for _, fields in track.cells(0, START, START + 200, 60):
        assert sum(weight for _, weight in points_of(fields)) == fields[0]
        histogram = LogHistogram.of_weighted(points_of(fields))
        assert fields[2] == histogram.minimum
        assert fields[3] == histogram.maximum


def test_memory_is_bounded_and_what_left_the_longest_ago_makes_room() -> None:
    history = make_history(maximum_bytes=18 * LENGTHS.bytes_per_figure)
    for number in range(6):
        tell(
            history,
            number,
            500,
            host=f"i-{number}",
            running_requests=MissingReason.TIMEOUT,
            waiting_requests=MissingReason.TIMEOUT,
            kv_cache_usage_permille=MissingReason.TIMEOUT,
        )
        assert history.gpu(f"GPU-i-{number}-0") is not None  # its cells are made now
        if number < 2:
            history.host_left(f"i-{number}")
    told = {subject.key for subject in history.gpus() if subject.track}
    assert told == {"GPU-i-2-0", "GPU-i-3-0", "GPU-i-4-0"}
    assert history.refused_samples == 1


def test_rings_that_are_full_take_what_their_lengths_say() -> None:
    lengths = HistoryLengths(seconds=300, ten_seconds=30, minutes=10, late_seconds=60)
    track = Track(lengths, 2)
    for second in range(3000):
        put(track, second, (second,))
    assert track.bytes_held == 2 * lengths.bytes_per_figure


def test_what_is_gone_for_longer_than_anything_is_kept_is_forgotten() -> None:
    history = make_history()
    tell(history, 0, 500)
    history.host_left("i-1")
    history.expire(START + LENGTHS.span_seconds(60) + 1)
    assert not list(history.gpus())
    assert not list(history.servers())
