"""`gamekeeper up`: the whole suite on this machine."""

from __future__ import annotations

import importlib.util
import os
import sys

import typer

from gamekeeper.cli.failures import EXIT_USAGE
from gamekeeper.cli.session import fail

__all__ = ["up"]


def up(context: typer.Context) -> None:
    """Start the whole suite on this machine and play an evening of a game on it.

    The same as `make run`; takes the same options: gamekeeper up --help shows them all.

    Examples:
      gamekeeper up

      gamekeeper up --once --players 200 --seed 7

      gamekeeper up --no-traffic
    """
    if importlib.util.find_spec("localsuite") is None:
        fail(
            "the local suite is not installed here",
            advice="run this in the repository after `make setup`, or `make run` there",
            exit_code=EXIT_USAGE,
        )
    sys.stdout.flush()
    # Takes this process's place, so that signals and the exit code are the suite's own.
    os.execv(  # noqa: S606  # our own interpreter and module
        sys.executable, [sys.executable, "-m", "localsuite", *context.args]
    )
