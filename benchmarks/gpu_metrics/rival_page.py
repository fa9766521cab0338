"""nvitop-exporter on the stand-in driver, and what a poller takes from its page."""

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from measured_program import ROOT, FakeDriver, Program, running

__all__ = ["RIVALS_PYTHON", "Polls", "rival_installed", "running_rival"]

RIVALS_PYTHON = ROOT / ".tool/rivals/bin/python"
_START_SECONDS = 4.0
_MEBIBYTE = 2**20
_PAGE = re.compile(
    r'^gpu_(utilization_Percentage|memory_used_MiB)\{[^}]*index="(\d+)"[^}]*\} (\S+)', re.MULTILINE
)


@dataclass(slots=True)
class Polls:
    """What a poller took from the rival's page."""

    utilization: list[list[tuple[int, float, float]]] = field(default_factory=list)
    """For each poll: GPU, moment, share of 1."""
    memory: list[tuple[float, int, float]] = field(default_factory=list)
    """Moment of the poll, GPU, memory used in bytes."""
    page_bytes: int = 0
    page: str = ""
    polled_at: list[float] = field(default_factory=list)
    away: bool = False
    """While it is set nobody polls."""

    async def run(self, url: str) -> None:
        """Poll once a second until cancelled."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            due = time.monotonic()
            while True:
                if not self.away:
                    # One that is asked for before an outage is none of the outage.
                    self.polled_at.append(time.time())
                    async with session.get(url) as response:
                        page = await response.text()
                    self._take(page, time.time())
                due += 1.0
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    def _take(self, page: str, now: float) -> None:
        self.page, self.page_bytes = page, len(page)
        poll = []
        for name, index, value in _PAGE.findall(page):
            if name == "memory_used_MiB":
                self.memory.append((now, int(index), float(value) * _MEBIBYTE))
            else:
                poll.append((int(index), now, float(value) / 100))
        self.utilization.append(poll)


def rival_installed() -> bool:
    """Return whether `make rivals` has put the rivals here."""
    return (RIVALS_PYTHON.parent / "nvitop-exporter").exists()


@asynccontextmanager
async def running_rival(
    driver: FakeDriver, *, installed: bool
) -> AsyncIterator[tuple[Program | None, Polls]]:
    """Run the exporter and poll its page until the context ends; without it, yield None."""
    polls = Polls()
    if not installed:
        yield None, polls
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(RIVALS_PYTHON), "-m", "nvitop_exporter", "--port", str(port)]
    async with running("nvitop-exporter", command, driver, {}) as program:
        await asyncio.sleep(_START_SECONDS)
        polling = asyncio.ensure_future(polls.run(f"http://127.0.0.1:{port}/metrics"))
        try:
            yield program, polls
        finally:
            polling.cancel()
            await asyncio.gather(polling, return_exceptions=True)
