"""Where backups lie, and which of them serves a restore.

    <repository>/
      gamekeeper-backups.json       marks the directory and names its replication slot
      base/<name>/                  one base backup: base.tar.gz, pg_wal.tar.gz, backup_manifest
      base/<name>/backup.json       what it is; written last, so a directory without it is no backup
      wal/<line>/                   the write-ahead log, in lines without gaps: a new one begins
                                    when the server no longer has what would continue the last

A backup's name is its start, `20260131T235959.000000Z`. Nothing here talks to a server.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from gamekeeper.backup.errors import BackupError

__all__ = ["BaseBackup", "Repository", "TableContents"]

_MARKER = "gamekeeper-backups.json"
_RECORD = "backup.json"
_LAYOUT = 1
# PostgreSQL's names of WAL files: timeline, log and segment, eight hexadecimal digits each.
_WAL_SEGMENT = re.compile(r"^[0-9A-F]{24}(\.partial)?$")
_TIMELINE_DIGITS = 8
_SEGMENT_DIGITS = 24


@dataclass(frozen=True, slots=True)
class TableContents:
    """How many rows a table has, and the sum of the first 64 bits of their MD5."""

    rows: int
    checksum: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseBackup:
    """One base backup.

    Attributes:
        name: its directory, and its start in UTC.
        system_identifier: of the cluster, the same in all its backups.
        postgres_version: as `server_version_num` has it, for example 180004.
        user: the role that took it, which a verification uses too.
        start_time, stop_time: a restore can reach every moment from `stop_time` on.
        start_wal: the first WAL segment a restore needs, without its timeline.
        wal_line: the line in which that segment and all later ones are.
        size_bytes: of its files.
        restore_point: names a moment just after `stop_time`, in the WAL.
        contents: of each table by `database/schema.table`, at that moment.
    """

    name: str
    system_identifier: str
    postgres_version: int
    user: str
    start_time: datetime
    stop_time: datetime
    start_wal: str
    wal_line: str
    size_bytes: int
    restore_point: str
    contents: Mapping[str, TableContents]

    @property
    def major_version(self) -> int:
        """PostgreSQL's major version, which must be that of the programs that restore it."""
        return self.postgres_version // 10_000


class Repository:
    """A directory of backups of one cluster."""

    def __init__(self, path: Path, slot: str) -> None:
        self.path = path
        self.slot = slot

    @classmethod
    def create(cls, path: Path) -> Self:
        """Returns the repository at `path`, made when there is none.

        Raises BackupError when the directory cannot be written or holds something else.
        """
        if (path / _MARKER).is_file():
            return cls.open(path)
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise BackupError(
                    f"{path} is not empty and no repository of backups; name a new directory"
                )
            (path / "base").mkdir(mode=0o700)
            (path / "wal").mkdir(mode=0o700)
            slot = f"gamekeeper_backup_{secrets.token_hex(4)}"
            _write(path / _MARKER, {"layout": _LAYOUT, "slot": slot})
        except OSError as error:
            raise BackupError(f"{path} cannot be written: {error.strerror}") from error
        return cls(path, slot)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Returns the repository at `path`. Raises BackupError when there is none."""
        try:
            marker = json.loads((path / _MARKER).read_text())
        except FileNotFoundError:
            raise BackupError(
                f"{path} holds no backups; make some with `gamekeeper backup create`"
            ) from None
        except (OSError, ValueError) as error:
            raise BackupError(f"{path / _MARKER} cannot be read: {error}") from error
        if marker.get("layout") != _LAYOUT:
            raise BackupError(f"{path} was made by another version of gamekeeper; use that one")
        return cls(path, marker["slot"])

    def wal_line(self) -> str | None:
        """Returns the newest line of WAL, None when there is none."""
        return max((each.name for each in (self.path / "wal").iterdir()), default=None)

    def begin_wal_line(self) -> str:
        """Begins a line of WAL and returns its name."""
        newest = self.wal_line()
        name = f"{int(newest or 0) + 1:04}"
        self.wal_directory(name).mkdir(mode=0o700)
        return name

    def wal_directory(self, line: str) -> Path:
        """Where a line of WAL is archived."""
        return self.path / "wal" / line

    def directory_of(self, name: str) -> Path:
        """Where the files of a base backup are."""
        return self.path / "base" / name

    def backups(self) -> list[BaseBackup]:
        """Returns the complete base backups, oldest first. Raises BackupError on a broken one."""
        found = []
        for record in sorted(self.path.glob(f"base/*/{_RECORD}")):
            try:
                found.append(_backup(json.loads(record.read_text())))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise BackupError(f"{record} cannot be read: {error}") from error
        return found

    def record(self, backup: BaseBackup) -> None:
        """Makes a base backup count, now that all its files are there."""
        _write(
            self.directory_of(backup.name) / _RECORD,
            {
                **asdict(backup),
                "start_time": backup.start_time.isoformat(),
                "stop_time": backup.stop_time.isoformat(),
            },
        )

    def newest_before(self, moment: datetime | None) -> BaseBackup:
        """Returns the backup from which a restore to `moment` (None: the latest) starts.

        Raises BackupError when there is none.
        """
        backups = self.backups()
        fitting = [each for each in backups if moment is None or each.stop_time <= moment]
        if fitting:
            return fitting[-1]
        if backups and moment is not None:
            raise BackupError(
                f"no backup is older than {moment.isoformat()}; the earliest moment that can be "
                f"restored is {backups[0].stop_time.isoformat()}"
            )
        raise BackupError(f"{self.path} holds no complete backup yet")

    def named(self, name: str) -> BaseBackup:
        """Returns the backup of this name. Raises BackupError when there is none."""
        for each in self.backups():
            if each.name == name:
                return each
        raise BackupError(f"there is no backup {name}; see `gamekeeper backup list {self.path}`")

    def wal_since(self, backup: BaseBackup) -> dict[str, Path]:
        """Returns the WAL files a restore from `backup` may read, by the name the server asks for.

        The segment that was being received counts as a whole one: its end is zeros.
        """
        files: dict[str, Path] = {}
        for path in sorted(self.wal_directory(backup.wal_line).iterdir()):
            if path.suffix == ".history":
                files[path.name] = path
            elif _WAL_SEGMENT.match(path.name):
                name = path.name[:_SEGMENT_DIGITS]
                # Sorted: a whole segment comes before the same one's partial file.
                if name[_TIMELINE_DIGITS:] >= backup.start_wal and name not in files:
                    files[name] = path
        return files

    def prune(self, before: datetime) -> list[str]:
        """Removes what only restores to moments before `before` need; returns what went.

        The newest backup always stays, and so does the newest that is older than `before`: it is
        the one from which that moment itself is restored.
        """
        backups = self.backups()
        older = [each for each in backups if each.stop_time <= before]
        gone = [each.name for each in older[:-1]]
        for name in gone:
            # First the record, so that no half-removed backup counts.
            (self.directory_of(name) / _RECORD).unlink()
            shutil.rmtree(self.directory_of(name))
        kept = [each for each in backups if each.name not in gone]
        for line in sorted((self.path / "wal").iterdir()):
            needed = [each.start_wal for each in kept if each.wal_line == line.name]
            if not needed and line.name == self.wal_line():
                continue  # it may be being written
            for path in sorted(line.iterdir()):
                segment = path.name[_TIMELINE_DIGITS:_SEGMENT_DIGITS]
                if not needed or (_WAL_SEGMENT.match(path.name) and segment < min(needed)):
                    path.unlink()
                    gone.append(f"{line.name}/{path.name}")
            if not needed:
                line.rmdir()
        return gone


def _backup(document: Mapping[str, Any]) -> BaseBackup:
    return BaseBackup(
        **{
            **document,
            "start_time": datetime.fromisoformat(document["start_time"]).astimezone(UTC),
            "stop_time": datetime.fromisoformat(document["stop_time"]).astimezone(UTC),
            "contents": {
                table: TableContents(**contents) for table, contents in document["contents"].items()
            },
        }
    )


def _write(path: Path, document: Mapping[str, Any]) -> None:
    """Writes the whole document or none of it."""
    partial = path.with_suffix(".partial")
    with partial.open("w") as file:
        json.dump(document, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
