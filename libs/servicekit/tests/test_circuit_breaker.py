"""The circuit breaker's states, with time as an argument."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from servicekit.circuit_breaker import CircuitBreaker


def opened(at: float = 100.0) -> CircuitBreaker:
    breaker = CircuitBreaker(failures_to_open=3, pause_seconds=1.0)
    assert [breaker.failed(at) for _ in range(3)] == [False, False, True]
    return breaker


def test_failures_in_a_row_open_it() -> None:
    breaker = opened()
    assert breaker.is_open
    assert not breaker.admits(100.9)


def test_a_success_in_between_starts_the_count_anew() -> None:
    breaker = CircuitBreaker(failures_to_open=2)
    for _ in range(5):
        assert not breaker.failed(0.0)
        assert not breaker.succeeded()
    assert breaker.admits(0.0)


def test_after_a_pause_one_call_goes_through_and_no_other_while_it_is_under_way() -> None:
    breaker = opened()
    assert [breaker.admits(at) for at in (101.0, 101.1, 103.9)] == [True, False, False]


def test_a_call_that_tells_nothing_holds_the_next_one_up_for_three_seconds() -> None:
    breaker = opened()
    assert [breaker.admits(at) for at in (101.0, 104.0, 104.1, 107.0)] == [True, True, False, True]


def test_a_failure_of_the_call_let_through_is_followed_by_a_pause() -> None:
    breaker = opened()
    assert breaker.admits(101.0)
    assert not breaker.failed(101.5)
    assert not breaker.admits(102.4)
    assert breaker.admits(102.5)


def test_the_first_success_closes_it_for_all() -> None:
    breaker = opened()
    assert breaker.admits(101.0)
    assert breaker.succeeded()
    assert all(breaker.admits(101.0) for _ in range(10))
    assert not breaker.failed(101.0)


@given(
    st.lists(st.tuples(st.sampled_from(["ask", "fail", "succeed"]), st.floats(0, 3)), max_size=60)
)
def test_nobody_is_refused_for_longer_than_its_patience_after_something_happened(
    steps: list[tuple[str, float]],
) -> None:
    breaker, now, last_happened = CircuitBreaker(), 0.0, 0.0
    for what, seconds in steps:
        now += seconds
        if what == "fail":
            breaker.failed(now)
            last_happened = now
        elif what == "succeed":
            breaker.succeeded()
        elif breaker.admits(now):
            last_happened = now
        else:
            assert now - last_happened < breaker.patience_seconds
