"""Commands about what a world takes from the game's event bus."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.markup import escape

from gamekeeper.cli.failures import EXIT_USAGE
from gamekeeper.cli.session import (
    DEFAULT_TIMEOUT_SECONDS,
    GrpcurlOption,
    OutputFormat,
    OutputOption,
    Session,
    TimeoutOption,
    fail,
)
from gamekeeper.cli.worlds import WorldArgument, show_for_world
from gaming.knowledge_base.v1 import subscriptions_pb2
from messaging.event_types import number_of, text_of

__all__ = ["world_subscribe", "world_subscription", "world_unsubscribe"]


def world_subscribe(
    context: typer.Context,
    *,
    name: WorldArgument,
    event_type: Annotated[
        list[str],
        typer.Option("--type", metavar="TYPE", help="For example weather.changed; repeatable."),
    ],
    source: Annotated[
        list[str] | None,
        typer.Option(help="Only events of this service; may be repeated. Default: all."),
    ] = None,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Let events of the game's bus become memories of a world, in place of those set before.

    Example:
      gamekeeper world subscribe Hollowmere --type weather.changed --type time.night_activated
    """
    session = Session.of(context, output, grpcurl, timeout)
    numbers = [number_of(text) for text in event_type]
    unknown = [text for text, number in zip(event_type, numbers, strict=True) if number is None]
    if unknown:
        fail(
            f"no event type is named {', '.join(unknown)}",
            advice="see `gamekeeper events types`",
            exit_code=EXIT_USAGE,
        )
    subscription = subscriptions_pb2.EventSubscription(
        event_types=numbers,  # type: ignore[arg-type]  # numbers of the table of types
        sources=source or [],
    )
    request_id = str(uuid.uuid4())
    show_for_world(
        session,
        name,
        "SetEventSubscription",
        lambda world_id: subscriptions_pb2.SetEventSubscriptionRequest(
            world_id=world_id, subscription=subscription, request_id=request_id
        ),
        _render(session, "takes"),
    )


def world_subscription(
    context: typer.Context,
    *,
    name: WorldArgument,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Show what a world takes from the game's event bus.

    Example:
      gamekeeper world subscription Hollowmere
    """
    session = Session.of(context, output, grpcurl, timeout)
    show_for_world(
        session,
        name,
        "GetEventSubscription",
        lambda world_id: subscriptions_pb2.GetEventSubscriptionRequest(world_id=world_id),
        _render(session, "takes"),
    )


def world_unsubscribe(
    context: typer.Context,
    *,
    name: WorldArgument,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """End what a world takes from the game's event bus; what it remembers stays.

    Example:
      gamekeeper world unsubscribe Hollowmere
    """
    session = Session.of(context, output, grpcurl, timeout)
    request_id = str(uuid.uuid4())
    show_for_world(
        session,
        name,
        "DeleteEventSubscription",
        lambda world_id: subscriptions_pb2.DeleteEventSubscriptionRequest(
            world_id=world_id, request_id=request_id
        ),
        _render(session, "no longer takes"),
    )


def _render(session: Session, verb: str) -> Callable[[Any], None]:
    def render(answer: Any) -> None:
        if not answer.HasField("subscription"):
            session.console.print("takes nothing from the event bus")
            return
        types = [text_of(number) or str(number) for number in answer.subscription.event_types]
        sources = ", ".join(answer.subscription.sources) or "every service"
        session.console.print(f"{verb} {', '.join(types)} from {escape(sources)}")

    return render
