"""When a failing server is left alone."""

from __future__ import annotations

from ai_router.domain.circuit_breaker import BreakerPolicy, CircuitBreaker, CircuitState

POLICY = BreakerPolicy(failures_to_open=3, first_pause_seconds=1.0, longest_pause_seconds=5.0)


def test_it_opens_after_failures_in_a_row() -> None:
    breaker = CircuitBreaker(POLICY)
    for now in (1.0, 2.0):
        breaker.record_failure(now)
    breaker.record_success(started_at=2.0)
    for now in (3.0, 4.0):
        breaker.record_failure(now)
    assert breaker.state(4.0) is CircuitState.CLOSED
    breaker.record_failure(5.0)
    assert breaker.state(5.0) is CircuitState.OPEN


def test_a_refused_connection_opens_it_at_once() -> None:
    breaker = CircuitBreaker(POLICY)
    breaker.record_failure(1.0, unreachable=True)
    assert breaker.state(1.5) is CircuitState.OPEN
    assert breaker.state(2.0) is CircuitState.PROBING


def test_failed_probes_double_the_pause_up_to_a_bound() -> None:
    breaker = CircuitBreaker(POLICY)
    now = 0.0
    breaker.record_failure(now, unreachable=True)
    pauses = []
    for _ in range(5):
        retry_at = breaker.retry_at
        assert retry_at is not None
        pauses.append(retry_at - now)
        now = retry_at
        breaker.record_failure(now)
    assert pauses == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_failures_that_come_late_do_not_lengthen_the_pause() -> None:
    breaker = CircuitBreaker(POLICY)
    breaker.record_failure(0.0, unreachable=True)
    for _ in range(10):
        breaker.record_failure(0.5)
    assert breaker.retry_at == 1.0


def test_a_good_probe_closes_it_and_resets_the_pause() -> None:
    breaker = CircuitBreaker(POLICY)
    breaker.record_failure(0.0, unreachable=True)
    breaker.record_failure(1.0)
    breaker.record_success(started_at=3.0)
    assert breaker.state(3.0) is CircuitState.CLOSED
    breaker.record_failure(4.0, unreachable=True)
    assert breaker.retry_at == 5.0


def test_an_answer_begun_before_the_failure_proves_nothing() -> None:
    breaker = CircuitBreaker(POLICY)
    breaker.record_failure(10.0, unreachable=True)
    breaker.record_success(started_at=9.0)
    assert breaker.state(10.5) is CircuitState.OPEN
