"""The directory a run keeps its data in: who uses it, and where everything is.

.var/
  run.lock          held by the run that is up; its text says which process
  addresses.json    where the services of the run that is up listen; gone when none is
  postgres/         the database (survives)
  logs/             one file per process, of the latest run; the run before as *.log.1
  reports/<time>/   one directory per evening (survives)
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Self

__all__ = ["DataDirectory", "DataDirectoryInUseError", "DataDirectoryUnusableError"]

_MARKER = "gamekeeper-data.json"
_LAYOUT = 1


class DataDirectoryInUseError(Exception):
    """Another run is up on this directory; the text says which and what to do."""


class DataDirectoryUnusableError(Exception):
    """The directory cannot be used as it is; the text says why and what to do."""


class DataDirectory:
    """A run's data directory, held by an advisory lock that ends with the process.

    Use as a context manager; a lock left by a run that was killed is not a lock any more, so a
    stale directory needs no cleaning.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        """Makes and locks the directory.

        Raises:
            DataDirectoryInUseError: another run is up on it.
            DataDirectoryUnusableError: it cannot be written, or holds something else.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._check_layout()
            # As root, PostgreSQL runs as another account, which must be able to pass.
            self.path.chmod(self.path.stat().st_mode | 0o111)
            lock = (self.path / "run.lock").open("a+")
        except OSError as error:
            raise DataDirectoryUnusableError(
                f"cannot use the data directory {self.path}: {error.strerror}; name another one "
                "with --data-dir"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise DataDirectoryInUseError(
                f"another run (process {holder}) is up on {self.path}; use it, stop it with "
                f"`kill -INT {holder}`, or start this one with --data-dir DIR and --port-base PORT"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock
        # Addresses left by a run that was killed point nowhere.
        self.addresses_file.unlink(missing_ok=True)
        self.logs.mkdir(exist_ok=True)
        self.reports.mkdir(exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Unlocks the directory and withdraws the addresses; the data stays."""
        self.addresses_file.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def addresses_file(self) -> Path:
        """Where the services listen, for the command line."""
        return self.path / "addresses.json"

    @property
    def postgres(self) -> Path:
        """The database's directory."""
        return self.path / "postgres"

    @property
    def logs(self) -> Path:
        """The processes' logs."""
        return self.path / "logs"

    @property
    def reports(self) -> Path:
        """The evenings' reports."""
        return self.path / "reports"

    def fresh_log(self, name: str) -> Path:
        """Returns the path of a process's log for this run; the previous run's is kept as .1."""
        path = self.logs / f"{name}.log"
        with contextlib.suppress(FileNotFoundError):
            path.replace(path.with_suffix(".log.1"))
        return path

    def publish_addresses(self, addresses: Mapping[str, object]) -> None:
        """Writes the addresses in one step, so a reader never sees half of them."""
        staged = self.addresses_file.with_suffix(".json.new")
        staged.write_text(json.dumps(dict(addresses), indent=2) + "\n")
        staged.replace(self.addresses_file)

    def _check_layout(self) -> None:
        marker = self.path / _MARKER
        if not marker.exists():
            if any(self.path.iterdir()):
                raise DataDirectoryUnusableError(
                    f"{self.path} is not empty and was not made by Gamekeeper; name a new or "
                    "empty directory with --data-dir"
                )
            marker.write_text(json.dumps({"layout": _LAYOUT}) + "\n")
            return
        try:
            layout = json.loads(marker.read_text())["layout"]
        except (ValueError, KeyError, TypeError):
            layout = "unreadable"
        if layout != _LAYOUT:
            raise DataDirectoryUnusableError(
                f"{self.path} has layout {layout}, this version has {_LAYOUT}; remove it, or name "
                "another directory with --data-dir"
            )
