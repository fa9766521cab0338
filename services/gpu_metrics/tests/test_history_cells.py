"""Cells made for many figures at once are what each figure's samples say one by one."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaming.gpu_metrics.v1 import samples_pb2
from gpu_metrics.domain.history_cells import points_of, second_cells
from gpu_metrics.domain.history_ring import HistoryLengths, Track, put_cells
from gpu_metrics.domain.varints import numbers_of

START = 1_699_999_200  # a full hour
LENGTHS = HistoryLengths(seconds=600, ten_seconds=60, minutes=30, late_seconds=60)
WIDTH = 3
LATE_SECONDS = 20

Samples = Sequence[float]
Told = dict[int, dict[int, Samples]]
"""By second and figure."""


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_numbers_are_what_protocol_buffers_encoded(told: list[int]) -> None:
    encoded = samples_pb2.SampleBlock(offset_microseconds=[3], values=told).SerializeToString()
    numbers, ends = numbers_of(encoded)
    assert numbers[len(numbers) - len(told) :].tolist() == [float(number) for number in told]
    if told:
        assert ends[-1] == len(encoded) - 1


@st.composite
def batches(draw: st.DrawFn) -> list[Told]:
    """Return what is told at once, time after time, none of it too late."""
    found: list[Told] = []
    now = LATE_SECONDS
    for _ in range(draw(st.integers(1, 12))):
        now += draw(st.sampled_from([1, 1, 1, 5, 30, 70]))
        seconds = draw(st.lists(st.integers(now - LATE_SECONDS, now), min_size=1, max_size=4))
        samples: st.SearchStrategy[Samples] = st.lists(
            st.integers(0, 2**34), min_size=1, max_size=5
        )
        figures = st.dictionaries(st.integers(0, WIDTH - 1), samples, min_size=1)
        found.append({second: draw(figures) for second in seconds})
    return found


def put(track: Track, told: Told) -> None:
    rows, seconds = [], []
    for second, figures in told.items():
        count = max(map(len, figures.values()))
        of_second = np.full((count, WIDTH), np.nan)
        for figure, samples in figures.items():
            of_second[: len(samples), figure] = samples
        rows.append(of_second)
        seconds.append((START + second, count))
    put_cells([(track, 0, WIDTH)], second_cells(np.concatenate(rows), seconds))


def samples_of(told: Sequence[Told], figure: int, begin: int, end: int) -> Iterator[Samples]:
    """Yield a figure's samples of each second that has any."""
    for second in range(begin, end):
        found = [value for each in told for value in each.get(second, {}).get(figure, ())]
        if found:
            yield found


def weighted(points: Sequence[tuple[float, int]]) -> list[float]:
    return sorted(value for value, weight in points for _ in range(weight))


@settings(max_examples=25)
@given(batches(), st.booleans())
def test_cells_tell_what_the_samples_were(told: list[Told], asked: bool) -> None:
    track = Track(LENGTHS, WIDTH)
    for batch in told:
        put(track, batch)
        if asked:
            for _ in track.cells(0, START, START + 900, 60):
                pass
    for length in (1, 10, 60):
        for figure in range(WIDTH):
            found = dict(track.cells(figure, START, START + 900, length))
            covered = sum(fields[0] for fields in found.values())
            assert covered == sum(map(len, samples_of(told, figure, 0, 900)))
            for begin, fields in found.items():
                long = 1 if len(fields) == 4 else length
                check(fields, list(samples_of(told, figure, begin - START, begin - START + long)))


def check(fields: tuple[float, ...], seconds: Sequence[Samples]) -> None:
    """Compare a cell to the samples of its seconds."""
    samples = [value for second in seconds for value in second]
    largest = max(samples)
    assert fields[0] == len(samples)
    assert fields[1] == pytest.approx(math.fsum(samples) / len(samples), rel=1e-5)
    assert fields[2:4] == (float(np.float32(min(samples))), float(np.float32(largest)))
    if len(fields) == 4:
        return
    # A second is known by its extremes and by the mean of what lies between them.
    known: list[float] = []
    for second in seconds:
        mean = math.fsum(second) / len(second)
        of_second = (len(second), mean, min(second), max(second))
        known += weighted(points_of(of_second))
    known.sort()
    rest = max(len(known) - 2, 0)
    for code, share in zip(fields[4:], (0.175, 0.5, 0.775, 0.95), strict=True):
        expected = known[min(1 + int(share * rest), len(known) - 1)]
        told = 0.001 * math.exp((code - 1) / 1000) if code else 0.0
        assert told == pytest.approx(expected, rel=2e-3, abs=1e-5 * largest + 1e-3)


def test_a_cell_of_more_samples_than_it_can_count_says_as_many_as_it_can() -> None:
    track = Track(LENGTHS, WIDTH)
    for _ in range(2):
        put(track, {0: {0: [1.0, 3.0] * 20_000}})
    ((_, fields),) = track.cells(0, START, START + 1, 1)
    assert fields == (65_535, 2.0, 1.0, 3.0)


def test_minutes_that_are_told_at_once_leave_nothing_out_of_the_longer_cells() -> None:
    track = Track(LENGTHS, WIDTH)
    put(track, {second: {0: [second]} for second in range(30)})
    put(track, {second: {0: [second]} for second in range(30, 620)})
    counts = {
        length: sum(fields[0] for _, fields in track.cells(0, START, START + 700, length))
        for length in (1, 10, 60)
    }
    # Of the seconds the last ten minutes are kept, of the longer cells all.
    assert counts == {1: 600, 10: 620, 60: 620}
