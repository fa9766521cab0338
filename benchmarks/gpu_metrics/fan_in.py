"""What it costs a collector to take in a fleet's reports.

    .venv/bin/python benchmarks/gpu_metrics/fan_in.py [--rounds 5] [--seconds 10]

A GPU sample is all six figures of one GPU at one moment. In process: GPU samples per second and
core, parsed and taken in by view and history, beside the limit that parsing alone sets; both in
turn, the best of the rounds. Once in reports of one sample of each of 8 GPUs, and once as agents
send them, in reports of a second that hold ten samples of each GPU in a block. Through gRPC:
processor time of a collector process to which 100 hosts with 8 GPUs report once a second what they
sampled ten times a second, as a share of one core. Once as agents do it, after a reading of up to
5 ms that begins at one of ten moments of a second that they share, and with every fifth report
answered; and once each at a time of its own, with an answer to each, as agents did before.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc.aio
import psutil
import structlog
from kept_limits import at_least, at_most, exit_status

from gaming.gpu_metrics.v1 import gpu_metrics_pb2, gpu_metrics_pb2_grpc
from gpu_metrics import wire
from gpu_metrics.domain.fleet import FleetPolicy, FleetView
from gpu_metrics.domain.history import History
from gpu_metrics.domain.history_ring import HistoryLengths
from gpu_metrics.domain.readings import GpuReading, Host, HostReport, MissingReason
from gpu_metrics.domain.samples import FleetMetric, SampleSeries
from gpu_metrics.feed import FleetFeed
from servicekit.channels import open_channel
from servicekit.telemetry import Telemetry

GPUS_PER_HOST = 8
HOSTS = 100
SAMPLES_PER_SECOND = 10
WANTED_SAMPLES_PER_SECOND = 200_000
WANTED_CORE_SHARE = 0.05
MOMENTS_PER_SECOND = 10
ANSWERED_EVERY = 5
LONGEST_READING_SECONDS = 0.005
_START_SECONDS = 60.0
_MOMENTS = tuple(FleetMetric(number) for number in range(1, 7))


def _gpu(host: int, index: int, second: int) -> GpuReading:
    return GpuReading(
        gpu_uuid=f"GPU-{host:08x}-0000-4000-8000-{index:012x}",
        index=index,
        product_name="NVIDIA A10G",
        utilization_permille=(host * 37 + index * 11 + second * 53) % 1001,
        memory_used_bytes=20 * 2**30 + second,
        memory_total_bytes=24 * 2**30,
        power_milliwatts=180_000 + (host * 991 + second * 331) % 100_000,
        energy_millijoules=10**12 + 200_000 * second,
        temperature_celsius=50 + (host + second) % 30,
        sm_clock_megahertz=1700,
        peak_utilization_permille=1000,
        memory_utilization_permille=(host * 17 + second * 29) % 1001,
        memory_clock_megahertz=6250,
        memory_temperature_celsius=MissingReason.UNSUPPORTED,
        clock_event_reasons=0,
        power_limit_milliwatts=300_000,
        driver_epoch=7,
    )


def _report(host: int, sequence: int, time_of: datetime, monotonic: int) -> HostReport:
    return HostReport(
        host=Host(host_id=f"i-{host:017x}", instance_type="g5.48xlarge"),
        boot_id="0123456789abcdef0123456789abcdef",
        sequence=sequence,
        sample_time=time_of,
        monotonic_microseconds=monotonic,
        gpus=tuple(_gpu(host, index, sequence) for index in range(GPUS_PER_HOST)),
    )


def _series(sequence: int) -> tuple[SampleSeries, ...]:
    step = 1_000_000 // SAMPLES_PER_SECOND
    offsets = (1_000_000 - step, *[step] * (SAMPLES_PER_SECOND - 1))
    return tuple(
        SampleSeries(
            gpu_index=index,
            metric=metric,
            offset_microseconds=offsets,
            values=tuple(500 + (sequence * 7 + n * 31 + index) % 400 for n in range(10)),
        )
        for index in range(GPUS_PER_HOST)
        for metric in _MOMENTS
    )


class _ClockOfReports:
    """Tells the time at which the report at hand was taken."""

    def __init__(self, started: datetime) -> None:
        self._started = self.time = started

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return (self.time - self._started).total_seconds()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def _empty_feed(clock: _ClockOfReports) -> FleetFeed:
    started = int(clock.now().timestamp()) - 10
    history = History(HistoryLengths(), maximum_bytes=8 * 10**9, started=started)
    return FleetFeed(
        FleetView(FleetPolicy(), history),
        clock=clock,
        telemetry=Telemetry("benchmark"),
        epoch="benchmark",
        history=history,
    )


def _message(host: int, sequence: int, seconds: float, started: datetime, *, block: bool) -> bytes:
    report = _report(
        host, sequence, started + timedelta(seconds=seconds), 10**12 + round(seconds * 1e6)
    )
    if block:
        report = report._replace(series=_series(sequence))
    return wire.report_message(report).SerializeToString()


def in_process(rounds: int, *, block: bool) -> tuple[float, float]:
    """Return GPU samples per second of parsing alone and of taking in, the best of the rounds.

    Without `block` each host reports twenty times a second. With it, it does once a second, for so
    long that the history's longer cells are made too.
    """
    now = datetime.now(UTC)
    hosts, rate, seconds, uncounted = (20, 1, 200, 80) if block else (HOSTS, 20, 3, 1)
    taken = [
        ((turn + host / hosts) / rate, host, turn + 1)
        for turn in range(rate * seconds)
        for host in range(hosts)
    ]
    messages = [_message(host, turn, at, now, block=block) for at, host, turn in taken]
    times = [now + timedelta(seconds=at) for at, _, _ in taken]
    # What makes each host's rings, once, is not counted.
    joining = rate * hosts * uncounted
    parse = gpu_metrics_pb2.StreamReportsRequest.FromString
    best_parse = best_take = float("inf")
    for _ in range(rounds):
        clock = _ClockOfReports(now)
        feed = _empty_feed(clock)
        for clock.time, message in zip(times[:joining], messages, strict=False):
            feed.apply(wire.lazy_report_from_message(parse(message)))
        started = time.process_time()
        for message in messages[joining:]:
            parse(message)
        best_parse = min(best_parse, time.process_time() - started)
        started = time.process_time()
        for clock.time, message in zip(times[joining:], messages[joining:], strict=True):
            feed.apply(wire.lazy_report_from_message(parse(message)))
        if feed.history is not None:
            for gpu in list(feed.history.gpus()):
                feed.history.fold(gpu)
        best_take = min(best_take, time.process_time() - started)
    samples = len(messages[joining:]) * GPUS_PER_HOST * (SAMPLES_PER_SECOND if block else 1)
    return samples / best_parse, samples / best_take


@contextmanager
def _collector(log: Path) -> Iterator[tuple[str, psutil.Process]]:
    environ = {
        "PATH": os.environ["PATH"],
        "GAMEKEEPER_LISTEN_ADDRESS": "127.0.0.1:0",
        "GPU_METRICS_CLOUDWATCH_ENABLED": "false",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gpu_metrics", "collector"],
            env=environ,
            stderr=output,
            stdout=output,
        )
        try:
            yield _address(log), psutil.Process(process.pid)
        finally:
            process.kill()
            process.wait(60)


def _address(log: Path) -> str:
    give_up = time.monotonic() + _START_SECONDS
    while time.monotonic() < give_up:
        for line in log.read_text(encoding="utf-8").splitlines():
            if '"serving"' in line or "server_started" in line:
                return line.split('"address":')[1].split('"')[1]
        time.sleep(0.05)
    raise TimeoutError("the collector did not start")


async def _report_once_a_second(
    stub: gpu_metrics_pb2_grpc.GpuReportServiceAsyncStub,
    host: int,
    began: float,
    seconds: float,
    *,
    together: bool,
) -> int:
    """Return how many reports of a host were sent, each acknowledged by itself or a later one."""
    moments = MOMENTS_PER_SECOND if together else HOSTS
    due = began + host % moments / moments
    await asyncio.sleep(due - time.monotonic())
    # Whoever opens a stream sends the first report with it.
    stream = stub.StreamReports(timeout=600)
    sequence = 0
    rng = random.Random(host)  # noqa: S311  # no secret
    while due < began + seconds:
        reading_seconds = rng.uniform(0.0, LONGEST_READING_SECONDS) if together else 0.0
        await asyncio.sleep(due + reading_seconds - time.monotonic())
        sequence += 1
        report = _report(host, sequence, datetime.now(UTC), time.monotonic_ns() // 1000)
        report = report._replace(series=_series(sequence))
        message = wire.report_message(report)
        message.no_answer = together and sequence % ANSWERED_EVERY != 1
        await stream.write(message)
        if not message.no_answer and await stream.read() is grpc.aio.EOF:
            raise RuntimeError("the collector ended the stream")
        due += 1.0
    stream.cancel()
    return sequence


async def through_grpc(
    seconds: float, directory: Path, *, together: bool
) -> tuple[float, float, float]:
    """Return the collector's share of a core, GPU samples per second, and its memory in MB."""
    with _collector(directory / "collector.log") as (address, process):
        async with open_channel(address) as channel:
            stub = gpu_metrics_pb2_grpc.GpuReportServiceStub(channel)
            began = time.monotonic()
            await asyncio.gather(
                *(_report_once_a_second(stub, h, began, 3, together=together) for h in range(HOSTS))
            )
            # The agents start again, as they do: a new run of each would be another boot id.
        async with open_channel(address) as channel:
            stub = gpu_metrics_pb2_grpc.GpuReportServiceStub(channel)
            before, began = process.cpu_times(), time.monotonic()
            told = await asyncio.gather(
                *(
                    _report_once_a_second(stub, host, began, seconds, together=together)
                    for host in range(HOSTS)
                )
            )
            after, lasted = process.cpu_times(), time.monotonic() - began
            memory = process.memory_info().rss / 1e6
    used = after.user + after.system - before.user - before.system
    samples = sum(told) * GPUS_PER_HOST * SAMPLES_PER_SECOND
    return used / lasted, samples / lasted, memory


def main() -> int:
    """Print the figures and whether the design's limits are kept; return 1 when one is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    limits = []
    for block in (False, True):
        parse_only, taken_in = in_process(arguments.rounds, block=block)
        each = f"{SAMPLES_PER_SECOND} samples" if block else "one sample"
        print(f"in process, reports of {GPUS_PER_HOST} GPUs with {each} of each, one core:")
        print(f"  parsed alone             {parse_only:>12,.0f} GPU samples/s")
        print(f"  parsed and taken in      {taken_in:>12,.0f} GPU samples/s")
        limits.append(
            at_least(
                f"taken in, {each} of each GPU, GPU samples a second and core",
                taken_in,
                WANTED_SAMPLES_PER_SECOND,
                ",.0f",
            )
        )
    for together in (True, False):
        with tempfile.TemporaryDirectory() as directory:
            share, samples, memory = asyncio.run(
                through_grpc(arguments.seconds, Path(directory), together=together)
            )
        print(f"through gRPC, {HOSTS} hosts of {GPUS_PER_HOST} GPUs at {SAMPLES_PER_SECOND} Hz,")
        print("as agents report:" if together else "each at a time of its own, and all answered:")
        print(f"  GPU samples              {samples:>12,.0f} /s, six figures each")
        print(f"  the collector takes      {share:>12.1%} of a core")
        print(f"  its memory               {memory:>12,.0f} MB")
        if together:
            limits.append(
                at_most(
                    f"collector of {HOSTS} hosts as agents report, share of a core",
                    share,
                    WANTED_CORE_SHARE,
                    ".1%",
                )
            )
    return exit_status(limits)


if __name__ == "__main__":
    sys.exit(main())
