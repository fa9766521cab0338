"""The command that builds a storyteller's context."""

from __future__ import annotations

from typing import Annotated

import typer
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
from gamekeeper.cli.worlds import WorldArgument, show_for_world
from gaming.knowledge_base.v1 import context_pb2

__all__ = ["world_context"]

_REASONS = {
    context_pb2.OMISSION_REASON_BUDGET: "no room left in the budget",
    context_pb2.OMISSION_REASON_SOURCE_LIMIT: "its source has its share",
    context_pb2.OMISSION_REASON_DUPLICATE: "the same as",
    context_pb2.OMISSION_REASON_RELEVANCE: "too little to do with the query",
    context_pb2.OMISSION_REASON_DIVERSITY: "enough of its section is told",
}


def world_context(
    context: typer.Context,
    *,
    name: WorldArgument,
    query: Annotated[str, typer.Argument(help="What the player does or says.")],
    budget: Annotated[int, typer.Option(min=1, max=32000, help="Most tokens of the text.")] = 1000,
    scene: Annotated[str, typer.Option(help="Where the story is, in plain words.")] = "",
    who: Annotated[
        list[str] | None, typer.Option(help="Somebody who is there; may be repeated.")
    ] = None,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Build what a storyteller is told: memory and lore under a budget of tokens.

    Prints the text as a prompt gets it, then what was left out and why.

    Examples:
      gamekeeper world context Hollowmere "I open the stile" --budget 600

      gamekeeper world context Hollowmere "What now?" --who Mira --scene "the mill at night"
    """
    session = Session.of(context, output, grpcurl, timeout)

    def render(answer: context_pb2.BuildContextResponse) -> None:
        session.console.print(escape(answer.text) or "nothing is known", soft_wrap=True)
        session.console.print(
            f"\n[dim]{answer.tokens} of {answer.token_budget} tokens ({escape(answer.tokenizer)}), "
            f"{len(answer.parts)} parts, {len(answer.omitted)} left out[/dim]",
            soft_wrap=True,
        )
        if answer.omitted:
            table = Table(box=None, padding=(0, 1))
            for heading in ("left out", "why", "tokens", "score"):
                table.add_column(heading)
            for each in answer.omitted:
                why = " ".join(filter(None, [_REASONS.get(each.reason, "?"), each.same_as]))
                table.add_row(escape(each.reference), why, str(each.tokens), f"{each.score:.2f}")
            session.console.print(table)

    show_for_world(
        session,
        name,
        "BuildContext",
        lambda world_id: context_pb2.BuildContextRequest(
            world_id=world_id,
            query=query,
            token_budget=budget,
            scene=scene,
            characters=who or [],
        ),
        render,
    )
