"""A client that only wants to be served: makes a call every 10 ms and notes how long it took.

It runs as a process of its own, so that an attacker's work in the test's process does not count as
the service's slowness: `python bystander.py HOST:PORT /package.Service/Method`. It prints a line
for each call: when it began (monotonic seconds, the same clock in all processes), how long it took,
and 1 when it was answered, 0 when it was turned away. It speaks bare HTTP/2 and repeats nothing;
with `suite` as a third word it asks for the fleet through the suite's own channel, which repeats
what does no harm.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
from http2_attacker import Http2Attacker

from gaming.gpu_metrics.v1 import gpu_metrics_pb2, gpu_metrics_pb2_grpc
from servicekit.channels import open_channel

__all__ = ["Bystander", "percentile_99", "standing_by"]

_PAUSE_SECONDS = 0.01


@dataclass(slots=True)
class Bystander:
    """What a running bystander has seen so far."""

    notes: Path

    def durations(self, since: float, until: float) -> list[float]:
        """Returns the seconds of the answered calls that began in an interval of monotonic time.

        Raises:
            AssertionError: none was.
        """
        found = [seconds for seconds, answered in self._calls(since, until) if answered]
        assert found, "nothing was answered meanwhile"
        return found

    def turned_away(self, since: float, until: float) -> float:
        """Returns the share of calls that were turned away; 1 when none ended."""
        calls = self._calls(since, until)
        return sum(not answered for _, answered in calls) / len(calls) if calls else 1.0

    def _calls(self, since: float, until: float) -> list[tuple[float, bool]]:
        found = []
        for line in self.notes.read_text().splitlines():
            if line.count(" ") == 2:  # whole
                began, seconds, answered = line.split(" ")
                if since <= float(began) < until:
                    found.append((float(seconds), answered == "1"))
        return found


def percentile_99(durations: Sequence[float]) -> float:
    """Returns the nearest-rank 99th percentile."""
    ordered = sorted(durations)
    return ordered[max(0, -(-len(ordered) * 99 // 100) - 1)]


@asynccontextmanager
async def standing_by(
    address: str, path: str, notes: Path, *, through_the_suites_channel: bool = False
) -> AsyncIterator[Bystander]:
    """Runs a bystander that has been served once."""
    words = [address, path, *(["suite"] if through_the_suites_channel else [])]
    with notes.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(Path(__file__)), *words, stdout=output
        )
    try:
        async with asyncio.timeout(30):
            while not notes.read_text():  # noqa: ASYNC240  # a small local file
                assert process.returncode is None
                await asyncio.sleep(0.02)
        yield Bystander(notes)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _stand_by(address: str, path: str) -> None:
    async with Http2Attacker.connect(address) as connection:

        async def answered() -> bool:
            return (await connection.call(path, seconds=30)).status == 0

        await _note(answered)


async def _stand_by_through_the_suites_channel(address: str) -> None:
    async with open_channel(address) as channel:
        stub = gpu_metrics_pb2_grpc.GpuMetricsServiceStub(channel)

        async def answered() -> bool:
            try:
                await stub.GetFleet(gpu_metrics_pb2.GetFleetRequest(), timeout=30)
            except grpc.aio.AioRpcError as error:
                print(error.code(), error.details(), file=sys.stderr)
                return False
            return True

        await _note(answered)


async def _note(answered: Callable[[], Awaitable[bool]]) -> None:
    while True:
        began = time.monotonic()
        outcome = await answered()
        seconds = time.monotonic() - began
        print(f"{began:.6f} {seconds:.6f} {int(outcome)}", flush=True)
        await asyncio.sleep(_PAUSE_SECONDS)


if __name__ == "__main__":
    if sys.argv[3:] == ["suite"]:
        asyncio.run(_stand_by_through_the_suites_channel(sys.argv[1]))
    else:
        asyncio.run(_stand_by(*sys.argv[1:3]))
