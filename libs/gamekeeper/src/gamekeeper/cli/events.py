"""`gamekeeper events`: the game's event bus. The AWS SDK is loaded when a command runs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gamekeeper.addresses import bus_of_run
from gamekeeper.cli.failures import (
    EXIT_FAILED,
    EXIT_NOT_FOUND,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
)
from gamekeeper.cli.session import OutputFormat, OutputOption, fail
from servicekit.errors import InvalidRequest, ServiceError, Unavailable
from servicekit.settings import SettingsError, load_settings

if TYPE_CHECKING:
    from gamekeeper.cli.event_bus import DeadLetter, Redriven
    from gaming.events.events_pb2 import GameEvent
    from messaging.settings import MessagingSettings

__all__ = ["events"]

_MISSING_QUEUES = ("NonExistentQueue", "QueueDoesNotExist")
_MISSING = (*_MISSING_QUEUES, "NotFound", "NotFoundException")
_SETTINGS_ADVICE = (
    "set GAMEKEEPER_EVENTS_TOPIC_ARN (and AWS_REGION, AWS credentials, AWS_ENDPOINT_URL for a "
    "local AWS), or start the suite here with `gamekeeper up`"
)

events = typer.Typer(
    name="events",
    help="The game's event bus: publish, watch, and look after what could not be read.",
    epilog="Where the bus is: the GAMEKEEPER_EVENTS_* and AWS_* variables, as for the services; "
    "without them the local run that is up.",
    no_args_is_help=True,
)
dead_letters = typer.Typer(
    name="dlq", help="Messages that a queue's reader could not handle.", no_args_is_help=True
)
events.add_typer(dead_letters, name="dlq")

QueueArgument = Annotated[
    str,
    typer.Argument(
        metavar="[QUEUE]",
        help="Name or URL of the queue whose dead letters are meant; default: "
        "GAMEKEEPER_EVENTS_QUEUE_URL.",
    ),
]
ReasonOption = Annotated[
    str,
    typer.Option(
        metavar="REASON",
        help="Only those with this reason, for example bad_payload; received_too_often are those "
        "whose handling kept failing.",
    ),
]


@events.command("publish")
def publish(
    *,
    event_type: Annotated[
        str,
        typer.Argument(
            metavar="TYPE", help="For example weather.changed; see `gamekeeper events types`."
        ),
    ],
    data: Annotated[
        str,
        typer.Argument(help="The payload's fields as JSON; @FILE reads a file, - standard input."),
    ] = "{}",
    source: Annotated[str, typer.Option(help="Which service publishes it.")] = "gamekeeper-cli",
    world: Annotated[
        str, typer.Option(metavar="WORLD_ID", help="Only for this world; default: for all.")
    ] = "",
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Annotation; may be repeated.")
    ] = None,
    event_id: Annotated[
        str, typer.Option(help="Publish under this id, to repeat an event; default: a new UUID.")
    ] = "",
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Publish an event to the game's topic.

    Examples:
      gamekeeper events publish weather.changed '{"old_state": "clear", "new_state": "storm"}'

      gamekeeper events publish world_state.updated '{"state": {"players_online": "812"}}'
    """
    from gamekeeper.cli import event_bus  # noqa: PLC0415  # loads the AWS SDK

    try:
        event = event_bus.event_of(
            event_type,
            _json_object(data),
            source=source,
            event_id=event_id,
            metadata={**_pairs(metadata or []), **({"world_id": world} if world else {})},
        )
    except ValueError as error:
        fail(str(error), exit_code=EXIT_USAGE)
    settings = _settings(needs_topic=True)
    _run(output, lambda: event_bus.publish(settings, event))
    if output is OutputFormat.JSON:
        _print_json(event_bus.event_json(event))
    else:
        typer.echo(f"published {event_type}  {event.event_id}")


@events.command("types")
def types(*, output: OutputOption = OutputFormat.TABLE) -> None:
    """List the event types with the fields of their payloads."""
    from gaming.events.events_pb2 import EventType  # noqa: PLC0415  # as above
    from messaging.event_types import payload_type_of, text_of  # noqa: PLC0415  # as they are used

    rows = []
    for number in EventType.values():
        payload, text = payload_type_of(number), text_of(number)
        if text is not None:
            fields = [field.name for field in payload.DESCRIPTOR.fields] if payload else []
            rows.append((text, number, payload.DESCRIPTOR.name if payload else "", fields))
    if output is OutputFormat.JSON:
        keys = ("event_type", "number", "payload", "fields")
        _print_json([dict(zip(keys, row, strict=True)) for row in rows], one_line=False)
        return
    table = Table(box=None)
    for heading in ("type", "number", "payload", "fields"):
        table.add_column(heading)
    for text, number, name, fields in rows:
        table.add_row(text, str(number), name or "none", ", ".join(fields))
    _console().print(table)


@events.command("tail")
def tail(
    *,
    event_type: Annotated[
        list[str] | None,
        typer.Option("--type", metavar="TYPE", help="Only this type; may be repeated."),
    ] = None,
    count: Annotated[int, typer.Option(min=0, help="End after so many; 0: at Ctrl-C.")] = 0,
    seconds: Annotated[float, typer.Option(min=0.0, help="End after so long; 0: at Ctrl-C.")] = 0.0,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show events as they are published, one a line, until Ctrl-C.

    It makes a queue of its own for that, which nobody else reads, and removes it at the end.

    Example:
      gamekeeper events tail --type capacity.changed --type gpu.alert -o json
    """
    from gamekeeper.cli import event_bus  # noqa: PLC0415  # loads the AWS SDK

    def show(event: GameEvent) -> None:
        if output is OutputFormat.JSON:
            _print_json(event_bus.event_json(event))
            return
        line = event_bus.event_line(event)
        _console().print(
            f"[dim]{line.time}[/dim] [cyan]{escape(line.event_type)}[/cyan] "
            f"{escape(line.source)}  {escape(line.details)}  [dim]{escape(event.event_id)}[/dim]",
            soft_wrap=True,
        )
        sys.stdout.flush()

    settings = _settings(needs_topic=True)
    try:
        types_of = event_bus.known_types(event_type or [])
    except ValueError as error:
        fail(str(error), exit_code=EXIT_USAGE)
    _run(
        output,
        lambda: event_bus.tail(
            settings,
            types_of,
            show,
            count=count,
            seconds=seconds,
            on_ready=lambda queue: typer.echo(f"listening with the queue {queue}", err=True),
        ),
    )


@dead_letters.command("list")
def list_dead_letters(
    *,
    queue: QueueArgument = "",
    reason: ReasonOption = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most this many.")] = 100,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List a queue's dead letters with the reason of each; they stay where they are.

    Example:
      gamekeeper events dlq list knowledge-base-events
    """
    from gamekeeper.cli import event_bus  # noqa: PLC0415  # loads the AWS SDK

    settings = _settings(needs_topic=False)
    found: list[DeadLetter] = _run(
        output, lambda: event_bus.list_dead_letters(settings, queue, reason=reason, limit=limit)
    )
    if output is OutputFormat.JSON:
        _print_json([letter.as_json() for letter in found], one_line=False)
        return
    if not found:
        typer.echo("no dead letters" + (f" with the reason {reason}" if reason else ""))
        return
    table = Table(box=None)
    for heading in ("message", "reason", "type", "source", "event", "body"):
        table.add_column(heading)
    for each in found:
        table.add_row(
            each.message_id,
            each.reason,
            escape(each.event_type),
            escape(each.source),
            escape(each.event_id),
            escape(each.body if len(each.body) <= 40 else f"{each.body[:39]}…"),
        )
    _console().print(table)


@dead_letters.command("redrive")
def redrive(
    *,
    queue: QueueArgument = "",
    reason: ReasonOption = "",
    limit: Annotated[
        int, typer.Option(min=0, help="At most this many; 0: all that are there now.")
    ] = 0,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Put a queue's dead letters back into it, to be handled again; tells how many.

    Each is sent before it is deleted here: when something fails in between it may be there twice,
    which readers recognise by its event id, but never not at all.

    Examples:
      gamekeeper events dlq redrive knowledge-base-events --reason received_too_often

      gamekeeper events dlq redrive knowledge-base-events --limit 1
    """
    from gamekeeper.cli import event_bus  # noqa: PLC0415  # loads the AWS SDK

    settings = _settings(needs_topic=False)
    done: Redriven = _run(
        output, lambda: event_bus.redrive(settings, queue, reason=reason, limit=limit)
    )
    if output is OutputFormat.JSON:
        _print_json(done.as_json())
    else:
        typer.echo(f"{done.sent} put back, {done.left} left as dead letters, {done.failed} failed")
    if done.failed:
        raise typer.Exit(EXIT_FAILED)


def _settings(*, needs_topic: bool) -> MessagingSettings:
    """Returns where the bus is; the local run is asked only when the environment names none."""
    from messaging.settings import MessagingSettings  # noqa: PLC0415  # as it is used

    named = os.environ.get("GAMEKEEPER_EVENTS_TOPIC_ARN") or os.environ.get(
        "GAMEKEEPER_EVENTS_QUEUE_URL"
    )
    if not named and not os.environ.get("AWS_ENDPOINT_URL"):
        os.environ.update(bus_of_run())
    try:
        settings = load_settings(MessagingSettings, os.environ)
    except SettingsError as error:
        fail("; ".join(error.problems), exit_code=EXIT_USAGE)
    if needs_topic and not settings.publishes:
        fail("no event bus is named", advice=_SETTINGS_ADVICE, exit_code=EXIT_USAGE)
    return settings


def _run(output: OutputFormat, work: Callable[[], Awaitable[Any]]) -> Any:
    """Runs a command's work to its end, or to Ctrl-C or SIGTERM with everything tidied up."""

    async def until_told() -> Any:
        task = asyncio.ensure_future(work())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None

    from gamekeeper.cli.event_bus import UnknownQueue  # noqa: PLC0415  # loads the AWS SDK

    try:
        return asyncio.run(until_told())
    except UnknownQueue as error:
        _fail(output, str(error), "", "NOT_FOUND", EXIT_NOT_FOUND)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except ServiceError as error:
        code = error.metadata.get("error_code", "")
        if any(code.endswith(word) for word in _MISSING):
            what = "queue" if code.endswith(_MISSING_QUEUES) else "topic or queue"
            advice = "check its name, AWS_REGION, and that you mean this account"
            _fail(output, f"there is no such {what}", advice, error.reason, EXIT_NOT_FOUND)
        sentence = error.message.rstrip(".")
        if isinstance(error, Unavailable):
            advice = "check AWS_ENDPOINT_URL, AWS credentials and the network, then try again"
            _fail(output, sentence, advice, error.reason, EXIT_UNREACHABLE)
        if isinstance(error, InvalidRequest):
            _fail(output, sentence, "", error.reason, EXIT_USAGE)
        advice = "check AWS credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID) and their permissions"
        _fail(output, sentence, advice, error.reason, EXIT_FAILED)


def _fail(output: OutputFormat, sentence: str, advice: str, reason: str, exit_code: int) -> None:
    if output is OutputFormat.JSON:
        error = {"reason": reason, "message": sentence, "advice": advice}
        sys.stderr.write(json.dumps({"error": error}, ensure_ascii=False) + "\n")
        raise typer.Exit(exit_code)
    fail(sentence, advice=advice, exit_code=exit_code)


def _json_object(data: str) -> dict[str, Any]:
    if data == "-":
        text = sys.stdin.read()
    elif data.startswith("@"):
        try:
            text = Path(data[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{data[1:]} cannot be read: {error}") from None
    else:
        text = data
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the payload is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise ValueError("the payload must be a JSON object of the type's fields")  # noqa: TRY004  # for the caller
    return document


def _pairs(texts: list[str]) -> Mapping[str, str]:
    pairs = [text.partition("=") for text in texts]
    for key, separator, _ in pairs:
        if not key or not separator:
            raise ValueError("metadata is given as KEY=VALUE")
    return {key: value for key, _, value in pairs}


def _print_json(document: object, *, one_line: bool = True) -> None:
    indent = None if one_line else 2
    sys.stdout.write(json.dumps(document, indent=indent, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)
