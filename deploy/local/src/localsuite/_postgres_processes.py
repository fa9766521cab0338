"""What a cluster's lock file and the process table say about the server that owns it."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["PostmasterFile", "live_processes", "read_postmaster_file", "wait_until_gone"]


@dataclass(frozen=True, slots=True)
class PostmasterFile:
    """The lines of `postmaster.pid` that matter here (PostgreSQL: src/include/utils/pidfile.h)."""

    pid: int
    port: int | None
    ready: bool


def read_postmaster_file(cluster: Path) -> PostmasterFile | None:
    """The cluster's lock file; None when it is absent or not yet complete enough to read."""
    try:
        lines = (cluster / "postmaster.pid").read_text(errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not lines:
        return None
    try:
        pid = abs(int(lines[0]))  # a standalone backend writes its number negative
    except ValueError:
        return None
    port = int(lines[3]) if len(lines) > 3 and lines[3].strip().isdigit() else None
    return PostmasterFile(pid, port, len(lines) > 7 and lines[7].strip() == "ready")


def live_processes(cluster: Path) -> list[psutil.Process]:
    """Every live PostgreSQL process that works in `cluster`: postmaster, backends, workers.

    A PostgreSQL process has the cluster as its working directory, which no recycled process
    number has, so a stale lock file cannot be mistaken for a live server.
    """
    resolved = str(cluster.resolve())
    found = []
    for process in psutil.process_iter(["name"]):
        if "postgres" not in (process.info["name"] or ""):
            continue
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if _lives(process) and process.cwd() == resolved:
                found.append(process)
    return found


def wait_until_gone(
    processes: Sequence[psutil.Process], *, timeout_seconds: float
) -> list[psutil.Process]:
    """Waits for processes to end and returns those that have not.

    A zombie counts as gone: in a container it may stay one until its first process reaps it.
    """
    deadline = time.monotonic() + timeout_seconds
    remaining = list(processes)
    while remaining:
        remaining = [process for process in remaining if _lives(process)]
        if not remaining or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return remaining


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
