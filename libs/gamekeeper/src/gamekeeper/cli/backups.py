"""`gamekeeper backup`, `restore` and `verify`: the database's backups."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from gamekeeper.backup.errors import BackupError
from gamekeeper.backup.repository import Repository
from gamekeeper.backup.restoring import restore, restore_embedded
from gamekeeper.backup.retention import erased_data
from gamekeeper.backup.server import Programs, ServerAddress
from gamekeeper.cli.failures import EXIT_FAILED, EXIT_USAGE
from gamekeeper.cli.session import fail

__all__ = ["backup", "restore_command", "verify_command"]

T = TypeVar("T")

_URL_VARIABLE = "GAMEKEEPER_BACKUP_DATABASE_URL"
_TOLD_VARIABLE = "KNOWLEDGE_BASE_BACKUP_RETENTION_DAYS"
_MEBIBYTE = 1024 * 1024

RepositoryArgument = Annotated[Path, typer.Argument(help="The directory with the backups.")]
UrlOption = Annotated[
    str,
    typer.Option(
        "--database-url",
        envvar=_URL_VARIABLE,
        help="The server, as a role that may replicate and read every table.",
    ),
]
EmbeddedOption = Annotated[
    Path | None,
    typer.Option(
        "--embedded", metavar="DIR", help="The embedded database instead, e.g. .var/postgres."
    ),
]
ProgramsOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="PostgreSQL's programs; default: PATH, else the embedded."),
]

KeepDaysOption = Annotated[
    int, typer.Option(min=1, help="Every moment of this many days stays restorable.")
]
ToldDaysOption = Annotated[
    int,
    typer.Option(
        "--told-days",
        min=0,
        envvar=_TOLD_VARIABLE,
        help="After how many days the knowledge base says that no backup holds an erased world.",
    ),
]

backup = typer.Typer(
    name="backup",
    help="Back up the database: base backups and the log of every change after them.",
    no_args_is_help=True,
)


@backup.command("create")
def create(
    repository: RepositoryArgument,
    *,
    database_url: UrlOption = "",
    embedded: EmbeddedOption = None,
    programs: ProgramsOption = None,
) -> None:
    """Take a base backup of the running server.

    Everything committed before it ends can be restored from it; with `gamekeeper backup stream`
    running, every second after that too.

    Examples:
      gamekeeper backup create /backups/gamekeeper --embedded .var/postgres

      gamekeeper backup create /backups/gamekeeper --database-url postgresql://backup@db:5432/game
    """
    from gamekeeper.backup.taking import take_backup  # noqa: PLC0415  # needs the extra

    with _explained():
        taken = _run(
            take_backup(
                _server(database_url, embedded),
                Repository.create(repository),
                Programs.find(programs),
                progress=sys.stderr.isatty(),
            )
        )
    rows = sum(each.rows for each in taken.contents.values())
    typer.echo(
        f"{taken.name}: {taken.size_bytes / _MEBIBYTE:.1f} MiB, {len(taken.contents)} tables, "
        f"{rows} rows, in {(taken.stop_time - taken.start_time).total_seconds():.1f} s"
    )


@backup.command("stream")
def stream(
    repository: RepositoryArgument,
    *,
    database_url: UrlOption = "",
    embedded: EmbeddedOption = None,
    programs: ProgramsOption = None,
) -> None:
    """Archive every change as it is written, until SIGTERM or Ctrl-C.

    Run it beside the database all the time, on another machine: what it has not received is lost
    with the database's disk, which is milliseconds of changes. SIGTERM ends it with exit code 0.

    Examples:
      gamekeeper backup stream /backups/gamekeeper --embedded .var/postgres
    """
    from gamekeeper.backup.taking import stream_wal  # noqa: PLC0415  # needs the extra

    with _explained():
        _run_until_terminated(
            stream_wal(
                _server(database_url, embedded),
                Repository.create(repository),
                Programs.find(programs),
            )
        )


@backup.command("list")
def list_backups(
    repository: RepositoryArgument,
    *,
    keep_days: KeepDaysOption = 30,
    told_days: ToldDaysOption = 35,
) -> None:
    """Show the backups, since when every moment can be restored, and how long they hold the erased.

    Examples:
      gamekeeper backup list /backups/gamekeeper
    """
    with _explained():
        opened = Repository.open(repository)
        backups = opened.backups()
    table = Table(box=None)
    for heading in ("backup", "restores from", "MiB", "tables", "rows", "PostgreSQL"):
        table.add_column(heading)
    for each in backups:
        table.add_row(
            each.name,
            each.stop_time.isoformat(timespec="seconds"),
            f"{each.size_bytes / _MEBIBYTE:.1f}",
            str(len(each.contents)),
            str(sum(contents.rows for contents in each.contents.values())),
            str(each.major_version),
        )
    Console(highlight=False).print(table)
    _tell_of_erased_data(opened, keep_days, told_days)


@backup.command("prune")
def prune(
    repository: RepositoryArgument,
    *,
    keep_days: KeepDaysOption = 30,
    told_days: ToldDaysOption = 35,
) -> None:
    """Remove what only serves older moments; what was erased from worlds ages out with it.

    The base backup from which the oldest of these moments is restored stays, so what was erased
    is gone a while after KEEP_DAYS: the time between two base backups, and until the next prune.

    Examples:
      gamekeeper backup prune /backups/gamekeeper --keep-days 30
    """
    with _explained():
        opened = Repository.open(repository)
        gone = opened.prune(datetime.now(UTC) - timedelta(days=keep_days))
        typer.echo("\n".join(gone) if gone else "nothing is older than that")
        _tell_of_erased_data(opened, keep_days, told_days)


def _tell_of_erased_data(repository: Repository, keep_days: int, told_days: int) -> None:
    """Says until when backups hold what is erased now, and warns when that is later than told."""
    erased = erased_data(
        repository.backups(),
        datetime.now(UTC),
        keep=timedelta(days=keep_days),
        told=timedelta(days=told_days),
    )
    if erased is None:
        return
    if erased.gone_time is not None and erased.between_backups is not None:
        typer.echo(
            f"what is erased now is in backups until a prune after {_minute(erased.gone_time)}: "
            f"{keep_days} days after the next base backup "
            f"(the longest wait for one was {_days(erased.between_backups)})"
        )
    else:
        typer.echo(
            "what is erased now is in backups until a prune "
            f"{keep_days} days after the next base backup"
        )
    if erased.overdue:
        typer.echo(
            f"warning: a base backup was due by {_minute(erased.next_backup_by)}; what was erased "
            f"since the newest is in backups longer than the {told_days} days told "
            f"({_TOLD_VARIABLE}); take one now",
            err=True,
        )


def _minute(moment: datetime) -> str:
    return moment.isoformat(timespec="minutes")


def _days(span: timedelta) -> str:
    return f"{span / timedelta(days=1):.1f} days"


def restore_command(
    repository: RepositoryArgument,
    target: Annotated[
        Path | None, typer.Argument(help="A new directory for the cluster; not with --embedded.")
    ] = None,
    *,
    to: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="Restore what was committed until then, e.g. 2026-01-31T20:15:00+00:00.",
        ),
    ] = "",
    embedded: EmbeddedOption = None,
) -> None:
    """Restore the database as it was at a moment, by default the latest that was archived.

    Lays the files out and checks each; PostgreSQL recovers when it is started on them. The cluster
    that was in an embedded database's place is kept beside it.

    Examples:
      gamekeeper restore /backups/gamekeeper --embedded .var/postgres --to 2026-01-31T20:15:00Z

      gamekeeper restore /backups/gamekeeper /var/lib/postgresql/restored
    """
    moment = _moment(to)
    with _explained():
        opened = Repository.open(repository)
        if embedded is not None and target is None:
            restored = restore_embedded(opened, embedded.resolve(), moment=moment)
            follow = "start the suite: the database recovers first"
        elif target is not None and embedded is None:
            restored = restore(opened, target.resolve(), moment=moment)
            follow = "give it to PostgreSQL's account and start the server on it"
        else:
            fail("name a directory, or else --embedded DIR", exit_code=EXIT_USAGE)
    typer.echo(f"{restored.cluster} is laid out from backup {restored.backup.name}; {follow}")
    if restored.replaced is not None:
        typer.echo(f"the cluster before is kept in {restored.replaced}")


def verify_command(
    repository: RepositoryArgument,
    name: Annotated[str, typer.Argument(help="Which backup; default: the newest.")] = "",
    *,
    programs: ProgramsOption = None,
    scratch: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where to restore to; default: the temporary directory."),
    ] = None,
) -> None:
    """Prove a backup: restore it aside, start PostgreSQL on it, and compare every table.

    Exit code 1 when anything is not as it was.

    Examples:
      gamekeeper verify /backups/gamekeeper
    """
    from gamekeeper.backup.verifying import verify  # noqa: PLC0415  # needs the extra

    with _explained():
        opened = Repository.open(repository)
        chosen = opened.named(name) if name else opened.newest_before(None)
        found = _run(verify(opened, chosen, Programs.find(programs), scratch=scratch))
    if found.differences:
        fail(
            f"backup {chosen.name} is not what was backed up: {'; '.join(found.differences)}",
            exit_code=EXIT_FAILED,
        )
    typer.echo(
        f"{chosen.name} holds what was backed up: {found.tables} tables, {found.rows} rows, "
        f"restored and recovered in {found.recovery_seconds:.1f} s"
    )


class _explained:  # noqa: N801  # reads as a statement
    """Ends the command with a sentence for what goes wrong inside."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, BackupError):
            fail(str(error), exit_code=EXIT_FAILED)


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def _run_until_terminated(work: Coroutine[Any, Any, None]) -> None:
    """Runs a service's work until SIGTERM, and returns when it has tidied up after itself."""

    async def until_told() -> None:
        task = asyncio.ensure_future(work)
        told = asyncio.Event()

        def end() -> None:
            told.set()
            task.cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end)
        try:
            await task
        except asyncio.CancelledError:
            if not told.is_set():  # but by Ctrl-C
                raise

    asyncio.run(until_told())


def _server(database_url: str, embedded: Path | None) -> ServerAddress:
    if embedded is not None:
        return ServerAddress.of_embedded(embedded)
    if not database_url:
        fail(
            "name the server with --database-url or --embedded",
            advice=f"{_URL_VARIABLE} keeps the password out of the process list",
            exit_code=EXIT_USAGE,
        )
    return ServerAddress.of_url(database_url)


def _moment(text: str) -> datetime | None:
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        fail(
            f"{text!r} is no moment",
            advice="write it like 2026-01-31T20:15:00+00:00",
            exit_code=EXIT_USAGE,
        )
    # Without an offset it is the operator's own wall clock.
    return moment.astimezone(UTC)
