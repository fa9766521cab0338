"""`python -m gpu_metrics record|replay`: keeps what a driver answers, and plays it again."""

import argparse
import sys
import time
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

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

__all__ = ["main"]

_EXIT_NO_DRIVER = 1
_EXIT_USAGE = 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gpu_metrics", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    record = commands.add_parser("record", help="record what this machine's GPU driver answers")
    record.add_argument("file", type=Path, help="the recording, JSON lines")
    record.add_argument("--seconds", type=float, default=60.0, help="how long (60)")
    record.add_argument(
        "--interval", type=float, default=0.1, help="seconds between two readings (0.1)"
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
        return _record(options.file, options.seconds, options.interval)
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
    return _replay(recording, options.collector, options.host_id)


def _record(path: Path, seconds: float, interval_seconds: float) -> int:
    # A replay needs no driver binding.
    from gpu_metrics.adapters.nvml_library import NvmlFailed  # noqa: PLC0415  # see above
    from gpu_metrics.adapters.nvml_recorder import Recorder  # noqa: PLC0415  # see above

    try:
        recorder = Recorder()
    except NvmlFailed as failed:
        print(f"no GPU driver can be recorded: {failed}", file=sys.stderr)
        return _EXIT_NO_DRIVER
    try:
        with path.open("w", encoding="utf-8") as file:
            print(recorder.recording.header(), file=file)
            for call in recorder.run(seconds=seconds, interval_seconds=interval_seconds):
                print(call.as_line(), file=file)
    finally:
        recorder.close()
    with path.open(encoding="utf-8") as file:
        _print_summary(read_recording(file))
    return 0


def _print_summary(recording: Recording) -> None:
    print(f"{len(recording.gpus)} GPUs, driver {recording.driver_version}")
    print(f"{'function':44}{'calls':>8}{'failed':>8}{'median us':>12}{'worst us':>12}")
    for name, cost in call_costs(recording.calls).items():
        print(
            f"{name:44}{cost.calls:8}{cost.failed:8}"
            f"{cost.median_microseconds:12.1f}{cost.worst_microseconds:12.1f}"
        )
    for name, milliseconds in refresh_periods(recording).items():
        print(f"{name:44} changes every {milliseconds:.1f} ms")


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

            async def stop_at_the_end() -> None:
                while not played.finished:
                    await runtime.clock.sleep(0.5)
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
                for target in collectors or settings.collectors
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

    return run_service("gpu_metrics_replay", ReplaySettings, play)
