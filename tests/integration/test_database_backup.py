"""Backups of a real server: taken under writers, restored to a moment, and proved."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from typer.testing import CliRunner

from gamekeeper.backup.errors import BackupError
from gamekeeper.backup.repository import BaseBackup, Repository
from gamekeeper.backup.restoring import restore, restore_embedded
from gamekeeper.backup.server import Programs, ServerAddress
from gamekeeper.backup.taking import stream_wal, take_backup
from gamekeeper.backup.verifying import verify
from gamekeeper.cli import app
from localsuite.postgres import EmbeddedPostgres

BACKUP_ROLE = Path(__file__).parents[2] / "deploy" / "images" / "postgres" / "backup-role.sql"
PATIENCE_SECONDS = 60.0
# The promise: what `backup stream` may lose, and how long until a server takes calls again.
RECOVERY_POINT_SECONDS = 1.0


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where PostgreSQL's account may go, unlike below pytest's own directory."""
    made = Path(tempfile.mkdtemp(prefix="gamekeeper-backup-"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def server(directory: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(directory / "postgres", durable=False) as server:
        server.create_database("game")
        server.execute(
            "CREATE TABLE notes (number bigint PRIMARY KEY, wrote timestamptz)", database="game"
        )
        yield server


@pytest.fixture
def repository(directory: Path) -> Repository:
    return Repository.create(directory / "backups")


@pytest.fixture
def programs() -> Programs:
    return Programs.find()


def address(server: EmbeddedPostgres) -> ServerAddress:
    return ServerAddress.of_embedded(server.location)


@contextmanager
def terminated(connection: asyncpg.Connection) -> Iterator[None]:
    try:
        yield
    finally:
        connection.terminate()


@dataclass
class Writer:
    """Writes numbered notes as fast as it may and keeps what was acknowledged when."""

    url: str
    acknowledged: list[datetime] = field(default_factory=list)
    _progress: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def run(self) -> None:
        connection = await asyncpg.connect(self.url)
        with (
            terminated(connection),
            # The server dies in the middle of a statement.
            suppress(
                asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError
            ),
        ):
            while True:
                await connection.execute(
                    "INSERT INTO notes VALUES ($1, clock_timestamp())", len(self.acknowledged)
                )
                self.acknowledged.append(datetime.now(UTC))
                async with self._progress:
                    self._progress.notify_all()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS), self._progress:
            await self._progress.wait_for(lambda: len(self.acknowledged) >= count)


@asynccontextmanager
async def writing(server: EmbeddedPostgres) -> AsyncIterator[Writer]:
    writer = Writer(server.url("game"))
    task = asyncio.create_task(writer.run())
    try:
        yield writer
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def streaming(
    server: EmbeddedPostgres, repository: Repository, programs: Programs
) -> AsyncIterator[None]:
    task = asyncio.create_task(stream_wal(address(server), repository, programs))
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while server.execute("SELECT count(*) FROM pg_stat_replication") == "0":
                assert not task.done(), task.exception()
                await asyncio.sleep(0.05)
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, BackupError):
            await task


def restored_notes(restored: EmbeddedPostgres) -> list[tuple[int, datetime]]:
    with restored:
        rows = restored.execute(
            "SELECT number || '|' || extract(epoch FROM wrote) FROM notes ORDER BY number",
            database="game",
        )
    return [
        (int(number), datetime.fromtimestamp(float(wrote), UTC))
        for number, wrote in (row.split("|") for row in rows.splitlines())
    ]


async def test_a_backup_taken_under_writers_is_proved_to_hold_what_was_there(
    server: EmbeddedPostgres, repository: Repository, programs: Programs
) -> None:
    async with writing(server) as writer:
        await writer.until(50)
        before = len(writer.acknowledged)
        taken = await take_backup(address(server), repository, programs)
        await writer.until(before + 100)  # nobody is locked out afterwards
    assert repository.backups() == [taken]
    assert taken.contents["game/public.notes"].rows >= before
    found = await verify(repository, taken, programs)
    assert found.differences == ()
    assert found.rows == sum(each.rows for each in taken.contents.values())


async def test_the_role_for_backups_is_enough(
    server: EmbeddedPostgres, repository: Repository, programs: Programs
) -> None:
    # As the image makes it; psql would put the password in.
    role = BACKUP_ROLE.read_text()
    server.execute(role, password="for a test")
    server.execute(
        "ALTER TABLE notes ENABLE ROW LEVEL SECURITY; ALTER TABLE notes FORCE ROW LEVEL SECURITY;"
        "INSERT INTO notes VALUES (1, now())",
        database="game",
    )
    backup_role = replace(address(server), user="gamekeeper_backup", password="for a test")
    taken = await take_backup(backup_role, repository, programs)
    assert taken.contents["game/public.notes"].rows == 1
    assert (await verify(repository, taken, programs)).differences == ()


async def test_a_restore_to_a_moment_has_what_was_committed_until_then_and_no_more(
    server: EmbeddedPostgres, repository: Repository, programs: Programs
) -> None:
    async with writing(server) as writer, streaming(server, repository, programs):
        await take_backup(address(server), repository, programs)
        await writer.until(len(writer.acknowledged) + 200)
        moment = datetime.now(UTC)
        await writer.until(len(writer.acknowledged) + 200)
        server.kill()
    acknowledged_before = sum(each <= moment for each in writer.acknowledged)
    shutil.rmtree(server.cluster)  # the disk is gone
    restore_embedded(repository, server.location, moment=moment)
    notes = restored_notes(server)
    numbers = [number for number, _ in notes]
    assert numbers == list(range(len(numbers)))
    # One more may have been committed before the moment and acknowledged after it.
    assert acknowledged_before <= len(numbers) <= acknowledged_before + 1
    assert all(wrote <= moment for _, wrote in notes)


@pytest.mark.endurance
async def test_with_the_log_streamed_a_lost_disk_loses_less_than_a_second(
    server: EmbeddedPostgres,
    repository: Repository,
    programs: Programs,
    record_property: Callable[[str, object], None],
) -> None:
    async with writing(server) as writer, streaming(server, repository, programs):
        await take_backup(address(server), repository, programs)
        await writer.until(len(writer.acknowledged) + 200)
        server.kill()
    shutil.rmtree(server.cluster)
    began = time.monotonic()
    restore_embedded(repository, server.location)
    with server:
        back_seconds = time.monotonic() - began
    count = len(restored_notes(server))
    newest = writer.acknowledged[-1]
    lost = writer.acknowledged[count:]
    lost_seconds = (newest - lost[0]).total_seconds() if lost else 0.0
    figures = {
        "acknowledged": len(writer.acknowledged),
        "lost": len(lost),
        "recovery point, s": round(lost_seconds, 3),
        "recovery time, s": round(back_seconds, 2),
    }
    record_property("figures", figures)
    print(figures)
    assert lost_seconds < RECOVERY_POINT_SECONDS


@pytest.mark.endurance
async def test_a_server_goes_on_being_backed_up_after_it_was_restored(
    server: EmbeddedPostgres, repository: Repository, programs: Programs
) -> None:
    await take_backup(address(server), repository, programs)
    server.stop()
    kept = restore_embedded(repository, server.location).replaced
    assert kept is not None
    assert (kept / "PG_VERSION").is_file()
    with server:
        server.execute("INSERT INTO notes VALUES (7, now())", database="game")
        taken = await take_backup(address(server), repository, programs)
    assert (await verify(repository, taken, programs)).differences == ()
    assert taken.contents["game/public.notes"].rows == 1


async def test_a_damaged_backup_is_not_restored(
    server: EmbeddedPostgres, repository: Repository, programs: Programs, directory: Path
) -> None:
    taken = await take_backup(address(server), repository, programs)
    archive = repository.directory_of(taken.name) / "base.tar.gz"
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(BackupError, match="damaged"):
        restore(repository, directory / "restored")
    assert not (directory / "restored").exists()


@pytest.mark.endurance
async def test_contents_that_differ_are_told_by_table(
    server: EmbeddedPostgres, repository: Repository, programs: Programs
) -> None:
    server.execute("INSERT INTO notes VALUES (1, now())", database="game")
    taken = await take_backup(address(server), repository, programs)
    wrong = {**taken.contents}
    wrong["game/public.notes"] = type(wrong["game/public.notes"])(1, "5")
    wrong["game/public.gone"] = wrong["game/public.notes"]
    told = BaseBackup(
        **{name: getattr(taken, name) for name in taken.__slots__ if name != "contents"},
        contents=wrong,
    )
    assert (await verify(repository, told, programs)).differences == (
        "game/public.gone is missing",
        "game/public.notes held 1 rows and holds 1, or others",
    )


@pytest.mark.endurance
async def test_what_only_serves_older_moments_is_pruned(
    server: EmbeddedPostgres, repository: Repository, programs: Programs
) -> None:
    taken = []
    for number in ("1", "2", "3"):
        server.execute(
            "INSERT INTO notes VALUES (:'number', now())", database="game", number=number
        )
        taken.append(await take_backup(address(server), repository, programs))
    gone = repository.prune(taken[1].stop_time + timedelta(seconds=0.1))
    assert taken[0].name in gone
    assert repository.backups() == taken[1:]
    # What is left still restores, the older of them too.
    for each in taken[1:]:
        assert (await verify(repository, each, programs)).differences == ()


def test_a_directory_without_backups_is_refused(directory: Path) -> None:
    with pytest.raises(BackupError, match="holds no backups"):
        Repository.open(directory)


def test_a_restore_before_the_first_backup_says_since_when_it_can(
    repository: Repository, directory: Path
) -> None:
    with pytest.raises(BackupError, match="holds no complete backup"):
        restore(repository, directory / "restored")


async def test_a_running_database_is_not_replaced(
    server: EmbeddedPostgres, repository: Repository, programs: Programs
) -> None:
    await take_backup(address(server), repository, programs)
    with pytest.raises(BackupError, match="stop the suite first"):
        restore_embedded(repository, server.location)
    assert server.execute("SELECT count(*) FROM notes", database="game") == "0"


def test_an_operator_backs_up_proves_lists_and_restores_from_the_command_line(
    server: EmbeddedPostgres, directory: Path
) -> None:
    def gamekeeper(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == code, result.output
        return result.output

    repository, embedded = str(directory / "backups"), str(server.location)
    server.execute("INSERT INTO notes VALUES (1, now())", database="game")
    assert "1 tables, 1 rows" in gamekeeper("backup", "create", repository, "--embedded", embedded)
    assert "holds what was backed up" in gamekeeper("verify", repository)
    gamekeeper("backup", "prune", repository)
    assert "stop the suite first" in gamekeeper(
        "restore", repository, "--embedded", embedded, code=1
    )
    server.execute("DELETE FROM notes", database="game")
    server.stop()
    assert "is kept in" in gamekeeper("restore", repository, "--embedded", embedded)
    with server:
        assert server.execute("SELECT count(*) FROM notes", database="game") == "1"
    listed = gamekeeper("backup", "list", repository).splitlines()
    assert len(listed) == 3
    assert "30 days after the next base backup" in listed[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["backup", "create", "there"], "name the server"),
        (["restore", "there"], "holds no backups"),
        (["restore", "there", "--to", "yesterday"], "is no moment"),
        (["backup", "list", "there"], "holds no backups"),
    ],
)
def test_a_wrong_command_says_what_to_do(directory: Path, arguments: list[str], words: str) -> None:
    there = str(directory / "there")
    result = CliRunner().invoke(app, [there if each == "there" else each for each in arguments])
    assert result.exit_code in (1, 2)
    assert words in result.output
