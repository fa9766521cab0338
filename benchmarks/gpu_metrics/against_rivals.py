"""Our agent beside nvitop-exporter and gpustat on one stand-in driver, at the same time.

    .venv/bin/python benchmarks/gpu_metrics/against_rivals.py [--gpus 8] [--seconds 32]

All programs load the same `libnvidia-ml.so.1` (services/gpu_metrics/tests/fake_nvml) and the same
scenario. Each GPU is busy for 200 ms every 4.3 s, at a phase of its own, and idle otherwise; its
memory in use grows with the time, so each reading tells when it was taken. First there are
XIDs and nobody who receives (rival_advantages.py), then all is measured, and then one GPU hangs.

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
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from gpu_host import ecs_task
from kept_limits import Limit, at_least, at_most, exit_status
from measured_program import FakeDriver, Program, build, running
from report_recorder import Receiver, Recorder, recorder
from rival_advantages import compare_advantages, hold_outage
from rival_page import RIVALS_PYTHON, Polls, rival_installed, running_rival

# A period that no poller's interval divides, so that bursts fall at any moment of it.
BURST_SECONDS, PERIOD_SECONDS = 0.2, 4.3
HANG_SECONDS = 12
GROWTH_BYTES_PER_SECOND = 100_000_000
START_SECONDS = 8
CAPTURE_SLACK_SECONDS, RIVAL_SLACK_SECONDS = 0.4, 1.2
"""How late a sample may be of what it shows: a ring's period; a poll and its page's age."""

CPU_LIMIT_SHARE, MEMORY_LIMIT_BYTES = 0.01, 80_000_000
CAPTURE_LIMIT_SHARE = 0.99
AGE_LIMIT_SECONDS = TOLD_LIMIT_SECONDS = 3.0
BYTES_PER_SAMPLE_LIMIT = 8.0
"""What a sample takes as a bare double, without its moment and the rest of a report."""


def scenario(gpus: int, started_microseconds: int, process_id: int) -> str:
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
                f"process {process_id} 5000000000",
            )
        ]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class Run:
    """When what happened; times of the wall clock."""

    gpus: int
    started: float
    since: float
    until: float
    hung_at: float
    hung_until: float

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


def oldest_age(readings: Sequence[tuple[float, int, float]], run: Run) -> float | None:
    """The greatest age, while one GPU hangs, of the newest reading of any other; None of none.

    Whoever falls silent is as old as the end of the run makes it.
    """
    newest: dict[int, float] = {}
    worst = 0.0
    for moment, gpu, used in readings:
        if gpu == run.hung or moment > run.hung_until:
            continue
        # Just before this reading came, the one before it was the newest.
        if gpu in newest and moment >= run.hung_at:
            worst = max(worst, moment - newest[gpu])
        taken = run.started + used / GROWTH_BYTES_PER_SECOND
        newest[gpu] = max(taken, newest.get(gpu, taken))
    if len(newest) < run.gpus - 1:
        return None
    return max([worst, *(run.hung_until - taken for taken in newest.values())])


async def measure(gpus: int, seconds: float) -> int:
    """Run everything, print the table and the limits, and return the exit status."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpu_rivals_")))
        library = await asyncio.to_thread(build, folder)
        task = await stack.enter_async_context(ecs_task(folder / "proc"))
        started = time.time()
        script = scenario(gpus, round(started * 1e6), task.process_id)
        drivers = {}
        for name in ("agent", "nvitop-exporter", "gpustat"):
            (folder / name).mkdir()
            drivers[name] = FakeDriver(library, folder / name)
            drivers[name].write(script)
        with_rivals = rival_installed()
        if not with_rivals:
            print("nvitop-exporter and gpustat are not installed: run `make rivals`; ours alone")
        rival, polls = await stack.enter_async_context(
            running_rival(drivers["nvitop-exporter"], installed=with_rivals)
        )
        # Of an agent of its own: reading a model server's page is no part of what 8 GPUs cost.
        async with (
            recorder() as receiver,
            _agent(folder / "task", drivers["agent"], receiver, task.environ),
        ):
            await asyncio.sleep(START_SECONDS)
            outage = await hold_outage(receiver, polls, list(drivers.values()), started)
        limits = compare_advantages(
            receiver.kept,
            polls,
            outage,
            gpus=gpus,
            process_id=task.process_id,
            with_rival=rival is not None,
        )
        receiver = await stack.enter_async_context(recorder())
        agent = await stack.enter_async_context(
            _agent(folder / "state", drivers["agent"], receiver, {})
        )
        ours = receiver.kept
        await asyncio.sleep(START_SECONDS)
        programs = [agent, *([rival] if rival else [])]
        for program in programs:
            program.mark()
        since, bytes_before, samples_before = time.time(), len(ours.report_bytes), ours.samples
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
        hung_until = time.time()
        gpustat = await _gpustat(drivers["gpustat"], script) if with_rivals else None
    run = Run(gpus, started, since, until, hung_at, hung_until)
    print(
        f"{gpus} GPUs, {len(run.bursts)} bursts of {1000 * BURST_SECONDS:.0f} ms "
        f"in {run.seconds:.0f} s"
    )
    found = _found(agent, ours, report_bytes, samples, run)
    _print_agent(agent, found, run)
    limits += _limits(found)
    if rival:
        limits += _compare_rival(rival, polls, found, run)
    if gpustat:
        print("gpustat, each time that it is run")
        _print("driver calls", f"{gpustat[0]}")
        _print("CPU", f"{gpustat[1]:.2f} s")
    return exit_status(limits)


def _agent(
    state: Path, driver: FakeDriver, receiver: Receiver, environ: Mapping[str, str]
) -> AbstractAsyncContextManager[Program]:
    command = [sys.executable, "-m", "gpu_metrics", "agent"]
    settings = {
        "GPU_METRICS_COLLECTORS": receiver.address,
        "GPU_METRICS_HOST_ID": "i-bench",
        "GPU_METRICS_IMDS_ENABLED": "false",
        "GPU_METRICS_STATE_DIRECTORY": str(state),
    }
    return running("agent", command, driver, {**settings, **environ})


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


@dataclass(frozen=True, slots=True)
class Found:
    """What our agent did; a figure that could not be had is None."""

    own_cpu_share: float
    resident_bytes: int
    captured_share: float
    oldest_age_seconds: float | None
    hung_after_seconds: float | None
    bytes_per_gpu_second: float
    samples_per_gpu_second: float
    bytes_per_sample: float | None


def _found(
    agent: Program, ours: Recorder, report_bytes: Sequence[int], samples: int, run: Run
) -> Found:
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
    return Found(
        own_cpu_share=agent.own_cpu_seconds / run.seconds,
        resident_bytes=agent.resident_bytes,
        captured_share=captured(run.bursts, ours.utilization, CAPTURE_SLACK_SECONDS),
        oldest_age_seconds=oldest_age(readings, run),
        hung_after_seconds=min(said, default=None),
        bytes_per_gpu_second=sum(report_bytes) / run.seconds / run.gpus,
        samples_per_gpu_second=samples / run.seconds / run.gpus,
        bytes_per_sample=sum(report_bytes) / samples if samples else None,
    )


def _print_agent(agent: Program, found: Found, run: Run) -> None:
    print("our agent, reports of 1 s")
    _print_cost(agent, run)
    _print(
        "wire, per GPU",
        f"{found.bytes_per_gpu_second:.0f} bytes a second, "
        f"with {found.samples_per_gpu_second:.0f} ring samples in it",
    )


def _limits(found: Found) -> list[Limit]:
    return [
        at_most("agent's own CPU, share of a core", found.own_cpu_share, CPU_LIMIT_SHARE, ".2%"),
        at_most("agent's memory, bytes", found.resident_bytes, MEMORY_LIMIT_BYTES, ",.0f"),
        at_least("bursts captured", found.captured_share, CAPTURE_LIMIT_SHARE, ".1%"),
        at_most(
            "age of the others' figures while one GPU hangs, seconds",
            found.oldest_age_seconds,
            AGE_LIMIT_SECONDS,
            ".1f",
        ),
        at_most(
            "the GPU that hangs is told to hang after, seconds",
            found.hung_after_seconds,
            TOLD_LIMIT_SECONDS,
            ".1f",
        ),
        at_most(
            "bytes per sample, all else of a report included",
            found.bytes_per_sample,
            BYTES_PER_SAMPLE_LIMIT,
            ".1f",
        ),
    ]


def _compare_rival(rival: Program, polls: Polls, found: Found, run: Run) -> list[Limit]:
    """Print what the rival did, and return what we claim to do better."""
    every_second = [sample for poll in polls.utilization for sample in poll]
    often = captured(run.bursts, every_second, RIVAL_SLACK_SECONDS)
    rare = [
        captured(
            run.bursts,
            [sample for poll in polls.utilization[first::30] for sample in poll],
            RIVAL_SLACK_SECONDS,
        )
        for first in range(min(30, len(polls.utilization)))
    ]
    shown = any(gpu == run.hung and moment > run.hung_at + 3 for moment, gpu, _ in polls.memory)
    age = oldest_age(polls.memory, run)
    bytes_per_poll = polls.page_bytes / run.gpus
    print("nvitop-exporter, interval 1 s")
    _print_cost(rival, run)
    _print("wire, per GPU", f"{bytes_per_poll:.0f} bytes a poll, the host's included")
    _print(
        "burst capture",
        f"{often:.0%} polled every second, {sum(rare) / len(rare):.1%} every 30 s",
    )
    kept = "its last figures go on being shown" if shown else "it is not shown any more"
    _print(
        "one GPU hangs",
        f"others at most {age:.1f} s old; {kept}" if age is not None else "nothing is shown",
    )
    more = found.captured_share - often
    own, rivals = found.own_cpu_share, rival.own_cpu_seconds / run.seconds
    return [
        Limit(
            f"bursts captured beyond what its poller captures: {more:.1%} of them",
            kept=more > 0,
        ),
        at_most(
            "bytes per GPU and second, beside its page polled once a second",
            found.bytes_per_gpu_second,
            bytes_per_poll,
            ",.0f",
        ),
        at_most("agent's own CPU, beside its own", own, rivals, ".2%"),
    ]


def main() -> int:
    """Measure, print, and fail when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=32.0)
    options = parser.parse_args()
    return asyncio.run(measure(options.gpus, options.seconds))


if __name__ == "__main__":
    sys.exit(main())
