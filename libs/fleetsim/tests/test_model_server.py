"""The model server: batching, prefill, memory, preemption, prefix cache, aborts."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetsim.model_server import ModelServer
from fleetsim.profiles import BRONZE, GOLD, PROFILES, SILVER, ModelServerProfile
from fleetsim.server_request import RequestState, ServerRequest


def run_until_idle(server: ModelServer, now: float = 0.0) -> list[ServerRequest]:
    finished: list[ServerRequest] = []
    for _ in range(50_000):
        upcoming = server.next_event_time()
        if math.isinf(upcoming):
            return finished
        assert upcoming >= now - 1e-9
        now = upcoming
        finished += server.advance(now)
    raise AssertionError("the server never becomes idle")


def time_per_token(request: ServerRequest) -> float:
    return (request.finish_time - request.first_token_time) / (request.output_tokens - 1)


def steady_state(requests_per_second: float, seconds: float = 200.0) -> list[ServerRequest]:
    """Poisson arrivals with a 300-token prompt (225 shared) and 90 tokens out, on one Gold."""
    rng = np.random.default_rng(4)
    server = ModelServer(GOLD)
    finished: list[ServerRequest] = []
    now = 0.0
    while now < seconds:
        now += float(rng.exponential(1 / requests_per_second))
        finished += server.advance(now)
        request = ServerRequest(0, 300, 90, prefix_segments=(("system", 225),))
        server.submit(now, request)
    return finished + run_until_idle(server, now)


def test_a_lone_request_takes_prefill_plus_one_step_per_token() -> None:
    server = ModelServer(GOLD)
    request = ServerRequest("a", prompt_tokens=650, output_tokens=100)
    server.submit(10.0, request)
    assert run_until_idle(server, 10.0) == [request]
    assert request.state is RequestState.FINISHED
    first_token_seconds = request.first_token_time - 10.0
    assert 0.10 < first_token_seconds < 0.13, "650 tokens at 6,500 tokens/s and one step"
    assert time_per_token(request) == pytest.approx(0.009, rel=0.02)


def test_gold_keeps_its_target_at_its_stated_capacity() -> None:
    rate = GOLD.sustainable_requests_per_second(
        uncached_prompt_tokens=75, context_tokens=345, output_tokens=90
    )
    assert 10 < rate < 40
    at_capacity = [time_per_token(r) for r in steady_state(rate)]
    assert float(np.mean(at_capacity)) <= 0.0175
    relaxed = [time_per_token(r) for r in steady_state(rate * 0.5)]
    assert float(np.quantile(relaxed, 0.95)) <= 0.016


def test_time_per_token_grows_with_concurrency() -> None:
    def pace(concurrency: int) -> float:
        server = ModelServer(GOLD)
        requests = [ServerRequest(i, 100, 400) for i in range(concurrency)]
        for request in requests:
            server.submit(0.0, request)
        run_until_idle(server)
        return time_per_token(requests[0])

    assert pace(1) < pace(8) < pace(32) < pace(64)


def test_a_prefill_makes_everyone_wait_once_and_only_for_its_uncached_tokens() -> None:
    def gap_around(cached_share: int) -> float:
        server = ModelServer(GOLD)
        running = ServerRequest(0, 100, 200)
        server.submit(0.0, running)
        warm = ServerRequest(1, 700, 1, prefix_segments=(("s", 600),))
        server.submit(0.0, warm)
        server.advance(1.0)
        before = server.generated_tokens(running, 1.0)
        key = "s" if cached_share else "other"
        server.submit(1.0, ServerRequest(2, 700, 1, prefix_segments=((key, 600),)))
        server.advance(1.5)
        return 0.5 - (server.generated_tokens(running, 1.5) - before) * 0.0089

    assert gap_around(cached_share=0) == pytest.approx(700 / 6500, abs=0.012)
    assert gap_around(cached_share=1) == pytest.approx(100 / 6500, abs=0.012)


def test_more_requests_than_slots_wait_in_order() -> None:
    profile = dataclasses.replace(GOLD, max_running_sequences=4)
    server = ModelServer(profile)
    requests = [ServerRequest(i, 100, 50) for i in range(12)]
    for request in requests:
        server.submit(0.0, request)
    load = server.load(0.0)
    assert (load.running, load.waiting) == (1, 11), "the others join at the next step"
    server.advance(0.3)
    assert server.running_count == 4
    assert server.waiting_count == 8
    assert run_until_idle(server) == requests
    starts = [r.scheduled_time for r in requests]
    assert starts == sorted(starts)


def test_memory_fills_preempts_the_newest_and_everyone_still_finishes() -> None:
    profile = dataclasses.replace(
        GOLD, kv_cache_blocks=100, max_model_len_tokens=1600, max_running_sequences=16
    )
    server = ModelServer(profile)
    requests = [ServerRequest(i, 200, 400) for i in range(6)]
    for request in requests:
        server.submit(0.0, request)
    peak, now = 0.0, 0.0
    finished: list[ServerRequest] = []
    while not math.isinf(server.next_event_time()):
        now = max(min(server.next_event_time(), now + 0.02), now)
        finished += server.advance(now)
        peak = max(peak, server.load(now).kv_cache_usage_ratio)
    assert server.preemptions_total > 0
    assert len(finished) == 6
    assert 0.9 < peak <= 1.0
    assert server.load(now).kv_cache_usage_ratio == 0.0
    assert server.finished_total["stop"] == 6


def test_a_shared_prefix_is_computed_once_and_held_once() -> None:
    server = ModelServer(GOLD)
    shared = (("system", 2000), ("world", 1000))
    requests = [ServerRequest(i, 3100, 20, prefix_segments=shared) for i in range(3)]
    for request in requests:
        server.submit(0.0, request)
    server.advance(1.0)
    run_until_idle(server)
    assert [r.cached_tokens for r in requests] == [0, 3000, 3000]
    cold, warm = requests[0], requests[1]
    assert cold.first_token_time > 0.45
    assert warm.first_token_time - warm.scheduled_time < 0.1
    assert server.prefix_cache.hit_tokens_total == 6000
    assert server.prefix_cache.queried_tokens_total == 9300


def test_a_chain_of_segments_stops_hitting_at_the_first_miss() -> None:
    server = ModelServer(GOLD)
    server.submit(0.0, ServerRequest(0, 500, 2, prefix_segments=(("a", 100), ("b", 100))))
    run_until_idle(server)
    other = ServerRequest(1, 500, 2, prefix_segments=(("x", 100), ("b", 100)))
    server.submit(10.0, other)
    run_until_idle(server, 10.0)
    assert other.cached_tokens == 0


def test_unused_prefixes_leave_when_memory_is_needed_oldest_first() -> None:
    profile = dataclasses.replace(GOLD, kv_cache_blocks=100, max_model_len_tokens=1600)
    server = ModelServer(profile)
    now = 0.0
    for key in ("a", "b", "c"):
        server.submit(now, ServerRequest(key, 700, 2, prefix_segments=((key, 600),)))
        run_until_idle(server, now)
        now += 100.0
    again = {}
    for key in ("c", "a"):
        request = ServerRequest(key, 700, 2, prefix_segments=((key, 600),))
        server.submit(now, request)
        run_until_idle(server, now)
        again[key] = request.cached_tokens
        now += 100.0
    assert again == {"c": 600, "a": 0}


@pytest.mark.parametrize("abort_time", [0.001, 0.02, 0.5])
def test_abort_frees_slot_and_memory_wherever_the_request_stands(abort_time: float) -> None:
    profile = dataclasses.replace(GOLD, max_running_sequences=1)
    server = ModelServer(profile)
    first = ServerRequest(0, 300, 200, prefix_segments=(("s", 200),))
    second = ServerRequest(1, 300, 200, prefix_segments=(("s", 200),))
    server.submit(0.0, first)
    server.submit(0.0, second)
    assert server.abort(abort_time, first)
    assert not server.abort(abort_time, first)
    assert run_until_idle(server, abort_time) == [second]
    assert second.scheduled_time == pytest.approx(abort_time)
    assert server.finished_total["abort"] == 1
    assert server.load(second.finish_time).kv_cache_usage_ratio == 0.0


def test_a_request_after_the_only_one_was_aborted_in_its_prefill_still_runs() -> None:
    server = ModelServer(GOLD)
    aborted, after = ServerRequest(0, 700, 50), ServerRequest(1, 100, 50)
    server.submit(0.0, aborted)
    server.abort(0.0, aborted)
    server.submit(0.0, after)
    assert run_until_idle(server) == [after]


def test_aborting_a_waiting_request_leaves_the_others_alone() -> None:
    profile = dataclasses.replace(GOLD, max_running_sequences=1)
    server = ModelServer(profile)
    requests = [ServerRequest(i, 100, 20) for i in range(3)]
    for request in requests:
        server.submit(0.0, request)
    assert server.abort(0.01, requests[1])
    assert server.waiting_count == 1
    assert run_until_idle(server, 0.01) == [requests[0], requests[2]]


def test_a_dead_host_loses_everything_in_flight() -> None:
    server = ModelServer(GOLD)
    requests = [ServerRequest(i, 100, 50) for i in range(5)]
    for request in requests:
        server.submit(0.0, request)
    server.advance(0.1)
    lost = server.fail(0.1)
    assert set(lost) == set(requests)
    assert math.isinf(server.next_event_time())
    assert server.load(0.2).kv_cache_usage_ratio == 0.0


def test_generated_tokens_grow_one_per_step_from_the_first_token_on() -> None:
    server = ModelServer(GOLD)
    request = ServerRequest(0, 100, 50)
    server.submit(0.0, request)
    seen = []
    for millisecond in range(700):
        now = millisecond / 1000
        server.advance(now)
        seen.append(server.generated_tokens(request, now))
    assert seen[0] == 0
    assert seen[-1] == 50
    steps = np.diff(seen)
    assert steps.min() >= 0
    assert steps.max() <= 1
    assert seen.index(1) / 1000 == pytest.approx(request.first_token_time, abs=0.0011)


def test_counters_and_histograms_agree_with_what_was_served() -> None:
    server = ModelServer(GOLD)
    for i in range(20):
        server.submit(i * 0.05, ServerRequest(i, 120, 40, finish_reason="length"))
        server.advance(i * 0.05)
    run_until_idle(server, 0.95)
    assert server.generation_tokens_total == pytest.approx(20 * 40)
    assert server.prompt_tokens_total == 20 * 120
    gaps = 20 * 39
    assert sum(server.inter_token_seconds.counts) == pytest.approx(gaps), "a first token has none"
    assert sum(server.time_to_first_token_seconds.counts) == 20
    assert server.finished_total == {"stop": 0, "length": 20, "abort": 0}
    assert 0 < server.prefill_seconds_total < server.busy_seconds_total


def test_a_request_that_can_never_fit_is_refused() -> None:
    server = ModelServer(GOLD)
    with pytest.raises(ValueError, match="exceed"):
        server.submit(0.0, ServerRequest(0, 8000, 193))


@pytest.mark.parametrize("start", [0.0, 1.79e9])
def test_unix_time_works_as_well_as_virtual_time(start: float) -> None:
    server = ModelServer(GOLD, start_time=start)
    requests = [ServerRequest(i, 100 + i, 50 + i) for i in range(100)]
    now = start
    finished = []
    for request in requests:
        now += 0.037
        finished += server.advance(now)
        server.submit(now, request)
    finished += run_until_idle(server, now)
    assert len(finished) == 100
    assert finished[-1].finish_time - start == pytest.approx(7.5, abs=3.0)


def test_the_same_requests_end_at_the_same_times_however_often_time_is_advanced() -> None:
    def finish_times(extra_steps: int) -> list[float]:
        server = ModelServer(GOLD)
        requests = [ServerRequest(i, 200, 60 + i) for i in range(30)]
        now = 0.0
        for request in requests:
            for k in range(extra_steps):
                server.advance(now + 0.04 * k / extra_steps)
            now += 0.04
            server.advance(now)
            server.submit(now, request)
        run_until_idle(server, now)
        return [r.finish_time for r in requests]

    assert finish_times(0) == finish_times(7)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_happens_the_books_balance(data: st.DataObject) -> None:
    profile = dataclasses.replace(
        GOLD, kv_cache_blocks=80, max_model_len_tokens=1280, max_running_sequences=6
    )
    server = ModelServer(profile)
    now = 0.0
    requests: list[ServerRequest] = []
    finished: list[ServerRequest] = []
    for i in range(data.draw(st.integers(1, 25))):
        now += data.draw(st.floats(0.0, 0.3))
        finished += server.advance(now)
        if requests and data.draw(st.integers(0, 4)) == 0:
            server.abort(now, data.draw(st.sampled_from(requests)))
        else:
            segments = data.draw(st.sampled_from([(), (("s", 64),), (("s", 64), ("w", 128))]))
            request = ServerRequest(
                i, data.draw(st.integers(200, 700)), data.draw(st.integers(1, 300))
            )
            request.prefix_segments = segments
            server.submit(now, request)
            requests.append(request)
        load = server.load(now)
        assert load.running <= 6
        assert 0.0 <= load.kv_cache_usage_ratio <= 1.0
        assert load.waiting_tokens >= 0
    finished += run_until_idle(server, now)
    aborted = [r for r in requests if r.state is RequestState.ABORTED]
    assert len(finished) + len(aborted) == len(requests)
    for request in finished:
        assert request.arrival_time <= request.scheduled_time
        assert request.first_token_time <= request.finish_time + 1e-9
    idle = server.load(now)
    assert (idle.running, idle.waiting, idle.waiting_tokens) == (0, 0, 0)
    assert idle.kv_cache_usage_ratio == 0.0
    assert server.prefix_cache.active_tokens == 0


def test_every_tier_has_a_profile_that_meets_its_promise_when_lightly_loaded() -> None:
    assert set(PROFILES) == {"gold", "silver", "bronze"}

    def first_token(profile: ModelServerProfile, prompt_tokens: int) -> float:
        server = ModelServer(profile)
        request = ServerRequest(0, prompt_tokens, 20)
        server.submit(0.0, request)
        run_until_idle(server)
        return request.first_token_time

    assert first_token(GOLD, 300) < 0.1
    assert first_token(SILVER, 400) <= 0.25
    assert 1.0 < first_token(BRONZE, 400) < 15.0


def test_a_profile_whose_memory_cannot_hold_one_request_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one request"):
        dataclasses.replace(GOLD, kv_cache_blocks=100)
