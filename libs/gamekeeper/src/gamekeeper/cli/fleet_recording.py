"""Commands that keep what a machine's GPU driver answers, and play it again.

The work is done by the gpu_metrics service, which alone has the driver's binding; the commands need
it installed beside this command line.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from gamekeeper.cli.failures import EXIT_USAGE

__all__ = ["record", "replay"]

_SERVICE = "gpu_metrics"

RecordingArgument = Annotated[Path, typer.Argument(help="The recording, a file of JSON lines.")]


def record(
    file: RecordingArgument,
    *,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to record.")] = 60.0,
    interval: Annotated[
        float, typer.Option(min=0.01, help="Seconds between two readings of a figure.")
    ] = 0.1,
    call_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds after which a call counts as hung.")
    ] = 5.0,
    contended_seconds: Annotated[
        float, typer.Option(min=0.0, help="How long two threads ask at once; 0: not at all.")
    ] = 2.0,
) -> None:
    """Record every answer of this machine's GPU driver, and what each call cost.

    After --seconds two threads ask at once for a while, so that a lock in the driver shows. Ctrl-C
    ends it and keeps what was recorded; a GPU whose call does not return is left out and named.
    """
    _run(
        "record",
        str(file),
        *("--seconds", str(seconds), "--interval", str(interval)),
        *("--call-timeout", str(call_timeout), "--contended-seconds", str(contended_seconds)),
    )


def replay(
    file: RecordingArgument,
    *,
    collector: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:PORT", help="Play it to this collector; may be repeated."),
    ] = None,
    host_id: Annotated[str, typer.Option(help="As which host.")] = "replayed",
    scenario: Annotated[
        Path | None,
        typer.Option(help="Write a scenario for the stand-in driver and play nothing."),
    ] = None,
) -> None:
    """Play a recording as a simulated host, or turn it into a scenario of the stand-in driver."""
    arguments = [str(file), "--host-id", host_id]
    for target in collector or []:
        arguments += ["--collector", target]
    if scenario is not None:
        arguments += ["--scenario", str(scenario)]
    _run("replay", *arguments)


def _run(*arguments: str) -> None:
    if importlib.util.find_spec(_SERVICE) is None:
        typer.echo("the gpu_metrics service is not installed in this environment", err=True)
        raise typer.Exit(EXIT_USAGE)
    with subprocess.Popen([sys.executable, "-m", _SERVICE, *arguments]) as process:
        while True:
            # Ctrl-C reaches both; the service ends by itself then, once its file is whole.
            with suppress(KeyboardInterrupt):
                raise typer.Exit(process.wait())
