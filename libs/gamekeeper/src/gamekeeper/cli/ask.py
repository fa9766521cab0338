"""`gamekeeper ask`: a prompt to the router, the answer as it is generated."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from gamekeeper.cli.session import (
    GrpcurlOption,
    OutputFormat,
    OutputOption,
    Session,
    TimeoutOption,
    message_json,
)
from gamekeeper.cli.tiers import TierName, tier_label, tier_number
from gamekeeper.cli.wording import milliseconds
from gaming.ai_router.v1 import ai_router_pb2

__all__ = ["ask"]

_TIMEOUT_SECONDS = 60.0


def ask(
    context: typer.Context,
    *,
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads standard input.")],
    tier: Annotated[
        TierName | None, typer.Option(help="The tier wanted; left out, the router chooses.")
    ] = None,
    world: Annotated[
        str | None,
        typer.Option(help="Ask the storyteller of this world, who remembers and cites lore."),
    ] = None,
    system: Annotated[str, typer.Option(help="Instructions for the model.")] = "",
    tokens: Annotated[int, typer.Option(min=1, max=8192, help="Most tokens of the answer.")] = 256,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = _TIMEOUT_SECONDS,
) -> None:
    """Ask a model through the router and read the answer as it is generated.

    With --world, the storyteller answers: it recalls what happened in that world, searches the
    lore, and records the turn. Where the answer came from is told on standard error.

    Examples:
      gamekeeper ask "Who keeps the ferry?" --tier silver

      gamekeeper ask "I give the lantern back." --world Hollowmere
    """
    session = Session.of(context, output, grpcurl, timeout)
    text = sys.stdin.read() if prompt == "-" else prompt
    if world is not None:
        from gamekeeper.cli.tell import tell  # noqa: PLC0415  # the storyteller is seldom needed

        tell(session, world, text, tier=tier, output_tokens=tokens)
        return
    messages = [ai_router_pb2.ChatMessage(role=ai_router_pb2.CHAT_ROLE_USER, content=text)]
    if system:
        messages.insert(
            0, ai_router_pb2.ChatMessage(role=ai_router_pb2.CHAT_ROLE_SYSTEM, content=system)
        )
    request = ai_router_pb2.GenerateRequest(
        spec=ai_router_pb2.GenerationSpec(
            messages=messages, tier=tier_number(tier), max_output_tokens=tokens
        )
    )
    if grpcurl:
        session.print_grpcurl("ai_router", "Generate", request)
        return
    answer = _Answer(session)
    session.stream("ai_router", lambda stub: stub.Generate(request, timeout=timeout), answer.hear)
    answer.finish()


class _Answer:
    """Prints pieces as they come, or keeps them for one JSON document."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._pieces: list[str] = []
        self._document: dict[str, Any] = {}

    def hear(self, response: ai_router_pb2.GenerateResponse) -> None:
        if response.HasField("delta"):
            self._pieces.append(response.delta.text)
            if not self._session.as_json:
                sys.stdout.write(response.delta.text)
                sys.stdout.flush()
        elif response.HasField("route"):
            self._document["route"] = message_json(response.route)
            if not self._session.as_json:
                _say_route(response.route)
        elif response.HasField("end"):
            self._document["end"] = message_json(response.end)
            if not self._session.as_json:
                sys.stdout.write("\n")
                sys.stdout.flush()
                _say_end(response.end)

    def finish(self) -> None:
        if self._session.as_json:
            self._session.emit_json({"text": "".join(self._pieces), **self._document})


def _say_route(route: ai_router_pb2.RouteTaken) -> None:
    where = "from the cache" if route.cached else f"{tier_label(route.tier)} {route.server_id}"
    _aside(f"{where}: {route.reason}")


def _say_end(end: ai_router_pb2.GenerationEnd) -> None:
    first = milliseconds(end.time_to_first_token, known=end.HasField("time_to_first_token"))
    total = milliseconds(end.total_duration, known=end.HasField("total_duration"))
    _aside(f"{end.output_tokens} tokens, the first after {first}, all after {total}")


def _aside(text: str) -> None:
    Console(stderr=True, highlight=False).print(f"[dim]{escape(text)}[/dim]", soft_wrap=True)
