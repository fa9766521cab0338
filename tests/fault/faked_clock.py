"""The wall clock of a service process, set by a test while the service runs; its stopwatch stays.

libfaketime answers the process's questions for the wall clock from a file, at every question. The
monotonic clock is left alone, as it is when an operator or a time service sets a machine's clock;
`monotonic_waits.c` says why that takes a library of ours besides. It needs a C compiler.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import libfaketime

__all__ = ["HOUR_SECONDS", "FakedClock"]

HOUR_SECONDS = 3600


class FakedClock:
    """Tells processes started with `environ` the time, off by as much as was last set.

    Attributes:
        environ: to be added to the environment of the processes.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        wall_clock = Path(libfaketime.__file__).parent / "vendor/libfaketime/src/libfaketime.so.1"
        self.environ = {
            "LD_PRELOAD": f"{_monotonic_waits(file.parent)}:{wall_clock}",
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        self.set_off_by(0)

    def set_off_by(self, seconds: int) -> None:
        """Makes the wall clock differ from the machine's by so much from now on."""
        # Replaced in one step: a process must not read half a line.
        written = self._file.with_suffix(".new")
        written.write_text(f"{seconds:+d}\n")
        written.replace(self._file)


def _monotonic_waits(directory: Path) -> Path:
    library = directory / "monotonic_waits.so"
    source = Path(__file__).with_name("monotonic_waits.c")
    compiler = os.environ.get("CC", "cc")
    command = [compiler, "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", library, source], check=True, timeout=60)
    return library
