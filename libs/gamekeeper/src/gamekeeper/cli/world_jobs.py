"""Commands about worlds as wholes: archive, fork, export, import, erase, their jobs, watching."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from gamekeeper.cli.failures import EXIT_USAGE
from gamekeeper.cli.session import (
    DEFAULT_TIMEOUT_SECONDS,
    OutputFormat,
    OutputOption,
    Session,
    TimeoutOption,
    fail,
    message_json,
)
from gamekeeper.cli.wording import enum_words, moment
from gamekeeper.cli.worlds import WorldArgument, world_request
from gamekeeper.world_files import NotAWorldFileError, export_world, import_world
from gaming.knowledge_base.v1 import (
    world_changes_pb2,
    world_jobs_pb2,
    world_records_pb2,
    worlds_pb2,
)
from servicekit.clock import SystemClock
from servicekit.watching import watch

__all__ = [
    "world_archive",
    "world_cancel",
    "world_erase",
    "world_export",
    "world_fork",
    "world_import",
    "world_jobs",
    "world_unarchive",
    "world_watch",
]

_FILE_TIMEOUT_SECONDS = 1800.0
_JOB_TIMEOUT_SECONDS = 1800.0
_POLL_SECONDS = 0.2
_EXIT_FAILED_JOB = 1

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help="The file.")]
WaitOption = Annotated[bool, typer.Option(help="Wait for the job's end.")]


def world_archive(
    context: typer.Context,
    *,
    name: WorldArgument,
    output: OutputOption = OutputFormat.TABLE,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Make a world read-only.

    Example:
      gamekeeper world archive Hollowmere
    """
    _set_archived(Session.of(context, output, timeout_seconds=timeout), name, archived=True)


def world_unarchive(
    context: typer.Context,
    *,
    name: WorldArgument,
    output: OutputOption = OutputFormat.TABLE,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Let an archived world be written to again.

    Example:
      gamekeeper world unarchive Hollowmere
    """
    _set_archived(Session.of(context, output, timeout_seconds=timeout), name, archived=False)


def world_fork(
    context: typer.Context,
    *,
    name: WorldArgument,
    new_name: Annotated[str, typer.Argument(help="Unique name of the copy.")],
    before: Annotated[
        datetime | None,
        typer.Option(help="Only what happened before this moment of the story (UTC)."),
    ] = None,
    subscription: Annotated[
        bool, typer.Option(help="The copy takes from the event bus what the world takes.")
    ] = False,
    wait: WaitOption = True,
    output: OutputOption = OutputFormat.TABLE,
    timeout: TimeoutOption = _JOB_TIMEOUT_SECONDS,
) -> None:
    """Copy a world, as it is or as it was at a moment of its story.

    Examples:
      gamekeeper world fork Hollowmere "Hollowmere, retold"

      gamekeeper world fork Hollowmere "Before the bell" --before 2026-03-01T20:00:00
    """
    session = Session.of(context, output, timeout_seconds=timeout)
    request = world_jobs_pb2.ForkWorldRequest(
        world_id=_world_id(session, name),
        name=new_name,
        end_time=None if before is None else _stamp(before),
        with_subscription=subscription,
        request_id=str(uuid.uuid4()),
    )
    job = session.call("knowledge_base", "ForkWorld", request).job
    _show_job(session, _finished(session, job, "copying") if wait else job)


def world_export(
    context: typer.Context,
    *,
    name: WorldArgument,
    file: FileArgument,
    output: OutputOption = OutputFormat.TABLE,
    timeout: TimeoutOption = _FILE_TIMEOUT_SECONDS,
) -> None:
    """Write everything a world holds to a file, for `world import` here or elsewhere.

    Example:
      gamekeeper world export Hollowmere hollowmere.world
    """
    session = Session.of(context, output, timeout_seconds=timeout)
    world_id = _world_id(session, name)

    async def write(hear: Callable[[int, int], None]) -> world_records_pb2.WorldTrailer:
        async with session.open("knowledge_base") as channel:
            return await export_world(
                session.stub("knowledge_base", channel),
                world_id,
                file,
                timeout_seconds=timeout,
                hear=hear,
            )

    trailer = _with_progress(session, "writing", write)
    session.emit(
        trailer,
        lambda told: session.console.print(
            f"wrote {sum(told.row_counts.values()):,} rows to {escape(str(file))}"
        ),
    )


def world_import(
    context: typer.Context,
    *,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="An exported world.")],
    name: Annotated[str, typer.Option(help="Its name here; else as it was.")] = "",
    keep_id: Annotated[
        bool, typer.Option("--keep-id", help="It keeps the id it had; refused when that is in use.")
    ] = False,
    output: OutputOption = OutputFormat.TABLE,
    timeout: TimeoutOption = _FILE_TIMEOUT_SECONDS,
) -> None:
    """Take in a world that was exported, all of it or nothing.

    Example:
      gamekeeper world import hollowmere.world --name "Hollowmere, restored"
    """
    session = Session.of(context, output, timeout_seconds=timeout)
    begin = world_records_pb2.ImportBegin(
        name=name, keep_world_id=keep_id, request_id=str(uuid.uuid4())
    )

    async def read(hear: Callable[[int, int], None]) -> world_records_pb2.ImportWorldResponse:
        async with session.open("knowledge_base") as channel:
            return await import_world(
                session.stub("knowledge_base", channel),
                file,
                begin,
                timeout_seconds=timeout,
                hear=hear,
            )

    try:
        answer = _with_progress(session, "sending", read)
    except NotAWorldFileError as error:
        fail(str(error), exit_code=EXIT_USAGE)
    session.emit(
        answer,
        lambda told: session.console.print(
            f"took in {escape(told.world.name)}: {told.imported_rows:,} rows, "
            f"{told.embedded_texts:,} texts embedded anew  [dim]{told.world.world_id}[/dim]"
        ),
    )


def world_erase(
    context: typer.Context,
    *,
    name: WorldArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    rewrite_tables: Annotated[
        bool,
        typer.Option(
            "--rewrite-tables",
            help="Also write the tables' files anew; each is locked meanwhile, for all worlds.",
        ),
    ] = False,
    wait: WaitOption = True,
    output: OutputOption = OutputFormat.TABLE,
    timeout: TimeoutOption = _JOB_TIMEOUT_SECONDS,
) -> None:
    """Remove a world and every trace of it, for good.

    Example:
      gamekeeper world erase Hollowmere
    """
    session = Session.of(context, output, timeout_seconds=timeout)
    found = session.call("knowledge_base", "GetWorld", world_request(name)).world
    if not yes:
        typer.confirm(
            f"Erase {found.name} ({found.world_id}) with its {found.event_count:,} events? "
            "Nothing brings it back",
            abort=True,
            err=True,
        )
    request = world_jobs_pb2.EraseWorldRequest(
        world_id=found.world_id, rewrite_tables=rewrite_tables, request_id=str(uuid.uuid4())
    )
    job = session.call("knowledge_base", "EraseWorld", request).job
    _show_job(session, _finished(session, job, "erasing") if wait else job)


def world_jobs(
    context: typer.Context,
    *,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Only jobs that have not ended.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most this many.")] = 20,
    output: OutputOption = OutputFormat.TABLE,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """List forks, erasures and imports, newest first.

    Example:
      gamekeeper world jobs --unfinished
    """
    session = Session.of(context, output, timeout_seconds=timeout)

    def render(answer: world_jobs_pb2.ListJobsResponse) -> None:
        table = Table(box=None, padding=(0, 1))
        for heading in ("kind", "state", "rows", "asked for", "world", "job"):
            table.add_column(heading)
        for job in answer.jobs:
            table.add_row(
                _kind(job),
                _state(job),
                f"{job.done_rows:,}/{job.total_rows:,}",
                moment(job.create_time),
                job.world_id,
                job.job_id,
            )
        session.console.print(table)

    request = world_jobs_pb2.ListJobsRequest(page_size=limit, unfinished_only=unfinished)
    session.show("knowledge_base", "ListJobs", request, render)


def world_cancel(
    context: typer.Context,
    *,
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")],
    output: OutputOption = OutputFormat.TABLE,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """End a fork or an import and remove what it has made.

    Example:
      gamekeeper world cancel 3f2b8c1e-8f5e-4d0a-9a57-0f2f3f4b5c6d
    """
    session = Session.of(context, output, timeout_seconds=timeout)
    request = world_jobs_pb2.CancelJobRequest(job_id=job_id)
    _show_job(session, session.call("knowledge_base", "CancelJob", request).job)


def world_watch(
    context: typer.Context,
    *,
    name: WorldArgument,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show what changes in a world as it changes, until Ctrl-C.

    Example:
      gamekeeper world watch Hollowmere
    """
    session = Session.of(context, output)
    world_id = _world_id(session, name)

    def hear(step: world_changes_pb2.WatchWorldResponse) -> None:
        if not step.HasField("change"):
            return
        if session.as_json:
            session.emit_json(message_json(step), one_line=True)
            return
        change = step.change
        kind = enum_words(world_changes_pb2.WorldChangeKind.Name(change.kind), "WORLD_CHANGE_KIND_")
        session.console.print(
            f"[dim]{moment(change.record_time)}[/dim] {change.number:>6} {kind}  "
            f"[dim]{change.subject_id}[/dim]"
        )

    session.stream(
        "knowledge_base",
        lambda stub: watch(
            lambda token: stub.WatchWorld(
                world_changes_pb2.WatchWorldRequest(world_id=world_id, resume_token=token)
            ),
            token_of=lambda step: step.resume_token,
            clock=SystemClock(),
            name="world",
        ),
        hear,
    )


def _set_archived(session: Session, name: str, *, archived: bool) -> None:
    request_type = worlds_pb2.ArchiveWorldRequest if archived else worlds_pb2.UnarchiveWorldRequest
    request = request_type(world_id=_world_id(session, name), request_id=str(uuid.uuid4()))
    session.show(
        "knowledge_base",
        "ArchiveWorld" if archived else "UnarchiveWorld",
        request,
        lambda answer: session.console.print(
            f"{escape(answer.world.name)} is "
            + ("read-only" if answer.world.HasField("archive_time") else "written to again")
        ),
    )


def _world_id(session: Session, name: str) -> str:
    found: str = session.call("knowledge_base", "GetWorld", world_request(name)).world.world_id
    return found


def _finished(session: Session, job: Any, doing: str) -> Any:
    """Waits for a job's end, showing how far it is."""

    async def wait(hear: Callable[[int, int], None]) -> Any:
        request = world_jobs_pb2.GetJobRequest(job_id=job.job_id)
        async with asyncio.timeout(session.timeout_seconds):
            while True:
                now = (await session.ask("knowledge_base", "GetJob", request)).job
                hear(now.done_rows, now.total_rows)
                if now.HasField("end_time"):
                    return now
                await asyncio.sleep(_POLL_SECONDS)

    try:
        return _with_progress(session, doing, wait)
    except TimeoutError:
        fail(f"job {job.job_id} goes on; see `gamekeeper world jobs`", exit_code=_EXIT_FAILED_JOB)


def _show_job(session: Session, job: Any) -> None:
    def render(told: world_jobs_pb2.Job) -> None:
        words = f"{_kind(told)} {_state(told)}, {told.done_rows:,} rows"
        if told.result_world_id:
            words += f"  [dim]world {told.result_world_id}[/dim]"
        session.console.print(f"{words}  [dim]job {told.job_id}[/dim]")
        if told.HasField("erasure"):
            report = told.erasure
            if told.HasField("end_time") and not report.HasField("storage_gone_time"):
                session.console.print("dead rows stay in the tables until they are next vacuumed")
            session.console.print(f"backups may hold it until {moment(report.backups_gone_time)}")

    session.emit(job, render)
    if job.state == world_jobs_pb2.JOB_STATE_FAILED:
        fail(f"the job failed: {job.failure_reason}", exit_code=_EXIT_FAILED_JOB)


def _kind(job: world_jobs_pb2.Job) -> str:
    return enum_words(world_jobs_pb2.JobKind.Name(job.kind), "JOB_KIND_")


def _state(job: world_jobs_pb2.Job) -> str:
    return enum_words(world_jobs_pb2.JobState.Name(job.state), "JOB_STATE_")


def _with_progress(
    session: Session,
    doing: str,
    work: Callable[[Callable[[int, int], None]], Coroutine[Any, Any, Any]],
) -> Any:
    with _bar(doing, shown=not session.as_json) as hear:
        return session.run("knowledge_base", work(hear))


@contextmanager
def _bar(doing: str, *, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, where a person looks at it; it is told rows done and in all."""
    errors = Console(stderr=True, highlight=False)
    with Progress(
        TextColumn(doing),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not (shown and errors.is_terminal),
    ) as progress:
        task = progress.add_task(doing, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)


def _stamp(when: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(when)
    return stamp
