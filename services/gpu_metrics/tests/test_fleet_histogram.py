import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_metrics.domain.histogram import Histogram, HistogramShapeError, coarsen, merge

BOUND_CHOICES = [0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5]


def observed(values: list[float], bounds: tuple[float, ...]) -> Histogram:
    """A histogram made the slow way: each value into the first bucket that takes it."""
    counts = [0] * (len(bounds) + 1)
    for value in values:
        index = next((i for i, bound in enumerate(bounds) if value <= bound), len(bounds))
        counts[index] += 1
    return Histogram(bounds, tuple(counts), math.fsum(values))


latencies = st.lists(st.floats(0, 5), max_size=40)
bucket_bounds = st.sets(st.sampled_from(BOUND_CHOICES), min_size=1).map(lambda s: tuple(sorted(s)))


@settings(deadline=None)
@given(st.lists(latencies, min_size=1, max_size=5), bucket_bounds)
def test_merged_histograms_equal_the_histogram_of_all_observations(
    servers: list[list[float]], bounds: tuple[float, ...]
) -> None:
    merged = merge(observed(values, bounds) for values in servers)
    union = observed([value for values in servers for value in values], bounds)
    assert merged is not None
    assert not merged.coarsened
    assert merged.histogram.counts == union.counts
    assert merged.histogram.sum_seconds == pytest.approx(union.sum_seconds)


@settings(deadline=None)
@given(st.lists(st.tuples(latencies, bucket_bounds), min_size=2, max_size=4))
def test_differing_bounds_merge_exactly_into_the_common_ones(
    servers: list[tuple[list[float], tuple[float, ...]]],
) -> None:
    merged = merge(observed(values, bounds) for values, bounds in servers)
    common = tuple(sorted(set.intersection(*(set(bounds) for _, bounds in servers))))
    union = observed([value for values, _ in servers for value in values], common)
    assert merged is not None
    assert merged.histogram.bounds == common
    assert merged.histogram.counts == union.counts
    assert merged.coarsened == (len({bounds for _, bounds in servers}) > 1)


@settings(deadline=None)
@given(st.lists(latencies, min_size=1, max_size=4), bucket_bounds, st.randoms())
def test_the_order_of_servers_does_not_matter(
    servers: list[list[float]], bounds: tuple[float, ...], random: object
) -> None:
    parts = [observed(values, bounds) for values in servers]
    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis gives a random.Random
    assert merge(parts) == merge(shuffled)


def test_the_tail_of_merged_histograms_is_not_the_mean_of_the_tails() -> None:
    fast = Histogram((0.1, 1.0), (99, 1, 0), 10.0)
    slow = Histogram((0.1, 1.0), (0, 100, 0), 90.0)
    merged = merge([fast, slow])
    assert merged is not None
    assert fast.quantile(0.95) == 0.1
    assert merged.histogram.quantile(0.95) == 1.0


def test_nothing_merges_into_nothing() -> None:
    assert merge([]) is None


def test_growth_since_an_earlier_moment_counts_only_what_is_new() -> None:
    earlier = Histogram((0.1,), (3, 1), 1.0)
    later = Histogram((0.1,), (5, 1), 1.2)
    growth = later.since(earlier)
    assert growth is not None
    assert growth.counts == (2, 0)
    assert growth.sum_seconds == pytest.approx(0.2)


def test_a_counter_that_fell_is_no_growth() -> None:
    assert Histogram((0.1,), (1, 0), 0.1).since(Histogram((0.1,), (5, 1), 1.0)) is None


def test_histograms_with_other_bounds_are_refused_where_that_would_be_wrong() -> None:
    one, other = Histogram((0.1,), (1, 0), 0.1), Histogram((0.2,), (1, 0), 0.1)
    with pytest.raises(HistogramShapeError):
        one.plus(other)
    with pytest.raises(HistogramShapeError):
        one.since(other)
    with pytest.raises(HistogramShapeError):
        coarsen(one, (0.2,))


@pytest.mark.parametrize(
    ("bounds", "counts"),
    [
        ((0.1, 0.2), (1, 2)),
        ((0.2, 0.1), (1, 2, 3)),
        ((0.1, 0.1), (1, 2, 3)),
        ((0.1, math.inf), (1, 2, 3)),
        ((math.nan,), (1, 2)),
        ((0.1,), (1, -2)),
    ],
)
def test_impossible_histograms_are_refused(
    bounds: tuple[float, ...], counts: tuple[int, ...]
) -> None:
    with pytest.raises(HistogramShapeError):
        Histogram(bounds, counts, 0.0)


def test_quantiles_of_empty_and_overflowing_histograms() -> None:
    assert Histogram((0.1,), (0, 0), 0.0).quantile(0.95) is None
    assert Histogram((0.1,), (0, 1), 9.0).quantile(0.5) == math.inf
