"""What the whole suite takes on one machine: start-up, memory and CPU.

    python benchmarks/suite/measure_suite.py                     1,000 players, 50 simulated GPUs
    python benchmarks/suite/measure_suite.py --players 1000 --gpus 0   what the autoscaler chooses

Plays an evening with `python -m localsuite`, holds the fleet at `--gpus` by overrides of the
autoscaler, and samples every process of the run once a second. Memory is the proportional set size
(PSS): pages that processes share count once. CPU is process time over wall time, in cores; the mean
is over the seconds in which at least 80 % of the players were online. Needs the environment of
`make setup`; prints JSON at the end.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
BUSY_SHARE = 0.8
# What the suite may take, at 1,000 players and 50 GPUs.
LIMITS = {
    "healthy_after_seconds": 20.0,
    "peak_memory_megabytes": 1500,
    "cores_total": 1.5,
    "failed": 30,
}
GOLD_SHARE = 0.56  # of the GPUs held; the rest is Silver, Bronze runs on CPUs


@dataclass
class Sample:
    """One second: memory by process name in bytes, CPU seconds of all processes since start."""

    at: float
    pss_bytes: dict[str, int]
    rss_bytes: int
    cpu_seconds: dict[str, float]
    players: int
    gpus: int


@dataclass
class Measurement:
    """What was seen of the run so far."""

    samples: list[Sample] = field(default_factory=list)
    healthy_seconds: float | None = None
    lines: list[str] = field(default_factory=list)


def main() -> int:
    """Measures and prints; returns 1 when a limit was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--players", type=int, default=1000)
    parser.add_argument("--gpus", type=int, default=50, help="0: as the autoscaler decides")
    parser.add_argument("--duration-seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="gamekeeper-measure-"))
    try:
        measurement = measure(arguments, directory / "var")
        figures = summary(arguments, measurement, directory / "var")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(json.dumps(figures, indent=2))
    missed = 0
    for name, limit in LIMITS.items():
        measured = figures.get(name)
        held = measured is not None and measured <= limit
        missed += not held
        print(f"{name}: {measured} of at most {limit} {'held' if held else 'MISSED'}")
    return 1 if missed else 0


def measure(arguments: argparse.Namespace, data: Path) -> Measurement:
    """Runs the evening and samples it."""
    measurement = Measurement()
    command = [sys.executable, "-m", "localsuite", "--plain", "--once", "--port-base", "0"]
    command += ["--data-dir", str(data), "--players", str(arguments.players)]
    command += ["--seed", str(arguments.seed)]
    command += ["--duration-seconds", str(arguments.duration_seconds)]
    run = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    reader = threading.Thread(target=read, args=(run, measurement), daemon=True)
    reader.start()
    process = psutil.Process(run.pid)
    held = False
    spent: dict[int, tuple[str, float]] = {}
    while run.poll() is None:
        if not held and arguments.gpus and measurement.healthy_seconds is not None:
            hold_fleet(arguments.gpus, data)
            held = True
        sample = take_sample(process, measurement, spent)
        if sample is not None:
            measurement.samples.append(sample)
        time.sleep(1.0)
    reader.join()
    return measurement


def read(run: subprocess.Popen[str], measurement: Measurement) -> None:
    """Keeps the run's lines, and when it was healthy."""
    assert run.stdout is not None
    for line in run.stdout:
        print(line, end="", file=sys.stderr)
        measurement.lines.append(line)
        healthy = re.search(r"all healthy after ([0-9.]+) s", line)
        if healthy:
            measurement.healthy_seconds = float(healthy.group(1))


def hold_fleet(gpus: int, data: Path) -> None:
    """Sets a least size for Gold and Silver, as an operator would."""
    gold = round(gpus * GOLD_SHARE)
    for tier, servers in (("gold", gold), ("silver", gpus - gold)):
        subprocess.run(
            [
                *(sys.executable, "-m", "gamekeeper.cli", "override", "set", tier),
                *("--pin", str(servers), "--for", "1h", "--reason", "measurement"),
            ],
            cwd=ROOT,
            env={"GAMEKEEPER_DATA_DIR": str(data), "PATH": "/usr/bin:/bin"},
            check=True,
            timeout=60,
            stdout=sys.stderr,
        )


def take_sample(
    process: psutil.Process, measurement: Measurement, spent: dict[int, tuple[str, float]]
) -> Sample | None:
    """Samples the run's processes; None when it has just ended."""
    memory: dict[str, int] = defaultdict(int)
    rss = 0
    try:
        processes = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return None
    for each in processes:
        try:
            with each.oneshot():
                name = name_of(each)
                full = each.memory_full_info()
                times = each.cpu_times()
        except psutil.Error:
            continue
        memory[name] += full.pss
        rss += full.rss
        spent[each.pid] = (name, times.user + times.system)
    cpu: dict[str, float] = defaultdict(float)
    for name, seconds in spent.values():
        cpu[name] += seconds
    players, gpus = state_of(measurement)
    return Sample(time.monotonic(), dict(memory), rss, dict(cpu), players, gpus)


def name_of(process: psutil.Process) -> str:
    """The part of the suite a process is."""
    words = process.cmdline()
    if "-m" in words:
        return words[words.index("-m") + 1]
    return process.name()


def state_of(measurement: Measurement) -> tuple[int, int]:
    """Players online and GPUs, from the run's last summary line."""
    for line in reversed(measurement.lines):
        found = re.search(r"([\d,]+) players; (\d+) GPUs", line)
        if found:
            return int(found.group(1).replace(",", "")), int(found.group(2))
    return 0, 0


def summary(arguments: argparse.Namespace, measurement: Measurement, data: Path) -> dict[str, Any]:
    """Returns the figures."""
    samples = measurement.samples
    busy = [each for each in samples if each.players >= BUSY_SHARE * arguments.players]
    reports = sorted((data / "reports").glob("*/report.json"))
    report = json.loads(reports[-1].read_text()) if reports else {}
    findings = report.get("findings", {})
    result: dict[str, Any] = {
        "machine": f"{psutil.cpu_count()} CPUs, {platform.machine()}, Python "
        f"{platform.python_version()}",
        "healthy_after_seconds": measurement.healthy_seconds,
        "peak_memory_megabytes": round(
            max((sum(each.pss_bytes.values()) for each in samples), default=0) / 1e6
        ),
        "sent": findings.get("sent"),
        "completed": findings.get("completed"),
        "shed": findings.get("shed"),
        "failed": findings.get("failed"),
        "held": report.get("held"),
        "load_average": round(psutil.getloadavg()[0], 2),
    }
    if len(busy) < 2:
        return result
    seconds = busy[-1].at - busy[0].at
    names = sorted(busy[-1].pss_bytes)
    cores = {
        name: round(
            (busy[-1].cpu_seconds.get(name, 0) - busy[0].cpu_seconds.get(name, 0)) / seconds, 3
        )
        for name in names
    }
    return result | {
        "busy_seconds": round(seconds),
        "players_mean": round(fmean(each.players for each in busy)),
        "gpus_mean": round(fmean(each.gpus for each in busy), 1),
        "memory_megabytes": {
            name: round(fmean(each.pss_bytes.get(name, 0) for each in busy) / 1e6) for name in names
        },
        "memory_megabytes_total": round(fmean(sum(each.pss_bytes.values()) for each in busy) / 1e6),
        "rss_megabytes_total": round(fmean(each.rss_bytes for each in busy) / 1e6),
        "cores": cores,
        "cores_total": round(sum(cores.values()), 2),
    }


if __name__ == "__main__":
    sys.exit(main())
