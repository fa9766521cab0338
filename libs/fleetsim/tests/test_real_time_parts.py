"""What the real-time servers are made of: protocol, prose, metrics page, GPU, cold start."""

import json
from typing import Any

import numpy as np
import pytest

from fleetsim.cold_start import ColdStart, ColdStartPhase, baked, unbaked
from fleetsim.model_server import ModelServer
from fleetsim.openai_protocol import (
    ApiError,
    ChunkWriter,
    parse_generation_request,
    prefix_segments,
)
from fleetsim.profiles import GOLD
from fleetsim.prose import write_answer
from fleetsim.server_request import ServerRequest
from fleetsim.simulated_gpu import GPU_SPECS, read_gpu
from fleetsim.vllm_metrics import render_metrics


def parse(body: Any, *, is_chat: bool = True) -> Any:
    return parse_generation_request(
        json.dumps(body).encode(), is_chat=is_chat, model_name="m", max_model_len_tokens=1000
    )


def test_prose_has_exactly_the_tokens_asked_for_and_repeats_itself_with_its_seed() -> None:
    for tokens in (1, 2, 17, 200):
        pieces = write_answer("Tell of Harrowmere", tokens=tokens, seed=4)
        assert len(pieces) == tokens
        assert pieces == write_answer("Tell of Harrowmere", tokens=tokens, seed=4)
    assert write_answer("x", tokens=30, seed=1) != write_answer("x", tokens=30, seed=2)


def test_prose_mentions_the_players_words() -> None:
    text = "".join(write_answer("user: Where sleeps the gryphon?", tokens=120, seed=3))
    assert "gryphon" in text.lower()
    assert "user" not in text.lower()


def test_a_chat_may_use_content_parts_and_gets_the_rest_of_the_context_by_default() -> None:
    parts = [{"type": "text", "text": "Who "}, {"type": "text", "text": "goes there?"}]
    wanted = parse({"messages": [{"role": "user", "content": parts}]})
    assert "Who goes there?" in wanted.prompt
    assert wanted.max_tokens == 1000 - wanted.prompt_tokens


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user"}]},
        {"messages": [{"content": "x"}]},
        {"messages": [{"role": "user", "content": "x"}], "n": 2},
        {"messages": [{"role": "user", "content": "x"}], "stop": ["a"] * 17},
        {"messages": [{"role": "user", "content": "x"}], "max_tokens": True},
        {"messages": [{"role": "user", "content": "x"}], "stream": "yes"},
        {"messages": [{"role": "user", "content": "x"}], "stream": True, "stream_options": 3},
        {"messages": [{"role": "user", "content": "x" * 4000}]},
    ],
)
def test_what_the_server_cannot_do_is_a_bad_request(body: Any) -> None:
    with pytest.raises(ApiError) as refused:
        parse(body)
    assert refused.value.status == 400
    assert json.loads(refused.value.body)["error"]["message"]


def test_equal_beginnings_share_segments_and_the_last_token_is_never_shared() -> None:
    common = "The council of the old harbour met at dusk. " * 30
    one = prefix_segments(common + "Who came?", 330)
    two = prefix_segments(common + "Who left?", 330)
    assert one[:5] == two[:5]
    assert len(one) == len(common) // 256
    assert prefix_segments("x" * 256, 64) == ()
    assert len(prefix_segments("x" * 257, 65)) == 1


def test_events_of_a_stream_are_valid_json_whatever_the_text() -> None:
    wanted = parse(
        {
            "messages": [{"role": "user", "content": "x"}],
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
    )
    writer = ChunkWriter(wanted, answer_id="a", created=1, model_name='m"odel')
    events = [
        writer.opening(),
        writer.token('"\n\u2028é', 1),
        writer.last_token("\\", 2, "stop", 'x"y'),
        *writer.closing(2).split("\n\n")[:-2],
    ]
    chunks = [json.loads(event.strip().removeprefix("data: ")) for event in events]
    assert chunks[1]["choices"][0]["delta"]["content"] == '"\n\u2028é'
    assert chunks[2]["choices"][0]["stop_reason"] == 'x"y'
    assert [c["usage"]["completion_tokens"] for c in chunks] == [0, 1, 2, 2]


def test_the_metrics_page_is_valid_and_its_histograms_are_cumulative() -> None:
    server = ModelServer(GOLD)
    for i in range(10):
        server.submit(i * 0.1, ServerRequest(i, 100, 30))
    page = render_metrics(server, 1.05)
    counts: dict[str, list[int]] = {}
    for line in page.splitlines():
        if line.startswith("#"):
            continue
        name, value = line.rsplit(" ", 1)
        assert name.startswith("vllm:")
        assert float(value) >= 0
        if "_bucket{" in name:
            counts.setdefault(name.split("_bucket", 1)[0], []).append(int(value))
    assert len(counts) == 4
    assert all(series == sorted(series) for series in counts.values())
    assert page.endswith("\n")


def test_baked_hosts_start_in_one_to_two_minutes_and_unbaked_ones_in_ten_to_twelve() -> None:
    launch_seconds = 20
    assert 60 <= launch_seconds + baked(6.4).median_seconds <= 120
    assert 600 <= launch_seconds + unbaked(6.4).median_seconds <= 720


def test_a_cold_start_passes_its_phases_in_order_and_compresses() -> None:
    rng = np.random.default_rng(1)
    start = unbaked(6.4).draw(rng, start_time=100.0, time_compression=60.0)
    assert 8 < start.ready_time - 100.0 < 16
    phases = [start.phase_at(100.0 + t / 10)[0] for t in range(200)]
    assert list(dict.fromkeys(phases)) == list(ColdStartPhase)
    assert start.phase_at(start.ready_time) == (ColdStartPhase.READY, 1.0)


def test_gpu_memory_fills_with_the_weights_and_is_preallocated_once_ready() -> None:
    start = ColdStart(0.0, 10.0, 0.0, 20.0, 10.0)
    server = ModelServer(GOLD)
    spec = GPU_SPECS[GOLD.instance_type]
    used = [read_gpu(spec, server, start, t).memory_used_bytes for t in (5.0, 20.0, 29.9, 35.0, 50)]
    assert used == sorted(used)
    assert used[0] < 0.5e9
    assert used[2] == pytest.approx(6.4e9 + 0.47e9, rel=0.01)
    assert used[-1] / spec.memory_bytes == pytest.approx(0.92, abs=0.01)


def test_a_barely_loaded_gpu_already_looks_busy() -> None:
    server = ModelServer(GOLD)
    spec = GPU_SPECS[GOLD.instance_type]
    ready = ColdStart(0.0)
    before = read_gpu(spec, server, ready, 0.0)
    server.submit(0.0, ServerRequest(0, 100, 400))
    server.settle(2.0)
    reading = read_gpu(spec, server, ready, 2.0, previous=before)
    assert reading.utilization_ratio > 0.8, "one request of the 40 it can carry"
    assert 150 < reading.power_watts < 250
    joules = (reading.energy_millijoules - before.energy_millijoules) / 1000
    assert joules == pytest.approx(reading.power_watts * 2.0, rel=0.01)
    server.settle(60.0)
    later = read_gpu(spec, server, ready, 60.0, previous=reading)
    idle = read_gpu(spec, server, ready, 62.0, previous=later)
    assert idle.utilization_ratio == 0.0
    assert idle.sm_clock_mhz == 210
    assert idle.power_watts == pytest.approx(20.0, rel=0.001)
