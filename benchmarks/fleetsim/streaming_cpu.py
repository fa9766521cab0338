"""What share of a core the simulated vLLM servers need at 50 streams a second.

    python benchmarks/fleetsim/streaming_cpu.py [--rate 50] [--seconds 15] [--servers 20]

The servers run in a child process, whose processor time is what counts; this process asks, at
Poisson times, for 100 tokens each, streamed at the model's real pace.
"""

import argparse
import asyncio
import random
import subprocess
import sys
import time

import aiohttp
import psutil

from fleetsim.profiles import GOLD
from fleetsim.vllm_http import SimulatedFleetServer

TOKENS = 100


async def serve(servers: int) -> None:
    """Serve until standard input closes; print the endpoints first."""
    async with SimulatedFleetServer() as fleet:
        for number in range(servers):
            print(await fleet.add_server(f"gold-{number}", GOLD), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def ask(client: aiohttp.ClientSession, url: str, latencies: list[float]) -> None:
    """Stream one answer."""
    body = {
        "messages": [{"role": "user", "content": "Who keeps the gate? " * 60}],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "stream": True,
    }
    started = time.perf_counter()
    async with client.post(f"{url}/v1/chat/completions", json=body) as response:
        await response.read()
    latencies.append(time.perf_counter() - started)


async def load(urls: list[str], rate: float, seconds: float) -> list[float]:
    """Ask at `rate` for `seconds`; return each answer's duration."""
    chance = random.Random(1)  # noqa: S311 - reproducible arrivals
    latencies: list[float] = []
    timeout = aiohttp.ClientTimeout(total=30)
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(timeout=timeout, connector=connector) as client,
        asyncio.TaskGroup() as tasks,
    ):
        end = time.perf_counter() + seconds
        number = 0
        while time.perf_counter() < end:
            await asyncio.sleep(chance.expovariate(rate))
            tasks.create_task(ask(client, urls[number % len(urls)], latencies))
            number += 1
    return latencies


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--servers", type=int, default=20)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.servers))
        return
    command = [sys.executable, __file__, "--serve", "--servers", str(arguments.servers)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        urls = [child.stdout.readline().strip() for _ in range(arguments.servers)]
        process = psutil.Process(child.pid)
        before, started = process.cpu_times(), time.perf_counter()
        latencies = asyncio.run(load(urls, arguments.rate, arguments.seconds))
        wall = time.perf_counter() - started
        after = process.cpu_times()
        memory = process.memory_info().rss / 2**20
        child.stdin.close()
    spent = after.user + after.system - before.user - before.system
    latencies.sort()
    print(f"answers                 {len(latencies):>8}")
    print(f"tokens a second         {len(latencies) * TOKENS / wall:>8.0f}")
    print(f"median duration         {latencies[len(latencies) // 2] * 1000:>8.0f} ms")
    print(f"share of a core         {spent / wall:>8.2f}")
    print(f"processor time a token  {spent / len(latencies) / TOKENS * 1e6:>8.1f} us")
    print(f"memory                  {memory:>8.0f} MiB")


if __name__ == "__main__":
    main()
