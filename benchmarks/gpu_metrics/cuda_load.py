"""Loads of a GPU that tell how much they have done, and the pace at which they do it."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiohttp

from gpu_metrics.domain.vllm_exposition import parse_vllm_metrics

__all__ = ["TORCH_LOAD", "Load", "LoadEnded", "run", "tokens_of"]

TORCH_LOAD = """\
import sys, time, torch
if not torch.cuda.is_available():
    sys.exit("torch sees no GPU")
one = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
done = 0
while True:
    until = time.monotonic() + 0.1
    while time.monotonic() < until:
        for _ in range(8):
            one @ one
        torch.cuda.synchronize()
        done += 8
    print(done, flush=True)
"""


class LoadEnded(Exception):
    """The load ended by itself, which it must not."""


class Load:
    """What a load has done, as it tells."""

    def __init__(self) -> None:
        self.done, self.told_at = 0.0, 0.0
        self.told = asyncio.Event()

    async def follow(self, told: AsyncIterator[float]) -> None:
        """Take what is told. Raises `LoadEnded` at its end."""
        async for done in told:
            self.done, self.told_at = done, time.monotonic()
            self.told.set()
        raise LoadEnded

    async def rate(self, seconds: float) -> float:
        """Return its work a second over the next seconds, between two things that it told."""
        marks = []
        for pause in (0.0, seconds):
            await asyncio.sleep(pause)
            self.told.clear()
            await self.told.wait()
            marks.append((self.done, self.told_at))
        return (marks[1][0] - marks[0][0]) / (marks[1][1] - marks[0][1])


@asynccontextmanager
async def run(command: Sequence[str], **environ: str) -> AsyncIterator[AsyncIterator[float]]:
    """Run a command until the context ends; what it prints are numbers."""
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **environ}, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield (float(line) async for line in process.stdout)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def tokens_of(url: str) -> AsyncIterator[float]:
    """Yield the tokens that a vLLM server has generated, several times a second."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        while True:
            async with session.get(url) as response:
                tokens = parse_vllm_metrics(await response.text()).generation_tokens_total
            if isinstance(tokens, int):
                yield float(tokens)
            await asyncio.sleep(0.2)
