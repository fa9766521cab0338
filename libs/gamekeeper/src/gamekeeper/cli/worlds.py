"""Commands about worlds and what they remember."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

import typer
from google.protobuf.message import Message
from rich.markup import escape
from rich.table import Table

from gamekeeper.cli.session import (
    DEFAULT_TIMEOUT_SECONDS,
    GrpcurlOption,
    OutputFormat,
    OutputOption,
    Session,
    TimeoutOption,
)
from gamekeeper.cli.wording import moment
from gaming.knowledge_base.v1 import story_pb2, worlds_pb2

__all__ = ["WorldArgument", "show_for_world", "world", "world_request"]

world = typer.Typer(help="Worlds and their memory.", no_args_is_help=True)

WorldArgument = Annotated[str, typer.Argument(metavar="WORLD", help="The world's name or id.")]

# Stands in a printed request where the shell puts the id that an earlier command found.
_WORLD_MARKER = "@WORLD-ID@"


@world.command("create")
def world_create(
    context: typer.Context,
    *,
    name: Annotated[str, typer.Argument(help="Unique name.")],
    description: Annotated[str, typer.Option(help="What it is, for people.")] = "",
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Make a world with a memory of its own.

    Example:
      gamekeeper world create Hollowmere --description "Tuesday's group"
    """
    session = Session.of(context, output, grpcurl, timeout)
    request = worlds_pb2.CreateWorldRequest(
        name=name, description=description, request_id=str(uuid.uuid4())
    )
    session.show(
        "knowledge_base",
        "CreateWorld",
        request,
        lambda answer: session.console.print(
            f"made {escape(answer.world.name)}  [dim]{answer.world.world_id}[/dim]"
        ),
    )


@world.command("list")
def world_list(
    context: typer.Context,
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most this many.")] = 100,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """List the worlds.

    Example:
      gamekeeper world list -o json
    """
    session = Session.of(context, output, grpcurl, timeout)

    def render(answer: worlds_pb2.ListWorldsResponse) -> None:
        table = Table(box=None, padding=(0, 1))
        for heading in ("name", "events", "made", "id", "description"):
            table.add_column(heading)
        for each in answer.worlds:
            table.add_row(
                escape(each.name),
                f"{each.event_count:,}",
                moment(each.create_time),
                each.world_id,
                escape(each.description),
            )
        session.console.print(table)

    request = worlds_pb2.ListWorldsRequest(page_size=limit)
    session.show("knowledge_base", "ListWorlds", request, render)


@world.command("show")
def world_show(
    context: typer.Context,
    *,
    name: WorldArgument,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Show one world.

    Example:
      gamekeeper world show Hollowmere
    """
    session = Session.of(context, output, grpcurl, timeout)

    def render(answer: worlds_pb2.GetWorldResponse) -> None:
        each = answer.world
        session.console.print(
            f"[bold]{escape(each.name)}[/bold]  {escape(each.description)}\n"
            f"{each.event_count:,} events since {moment(each.create_time)}  "
            f"[dim]{each.world_id}[/dim]"
        )

    session.show("knowledge_base", "GetWorld", world_request(name), render)


@world.command("events")
def world_events(
    context: typer.Context,
    *,
    name: WorldArgument,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most this many.")] = 20,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """List what happened in a world, newest first.

    Example:
      gamekeeper world events Hollowmere --limit 5
    """
    session = Session.of(context, output, grpcurl, timeout)

    def render(answer: story_pb2.ListEventsResponse) -> None:
        for event in answer.events:
            _print_event(session, event)
        if not answer.events:
            session.console.print("nothing has happened yet")

    show_for_world(
        session,
        name,
        "ListEvents",
        lambda world_id: story_pb2.ListEventsRequest(world_id=world_id, page_size=limit),
        render,
    )


@world.command("recall")
def world_recall(
    context: typer.Context,
    *,
    name: WorldArgument,
    query: Annotated[str, typer.Argument(help="What is looked for, in plain words.")],
    limit: Annotated[int, typer.Option(min=1, max=100, help="At most this many.")] = 5,
    who: Annotated[
        list[str] | None, typer.Option(help="Only events with this one in it; may be repeated.")
    ] = None,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Recall what of a world's past matters to a question, best first.

    Example:
      gamekeeper world recall Hollowmere "who owes us a favour"
    """
    session = Session.of(context, output, grpcurl, timeout)

    def render(answer: story_pb2.RecallResponse) -> None:
        for memory in answer.events:
            note = (
                f"score {memory.score:.2f} = relevance {memory.relevance:.2f}, "
                f"recency {memory.recency:.2f}"
            )
            _print_event(session, memory.event, note)
        if not answer.events:
            session.console.print("nothing comes to mind")

    show_for_world(
        session,
        name,
        "Recall",
        lambda world_id: story_pb2.RecallRequest(
            world_id=world_id, query=query, limit=limit, participants=who or []
        ),
        render,
    )


@world.command("record")
def world_record(
    context: typer.Context,
    *,
    name: WorldArgument,
    text: Annotated[str, typer.Argument(help="What happened, in plain words.")],
    kind: Annotated[str, typer.Option(help="Kind of event, for example battle.")] = "event",
    who: Annotated[list[str] | None, typer.Option(help="Who took part; may be repeated.")] = None,
    importance: Annotated[float, typer.Option(min=0.0, max=1.0, help="How much it matters.")] = 0.5,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Record an event in a world's memory.

    Example:
      gamekeeper world record Hollowmere "Mara lent her name to the bell" --who Mara
    """
    session = Session.of(context, output, grpcurl, timeout)
    event = story_pb2.StoryEvent(
        text=text, kind=kind, participants=who or [], importance=importance
    )
    request_id = str(uuid.uuid4())

    def render(answer: story_pb2.RecordEventsResponse) -> None:
        for each in answer.events:
            session.console.print(f"recorded  [dim]{each.event_id}[/dim]")

    show_for_world(
        session,
        name,
        "RecordEvents",
        lambda world_id: story_pb2.RecordEventsRequest(
            world_id=world_id, events=[event], request_id=request_id
        ),
        render,
    )


def show_for_world(session: Session, name: str, method: str, request: Any, render: Any) -> None:
    """Calls a method that takes a world's id; a name is looked up first."""
    if _is_id(name):
        session.show("knowledge_base", method, request(name), render)
    elif session.grpcurl:
        # One command finds the id, the second one uses it.
        session.print_grpcurl(
            "knowledge_base",
            "GetWorld",
            world_request(name),
            before='world_id="$(',
            after=""" | sed -n 's/.*"worldId": "\\([^"]*\\)".*/\\1/p')\"""",
        )
        session.print_grpcurl(
            "knowledge_base",
            method,
            request(_WORLD_MARKER),
            substitutions={_WORLD_MARKER: "world_id"},
        )
    else:
        found = session.call("knowledge_base", "GetWorld", world_request(name))
        session.show("knowledge_base", method, request(found.world.world_id), render)


def world_request(name: str) -> Message:
    """Returns the request for a world by its id or name."""
    if _is_id(name):
        return worlds_pb2.GetWorldRequest(world_id=name)
    return worlds_pb2.GetWorldRequest(name=name)


def _is_id(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def _print_event(session: Session, event: story_pb2.StoryEvent, note: str = "") -> None:
    when = event.occur_time if event.HasField("occur_time") else event.record_time
    who = f" ({', '.join(event.participants)})" if event.participants else ""
    session.console.print(
        f"[dim]{moment(when)}[/dim] [cyan]{escape(event.kind)}[/cyan]{escape(who)}  "
        f"{escape(event.text)}  [dim]{note}[/dim]",
        soft_wrap=True,
    )
