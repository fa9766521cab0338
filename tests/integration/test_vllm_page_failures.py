"""A model server's pages that hang, are refused, or are no metrics: figures go, the agent stays."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from page_server import PageServer, page_server

from gpu_metrics.adapters.vllm_server import ScrapedServer, VllmServer
from gpu_metrics.domain.histogram import Histogram
from gpu_metrics.domain.readings import MissingReason, ModelServerState, Tier
from servicekit.clock import SystemClock

PAGE = """\
vllm:num_requests_running{engine="0",model_name="gold-llm"} 3
vllm:gpu_cache_usage_perc{engine="0"} 0.25
vllm:time_to_first_token_seconds_bucket{le="0.1"} 4
vllm:time_to_first_token_seconds_bucket{le="+Inf"} 5
vllm:time_to_first_token_seconds_sum 1.5
"""


@asynccontextmanager
async def reading(server: PageServer, timeout_seconds: float = 30.0) -> AsyncIterator[VllmServer]:
    async with aiohttp.ClientSession() as session:
        yield VllmServer(
            ScrapedServer(
                server_id="i-1:8000", tier=Tier.GOLD, scrape_url=server.url, endpoint_url=server.url
            ),
            session,
            clock=SystemClock(),
            timeout_seconds=timeout_seconds,
        )


async def test_a_page_with_the_older_names_is_read_and_its_histogram_kept() -> None:
    async with page_server(PAGE) as server, reading(server) as vllm:
        found = await vllm.read_server()
    assert (found.state, found.model) == (ModelServerState.READY, "gold-llm")
    assert (found.running_requests, found.kv_cache_usage_permille) == (3, 250)
    assert found.time_to_first_token == Histogram((0.1,), (4, 1), 1.5)


@pytest.mark.parametrize(
    ("page", "status", "state", "reason"),
    [
        ("", 503, ModelServerState.STARTING, MissingReason.UNREACHABLE),
        ("<html>", 200, ModelServerState.READY, MissingReason.UNSUPPORTED),
        (b"\xff\xfe", 200, ModelServerState.STARTING, MissingReason.MALFORMED),
        (b"vllm:num_requests_running 1\n" * 400_000, 200, None, MissingReason.MALFORMED),
    ],
    ids=["refused", "no metrics", "no text", "10 MB"],
)
async def test_a_page_that_cannot_be_used_gives_reasons_instead_of_figures(
    page: str | bytes, status: int, state: ModelServerState | None, reason: MissingReason
) -> None:
    async with page_server(page, status) as server, reading(server) as vllm:
        found = await vllm.read_server()
    assert found.running_requests is reason
    assert found.time_to_first_token is reason
    assert state is None or found.state is state


async def test_a_server_that_hangs_is_given_up_and_one_that_is_gone_too() -> None:
    async with page_server(PAGE) as server:
        server.hanging = True
        async with reading(server, timeout_seconds=0.1) as vllm:
            assert (await vllm.read_server()).running_requests is MissingReason.TIMEOUT
    async with reading(server) as vllm:
        assert (await vllm.read_server()).running_requests is MissingReason.UNREACHABLE
