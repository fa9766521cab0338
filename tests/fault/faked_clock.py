"""The wall clock of a service process, set by a test while the service runs; its stopwatch stays.

libfaketime answers the process's questions for the wall clock from a file, at every question. The
monotonic clock is left alone, as it is when an operator or a time service sets a machine's clock.
"""

from __future__ import annotations

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
        library = Path(libfaketime.__file__).parent / "vendor/libfaketime/src/libfaketime.so.1"
        self.environ = {
            "LD_PRELOAD": str(library),
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
