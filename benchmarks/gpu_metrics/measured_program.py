"""Programs that run on the stand-in driver, and what they cost."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "services/gpu_metrics/tests/fake_nvml"))

from fake_driver import CallCount, FakeDriver, build  # noqa: E402  # found by the path above

__all__ = ["ROOT", "CallCount", "FakeDriver", "Program", "build", "running"]

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Program:
    """A program under measurement, with the calls it makes counted in a file of its own."""

    name: str
    pid: int
    driver: FakeDriver
    cpu_seconds: float = 0.0
    calls: int = 0
    driver_cpu_seconds: float = 0.0
    resident_bytes: int = 0
    marked: tuple[float, int, float] = (0.0, 0, 0.0)

    @property
    def own_cpu_seconds(self) -> float:
        """Processor time without what the driver spent of it."""
        return max(0.0, self.cpu_seconds - self.driver_cpu_seconds)

    def _now(self) -> tuple[float, int, float]:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        cpu = (int(fields[11]) + int(fields[12])) / _TICKS
        counts = self.driver.counts()
        # A wait for events is no question; it returns when there is one or time is up.
        calls = sum(each.calls for name, each in counts.items() if "EventSetWait" not in name)
        return cpu, calls, sum(each.processor_seconds for each in counts.values())

    def mark(self) -> None:
        """Begin to measure."""
        self.marked = self._now()

    def measure(self) -> None:
        """End to measure."""
        cpu_seconds, calls, driver_cpu_seconds = self._now()
        self.cpu_seconds = cpu_seconds - self.marked[0]
        self.calls = calls - self.marked[1]
        self.driver_cpu_seconds = driver_cpu_seconds - self.marked[2]
        status = Path(f"/proc/{self.pid}/status").read_text()
        self.resident_bytes = 1024 * int(re.findall(r"VmRSS:\s+(\d+)", status)[0])


@asynccontextmanager
async def running(
    name: str, command: Sequence[str], driver: FakeDriver, environ: Mapping[str, str]
) -> AsyncIterator[Program]:
    """Run a program on the driver until the context ends."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **driver.environ(), **environ},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield Program(name, process.pid, driver)
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 10)
            except TimeoutError:
                process.kill()
                await process.wait()
