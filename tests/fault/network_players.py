"""What game services do with a router while the network between them is bad.

As a program, it plays against the router of its first argument, each caller over a connection of
its own: it reads seconds to play, one line each, plays so long and answers with what the players
saw, as a line of JSON. To the line `well` it answers once all is well again.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio
import structlog

from gaming.ai_router.v1 import ai_router_pb2 as pb
from gaming.ai_router.v1 import ai_router_pb2_grpc as rpc
from gaming.common.v1 import tier_pb2
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.watching import watch

__all__ = ["DEADLINE_SECONDS", "UNTIL_WELL", "Tally", "players_of"]

DEADLINE_SECONDS = 2.0
CALLERS = 10
LONG_PROMPT = "x" * 20_000
"""Together with its frames this takes a sixth of a second of a megabit link."""
UNTIL_WELL = "well"


@dataclass(slots=True)
class Tally:
    """What callers saw."""

    answers: list[int] = field(default_factory=lambda: [0] * CALLERS)
    """Of each caller."""
    codes: Counter[str] = field(default_factory=Counter)
    longest_seconds: float = 0.0
    """Since it was last set to 0."""
    updates: int = 0

    @property
    def answered(self) -> int:
        """Calls answered."""
        return sum(self.answers)

    async def well_again(self) -> None:
        """Returns once every single caller was answered, and the stream goes on."""
        before, updates = tuple(self.answers), self.updates + 2

        def somebody_waits() -> bool:
            return any(now <= then for now, then in zip(self.answers, before, strict=True))

        async with asyncio.timeout(60):
            while somebody_waits() or self.updates < updates:  # noqa: ASYNC110  # many count
                await asyncio.sleep(0.01)


@asynccontextmanager
async def players_of(target: str, *, with_text: bool, channels: int = 1) -> AsyncIterator[Tally]:
    """Callers and a watcher of the router at `target`, spread over so many channels.

    One caller asks for text, if so wanted.
    """
    loop, tally = asyncio.get_running_loop(), Tally()
    message = pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=LONG_PROMPT)
    spec = pb.GenerationSpec(messages=[message], tier=tier_pb2.TIER_GOLD, max_output_tokens=8)
    async with AsyncExitStack() as opened:
        stubs = [
            rpc.AiRouterServiceStub(await opened.enter_async_context(open_channel(target)))
            for _ in range(channels)
        ]

        async def call(number: int) -> None:
            stub = stubs[number % channels]
            while True:
                begun = loop.time()
                try:
                    if with_text and number == 0:
                        request = pb.GenerateOnceRequest(spec=spec)
                        await stub.GenerateOnce(request, timeout=DEADLINE_SECONDS)
                    else:
                        await stub.ListTiers(pb.ListTiersRequest(), timeout=DEADLINE_SECONDS)
                except grpc.aio.AioRpcError as error:
                    tally.codes[error.code().name] += 1
                else:
                    tally.answers[number] += 1
                tally.longest_seconds = max(tally.longest_seconds, loop.time() - begun)
                await asyncio.sleep(0.05)

        async def follow() -> None:
            updates = watch(
                lambda token: stubs[0].WatchDemand(pb.WatchDemandRequest(resume_token=token)),
                token_of=lambda update: update.resume_token,
                clock=SystemClock(),
                name="demand",
            )
            async for _ in updates:
                tally.updates += 1

        tasks = [asyncio.create_task(call(number)) for number in range(CALLERS)]
        tasks.append(asyncio.create_task(follow()))
        try:
            yield tally
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _play(target: str) -> None:
    loop = asyncio.get_running_loop()
    async with players_of(target, with_text=False, channels=CALLERS) as tally:
        await tally.well_again()
        while line := await asyncio.to_thread(sys.stdin.readline):
            begun, before, tally.longest_seconds = loop.time(), tally.answered, 0.0
            tally.codes.clear()
            if line.strip() == UNTIL_WELL:
                await tally.well_again()
            else:
                await asyncio.sleep(float(line))
            seen = {
                "answered": tally.answered - before,
                "codes": tally.codes,
                "longest_seconds": tally.longest_seconds,
                "seconds": loop.time() - begun,
            }
            print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(_play(sys.argv[1]))
