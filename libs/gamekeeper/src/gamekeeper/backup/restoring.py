"""Lays a backup out as a cluster that recovers to a moment when PostgreSQL is started on it."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from gamekeeper.backup.accounts import give_away, unprivileged_account
from gamekeeper.backup.errors import BackupError
from gamekeeper.backup.repository import BaseBackup, Repository

__all__ = ["RestoredCluster", "restore", "restore_embedded"]

_READ_BYTES = 1024 * 1024
_ARCHIVES = {"base.tar.gz": PurePosixPath(), "pg_wal.tar.gz": PurePosixPath("pg_wal")}


@dataclass(frozen=True, slots=True)
class RestoredCluster:
    """A cluster that is laid out, not started.

    Attributes:
        replaced: where the cluster that was in its place is now, None when there was none.
    """

    backup: BaseBackup
    cluster: Path
    replaced: Path | None = None


def restore(
    repository: Repository,
    cluster: Path,
    *,
    moment: datetime | None = None,
    backup: BaseBackup | None = None,
    restore_point: str | None = None,
) -> RestoredCluster:
    """Makes `cluster` a data directory that recovers when it is started.

    Every file is checked against the backup's SHA-256 manifest. The WAL it needs lies in it, so the
    server's account needs no access to the repository.

    Args:
        repository: where the backups are.
        cluster: a new or empty directory.
        moment: recover what was committed until then; None: everything that was archived.
        backup: start from this one; default: the newest that is older than `moment`.
        restore_point: recover to this named moment instead.

    Raises BackupError; `cluster` is then as it was.
    """
    if cluster.exists() and (not cluster.is_dir() or any(cluster.iterdir())):
        raise BackupError(f"{cluster} is not empty; name a new directory")
    chosen = backup or repository.newest_before(moment)
    partial = cluster.with_name(f"{cluster.name}.restoring")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(mode=0o700, parents=True)
        directory = repository.directory_of(chosen.name)
        for name, below in _ARCHIVES.items():
            _extract(directory / name, partial / below)
        _check_manifest(directory / "backup_manifest", partial)
        for name, path in repository.wal_since(chosen).items():
            shutil.copyfile(path, partial / "pg_wal" / name)
        _tell_recovery(partial, moment, restore_point)
        if cluster.exists():
            cluster.rmdir()
        partial.rename(cluster)
    except OSError as error:
        raise BackupError(f"{cluster} cannot be restored: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return RestoredCluster(chosen, cluster)


def restore_embedded(
    repository: Repository, data_directory: Path, *, moment: datetime | None = None
) -> RestoredCluster:
    """Puts a restored cluster in the place of an embedded database's; the old one is kept beside.

    Raises BackupError when the server runs or the directory is not an embedded database's.
    """
    cluster = data_directory / "cluster"
    if not (data_directory / "superuser-password").is_file():
        raise BackupError(f"{data_directory} is no embedded database of the suite")
    if (cluster / "postmaster.pid").exists():
        raise BackupError(
            f"a server runs on {cluster}, or was killed on it; stop the suite first, and remove "
            f"{cluster / 'postmaster.pid'} if no process of PostgreSQL is left"
        )
    restored = restore(repository, data_directory / "cluster-restored", moment=moment)
    replaced = None
    if os.geteuid() == 0:
        # The account that ran the server, as far as there is something of it.
        account = unprivileged_account()
        owner = cluster.stat() if cluster.exists() else None
        give_away(
            restored.cluster,
            owner.st_uid if owner else account.pw_uid,
            owner.st_gid if owner else account.pw_gid,
        )
    if cluster.exists():
        replaced = data_directory / f"cluster-before-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
        cluster.rename(replaced)
    restored.cluster.rename(cluster)
    return RestoredCluster(restored.backup, cluster, replaced)


def _extract(archive: Path, target: Path) -> None:
    try:
        with tarfile.open(archive) as files:
            for member in files:
                name = PurePosixPath(member.name)
                # Not left to tarfile's filters, which Python has since 3.11.4 only.
                if (
                    not (member.isreg() or member.isdir())
                    or name.is_absolute()
                    or ".." in name.parts
                ):
                    raise BackupError(f"{archive} holds {member.name}, which no backup holds")
                place = target / name
                if member.isdir():
                    place.mkdir(exist_ok=True, parents=True)
                    continue
                place.parent.mkdir(exist_ok=True, parents=True)
                content = files.extractfile(member)
                if content is not None:  # it is a file, checked above
                    with content, place.open("wb") as file:
                        shutil.copyfileobj(content, file, _READ_BYTES)
    except FileNotFoundError:
        raise BackupError(f"{archive} is missing; this backup cannot be restored") from None
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BackupError(f"{archive} is damaged: {error}") from error
    for path in (target, *target.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)


def _check_manifest(manifest: Path, cluster: Path) -> None:
    """Compares every file with the checksum PostgreSQL took of it during the backup."""
    try:
        document = json.loads(manifest.read_text())
    except (OSError, ValueError) as error:
        raise BackupError(f"{manifest} cannot be read: {error}") from error
    for entry in document["Files"]:
        encoded = entry.get("Encoded-Path")
        name = entry["Path"] if encoded is None else os.fsdecode(bytes.fromhex(encoded))
        try:
            sha256 = _sha256(cluster / name)
        except FileNotFoundError:
            raise BackupError(f"the backup {manifest.parent} lacks {name}") from None
        if sha256 != entry["Checksum"]:
            raise BackupError(f"the backup {manifest.parent} is damaged: {name} is not as it was")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        read: Callable[[], bytes] = lambda: file.read(_READ_BYTES)  # noqa: E731  # for iter()
        for block in iter(read, b""):
            digest.update(block)
    return digest.hexdigest()


def _tell_recovery(cluster: Path, moment: datetime | None, restore_point: str | None) -> None:
    """Writes what PostgreSQL reads at its start (its documentation, "Recovery Target")."""
    lines = [
        "",
        "# Restored from a backup. The WAL lies in pg_wal; nothing is fetched.",
        "restore_command = 'false'",
        "recovery_target_action = 'promote'",
        "recovery_target_timeline = 'latest'",
    ]
    if restore_point is not None:
        lines.append(f"recovery_target_name = '{restore_point}'")
    elif moment is not None:
        lines.append(f"recovery_target_time = '{moment.astimezone(UTC).isoformat(sep=' ')}'")
    with (cluster / "postgresql.auto.conf").open("a") as settings:
        settings.write("\n".join(lines) + "\n")
    (cluster / "recovery.signal").touch()
