"""One process: started with its log in a file, in a group of its own, tied to this process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["ChildProcess", "ChildSpec", "describe_exit", "last_lines"]

_LAUNCHER = Path(__file__).with_name("launch.py")


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How to run one process: a module of ours, its arguments and its environment."""

    name: str
    module: str
    log_file: Path
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    capture_output: bool = False


class ChildProcess:
    """A running process. It leads its own process group and dies with this one at the latest."""

    def __init__(self, spec: ChildSpec, process: asyncio.subprocess.Process) -> None:
        self.spec = spec
        self._process = process

    @classmethod
    async def start(cls, spec: ChildSpec) -> ChildProcess:
        """Starts the process; its messages are appended to the log file.

        With `capture_output` its standard output is a pipe (see `lines`) and not in the log.
        """
        command = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid())]
        command += [sys.executable, "-m", spec.module, *spec.arguments]
        with spec.log_file.open("ab") as log_file:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=_environment(spec.environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if spec.capture_output else log_file,
                stderr=log_file,
                # A group of its own: Ctrl-C in the terminal reaches the supervisor alone.
                start_new_session=True,
                limit=1024 * 1024,
            )
        return cls(spec, process)

    @property
    def pid(self) -> int:
        """The process number."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """True until the end was noticed."""
        return self._process.returncode is None

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.returncode

    @property
    def output(self) -> asyncio.StreamReader:
        """The standard output of a process started with `capture_output`."""
        if self._process.stdout is None:
            raise ValueError(f"{self.spec.name} writes its output to its log")
        return self._process.stdout

    async def wait(self) -> int:
        """Returns the exit status once the process has ended."""
        return await self._process.wait()

    async def stop(self, *, grace_seconds: float) -> None:
        """Ends the process: asks (SIGTERM), waits `grace_seconds`, then kills its whole group."""
        with contextlib.suppress(ProcessLookupError):
            if self.running:
                self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_seconds):
                await self._process.wait()
        except TimeoutError:
            pass
        finally:
            self.kill_group()
        await self._process.wait()

    def kill_group(self) -> None:
        """Ends whatever is left of the process and its own children at once."""
        # The group outlives its leader while members are left, and is gone otherwise.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


def describe_exit(returncode: int) -> str:
    """Says in words how a process ended."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was killed by signal {-returncode}"


def last_lines(log_file: Path, *, count: int = 8) -> list[str]:
    """Returns the end of a log, at most `count` lines; empty when there is none."""
    try:
        with log_file.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - 16 * 1024))
            lines = log.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [line for line in lines if line.strip()][-count:]


def _environment(additions: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment without settings of the suite or of AWS, plus this process's own.

    Nothing here may reach a real cloud account by accident.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_SUITE_PREFIXES) or name in additions
    }
    # Without compiled modules kept, each restart would compile all of them again, for seconds.
    inherited.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**inherited, **_OF_ALL, **additions}


_OF_ALL = {
    "PYTHONUNBUFFERED": "1",
    # One thread each for numeric libraries: the processes share few cores.
    "OMP_NUM_THREADS": "1",
    # They speak plaintext on loopback alone. HTTP clients load the machine's certificate
    # authorities all the same, twice, which is a fifth of the router's start; so they trust none.
    "SSL_CERT_FILE": os.devnull,
    "SSL_CERT_DIR": os.devnull,
}


_SUITE_PREFIXES = (
    "GAMEKEEPER_",
    "AUTOSCALER_",
    "AI_ROUTER_",
    "GPU_METRICS_",
    "KNOWLEDGE_BASE_",
    "LOCALSUITE_",
    "AWS_",
)
