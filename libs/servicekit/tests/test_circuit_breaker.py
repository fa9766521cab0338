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


def test_one_call_in_every_pause_goes_through_while_it_is_open() -> None:
    breaker = opened()
    assert [breaker.admits(at) for at in (101.0, 101.1, 101.9, 102.1, 103.0)] == [
        True,
        False,
        False,
        True,
        False,
    ]


def test_a_failed_probe_leaves_it_open_and_opens_nothing_anew() -> None:
    breaker = opened()
    assert breaker.admits(101.0)
    assert not breaker.failed(101.5)
    assert not breaker.admits(101.9)
    assert breaker.admits(102.0)


def test_the_first_success_closes_it_for_all() -> None:
    breaker = opened()
    assert breaker.admits(101.0)
    assert breaker.succeeded()
    assert all(breaker.admits(101.0) for _ in range(10))
    assert not breaker.failed(101.0)


@given(
    st.lists(st.tuples(st.sampled_from(["ask", "fail", "succeed"]), st.floats(0, 3)), max_size=60)
)
def test_nobody_is_refused_for_longer_than_a_pause_after_the_last_call_let_through(
    steps: list[tuple[str, float]],
) -> None:
    breaker, now, last_through = CircuitBreaker(), 0.0, 0.0
    for what, seconds in steps:
        now += seconds
        if what == "fail":
            was_open = breaker.is_open
            breaker.failed(now)
            if breaker.is_open and not was_open:
                last_through = now
        elif what == "succeed":
            breaker.succeeded()
        elif breaker.admits(now):
            last_through = now
        else:
            assert now - last_through < breaker.pause_seconds
