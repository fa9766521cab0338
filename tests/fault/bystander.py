"""A client that only wants to be served: makes a call every 10 ms and notes how long it took.

It runs as a process of its own, so that an attacker's work in the test's process does not count as
the service's slowness: `python bystander.py HOST:PORT /package.Service/Method`. It prints a line
for each call, when it began (monotonic seconds, the same clock in all processes) and its duration.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from http2_attacker import Http2Attacker

__all__ = ["Bystander", "percentile_99", "standing_by"]

_PAUSE_SECONDS = 0.01
_FAILED = -1.0


@dataclass(slots=True)
class Bystander:
    """What a running bystander has seen so far."""

    notes: Path

    def durations(self, since: float, until: float) -> list[float]:
        """Returns the seconds of the calls that began in an interval of monotonic time.

        Raises:
            AssertionError: a call failed, or none was made.
        """
        found = []
        for line in self.notes.read_text().splitlines():
            if line.count(" ") != 1:
                continue  # half written
            began, seconds = map(float, line.split())
            if since <= began < until:
                assert seconds != _FAILED, "a call of a client that does no harm failed"
                found.append(seconds)
        assert found, "no call was made meanwhile"
        return found


def percentile_99(durations: Sequence[float]) -> float:
    """Returns the nearest-rank 99th percentile."""
    ordered = sorted(durations)
    return ordered[max(0, -(-len(ordered) * 99 // 100) - 1)]


@asynccontextmanager
async def standing_by(address: str, path: str, notes: Path) -> AsyncIterator[Bystander]:
    """Runs a bystander that has been served once."""
    with notes.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(Path(__file__)), address, path, stdout=output
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
        while True:
            began = time.monotonic()
            answer = await connection.call(path, seconds=30)
            seconds = time.monotonic() - began if answer.status == 0 else _FAILED
            print(f"{began:.6f} {seconds:.6f}", flush=True)
            await asyncio.sleep(_PAUSE_SECONDS)


if __name__ == "__main__":
    asyncio.run(_stand_by(*sys.argv[1:3]))
