"""Our agent beside nvitop-exporter and gpustat on one stand-in driver, at the same time.

    .venv/bin/python benchmarks/gpu_metrics/against_rivals.py [--gpus 8] [--seconds 32]

All programs load the same `libnvidia-ml.so.1` (services/gpu_metrics/tests/fake_nvml) and the same
scenario. Each GPU is busy for 200 ms every 4.3 s, at a phase of its own, and idle otherwise; its
memory in use grows with the time, so each reading tells when it was taken. Then one GPU hangs.

- burst capture: bursts of which some sample shows at least half. nvitop-exporter's page is polled
  once a second; the 30 s poller takes every thirtieth of those polls, over all thirty starts.
- freshness: age of the newest reading of the GPUs that do not hang, once a second while one does.
- driver calls and the driver's share of the processor time: counted by the driver; the rest of the
  process's time, which the kernel counts, is its own.
- bytes: our reports as protobuf messages; the rival's page, which also tells of the host.

A stand-in driver answers in microseconds: what a call costs on a GPU, and how long a real hang
lasts, is not told here. Rivals are installed by `make rivals`.
"""

import argparse
import asyncio
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from report_recorder import Recorder, recorder

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "services/gpu_metrics/tests/fake_nvml"))

from fake_driver import FakeDriver, build  # noqa: E402  # found by the path above

RIVALS_PYTHON = ROOT / ".tool/rivals/bin/python"
# A period that no poller's interval divides, so that bursts fall at any moment of it.
BURST_SECONDS, PERIOD_SECONDS = 0.2, 4.3
HANG_SECONDS = 12
GROWTH_BYTES_PER_SECOND = 100_000_000
START_SECONDS = 8
MEBIBYTE = 2**20
CPU_LIMIT_SHARE, MEMORY_LIMIT_BYTES = 0.01, 80_000_000
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = re.compile(
    r'^gpu_(utilization_Percentage|memory_used_MiB)\{[^}]*index="(\d+)"[^}]*\} (\S+)', re.MULTILINE
)


def scenario(gpus: int, started_microseconds: int) -> str:
    """The driver's script: bursts at a phase of its own for each GPU, memory that tells time."""
    lines = [
        "driver version 570.124.06",
        "driver cuda_version 12080",
        f"driver started {started_microseconds}",
        f"driver loaded {started_microseconds}",
    ]
    for gpu in range(gpus):
        phase = round(1000 * PERIOD_SECONDS * gpu / gpus)
        burst = f"{1000 * PERIOD_SECONDS:.0f} {1000 * BURST_SECONDS:.0f} {phase}"
        lines += [
            f"gpu {gpu} {statement}"
            for statement in (
                f"uuid GPU-bench-{gpu}",
                "name NVIDIA A10G",
                f"utilization burst 0 100 {burst}",
                f"memory_utilization burst 0 60 {burst}",
                "memory_total 25769803776",
                f"memory_used rate 0 {GROWTH_BYTES_PER_SECOND}",
                f"power burst 60000 280000 {burst}",
                "power_limit 300000",
                "energy rate 0 75000",
                "temperature 61",
                f"sm_clock burst 210 1710 {burst}",
                "memory_clock 6251",
                "clock_event_reasons 0",
                "pcie_tx 1000",
                "pcie_rx 1000",
                "pcie_replays 0",
                "ecc_corrected 0",
                "ecc_uncorrected 0",
                "process 4321 5000000000",
            )
        ]
    return "\n".join(lines) + "\n"


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


@dataclass(slots=True)
class Polls:
    """What a poller took from the rival's page."""

    utilization: list[list[tuple[int, float, float]]] = field(default_factory=list)
    """For each poll: GPU, moment, share of 1."""
    memory: list[tuple[float, int, float]] = field(default_factory=list)
    """Moment of the poll, GPU, memory used in bytes."""
    page_bytes: int = 0

    async def run(self, url: str) -> None:
        """Poll once a second until cancelled."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            due = time.monotonic()
            while True:
                async with session.get(url) as response:
                    page = await response.text()
                self._take(page, time.time())
                due += 1.0
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    def _take(self, page: str, now: float) -> None:
        self.page_bytes = len(page)
        poll = []
        for name, index, value in _PAGE.findall(page):
            if name == "memory_used_MiB":
                self.memory.append((now, int(index), float(value) * MEBIBYTE))
            else:
                poll.append((int(index), now, float(value) / 100))
        self.utilization.append(poll)


@dataclass(frozen=True, slots=True)
class Run:
    """When what happened; times of the wall clock."""

    gpus: int
    started: float
    since: float
    until: float
    hung_at: float

    @property
    def seconds(self) -> float:
        """How long was measured before the hang."""
        return self.until - self.since

    @property
    def hung(self) -> int:
        """The GPU that hangs."""
        return self.gpus - 1

    @property
    def bursts(self) -> list[tuple[int, float]]:
        """GPU and start of the bursts that lie whole in what was measured."""
        starts = (
            (gpu, self.started + PERIOD_SECONDS * (number + gpu / self.gpus))
            for gpu in range(self.gpus)
            for number in range(int((self.until - self.started) / PERIOD_SECONDS) + 1)
        )
        return [
            (gpu, start)
            for gpu, start in starts
            if self.since <= start and start + BURST_SECONDS <= self.until
        ]


def captured(
    wanted: Sequence[tuple[int, float]],
    samples: Sequence[tuple[int, float, float]],
    slack_seconds: float,
) -> float:
    """Share of the bursts of which a sample shows at least half; a sample may lag by the slack."""
    by_gpu: dict[int, list[float]] = {}
    for gpu, moment, share in samples:
        if share >= 0.5:
            by_gpu.setdefault(gpu, []).append(moment)
    seen = sum(
        any(
            start <= moment <= start + BURST_SECONDS + slack_seconds
            for moment in by_gpu.get(gpu, ())
        )
        for gpu, start in wanted
    )
    return seen / len(wanted)


def oldest_age(readings: Sequence[tuple[float, int, float]], run: Run) -> float:
    """The greatest age, while one GPU hangs, of the newest reading of any other."""
    newest: dict[int, float] = {}
    worst = 0.0
    for moment, gpu, used in readings:
        if gpu == run.hung:
            continue
        # Just before this reading came, the one before it was the newest.
        if gpu in newest and moment >= run.hung_at:
            worst = max(worst, moment - newest[gpu])
        taken = run.started + used / GROWTH_BYTES_PER_SECOND
        newest[gpu] = max(taken, newest.get(gpu, taken))
    return worst


async def measure(gpus: int, seconds: float) -> bool:
    """Run everything and print the table; returns whether the agent keeps its limits."""
    with tempfile.TemporaryDirectory(prefix="gpu_rivals_") as directory:
        folder = Path(directory)
        library = await asyncio.to_thread(build, folder)
        started = time.time()
        script = scenario(gpus, round(started * 1e6))
        drivers = {}
        for name in ("agent", "nvitop-exporter", "gpustat"):
            (folder / name).mkdir()
            drivers[name] = FakeDriver(library, folder / name)
            drivers[name].write(script)
        with_rivals = RIVALS_PYTHON.exists() and (RIVALS_PYTHON.parent / "nvitop-exporter").exists()
        if not with_rivals:
            print("nvitop-exporter and gpustat are not installed: run `make rivals`; ours alone")
        async with recorder() as (ours, address), _rival(drivers, with_rivals) as (rival, polls):
            environ = {
                "GPU_METRICS_COLLECTORS": address,
                "GPU_METRICS_HOST_ID": "i-bench",
                "GPU_METRICS_IMDS_ENABLED": "false",
                "GPU_METRICS_STATE_DIRECTORY": str(folder / "state"),
            }
            command = [sys.executable, "-m", "gpu_metrics", "agent"]
            async with running("agent", command, drivers["agent"], environ) as agent:
                await asyncio.sleep(START_SECONDS)
                programs = [agent, *([rival] if rival else [])]
                for program in programs:
                    program.mark()
                since, bytes_before, samples_before = (
                    time.time(),
                    len(ours.report_bytes),
                    ours.samples,
                )
                await asyncio.sleep(seconds)
                until = time.time()
                for program in programs:
                    program.measure()
                report_bytes = ours.report_bytes[bytes_before:]
                samples = ours.samples - samples_before
                await asyncio.sleep(2.5)
                hung_at = time.time()
                for driver in drivers.values():
                    driver.add(f"gpu {gpus - 1} hang all")
                await asyncio.sleep(HANG_SECONDS)
                gpustat = await _gpustat(drivers["gpustat"], script) if with_rivals else None
        run = Run(gpus, started, since, until, hung_at)
        print(
            f"{gpus} GPUs, {len(run.bursts)} bursts of {1000 * BURST_SECONDS:.0f} ms "
            f"in {run.seconds:.0f} s"
        )
        _print_agent(agent, ours, report_bytes, samples, run)
        if rival:
            _print_rival(rival, polls, run)
        if gpustat:
            print("gpustat, each time that it is run")
            _print("driver calls", f"{gpustat[0]}")
            _print("CPU", f"{gpustat[1]:.2f} s")
        return _print_limits(agent, run)


@asynccontextmanager
async def _rival(
    drivers: Mapping[str, FakeDriver], installed: bool
) -> AsyncIterator[tuple[Program | None, Polls]]:
    polls = Polls()
    if not installed:
        yield None, polls
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(RIVALS_PYTHON), "-m", "nvitop_exporter", "--port", str(port)]
    async with running("nvitop-exporter", command, drivers["nvitop-exporter"], {}) as program:
        await asyncio.sleep(4)
        polling = asyncio.ensure_future(polls.run(f"http://127.0.0.1:{port}/metrics"))
        try:
            yield program, polls
        finally:
            polling.cancel()
            await asyncio.gather(polling, return_exceptions=True)


async def _gpustat(driver: FakeDriver, script: str) -> tuple[int, float]:
    driver.write(script)
    before = os.times()
    process = await asyncio.create_subprocess_exec(
        str(RIVALS_PYTHON),
        *("-m", "gpustat", "--json"),
        env={**os.environ, **driver.environ()},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    await asyncio.wait_for(process.wait(), 60)
    after = os.times()
    cpu = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    return sum(each.calls for each in driver.counts().values()), cpu


def _print(what: str, told: str) -> None:
    print(f"  {what:<18} {told}")


def _print_cost(program: Program, run: Run) -> None:
    seconds = run.seconds
    own = program.own_cpu_seconds / seconds
    _print("driver calls", f"{program.calls / seconds:.0f} /s")
    _print(
        "CPU of its own",
        f"{own:.2%} of a core, {own / run.gpus:.3%} per GPU; "
        f"of the driver {program.driver_cpu_seconds / seconds:.2%}",
    )
    _print("resident memory", f"{program.resident_bytes / 1e6:.0f} MB")


def _print_agent(
    agent: Program, ours: Recorder, report_bytes: Sequence[int], samples: int, run: Run
) -> None:
    a_second = sum(report_bytes) / run.seconds
    per_gpu = samples / run.seconds / run.gpus
    print("our agent, reports of 1 s")
    _print_cost(agent, run)
    _print(
        "wire, per GPU",
        f"{a_second / run.gpus:.0f} bytes a second, with {per_gpu:.0f} ring samples in it",
    )
    if samples:
        _print("wire, per sample", f"{sum(report_bytes) / samples:.1f} bytes, all else included")
    _print("burst capture", f"{captured(run.bursts, ours.utilization, 0.4):.0%}")
    readings = [
        (each.received_at, each.index, float(each.memory_used_bytes))
        for each in ours.readings
        if each.memory_used_bytes is not None
    ]
    said = [
        each.received_at - run.hung_at
        for each in ours.readings
        if each.index == run.hung and each.hung and each.received_at > run.hung_at
    ]
    after = f"said after {min(said):.1f} s" if said else "never said"
    _print("one GPU hangs", f"others at most {oldest_age(readings, run):.1f} s old; {after}")


def _print_rival(rival: Program, polls: Polls, run: Run) -> None:
    every_second = [sample for poll in polls.utilization for sample in poll]
    rare = [
        captured(
            run.bursts, [sample for poll in polls.utilization[first::30] for sample in poll], 1.2
        )
        for first in range(min(30, len(polls.utilization)))
    ]
    shown = any(gpu == run.hung and moment > run.hung_at + 3 for moment, gpu, _ in polls.memory)
    print("nvitop-exporter, interval 1 s")
    _print_cost(rival, run)
    _print("wire, per GPU", f"{polls.page_bytes / run.gpus:.0f} bytes a poll, the host's included")
    _print(
        "burst capture",
        f"{captured(run.bursts, every_second, 1.2):.0%} polled every second, "
        f"{sum(rare) / len(rare):.1%} every 30 s",
    )
    kept = "its last figures go on being shown" if shown else "it is not shown any more"
    _print("one GPU hangs", f"others at most {oldest_age(polls.memory, run):.1f} s old; {kept}")


def _print_limits(agent: Program, run: Run) -> bool:
    own = agent.own_cpu_seconds / run.seconds
    checks = [
        (
            f"agent's own CPU, {run.gpus} GPUs at 1 s: {own:.2%} of a core, limit 1 %",
            own <= CPU_LIMIT_SHARE,
        ),
        (
            f"agent's memory: {agent.resident_bytes / 1e6:.0f} MB, limit 80 MB",
            agent.resident_bytes <= MEMORY_LIMIT_BYTES,
        ),
    ]
    for text, kept in checks:
        print(f"{'kept  ' if kept else 'MISSED'} {text}")
    return all(kept for _, kept in checks)


def main() -> int:
    """Measure, print, and fail when the agent misses a limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=32.0)
    options = parser.parse_args()
    return 0 if asyncio.run(measure(options.gpus, options.seconds)) else 1


if __name__ == "__main__":
    sys.exit(main())
