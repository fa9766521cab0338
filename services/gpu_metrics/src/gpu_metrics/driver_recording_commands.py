"""`python -m gpu_metrics record|replay`: keeps what a driver answers, and plays it again."""

import argparse
import itertools
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_metrics.adapters.configured_host import ConfiguredHost
from gpu_metrics.domain.driver_recording import (
    Recording,
    RecordingMalformed,
    call_costs,
    read_recording,
    refresh_periods,
)
from gpu_metrics.domain.driver_scenario import scenario_of
from gpu_metrics.domain.readings import Host
from servicekit.channels import ChannelSettings, open_channel
from servicekit.runtime import ServiceRuntime, run_service
from servicekit.settings import setting
from servicekit.telemetry import TelemetrySettings

if TYPE_CHECKING:
    from gpu_metrics.adapters.collector_link import CollectorLink

__all__ = ["main"]

_EXIT_NO_DRIVER = 1
_EXIT_USAGE = 2
_EXIT_HUNG = 3
_EXIT_INTERRUPTED = 130
_PROGRESS_SECONDS = 5.0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gpu_metrics", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    record = commands.add_parser("record", help="record what this machine's GPU driver answers")
    record.add_argument("file", type=Path, help="the recording, JSON lines")
    record.add_argument("--seconds", type=float, default=60.0, help="how long (60)")
    record.add_argument(
        "--interval", type=float, default=0.1, help="seconds between two readings (0.1)"
    )
    record.add_argument(
        "--call-timeout",
        type=float,
        default=5.0,
        help="seconds after which a call counts as hung and its GPU is left out (5)",
    )
    record.add_argument(
        "--contended-seconds",
        type=float,
        default=2.0,
        help="how long two threads then ask at once, to show locks; 0 for not at all (2)",
    )
    replay = commands.add_parser("replay", help="play a recording")
    replay.add_argument("file", type=Path, help="a recording")
    replay.add_argument(
        "--scenario", type=Path, help="write a scenario for the stand-in driver and play nothing"
    )
    replay.add_argument(
        "--collector",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="play it to this collector (GPU_METRICS_COLLECTORS); may be given more than once",
    )
    replay.add_argument("--host-id", default="replayed", help="as which host (replayed)")
    return parser


def main(arguments: list[str]) -> int:
    """Run `record` or `replay` and return the exit code."""
    options = _parser().parse_args(arguments)
    if options.command == "record":
        return _record(options)
    try:
        with options.file.open(encoding="utf-8") as file:
            recording = read_recording(file)
    except (OSError, RecordingMalformed) as error:
        print(f"{options.file}: {error}", file=sys.stderr)
        return _EXIT_USAGE
    if options.scenario:
        options.scenario.write_text(
            scenario_of(recording, started_microseconds=time.time_ns() // 1000), encoding="utf-8"
        )
        return 0
    print(f"{options.file}: {_summary(recording)}", flush=True)
    return _replay(recording, options.collector, options.host_id)


def _record(options: argparse.Namespace) -> int:
    # A replay needs no driver binding.
    from gpu_metrics.adapters.nvml_hung_calls import CallHung  # noqa: PLC0415  # see above
    from gpu_metrics.adapters.nvml_library import NvmlFailed  # noqa: PLC0415  # see above
    from gpu_metrics.adapters.nvml_recorder import Recorder  # noqa: PLC0415  # see above

    path: Path = options.file
    interrupted = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        # What was recorded until then is whole, and is told of.
        signal.signal(number, lambda *_: interrupted.set())
    try:
        recorder = Recorder(call_limit_seconds=options.call_timeout, stopping=interrupted)
    except NvmlFailed as failed:
        print(f"no GPU driver can be recorded: {failed}", file=sys.stderr)
        return _EXIT_NO_DRIVER
    except CallHung as hung:
        first = f", after {hung.__cause__}" if hung.__cause__ else ""
        print(f"nothing can be recorded: {hung}{first}", file=sys.stderr)
        return _EXIT_HUNG
    try:
        with path.open("w", encoding="utf-8") as file:
            print(recorder.recording.header(), file=file)
            for call in itertools.chain(
                recorder.run(seconds=options.seconds, interval_seconds=options.interval),
                recorder.run_contended(seconds=options.contended_seconds),
            ):
                print(call.as_line(), file=file)
    except OSError as error:
        print(f"{path} cannot be written: {error.strerror}", file=sys.stderr)
        return _EXIT_USAGE
    finally:
        stopped_early = interrupted.is_set()
        recorder.close()
    with path.open(encoding="utf-8") as file:
        _print_summary(read_recording(file))
    for each in recorder.hung:
        print(f"{each}; it is left out from there on", file=sys.stderr)
    if stopped_early:
        return _EXIT_INTERRUPTED
    return _EXIT_HUNG if recorder.hung else 0


def _summary(recording: Recording) -> str:
    names = ", ".join(sorted({gpu.name or "unnamed" for gpu in recording.gpus})) or "none"
    xids = sum("xid" in call.answer for call in recording.calls)
    return (
        f"{len(recording.gpus)} GPUs ({names}), driver {recording.driver_version}, "
        f"{recording.seconds:.1f} s, XIDs: {xids}"
    )


def _print_summary(recording: Recording) -> None:
    print(_summary(recording))
    print(f"{'function':44}{'calls':>8}{'failed':>8}{'median us':>12}{'worst us':>12}")
    for name, cost in call_costs(recording.calls).items():
        print(
            f"{name:44}{cost.calls:8}{cost.failed:8}"
            f"{cost.median_microseconds:12.1f}{cost.worst_microseconds:12.1f}"
        )
    _print_contended(recording)
    for name, milliseconds in refresh_periods(recording).items():
        print(f"{name:44} changes every {milliseconds:.1f} ms")


def _print_contended(recording: Recording) -> None:
    """Print what a call takes alone and while another thread asks too: a lock shows there."""
    alone = call_costs(recording.calls)
    if recording.contended:
        print(
            f"{'two threads at once':44}{'calls':>8}{'failed':>8}{'median us':>12}{'worst us':>12}"
            f"{'alone us':>12}"
        )
    for name, cost in call_costs(recording.contended).items():
        print(
            f"{name:44}{cost.calls:8}{cost.failed:8}"
            f"{cost.median_microseconds:12.1f}{cost.worst_microseconds:12.1f}"
            f"{alone[name].median_microseconds if name in alone else 0:12.1f}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings:
    """To whom a recording is played."""

    telemetry: TelemetrySettings
    channel: ChannelSettings
    collectors: tuple[str, ...] = setting(
        "GPU_METRICS_COLLECTORS",
        default=("127.0.0.1:50061",),
        help="host:port of every collector, separated by commas",
    )


def _replay(recording: Recording, collectors: list[str], host_id: str) -> int:
    # What an agent needs is loaded for playing alone.
    from gpu_metrics.adapters.collector_link import CollectorLink  # noqa: PLC0415  # see above
    from gpu_metrics.adapters.recorded_gpus import RecordedGpus  # noqa: PLC0415  # see above
    from gpu_metrics.agent import Agent  # noqa: PLC0415  # see above
    from gpu_metrics.journal import EventJournal  # noqa: PLC0415  # see above

    async def play(settings: ReplaySettings, runtime: ServiceRuntime) -> None:
        async with AsyncExitStack() as stack:
            journal = EventJournal()
            played = RecordedGpus(recording, clock=runtime.clock)
            print(f"played as host {host_id} to {', '.join(settings.collectors)}", flush=True)

            async def stop_at_the_end() -> None:
                began = told_at = runtime.clock.monotonic()
                while not played.finished:
                    await runtime.clock.sleep(0.5)
                    now = runtime.clock.monotonic()
                    if now - told_at >= _PROGRESS_SECONDS:
                        told_at = now
                        _print_progress(now - began, recording, links)
                print(f"{recording.seconds:.0f} s played: all", flush=True)
                runtime.stopping.set()

            links = [
                CollectorLink(
                    await stack.enter_async_context(open_channel(target, settings.channel)),
                    name=target,
                    clock=runtime.clock,
                    jitter=runtime.random,
                    telemetry=runtime.telemetry,
                    journal=journal,
                )
                for target in settings.collectors
            ]
            agent = Agent(
                host=ConfiguredHost(Host(host_id=host_id, simulated=True)),
                gpus=[played],
                servers=[],
                sinks=links,
                clock=runtime.clock,
                boot_id=uuid.uuid4().hex,
                journal=journal,
                event_sources=[played],
                drivers=[played],
                background=[stop_at_the_end],
            )
            await agent.run(runtime.stopping)

    # What people want to know is printed; a service's own lines are for whoever asks for them.
    environ = {"GAMEKEEPER_LOG_LEVEL": "warning", **os.environ}
    if collectors:
        environ["GPU_METRICS_COLLECTORS"] = ",".join(collectors)
    return run_service("gpu_metrics_replay", ReplaySettings, play, environ=environ)


def _print_progress(seconds: float, recording: Recording, links: "Sequence[CollectorLink]") -> None:
    away = sum(not link.works for link in links)
    print(
        f"{min(seconds, recording.seconds):.0f} of {recording.seconds:.0f} s played"
        + f", {away} of {len(links)} collectors do not answer" * bool(away),
        flush=True,
    )
