"""Simulated vLLM servers over real sockets: streams, usage, aborts, metrics, errors, cold start."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from fleetsim.cold_start import ColdStart, ColdStartPhase
from fleetsim.profiles import BRONZE, GOLD
from fleetsim.vllm_http import SimulatedFleetServer

MESSAGES = [
    {"role": "system", "content": "You are the ferryman of the Ashen Coast. " * 12},
    {"role": "user", "content": "Who lit the lighthouse at Harrowmere?"},
]


@pytest.fixture
async def fleet() -> AsyncIterator[SimulatedFleetServer]:
    async with SimulatedFleetServer(seed=7) as fleet:
        yield fleet


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=20)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        yield session


def chat(**changes: Any) -> dict[str, Any]:
    return {"model": GOLD.model_name, "messages": MESSAGES, "max_tokens": 12, **changes}


async def events_of(response: aiohttp.ClientResponse) -> list[str]:
    text = await response.text()
    assert text.endswith("\n\n")
    events = text.split("\n\n")[:-1]
    assert all(event.startswith("data: ") for event in events)
    return [event.removeprefix("data: ") for event in events]


async def metric(client: aiohttp.ClientSession, url: str, name: str, labels: str = "") -> float:
    async with client.get(f"{url}/metrics") as response:
        page = await response.text()
    found = re.search(
        rf"^{re.escape(name)}\{{[^}}]*{re.escape(labels)}[^}}]*\}} (\S+)$", page, re.MULTILINE
    )
    assert found, f"{name} is missing from the page"
    return float(found[1])


async def until(condition: Any, timeout_seconds: float = 30.0) -> None:
    async with asyncio.timeout(timeout_seconds):
        while not await condition():  # noqa: ASYNC110 - the condition is another program's page
            await asyncio.sleep(0.01)


async def test_a_chat_stream_has_the_role_first_one_event_a_token_the_reason_usage_and_done(
    fleet: SimulatedFleetServer, client: aiohttp.ClientSession
) -> None:
    url = await fleet.add_server("gold-1", GOLD)
    body = chat(stream=True, ignore_eos=True, stream_options={"include_usage": True})
    async with client.post(f"{url}/v1/chat/completions", json=body) as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert response.headers["X-Simulated"] == "fleetsim"
        events = await events_of(response)
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    tokens = chunks[1:-1]
    assert len(tokens) == 12
    assert [c["choices"][0]["finish_reason"] for c in tokens] == [None] * 11 + ["length"]
    assert chunks[-1]["choices"] == []
    usage = chunks[-1]["usage"]
    assert usage["completion_tokens"] == 12
    assert usage["total_tokens"] == usage["prompt_tokens"] + 12


async def test_tokens_arrive_at_the_model_servers_pace_not_all_at_once(
    fleet: SimulatedFleetServer, client: aiohttp.ClientSession
) -> None:
    url = await fleet.add_server("gold-1", GOLD)
    body = chat(stream=True, ignore_eos=True, max_tokens=60)
    spans: list[float] = []
    # A busy machine holds up this process too, so the pace has to be kept once in three times.
    while min(spans, default=1.0) >= 59 * 0.016 and len(spans) < 3:
        started = time.perf_counter()
        async with client.post(f"{url}/v1/chat/completions", json=body) as response:
            arrivals = [
                time.perf_counter() - started
                async for line in response.content
                if b'"content"' in line
            ]
        spans.append(arrivals[-1] - arrivals[0])
        # From the request on, as the first token may be seen late; never sooner than they are made.
        assert arrivals[-1] > 59 * 0.0085
        assert len({round(t, 2) for t in arrivals}) > 10
    assert min(spans) < 59 * 0.016, spans


async def test_an_answer_without_streaming_has_the_same_fields_as_vllms(
    fleet: SimulatedFleetServer, client: aiohttp.ClientSession
) -> None:
    url = await fleet.add_server("gold-1", GOLD)
    async with client.post(f"{url}/v1/chat/completions", json=chat(temperature=0)) as response:
        assert response.status == 200
        first = await response.json()
    async with client.post(f"{url}/v1/chat/completions", json=chat(temperature=0)) as response:
        second = await response.json()
    assert first["object"] == "chat.completion"
    choice = first["choices"][0]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    assert choice["finish_reason"] in {"stop", "length"}
    assert first["usage"]["completion_tokens"] <= 12
    assert second["choices"] == first["choices"], "temperature 0 repeats itself"

    completion = {"model": GOLD.model_name, "prompt": "Once upon a time", "seed": 3}
    async with client.post(f"{url}/v1/completions", json=completion) as response:
        answer = await response.json()
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"]
    assert answer["usage"]["completion_tokens"] <= 16, "vLLM's default of max_tokens"


async def test_a_completion_stream_carries_text(
    fleet: SimulatedFleetServer, client: aiohttp.ClientSession
) -> None:
    url = await fleet.add_server("gold-1", GOLD)
    body = {"prompt": "The gate", "max_tokens": 5, "ignore_eos": True, "stream": True}
    async with client.post(f"{url}/v1/completions", json=body) as response:
        events = await events_of(response)
    chunks = [json.loads(event) for event in events[:-1]]
    assert len(chunks) == 5
    assert "".join(c["choices"][0]["text"] for c in chunks).strip()
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


async def test_a_stop_sequence_ends_the_text_before_it(
    fleet: SimulatedFleetServer, client: aiohttp.ClientSession
) -> None:
    url = await fleet.add_server("gold-1", GOLD)
    body = chat(max_tokens=200, stop=["the", "."], seed=1)
    async with client.post(f"{url}/v1/chat/completions", json=body) as response:
        choice = (await response.json())["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] in {"the", "."}
    assert not re.search(r"the|\.", choice["message"]["content"])


@pytest.mark.parametrize("stream", [True, False])
async def test_a_dropped_connection_aborts_the_request_and_frees_its_slot(
    fleet: SimulatedFleetServer, client: aiohttp.ClientSession, stream: bool
) -> None:
    url = await fleet.add_server("gold-1", GOLD)
    body = chat(stream=stream, ignore_eos=True, max_tokens=4000)
    request = asyncio.create_task(client.post(f"{url}/v1/chat/completions", json=body))

    async def is_running() -> bool:
        return await metric(client, url, "vllm:num_requests_running") == 1

    async def is_free() -> bool:
        return await metric(client, url, "vllm:num_requests_running") == 0

    await until(is_running)
    if stream:
        response = await request
        await response.content.readline()
        response.close()
    else:
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
    await until(is_free)
    assert await metric(client, url, "vllm:kv_cache_usage_perc") == 0
    reason = 'finished_reason="abort"'
    assert await metric(client, url, "vllm:request_success_total", reason) == 1


async def test_metrics_count_what_was_served_under_new_and_old_names(
    fleet: SimulatedFleetServer, client: aiohttp.ClientSession
) -> None:
    url = await fleet.add_server("gold-1", GOLD)
    for _ in range(3):
        async with client.post(f"{url}/v1/chat/completions", json=chat(ignore_eos=True)) as answer:
            usage = (await answer.json())["usage"]
    for name in (
        "vllm:time_to_first_token_seconds_count",
        "vllm:e2e_request_latency_seconds_count",
    ):
        assert await metric(client, url, name) == 3
    for name in ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"):
        gaps = 3 * 11
        assert await metric(client, url, f"{name}_count") == gaps
        assert await metric(client, url, f"{name}_bucket", 'le="+Inf"') == gaps
        assert await metric(client, url, f"{name}_sum") == pytest.approx(gaps * 0.0089, rel=0.1)
    assert await metric(client, url, "vllm:generation_tokens_total") == 36
    assert await metric(client, url, "vllm:prompt_tokens_total") == 3 * usage["prompt_tokens"]
    assert await metric(client, url, "vllm:prefix_cache_hits_total") > 0
    assert await metric(client, url, "vllm:prefix_cache_queries_total") > 0
    assert await metric(client, url, "vllm:gpu_cache_usage_perc") == 0
    reason = f'model_name="{GOLD.model_name}",finished_reason="length"'
    assert await metric(client, url, "vllm:request_success_total", reason) == 3
    blocks = f'num_gpu_blocks="{GOLD.kv_cache_blocks}"'
    assert await metric(client, url, "vllm:cache_config_info", blocks) == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/chat/completions", chat(model="gpt-none"), 404, "`gpt-none` does not exist"),
        ("/v1/chat/completions", chat(max_tokens=-1), 400, "max_tokens must be at least 1, got -1"),
        ("/v1/chat/completions", chat(max_tokens="many"), 400, "must be an integer"),
        ("/v1/chat/completions", chat(messages=[]), 400, "messages"),
        ("/v1/chat/completions", chat(max_tokens=9000), 400, "maximum context length is 8192"),
        ("/v1/chat/completions", chat(temperature=-2), 400, "temperature"),
        ("/v1/chat/completions", chat(stream_options={"include_usage": True}), 400, "stream"),
        ("/v1/chat/completions", [1, 2], 400, "JSON object"),
        ("/v1/completions", {"prompt": "x" * 40_000}, 400, "Please reduce the length"),
        ("/v1/completions", {"prompt": ["a", "b"]}, 400, "one prompt"),
        ("/v1/completions", {}, 400, "prompt"),
    ],
)
async def test_bad_requests_are_refused_in_openais_shape(
    fleet: SimulatedFleetServer,
    client: aiohttp.ClientSession,
    *,
    path: str,
    body: Any,
    status: int,
    words: str,
) -> None:
    url = await fleet.add_server("gold-1", GOLD)
    async with client.post(url + path, json=body) as response:
        assert response.status == status
        error = (await response.json())["error"]
    assert words in error["message"]
    assert error["code"] == status
    assert error["type"] in {"BadRequestError", "NotFoundError"}


async def test_the_other_pages_answer_as_vllms_do(
    fleet: SimulatedFleetServer, client: aiohttp.ClientSession
) -> None:
    url = await fleet.add_server("gold-1", GOLD)
    async with client.get(f"{url}/health") as response:
        assert (response.status, await response.read()) == (200, b"")
    async with client.get(f"{url}/v1/models") as response:
        model = (await response.json())["data"][0]
    assert (model["id"], model["max_model_len"]) == (GOLD.model_name, 8192)
    async with client.get(f"{url}/v1/nothing") as response:
        assert response.status == 404
    async with client.get(f"{url}/v1/chat/completions") as response:
        assert response.status == 405
    async with client.post(f"{url}/v1/completions", data=b"{not json") as response:
        assert response.status == 400


async def test_a_server_in_its_cold_start_refuses_connections_until_it_is_ready(
    fleet: SimulatedFleetServer, client: aiohttp.ClientSession
) -> None:
    # Long enough for a busy machine to ask before it is over.
    cold_start = ColdStart(fleet.now(), 0.05, 0.0, 0.35, 0.8)
    url = await fleet.add_server("gold-1", GOLD, cold_start=cold_start)
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.get(f"{url}/health")
    assert fleet.servers()[0].phase is not ColdStartPhase.READY

    async def is_healthy() -> bool:
        try:
            async with client.get(f"{url}/health") as response:
                return response.status == 200
        except aiohttp.ClientConnectorError:
            return False

    await until(is_healthy)
    assert fleet.now() >= cold_start.ready_time
    assert fleet.servers()[0].phase is ColdStartPhase.READY


async def test_a_host_that_dies_resets_its_streams_and_then_refuses(
    fleet: SimulatedFleetServer, client: aiohttp.ClientSession
) -> None:
    url = await fleet.add_server("gold-1", GOLD)
    body = chat(stream=True, ignore_eos=True, max_tokens=4000)
    async with client.post(f"{url}/v1/chat/completions", json=body) as response:
        await response.content.readline()
        await fleet.remove_server("gold-1", abrupt=True)
        with pytest.raises(aiohttp.ClientError):
            await response.read()
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.get(f"{url}/health")
    assert fleet.servers() == []


async def test_a_host_that_stops_in_order_finishes_what_it_began(
    fleet: SimulatedFleetServer, client: aiohttp.ClientSession
) -> None:
    url = await fleet.add_server("gold-1", GOLD)
    body = chat(stream=True, ignore_eos=True, max_tokens=40)
    async with client.post(f"{url}/v1/chat/completions", json=body) as response:
        await response.content.readline()
        removal = asyncio.create_task(fleet.remove_server("gold-1"))
        events = await events_of_rest(response)
        await removal
    assert events[-1] == "[DONE]"


async def events_of_rest(response: aiohttp.ClientResponse) -> list[str]:
    text = await response.text()
    return [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]


async def test_many_servers_share_one_process_and_keep_their_own_counts(
    fleet: SimulatedFleetServer, client: aiohttp.ClientSession
) -> None:
    urls = [await fleet.add_server(f"gold-{i}", GOLD) for i in range(10)]
    urls.append(await fleet.add_server("bronze-1", BRONZE))
    with pytest.raises(ValueError, match="exists already"):
        await fleet.add_server("gold-3", GOLD)

    async def ask(url: str) -> int:
        body = chat(ignore_eos=True)
        async with client.post(f"{url}/v1/chat/completions", json=body) as response:
            return response.status

    statuses = await asyncio.gather(*(ask(url) for url in urls[:10] for _ in range(3)))
    assert set(statuses) == {200}
    for url in urls[:10]:
        assert await metric(client, url, "vllm:generation_tokens_total") == 36
    assert await metric(client, urls[10], "vllm:generation_tokens_total") == 0


async def test_the_gpu_of_a_host_shows_the_load_of_its_server(
    fleet: SimulatedFleetServer, client: aiohttp.ClientSession
) -> None:
    url = await fleet.add_server("gold-1", GOLD)
    await fleet.add_server("bronze-1", BRONZE)
    idle = fleet.gpu_reading("gold-1")
    assert idle is not None
    assert idle.utilization_ratio == 0.0
    assert idle.memory_used_bytes > 0.85 * idle.memory_total_bytes, "vLLM preallocates"
    async with client.post(
        f"{url}/v1/chat/completions", json=chat(ignore_eos=True, max_tokens=50)
    ) as response:
        await response.read()
    busy = fleet.gpu_reading("gold-1")
    assert busy is not None
    assert busy.utilization_ratio > 0.5
    assert busy.power_watts > idle.power_watts
    assert busy.energy_millijoules > idle.energy_millijoules
    assert fleet.gpu_reading("bronze-1") is None, "a CPU host has no GPU"
