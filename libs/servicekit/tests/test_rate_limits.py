"""The rate limiter: what a key may take at once, for ever, and how much memory keys take."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaming.knowledge_base.v1 import knowledge_base_pb2
from servicekit.rate_limits import RateLimit, RateLimiter

SECOND = 1_000_000_000

rates = st.floats(min_value=0.01, max_value=100_000)
bursts = st.integers(min_value=1, max_value=500)
calls = st.lists(
    st.tuples(
        st.integers(min_value=0, max_value=2 * SECOND),  # since the call before
        st.integers(min_value=1, max_value=20),  # units
    ),
    min_size=1,
    max_size=80,
)


def interval_of(limit: RateLimit) -> int:
    return max(1, round(SECOND / limit.units_per_second))


@given(rates, bursts)
def test_a_rested_key_takes_its_burst_at_once_and_not_a_unit_more(rate: float, burst: int) -> None:
    limiter = RateLimiter(RateLimit(rate, burst))
    assert [limiter.take("a", 1, 5 * SECOND) for _ in range(burst)] == [0] * burst
    assert limiter.take("a", 1, 5 * SECOND) > 0


@settings(max_examples=50)  # it compares every call with every later one
@given(rates, bursts, calls)
def test_nobody_takes_more_than_the_burst_and_the_rate_in_any_span_of_time(
    rate: float, burst: int, arrivals: list[tuple[int, int]]
) -> None:
    limit = RateLimit(rate, burst)
    limiter = RateLimiter(limit)
    now = 0
    taken: list[tuple[int, int]] = []
    for gap, units in arrivals:
        now += gap
        if units <= burst and limiter.take("a", units, now) == 0:
            taken.append((now, units))
    for first in range(len(taken)):
        total = 0
        for moment, units in taken[first:]:
            total += units
            elapsed = moment - taken[first][0]
            assert (total - burst) * interval_of(limit) <= elapsed


@given(rates, bursts, calls)
def test_the_wait_told_is_exact_to_the_nanosecond(
    rate: float, burst: int, arrivals: list[tuple[int, int]]
) -> None:
    def after(arrivals: list[tuple[int, int]]) -> tuple[RateLimiter, int]:
        limiter, now = RateLimiter(RateLimit(rate, burst)), 0
        for gap, units in arrivals:
            now += gap
            limiter.take("a", min(units, burst), now)
        return limiter, now

    limiter, now = after(arrivals)
    wait = limiter.take("a", burst, now)
    if wait:
        assert limiter.take("a", burst, now + wait - 1) == 1
        assert limiter.take("a", burst, now + wait) == 0


@given(rates, bursts, st.integers(min_value=1, max_value=500))
def test_a_caller_at_exactly_the_rate_is_never_refused(rate: float, burst: int, count: int) -> None:
    limit = RateLimit(rate, burst)
    limiter = RateLimiter(limit)
    for number in range(count):
        assert limiter.take("a", 1, 7 * SECOND + number * interval_of(limit)) == 0


def test_many_calls_do_not_drift_by_a_single_unit() -> None:
    """Three a second do not divide a second evenly; a sum of floats would wander off."""
    limit = RateLimit(units_per_second=3, burst_units=5)
    limiter = RateLimiter(limit)
    start = 40 * 365 * 24 * 3600 * SECOND  # the clock of a machine that has run for 40 years
    now, taken = start, 0
    while taken < 200_000:
        wait = limiter.take("a", 1, now)
        now += wait
        taken += wait == 0
    assert now - start == (200_000 - limit.burst_units) * interval_of(limit)


@given(rates, bursts, calls)
def test_calls_that_were_refused_take_nothing(
    rate: float, burst: int, arrivals: list[tuple[int, int]]
) -> None:
    insistent, patient = (RateLimiter(RateLimit(rate, burst)) for _ in range(2))
    now = 0
    for gap, wanted in arrivals:
        now += gap
        units = min(wanted, burst)
        wait = insistent.take("a", units, now)
        if wait:
            for _ in range(5):
                assert insistent.take("a", units, now) == wait
        assert patient.take("a", units, now) == wait


def test_an_expensive_call_takes_as_much_as_the_cheap_ones_it_is_worth() -> None:
    limiter = RateLimiter(RateLimit(units_per_second=10, burst_units=10))
    assert limiter.take("a", 7, 0) == 0
    assert limiter.take("a", 4, 0) == SECOND // 10
    assert limiter.take("a", 3, 0) == 0


def test_keys_do_not_share_a_budget() -> None:
    limiter = RateLimiter(RateLimit(units_per_second=1, burst_units=1))
    assert limiter.take("a", 1, 0) == 0
    assert limiter.take("b", 1, 0) == 0
    assert limiter.take("a", 1, 0) == SECOND


@given(
    st.lists(
        st.tuples(st.integers(min_value=0, max_value=SECOND), st.sampled_from("abcdefgh")),
        max_size=200,
    )
)
def test_forgetting_keys_that_owe_nothing_changes_no_answer(
    arrivals: list[tuple[int, str]],
) -> None:
    limit = RateLimit(units_per_second=4, burst_units=3)
    together = RateLimiter(limit)
    apart = {key: RateLimiter(limit) for key in "abcdefgh"}
    now = 0
    for gap, key in arrivals:
        now += gap
        assert together.take(key, 1, now) == apart[key].take(key, 1, now)


def test_names_made_up_by_a_caller_do_not_fill_the_memory() -> None:
    limiter = RateLimiter(RateLimit(units_per_second=0.001, burst_units=1), maximum_keys=100)
    for number in range(10_000):
        limiter.take(f"world-{number}", 1, number)
        assert len(limiter) <= 100
    # The ones in use are kept: of a flood of names only the oldest are forgotten.
    assert limiter.take("world-9999", 1, 10_000) > 0


def test_a_key_in_constant_use_is_not_forgotten_for_names_made_up() -> None:
    limiter = RateLimiter(RateLimit(units_per_second=0.001, burst_units=1), maximum_keys=10)
    limiter.take("busy", 1, 0)
    for number in range(1000):
        assert limiter.take("busy", 1, number) > 0
        limiter.take(f"made-up-{number}", 1, number)


def test_keys_without_debt_are_forgotten_as_calls_come_in() -> None:
    limiter = RateLimiter(RateLimit(units_per_second=10, burst_units=2))
    for number in range(1000):
        limiter.take(f"world-{number}", 1, 0)
    for number in range(1000):
        limiter.take("one", 1, (10 + number) * SECOND)
    assert len(limiter) <= 1


def test_a_call_dearer_than_the_burst_is_a_mistake_told_at_once() -> None:
    limiter = RateLimiter(RateLimit(units_per_second=10, burst_units=2))
    with pytest.raises(ValueError, match="never fit"):
        limiter.take("a", 3, 0)


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, 0)])
def test_a_limit_that_lets_nothing_through_is_refused(rate: float, burst: int) -> None:
    with pytest.raises(ValueError, match="above 0"):
        RateLimit(rate, burst)


def test_every_request_about_a_world_names_it_where_the_limit_looks() -> None:
    """A request that hid its world inside another message would go uncharged."""

    def names_world(kind: Any, above: tuple[str, ...] = ()) -> bool:
        return any(
            field.name == "world_id"
            or (
                field.message_type is not None
                and field.message_type.full_name not in above
                and names_world(field.message_type, (*above, kind.full_name))
            )
            for field in kind.fields
        )

    charged = 0
    for service in knowledge_base_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            # A stream of requests is one call, charged to its caller before any of them is read.
            if names_world(method.input_type) and not method.client_streaming:
                assert "world_id" in method.input_type.fields_by_name, method.full_name
                charged += 1
    assert charged >= 10
