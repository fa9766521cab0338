"""One server process: started, watched until it is ready, stopped, killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from localsuite._postgres_errors import (
    AccountError,
    InstallationError,
    PortInUseError,
    PostgresError,
    StartError,
)
from localsuite._postgres_install import Account, Installation
from localsuite._postgres_processes import live_processes, read_postmaster_file, wait_until_gone

__all__ = ["Postmaster", "Programs", "plain_environment"]

_LOG_ROTATION_BYTES = 4 * 1024 * 1024
_LOG_EXCERPT_LINES = 12


# Becomes the account, then the program. `Popen(user=...)` would fork a copy of this process first,
# in which gRPC's threads are gone and its fork handlers run: that crashed now and then. Without
# it, Python uses vfork, and this small interpreter changes the account in its own process.
_AS_ACCOUNT = """
import os, sys
try:
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[1]))
    os.execv(sys.argv[3], sys.argv[3:])
except OSError as error:
    print(f"cannot run {sys.argv[3]} as account {sys.argv[1]}: {error}", file=sys.stderr)
    sys.exit(126)
"""
_CANNOT_EXECUTE = 126


@dataclass(frozen=True, slots=True)
class Programs:
    """PostgreSQL's programs, run as the account that may run them (None: the caller)."""

    installation: Installation
    account: Account | None

    def run(self, name: str, *arguments: str, timeout_seconds: float) -> None:
        """Runs a program to its end.

        Raises StartError with what it said when it fails or takes too long.
        """
        try:
            result = subprocess.run(
                self._command(str(self.installation.program(name)), arguments),
                env=plain_environment(),
                cwd="/",
                capture_output=True,
                text=True,
                timeout=timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise StartError(f"{name} took longer than {error.timeout:.0f} s") from error
        except OSError as error:
            raise self._cannot_execute(name, error) from error
        if result.returncode == _CANNOT_EXECUTE:
            raise self._cannot_execute(name, OSError(result.stderr.strip()))
        if result.returncode != 0:
            raise StartError(f"{name} failed:\n{result.stderr.strip()}")

    def spawn(
        self, name: str, *arguments: str, output: int, stdin: int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        """Starts a long-lived program, named or given by its absolute path, in its own session.

        Its own session, so that Ctrl-C in a terminal reaches the launcher and not the server.
        """
        program = name if name.startswith("/") else str(self.installation.program(name))
        try:
            return subprocess.Popen(
                self._command(program, arguments),
                env=plain_environment(),
                cwd="/",
                stdin=stdin,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        except OSError as error:
            raise self._cannot_execute(name, error) from error

    def _command(self, program: str, arguments: Sequence[str]) -> list[str]:
        if self.account is None:
            return [program, *arguments]
        identity = (str(self.account.uid), str(self.account.gid))
        return [sys.executable, "-I", "-S", "-c", _AS_ACCOUNT, *identity, program, *arguments]

    def _cannot_execute(self, name: str, error: OSError) -> PostgresError:
        if self.account is None:
            return InstallationError(f"cannot run {name}: {error}")
        return AccountError(
            f"cannot run {name} as account {self.account.name!r}: {error}; in a container "
            "without the right to change accounts, start this as an ordinary user"
        )


class Postmaster:
    """A started server on `cluster`; it ends when this process does, however that ends."""

    def __init__(self, programs: Programs, cluster: Path, process: subprocess.Popen[bytes]) -> None:
        self._cluster = cluster
        self._process = process
        self._guardian = self._start_guardian(programs)

    @classmethod
    def launch(
        cls,
        programs: Programs,
        cluster: Path,
        *,
        configuration: Path,
        log_file: Path,
        port: int,
        timeout_seconds: float,
    ) -> "Postmaster":
        """Starts the server and returns it once it takes connections on `port`.

        Raises:
            PortInUseError: the port was taken.
            StartError: it ended, or was not ready in time; the text ends with its log.
        """
        if log_file.exists() and log_file.stat().st_size > _LOG_ROTATION_BYTES:
            log_file.replace(log_file.with_suffix(".log.1"))
        with log_file.open("ab") as server_log:
            log_offset = server_log.tell()
            process = programs.spawn(
                "postgres",
                *("-D", str(cluster)),
                *("-c", f"config_file={configuration}"),
                *("-p", str(port)),
                output=server_log.fileno(),
            )
        try:
            _wait_until_ready(
                process,
                cluster,
                port=port,
                timeout_seconds=timeout_seconds,
                log_file=log_file,
                log_offset=log_offset,
            )
            return cls(programs, cluster, process)
        except BaseException:
            _end(process, (signal.SIGQUIT, signal.SIGKILL), 5.0)
            raise

    @property
    def pid(self) -> int:
        """The process number."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """True while the process lives."""
        return self._process.poll() is None

    def stop(self, timeout_seconds: float) -> None:
        """Ends it in order (SIGINT), and harder when that takes longer than `timeout_seconds`."""
        self.release()
        _end(self._process, (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL), timeout_seconds)

    def kill(self) -> None:
        """Ends the postmaster and every process it started with SIGKILL."""
        if self.running:
            # Stopped first, so that it starts no backend while the others are counted; each
            # backend leads a process group of its own, so a group kill would miss it.
            self._process.send_signal(signal.SIGSTOP)
        victims = live_processes(self._cluster)
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        self._process.kill()
        self._process.wait()
        wait_until_gone(victims, timeout_seconds=5.0)
        self.release()

    def release(self) -> None:
        """Dismisses the guardian; needed once when the server ended without `stop` or `kill`."""
        if self._guardian.poll() is None:
            self._guardian.kill()
        self._guardian.wait()
        if self._guardian.stdin is not None:
            self._guardian.stdin.close()

    def _start_guardian(self, programs: Programs) -> subprocess.Popen[bytes]:
        """A shell on a pipe that only this process holds: when it closes, the server is stopped."""
        script = 'read -r _; [ "$(head -n 1 "$2")" = "$1" ] && kill -INT "$1"'
        return programs.spawn(
            "/bin/sh",
            *("-c", script, "sh"),
            *(str(self.pid), str(self._cluster / "postmaster.pid")),
            output=subprocess.DEVNULL,
            stdin=subprocess.PIPE,
        )


def plain_environment(additions: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment without the caller's PG* variables, locale and secrets."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C",
        "TZ": "UTC",
        **(additions or {}),
    }


def _wait_until_ready(
    process: subprocess.Popen[bytes],
    cluster: Path,
    *,
    port: int,
    timeout_seconds: float,
    log_file: Path,
    log_offset: int,
) -> None:
    deadline = time.monotonic() + timeout_seconds
    pause_seconds = 0.005
    while True:
        lock = read_postmaster_file(cluster)
        if lock is not None and lock.pid == process.pid and lock.ready:
            return
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            said = _log_excerpt(log_file, log_offset)
            if "Address already in use" in said:
                raise PortInUseError(port)
            how = (
                "ended while starting" if ended else f"was not ready after {timeout_seconds:.0f} s"
            )
            raise StartError(f"PostgreSQL {how}. It said:\n{said}")
        time.sleep(pause_seconds)
        pause_seconds = min(0.05, pause_seconds * 1.5)


def _end(
    process: subprocess.Popen[bytes], requests: Sequence[signal.Signals], timeout_seconds: float
) -> None:
    for request in requests:
        if process.poll() is not None:
            return
        process.send_signal(request)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_seconds if request == requests[0] else 5.0)


def _log_excerpt(log_file: Path, offset: int) -> str:
    with log_file.open("rb") as server_log:
        server_log.seek(offset)
        lines = server_log.read(64 * 1024).decode(errors="replace").splitlines()
    return "\n".join(lines[-_LOG_EXCERPT_LINES:])
