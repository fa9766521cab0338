"""Estimates and sliding windows."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_router.domain.latency_window import CountWindow, LatencyWindow
from ai_router.domain.service_time import ServiceTimeModel, predict_wait_seconds
from ai_router.domain.token_estimate import TokenEstimator, utf8_size
from ai_router.testing.builders import profile


@given(st.lists(st.floats(0.0005, 100), min_size=1, max_size=200), st.floats(0.01, 1))
def test_percentiles_are_at_most_a_tenth_too_high(values: list[float], share: float) -> None:
    window = LatencyWindow(60.0)
    for value in values:
        window.add(1.0, value)
    exact = sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]
    measured = window.percentile(1.0, share)
    assert measured is not None
    assert exact * 0.999 <= measured <= exact * 1.101


def test_what_is_older_than_the_window_is_forgotten() -> None:
    latencies, counts = LatencyWindow(60.0), CountWindow(60.0)
    latencies.add(100.0, 5.0)
    counts.add(100.0, 3)
    assert latencies.percentile(149.0, 0.5) is not None
    assert counts.total(149.0) == 3
    assert latencies.percentile(165.0, 0.5) is None
    assert counts.total(165.0) == 0
    counts.add(10_000.0)
    assert counts.total(10_000.0) == 1


def test_an_empty_window_has_no_percentile() -> None:
    assert LatencyWindow().percentile(0.0, 0.95) is None


def test_prompt_tokens_follow_the_bytes_of_the_text() -> None:
    estimator = TokenEstimator()
    assert estimator.prompt_tokens([]) == 3
    assert estimator.prompt_tokens(["a" * 400]) == 107
    assert estimator.prompt_tokens(["ä" * 400]) == 207
    assert utf8_size("\ud800") == 3


def test_the_estimate_follows_what_servers_count() -> None:
    estimator = TokenEstimator()
    for _ in range(500):
        estimated = estimator.prompt_tokens(["word " * 400])
        estimator.learn(estimated, estimator.prompt_scale, 700, 50)
    assert estimator.prompt_tokens(["word " * 400]) == pytest.approx(700, rel=0.05)
    assert estimator.output_tokens(256) == 50
    assert estimator.output_tokens(20) == 20


def test_the_estimate_does_not_swing_when_hundreds_of_answers_are_on_their_way() -> None:
    estimator = TokenEstimator()
    texts = ["word " * 400]
    on_their_way: deque[tuple[int, float]] = deque()
    seen = []
    for _ in range(5_000):
        on_their_way.append((estimator.prompt_tokens(texts), estimator.prompt_scale))
        if len(on_their_way) > 500:
            estimated, scale = on_their_way.popleft()
            estimator.learn(estimated, scale, 450, 50)
        seen.append(estimator.prompt_tokens(texts))
    # From the estimate by size alone down to what the server counts, and no further.
    assert seen[0] > 500
    assert min(seen) == pytest.approx(450, rel=0.02)
    assert seen[-1] == pytest.approx(450, rel=0.02)


def test_until_answers_were_seen_the_bound_is_the_estimate() -> None:
    estimator = TokenEstimator()
    estimator.learn(10, 1.0, 0, 5)
    assert estimator.output_tokens(256) == 256


def test_answer_times_are_learned() -> None:
    model = ServiceTimeModel(profile())
    assert model.predict(100) == pytest.approx(1.1)
    for _ in range(200):
        model.learn(0.5, 1.98, 100)
    assert model.predict(100) == pytest.approx(2.5, rel=0.01)


def test_a_wait_is_the_missing_tokens_over_the_rate_at_which_they_come_free() -> None:
    assert predict_wait_seconds(100, 100, 0, 2.0) == 0.0
    # 1000 tokens held 2 s each come free at 500 per second.
    assert predict_wait_seconds(300, 50, 1000, 2.0) == pytest.approx(0.5)
    assert predict_wait_seconds(300, 50, 0, 2.0) == 2.0
