"""Builds and drives the stand-in for the NVIDIA management library; README.md has the language.

    driver = FakeDriver(build(directory), directory)
    driver.write("gpu 0 uuid GPU-1\\ngpu 0 utilization burst 0 100 1000 167\\n")

A process that was started with `driver.environ()` finds the stand-in under the library's own name.
"""

import ctypes
import fcntl
import shutil
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CallCount", "FakeDriver", "build"]

_RECORD = struct.Struct("<48sQQQ")


@dataclass(frozen=True, slots=True)
class CallCount:
    """How often a function was called, how long the calls took in all, and of it on a processor."""

    calls: int
    seconds: float
    processor_seconds: float


def build(directory: Path) -> Path:
    """Put the library into `directory` and return its path; needs make and a C compiler.

    It is compiled once, beside its sources, however many tests and test processes ask for it.
    """
    sources = Path(__file__).parent
    compiled = sources / "build"
    compiled.mkdir(exist_ok=True)
    command = ["make", "--silent", "-C", str(sources), f"OUTPUT={compiled}"]
    with (compiled / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(command, check=True, timeout=300)
        directory.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(compiled / "libnvidia-ml.so.1", directory))


class FakeDriver:
    """One scenario of the library at `library`, kept in `directory`."""

    def __init__(self, library: Path, directory: Path) -> None:
        self.library = library
        self.scenario_path = directory / "scenario"
        self.counts_path = directory / "calls"
        self.text = ""

    def load(self) -> None:
        """Load the library into this process: whoever asks for it by name gets this one then."""
        ctypes.CDLL(str(self.library))

    def shut_down(self) -> None:
        """Have this process give the library up, however often it was started."""
        library = ctypes.CDLL("libnvidia-ml.so.1")
        while library.nvmlShutdown() == 0:
            pass

    def own_calls(self, function: str) -> int:
        """Return how often this process called a function of the library, since it was loaded."""
        # By name, as whoever calls it does: of several copies the process has the first loaded.
        count = ctypes.CDLL("libnvidia-ml.so.1").fakeNvmlCallCount
        count.restype = ctypes.c_ulonglong
        return int(count(function.encode()))

    def environ(self) -> Mapping[str, str]:
        """Return what a process needs in its environment to find the library and the scenario."""
        return {
            "LD_LIBRARY_PATH": str(self.library.parent),
            "FAKE_NVML_SCENARIO": str(self.scenario_path),
            "FAKE_NVML_COUNTS": str(self.counts_path),
        }

    def write(self, text: str) -> None:
        """Have the driver do what `text` says from its next call on."""
        self.text = text
        written = self.scenario_path.with_suffix(".new")
        written.write_text(text)
        written.replace(self.scenario_path)

    def add(self, statements: str) -> None:
        """Have the driver do this as well."""
        self.write(f"{self.text.rstrip()}\n{statements}\n")

    def counts(self) -> dict[str, CallCount]:
        """Return the calls of all processes that keep their counts in this driver's file."""
        if not self.counts_path.exists():
            return {}
        records = _RECORD.iter_unpack(self.counts_path.read_bytes())
        return {
            name.rstrip(b"\0").decode(): CallCount(calls, nanoseconds / 1e9, processor / 1e9)
            for name, calls, nanoseconds, processor in records
            if calls
        }
