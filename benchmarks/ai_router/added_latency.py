"""What the router adds to a model server's answer, against calling the server directly.

    .venv/bin/python benchmarks/ai_router/added_latency.py [--calls 200] [--concurrency 8]

A simulated Gold server, the router and this caller are three processes on one machine. Calls go
directly (HTTP) and through the router (gRPC) in turn, so that the machine's mood meets both alike.
Printed are time to first token and to the whole answer at p50 and p99, the ratio, and the tokens a
second that one router process carries per CPU second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import psutil

from gaming.ai_router.v1 import ai_router_pb2 as pb
from gaming.ai_router.v1 import ai_router_pb2_grpc
from gaming.common.v1 import tier_pb2
from servicekit.channels import open_channel

MODEL_SERVERS = """
import asyncio
from fleetsim.profiles import GOLD
from fleetsim.vllm_http import SimulatedFleetServer

async def main():
    async with SimulatedFleetServer(seed=1, tick_seconds=0.005) as fleet:
        print(await fleet.add_server("gold-1", GOLD), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
MODEL = "gamekeeper-gold-3b"
PROMPT = "Tell me of the lantern at Harrowmere and of who keeps it. " * 6
OUTPUT_TOKENS = 40


@asynccontextmanager
async def process(
    *arguments: str, **environ: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.StreamReader]]:
    """Runs a Python process and yields it with what it prints."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        env={**os.environ, **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert child.stdout is not None
    try:
        yield child, child.stdout
    finally:
        if child.returncode is None:
            child.terminate()
        await child.wait()


async def line_with(output: asyncio.StreamReader, text: str) -> str:
    """Returns the first line that contains the text."""
    async with asyncio.timeout(30):
        async for line in output:
            if text in line.decode():
                return line.decode().strip()
    raise RuntimeError(f"a process ended before it said {text}")


async def direct(session: aiohttp.ClientSession, url: str) -> tuple[float, float]:
    """Returns seconds to the first token and to the end, asking the server itself."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": OUTPUT_TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    first = 0.0
    started = time.perf_counter()
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        async for line in response.content:
            if line.startswith(b"data: {"):
                choices = json.loads(line[6:])["choices"]
                if not first and choices and choices[0]["delta"].get("content"):
                    first = time.perf_counter() - started
    return first, time.perf_counter() - started


async def routed(stub: ai_router_pb2_grpc.AiRouterServiceAsyncStub) -> tuple[float, float, int]:
    """Returns the same through the router, and the tokens generated."""
    message = pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=PROMPT)
    spec = pb.GenerationSpec(
        messages=[message], tier=tier_pb2.TIER_GOLD, max_output_tokens=OUTPUT_TOKENS
    )
    first, tokens = 0.0, 0
    started = time.perf_counter()
    async for response in stub.Generate(pb.GenerateRequest(spec=spec), timeout=60):
        event = response.WhichOneof("event")
        if event == "delta" and not first:
            first = time.perf_counter() - started
        elif event == "end":
            tokens = response.end.output_tokens
    return first, time.perf_counter() - started, tokens


def show(name: str, plain: list[float], through: list[float]) -> None:
    """Prints p50 and p99 of both, and what the router adds."""
    for share in (0.5, 0.99):
        one, other = (sorted(values)[int(share * (len(values) - 1))] for values in (plain, through))
        print(
            f"  {name:12} p{share * 100:<3.0f} direct {one * 1e3:8.2f} ms   "
            f"router {other * 1e3:8.2f} ms   adds {(other - one) * 1e3:+7.2f} ms   "
            f"x{other / one:.2f}"
        )


async def main(calls: int, concurrency: int) -> None:
    """Runs both in turn and prints the figures."""
    async with process("-c", MODEL_SERVERS) as (_, fleet_output):
        url = await line_with(fleet_output, "http://")
        router = process(
            "-m",
            "ai_router",
            AI_ROUTER_STATIC_SERVERS=f"gold:{MODEL}@{url}",
            GAMEKEEPER_LISTEN_ADDRESS="127.0.0.1:0",
        )
        async with router as (child, output), aiohttp.ClientSession() as session:
            started = await line_with(output, '"server_started"')
            address = str(json.loads(started)["address"])
            async with open_channel(address) as channel:
                stub = ai_router_pb2_grpc.AiRouterServiceStub(channel)
                await measure(
                    session,
                    url,
                    stub,
                    psutil.Process(child.pid),
                    calls=calls,
                    callers_at_once=(1, concurrency),
                )


async def measure(
    session: aiohttp.ClientSession,
    url: str,
    stub: ai_router_pb2_grpc.AiRouterServiceAsyncStub,
    router: psutil.Process,
    *,
    calls: int,
    callers_at_once: tuple[int, ...],
) -> None:
    """Measures with each number of callers at once."""
    for _ in range(3):
        await direct(session, url)
        await routed(stub)
    for callers in callers_at_once:
        plain: list[tuple[float, float]] = []
        through: list[tuple[float, float, int]] = []

        async def caller(rounds: int) -> None:
            for _ in range(rounds):
                plain.append(await direct(session, url))  # noqa: B023  # awaited in this round
                through.append(await routed(stub))  # noqa: B023  # as above

        before = sum(router.cpu_times()[:2])
        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(caller(calls // callers))
        used = sum(router.cpu_times()[:2]) - before
        tokens = sum(entry[2] for entry in through)
        print(f"\n{callers} caller(s), {len(through)} calls each way")
        show("first token", [entry[0] for entry in plain], [entry[0] for entry in through])
        show("whole answer", [entry[1] for entry in plain], [entry[1] for entry in through])
        print(
            f"  router CPU   {used / len(through) * 1e3:.2f} ms per call, "
            f"{used / tokens * 1e6:.0f} us per token"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=8)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.calls, arguments.concurrency))
