import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_metrics.domain.log_histogram import LogHistogram, merge_all

VALUES = st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e13)), max_size=50)
SHARES = st.sampled_from([0.0, 0.25, 0.5, 0.9, 0.95, 0.99, 1.0])


def exact(values: list[float], share: float) -> float:
    return sorted(values)[max(1, math.ceil(share * len(values))) - 1]


def same(one: LogHistogram, other: LogHistogram) -> bool:
    return (
        one.counts == other.counts
        and one.zero_count == other.zero_count
        and one.minimum == other.minimum
        and one.maximum == other.maximum
        and math.isclose(one.total, other.total, rel_tol=1e-9, abs_tol=1e-9)
    )


@given(VALUES, VALUES, VALUES)
def test_merging_is_associative_and_commutative(
    a: list[float], b: list[float], c: list[float]
) -> None:
    x, y, z = map(LogHistogram.of, (a, b, c))
    assert same(x.plus(y), y.plus(x))
    assert same(x.plus(y).plus(z), x.plus(y.plus(z)))
    assert same(merge_all([z, x, y]), LogHistogram.of(a + b + c))


@given(VALUES.filter(bool), SHARES)
def test_a_percentile_is_within_one_percent_of_the_exact_one(
    values: list[float], share: float
) -> None:
    found = LogHistogram.of(values).quantile(share)
    assert found == pytest.approx(exact(values, share), rel=0.01 + 1e-6)


@given(VALUES.filter(bool))
def test_a_weight_counts_as_often_as_the_value_itself(values: list[float]) -> None:
    weighted = LogHistogram.of_weighted((value, 3) for value in values)
    assert same(weighted, LogHistogram.of(values * 3))


def test_the_p95_of_fifty_hosts_is_within_two_percent_where_their_mean_is_not() -> None:
    chosen = random.Random(5)  # noqa: S311  # test data, no secret
    hosts = [
        [chosen.lognormvariate(3 + host / 25, 0.8) for _ in range(chosen.randint(10, 400))]
        for host in range(50)
    ]
    together = exact([value for host in hosts for value in host], 0.95)
    merged = merge_all(map(LogHistogram.of, hosts)).quantile(0.95)
    assert merged == pytest.approx(together, rel=0.02)
    averaged = sum(exact(host, 0.95) for host in hosts) / len(hosts)
    assert abs(averaged - together) > 0.02 * together


def test_an_empty_histogram_has_no_percentile() -> None:
    assert LogHistogram().quantile(0.5) is None


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_what_cannot_be_counted_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="from 0"):
        LogHistogram.of([value])
