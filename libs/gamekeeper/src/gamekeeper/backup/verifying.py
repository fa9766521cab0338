"""Proves a backup: restores it somewhere, starts a server on it, and compares what it holds."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from gamekeeper.backup.accounts import give_away, unprivileged_account
from gamekeeper.backup.contents import contents_of
from gamekeeper.backup.errors import BackupError
from gamekeeper.backup.repository import BaseBackup, Repository
from gamekeeper.backup.restoring import restore
from gamekeeper.backup.server import Programs, ServerAddress

__all__ = ["Verification", "verify"]

_PORT = 5432  # names the socket; nothing listens on the network
_POLL_SECONDS = 0.1
_STOP_SECONDS = 30.0
_LOG_LINES = 12
# Changes the account in a process of its own, before PostgreSQL takes its place.
_AS_ACCOUNT = """
import os, sys
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[1]))
os.execv(sys.argv[3], sys.argv[3:])
"""
# Nobody but the account and root passes the directory of the socket.
_SETTINGS = """
listen_addresses = ''
unix_socket_directories = '{directory}'
unix_socket_permissions = 0700
hba_file = '{directory}/pg_hba.conf'
dynamic_shared_memory_type = mmap
hot_standby = off
archive_mode = off
autovacuum = off
fsync = off
max_wal_size = 1GB
"""


@dataclass(frozen=True, slots=True)
class Verification:
    """What a restored backup held.

    Attributes:
        differences: sentences on tables that are not as they were; empty when all are.
        recovery_seconds: from the beginning of the restore until the server took connections.
    """

    backup: BaseBackup
    tables: int
    rows: int
    differences: tuple[str, ...]
    recovery_seconds: float


async def verify(
    repository: Repository,
    backup: BaseBackup,
    programs: Programs,
    *,
    scratch: Path | None = None,
    timeout_seconds: float = 3600.0,
) -> Verification:
    """Restores `backup`, starts PostgreSQL on it, and compares every table with what it was.

    Args:
        repository: where the backups are.
        backup: one of them.
        programs: PostgreSQL's, of the same major version.
        scratch: where to; the space of the cluster is needed. Default: the temporary directory.
        timeout_seconds: how long recovery and comparison may take.

    Raises BackupError when it cannot be restored at all.
    """
    if programs.major_version() != backup.major_version:
        raise BackupError(
            f"the backup is of PostgreSQL {backup.major_version} and {programs.directory} holds "
            f"{programs.major_version()}'s programs; name the right ones with --programs"
        )
    directory = Path(tempfile.mkdtemp(prefix="gamekeeper-verify-", dir=scratch))
    try:
        started = time.monotonic()
        cluster = directory / "cluster"
        await asyncio.to_thread(
            restore, repository, cluster, backup=backup, restore_point=backup.restore_point
        )
        process = await _start(programs, directory, cluster)
        try:
            address = ServerAddress(str(directory), _PORT, backup.user, "", "postgres")
            async with asyncio.timeout(timeout_seconds):
                await _until_ready(process, address, directory / "log")
                recovery_seconds = time.monotonic() - started
                found = await contents_of(address)
        finally:
            await _stop(process)
    except TimeoutError:
        raise BackupError(f"the backup was not verified within {timeout_seconds:g} s") from None
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    differences = []
    for table in sorted(backup.contents.keys() | found.keys()):
        was, is_now = backup.contents.get(table), found.get(table)
        if was is None or is_now is None:
            differences.append(f"{table} {'is new' if was is None else 'is missing'}")
        elif was != is_now:
            differences.append(f"{table} held {was.rows} rows and holds {is_now.rows}, or others")
    rows = sum(each.rows for each in found.values())
    return Verification(backup, len(found), rows, tuple(differences), recovery_seconds)


async def _start(programs: Programs, directory: Path, cluster: Path) -> asyncio.subprocess.Process:
    (directory / "pg_hba.conf").write_text("local all all trust\n")
    settings = directory / "postgresql.conf"
    settings.write_text(_SETTINGS.format(directory=directory))
    command = programs.command(
        "postgres", "-D", str(cluster), "-p", str(_PORT), "-c", f"config_file={settings}"
    )
    if os.geteuid() == 0:
        account = unprivileged_account()
        give_away(directory, account.pw_uid, account.pw_gid)
        identity = (str(account.pw_uid), str(account.pw_gid))
        command = [sys.executable, "-I", "-S", "-c", _AS_ACCOUNT, *identity, *command]
    with (directory / "log").open("wb") as log:
        return await asyncio.create_subprocess_exec(
            *command, cwd="/", stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
        )


async def _until_ready(
    process: asyncio.subprocess.Process, address: ServerAddress, log: Path
) -> None:
    while True:
        if process.returncode is not None:
            raise BackupError(f"PostgreSQL did not recover from the backup:\n{_end_of(log)}")
        try:
            connection = await asyncpg.connect(
                host=address.host,
                port=address.port,
                user=address.user,
                database=address.database,
                timeout=5.0,
            )
        except (OSError, asyncpg.CannotConnectNowError, TimeoutError):
            await asyncio.sleep(_POLL_SECONDS)
        else:
            await connection.close()
            return


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGINT)  # PostgreSQL calls this a fast shutdown
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
