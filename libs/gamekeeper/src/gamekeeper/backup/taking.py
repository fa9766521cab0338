"""Takes base backups and archives the write-ahead log."""

from __future__ import annotations

import asyncio
import shutil
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import asyncpg

from gamekeeper.backup.contents import mark_contents
from gamekeeper.backup.errors import BackupError
from gamekeeper.backup.repository import BaseBackup, Repository
from gamekeeper.backup.server import Programs, ServerAddress

__all__ = ["stream_wal", "take_backup"]

_NAME = "%Y%m%dT%H%M%S.%fZ"
_RECEIVE_SECONDS = 300.0
_STOP_SECONDS = 10.0
_SLOT_IS_LOST = "lost"

_SERVER = """
SELECT (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier,
    current_setting('server_version_num')::integer AS version,
    current_setting('wal_level') AS wal_level,
    (SELECT count(*) FROM pg_tablespace WHERE pg_tablespace_location(oid) <> '') AS tablespaces
"""
_SLOT = """
SELECT active, wal_status, restart_lsn >= $2::text::pg_lsn AS received
FROM pg_replication_slots WHERE slot_name = $1
"""


async def take_backup(
    server: ServerAddress, repository: Repository, programs: Programs, *, progress: bool = False
) -> BaseBackup:
    """Takes a base backup of the running server, with the checksums a verification compares.

    Writers go on meanwhile; they wait for milliseconds at its end. Nothing of a backup that did not
    come to its end is left.

    Raises BackupError, also for a server whose settings do not allow a backup.
    """
    start = datetime.now(UTC)
    name = start.strftime(_NAME)
    directory = repository.directory_of(name)
    try:
        connection = await _connect(server)
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        raise BackupError(
            f"{server.host}:{server.port} cannot be reached as {server.user}: {error}"
        ) from error
    try:
        found = await _check_server(connection, repository, programs)
        line = await _ensure_slot(connection, repository)
        try:
            await asyncio.to_thread(
                programs.run,
                server,
                "pg_basebackup",
                *("-D", str(directory), "-F", "tar", "-z", "-X", "stream", "-c", "fast"),
                *("--manifest-checksums=SHA256", "-l", f"gamekeeper {name}"),
                *(("--progress",) if progress else ()),
                progress=progress,
            )
            stop = datetime.now(UTC)
            marked = await mark_contents(server, f"gamekeeper-{name}")
            # Completes the segment, so that the named moment is flushed and can be received.
            await connection.fetchval("SELECT pg_switch_wal()")
            await _receive_until(
                connection, server, repository, programs, line=line, lsn=marked.lsn
            )
            backup = BaseBackup(
                name=name,
                system_identifier=found["system_identifier"],
                postgres_version=found["version"],
                user=server.user,
                start_time=start,
                stop_time=stop,
                start_wal=await asyncio.to_thread(_start_wal, directory),
                wal_line=line,
                size_bytes=sum(path.stat().st_size for path in directory.iterdir()),
                restore_point=f"gamekeeper-{name}",
                contents=marked.contents,
            )
            repository.record(backup)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        else:
            return backup
    except asyncpg.PostgresError as error:
        raise BackupError(f"PostgreSQL refused: {error}") from error
    finally:
        await connection.close(timeout=_STOP_SECONDS)


async def stream_wal(server: ServerAddress, repository: Repository, programs: Programs) -> None:
    """Archives the WAL as it is written, until cancelled; reconnects by itself.

    What the server has flushed is on the repository's disk within milliseconds, so this is what may
    be lost with the server's disk. It serves restores from base backups that were taken before and
    whose line of WAL it goes on with; after a restore a new base backup is needed.

    Raises BackupError when the program ends by itself, as it does when another one is at work.
    """
    connection = await _connect(server)
    try:
        line = await _ensure_slot(connection, repository)
    finally:
        await connection.close(timeout=_STOP_SECONDS)
    process = await asyncio.create_subprocess_exec(
        *programs.command(
            "pg_receivewal",
            *server.connection_arguments(),
            *("-D", str(repository.wal_directory(line)), "-S", repository.slot),
            *("--synchronous", "--status-interval=1"),
        ),
        env=dict(server.environment()),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=sys.stderr,
    )
    try:
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            with suppress(TimeoutError):
                async with asyncio.timeout(_STOP_SECONDS):
                    await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
    raise BackupError(f"pg_receivewal ended with {code}; is another one at work here?")


async def _check_server(
    connection: asyncpg.Connection, repository: Repository, programs: Programs
) -> asyncpg.Record:
    found = await connection.fetchrow(_SERVER)
    if found["wal_level"] == "minimal":
        raise BackupError("the server's wal_level is minimal; set it to replica and restart it")
    if found["tablespaces"]:
        raise BackupError("the server has tablespaces outside its directory, which are not covered")
    major = await asyncio.to_thread(programs.major_version)
    if major < found["version"] // 10_000:
        raise BackupError(
            f"{programs.directory} holds PostgreSQL {major}'s programs and the server is "
            f"{found['version'] // 10_000}; name its own with --programs"
        )
    others = [
        each
        for each in repository.backups()
        if each.system_identifier != found["system_identifier"]
    ]
    if others:
        raise BackupError(
            f"{repository.path} holds backups of another cluster; name a directory of its own"
        )
    return found


async def _ensure_slot(connection: asyncpg.Connection, repository: Repository) -> str:
    """Makes the server keep WAL until it is archived; returns the line it is archived in."""
    slot = repository.slot
    row = await connection.fetchrow(_SLOT, slot, "0/0")
    if row is not None and row["wal_status"] == _SLOT_IS_LOST:
        # It fell too far behind (max_slot_wal_keep_size). The coming base backup needs nothing of
        # what is missing.
        await connection.execute("SELECT pg_drop_replication_slot($1)", slot)
        row = None
    line = repository.wal_line()
    if row is None or line is None:
        # The line before, if any, ends here: what came between may be lost.
        line = repository.begin_wal_line()
    if row is None:
        await connection.execute("SELECT pg_create_physical_replication_slot($1, true)", slot)
    return line


async def _receive_until(
    connection: asyncpg.Connection,
    server: ServerAddress,
    repository: Repository,
    programs: Programs,
    *,
    line: str,
    lsn: str,
) -> None:
    """Returns once the WAL up to `lsn` is archived, by this process or the one that streams."""
    async with asyncio.timeout(_RECEIVE_SECONDS):
        while True:
            row = await connection.fetchrow(_SLOT, repository.slot, lsn)
            if row["received"]:
                return
            if row["active"]:
                await asyncio.sleep(0.2)
                continue
            await asyncio.to_thread(
                programs.run,
                server,
                "pg_receivewal",
                *("-D", str(repository.wal_directory(line)), "-S", repository.slot),
                *("--endpos", lsn, "--no-loop", "--synchronous"),
                progress=False,
            )
            return


def _start_wal(directory: Path) -> str:
    """Returns the first WAL segment a backup needs, without its timeline, from its own label."""
    import tarfile  # noqa: PLC0415  # used here alone

    with tarfile.open(directory / "base.tar.gz") as archive:
        label = archive.extractfile("backup_label")
        if label is None:
            raise BackupError(f"{directory} lacks its backup_label")
        for line in label.read().decode().splitlines():
            if line.startswith("START WAL LOCATION:"):
                return line.rsplit("file ", 1)[1].rstrip(")")[8:]
    raise BackupError(f"{directory}: its backup_label names no WAL file")


async def _connect(server: ServerAddress) -> asyncpg.Connection:
    return await asyncpg.connect(
        host=server.host,
        port=server.port,
        user=server.user,
        password=server.password or None,
        database=server.database,
        timeout=_STOP_SECONDS,
        server_settings={"application_name": "gamekeeper_backup"},
    )
