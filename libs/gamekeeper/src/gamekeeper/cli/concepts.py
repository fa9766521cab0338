"""Commands about what a world knows: concepts, facts, contradictions, and ways between them."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

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
from gamekeeper.cli.wording import enum_words, moment
from gamekeeper.cli.worlds import WorldArgument, show_for_world
from gaming.knowledge_base.v1 import concepts_pb2, facts_pb2, graph_pb2

__all__ = [
    "world_concept",
    "world_concepts",
    "world_contradictions",
    "world_facts",
    "world_graph",
    "world_path",
]

PlayerOption = Annotated[
    str, typer.Option("--player", metavar="ID", help="As it is for this player of the world.")
]
ValidOption = Annotated[
    str,
    typer.Option("--at", metavar="TIME", help="As it holds then in the story: 1310-05-01T12:00Z."),
]
RecordedOption = Annotated[
    str,
    typer.Option("--as-of", metavar="TIME", help="As the knowledge base believed at that time."),
]
LimitOption = Annotated[int, typer.Option(min=1, max=1000, help="At most this many.")]


class Direction(StrEnum):
    """Which way relationships are followed."""

    OUT = "out"
    IN = "in"
    BOTH = "both"


_DIRECTIONS = {
    Direction.OUT: graph_pb2.TRAVERSAL_DIRECTION_OUT,
    Direction.IN: graph_pb2.TRAVERSAL_DIRECTION_IN,
    Direction.BOTH: graph_pb2.TRAVERSAL_DIRECTION_BOTH,
}


def world_concepts(
    context: typer.Context,
    *,
    name: WorldArgument,
    kind: Annotated[str, typer.Option(help="Only this kind.")] = "",
    player: PlayerOption = "",
    at: ValidOption = "",
    as_of: RecordedOption = "",
    limit: LimitOption = 100,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """List the concepts a world knows.

    Example:
      gamekeeper world concepts Hollowmere --kind character
    """
    session = Session.of(context, output, grpcurl, timeout)
    moments = _moments(at, as_of)

    def render(answer: concepts_pb2.ListConceptsResponse) -> None:
        table = _table("name", "kind", "of", "version", "holds", "description")
        for each in answer.concepts:
            table.add_row(
                escape(each.name),
                escape(each.kind),
                _layer(each),
                str(each.version),
                _period(each),
                escape(each.description),
            )
        session.console.print(table)

    show_for_world(
        session,
        name,
        "ListConcepts",
        lambda world_id: concepts_pb2.ListConceptsRequest(
            world_id=world_id, kind=kind, player_id=player, page_size=limit, **moments
        ),
        render,
    )


def world_concept(
    context: typer.Context,
    *,
    name: WorldArgument,
    concept: Annotated[str, typer.Argument(metavar="CONCEPT", help="The concept's name.")],
    history: Annotated[
        bool, typer.Option("--history", help="All versions, and when each was believed.")
    ] = False,
    player: PlayerOption = "",
    at: ValidOption = "",
    as_of: RecordedOption = "",
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Show a concept, as of two times, or its history.

    Example:
      gamekeeper world concept Hollowmere Mara --at 1310-05-01T00:00Z
    """
    session = Session.of(context, output, grpcurl, timeout)
    moments = _moments(at, as_of)
    if history and moments:
        fail("--history shows all times; leave --at and --as-of out", exit_code=EXIT_USAGE)

    def render(answer: concepts_pb2.GetConceptResponse) -> None:
        _print_concept(session, answer.concept)

    def render_history(answer: concepts_pb2.ListConceptVersionsResponse) -> None:
        for version in answer.versions:
            _print_concept(session, version.concept)
            for period in version.periods:
                until = (
                    moment(period.superseded_time) if period.HasField("superseded_time") else "now"
                )
                session.console.print(
                    f"  [dim]believed from {moment(period.record_time)} until {until}:[/dim] "
                    f"holds {_period(period)}"
                )

    if history:
        show_for_world(
            session,
            name,
            "ListConceptVersions",
            lambda world_id: concepts_pb2.ListConceptVersionsRequest(
                world_id=world_id, name=concept, player_id=player, page_size=100
            ),
            render_history,
        )
        return
    show_for_world(
        session,
        name,
        "GetConcept",
        lambda world_id: concepts_pb2.GetConceptRequest(
            world_id=world_id, name=concept, player_id=player, **moments
        ),
        render,
    )


def world_facts(
    context: typer.Context,
    *,
    name: WorldArgument,
    about: Annotated[str, typer.Option(help="Only of this concept.")] = "",
    predicate: Annotated[str, typer.Option(help="Only with this predicate.")] = "",
    player: PlayerOption = "",
    at: ValidOption = "",
    as_of: RecordedOption = "",
    limit: LimitOption = 100,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """List the facts of a world: of all its story, or those that hold at a time.

    Example:
      gamekeeper world facts Hollowmere --about Mara --at 1310-05-01T00:00Z
    """
    session = Session.of(context, output, grpcurl, timeout)
    moments = _moments(at, as_of)

    def render(answer: facts_pb2.ListFactsResponse) -> None:
        table = _table("subject", "predicate", "object", "of", "holds", "source")
        for each in answer.facts:
            table.add_row(
                escape(each.subject),
                escape(each.predicate),
                escape(each.object_concept or each.text),
                _layer(each),
                _period(each),
                escape(each.source),
            )
        session.console.print(table)

    show_for_world(
        session,
        name,
        "ListFacts",
        lambda world_id: facts_pb2.ListFactsRequest(
            world_id=world_id,
            subject=about,
            predicate=predicate,
            player_id=player,
            page_size=limit,
            **moments,
        ),
        render,
    )


def world_contradictions(
    context: typer.Context,
    *,
    name: WorldArgument,
    everything: Annotated[bool, typer.Option("--all", help="Resolved ones too.")] = False,
    about: Annotated[str, typer.Option(help="Only of this concept.")] = "",
    player: PlayerOption = "",
    limit: LimitOption = 100,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """List what is said in a world that cannot both be so, newest first.

    Example:
      gamekeeper world contradictions Hollowmere
    """
    session = Session.of(context, output, grpcurl, timeout)
    state = facts_pb2.CONTRADICTION_STATE_OPEN
    if everything:
        state = facts_pb2.CONTRADICTION_STATE_UNSPECIFIED

    def render(answer: facts_pb2.ListContradictionsResponse) -> None:
        table = _table("subject", "of what", "said", "against it", "kind", "both at", "decided")
        for each in answer.contradictions:
            kind = facts_pb2.ContradictionKind.Name(each.kind)
            table.add_row(
                escape(each.subject),
                escape(each.predicate),
                _side(each.earlier),
                _side(each.later),
                enum_words(kind, "CONTRADICTION_KIND_"),
                _period(each),
                escape(each.reason),
            )
        session.console.print(table if answer.contradictions else "nothing contradicts itself")

    show_for_world(
        session,
        name,
        "ListContradictions",
        lambda world_id: facts_pb2.ListContradictionsRequest(
            world_id=world_id, state=state, subject=about, player_id=player, page_size=limit
        ),
        render,
    )


def world_graph(
    context: typer.Context,
    *,
    name: WorldArgument,
    concept: Annotated[str, typer.Argument(metavar="CONCEPT", help="Where to start.")],
    depth: Annotated[int, typer.Option(min=1, max=6, help="Over at most this many ties.")] = 2,
    direction: Annotated[Direction, typer.Option(help="Which way.")] = Direction.OUT,
    kind: Annotated[list[str] | None, typer.Option(help="Only this kind; may be repeated.")] = None,
    strength: Annotated[float, typer.Option(min=0.0, max=1.0, help="At least so strong.")] = 0.0,
    player: PlayerOption = "",
    at: ValidOption = "",
    as_of: RecordedOption = "",
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Show what is around a concept in a world's relationships.

    Example:
      gamekeeper world graph Hollowmere Mara --depth 3 --direction both
    """
    session = Session.of(context, output, grpcurl, timeout)
    moments = _moments(at, as_of)

    def render(answer: graph_pb2.TraverseResponse) -> None:
        session.console.print(_tree(answer))
        if answer.truncated:
            session.console.print("[yellow]there is more than this answer holds[/yellow]")

    show_for_world(
        session,
        name,
        "Traverse",
        lambda world_id: graph_pb2.TraverseRequest(
            world_id=world_id,
            player_id=player,
            start_concept=concept,
            maximum_depth=depth,
            direction=_DIRECTIONS[direction],
            kinds=kind or [],
            minimum_strength=strength,
            **moments,
        ),
        render,
    )


def world_path(
    context: typer.Context,
    *,
    name: WorldArgument,
    start: Annotated[str, typer.Argument(metavar="FROM", help="Where it begins.")],
    end: Annotated[str, typer.Argument(metavar="TO", help="Where it ends.")],
    strongest: Annotated[
        bool, typer.Option("--strongest", help="The strongest path instead of the shortest.")
    ] = False,
    direction: Annotated[Direction, typer.Option(help="Which way.")] = Direction.OUT,
    player: PlayerOption = "",
    at: ValidOption = "",
    as_of: RecordedOption = "",
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Show how one concept leads to another.

    Example:
      gamekeeper world path Hollowmere Mara "The Bell" --strongest
    """
    session = Session.of(context, output, grpcurl, timeout)
    moments = _moments(at, as_of)

    def render(answer: graph_pb2.FindPathResponse) -> None:
        if not answer.found:
            session.console.print("no path leads there")
        for tie in answer.relationships:
            session.console.print(
                f"{escape(tie.from_concept)} [cyan]{escape(tie.kind)}[/cyan] "
                f"{escape(tie.to_concept)}  [dim]{tie.strength:.2f}[/dim]"
            )
        if answer.found:
            session.console.print(f"[dim]strength of the whole: {answer.strength:.2f}[/dim]")
        if answer.truncated:
            session.console.print("[yellow]a better path may have been missed[/yellow]")

    preference = graph_pb2.PATH_PREFERENCE_SHORTEST
    if strongest:
        preference = graph_pb2.PATH_PREFERENCE_STRONGEST
    show_for_world(
        session,
        name,
        "FindPath",
        lambda world_id: graph_pb2.FindPathRequest(
            world_id=world_id,
            player_id=player,
            from_concept=start,
            to_concept=end,
            direction=_DIRECTIONS[direction],
            preference=preference,
            **moments,
        ),
        render,
    )


def _moments(valid: str, recorded: str) -> dict[str, Any]:
    """Returns a request's fields for the moments given; ends the command for what is none."""
    fields = {}
    for field, option, text in (
        ("as_of_valid", "--at", valid),
        ("as_of_recorded", "--as-of", recorded),
    ):
        if text:
            try:
                when = datetime.fromisoformat(text)
            except ValueError:
                fail(f"{option} must be a time such as 1310-05-01T12:00Z", exit_code=EXIT_USAGE)
            stamp = Timestamp()
            stamp.FromDatetime(when if when.tzinfo else when.replace(tzinfo=UTC))
            fields[field] = stamp
    return fields


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 1))
    for heading in headings:
        table.add_column(heading)
    return table


def _layer(message: Any) -> str:
    if message.player_id:
        return f"player {escape(message.player_id)}"
    return "world" if message.world_id else "all worlds"


def _story_time(stamp: Timestamp) -> str:
    """UTC, as it was written: story time is in no player's time zone."""
    return stamp.ToDatetime(tzinfo=UTC).strftime("%Y-%m-%d %H:%M")


def _period(message: Any) -> str:
    begun = _story_time(message.valid_from) if message.HasField("valid_from") else ""
    ended = _story_time(message.valid_until) if message.HasField("valid_until") else ""
    if begun and ended:
        return f"{begun} to {ended}"
    if begun:
        return f"from {begun}"
    return f"until {ended}" if ended else "always"


def _side(side: facts_pb2.ContradictionSide) -> str:
    layer = enum_words(facts_pb2.KnowledgeLayer.Name(side.layer), "KNOWLEDGE_LAYER_")
    who = f", {escape(side.source)}" if side.source else ""
    return f"{escape(side.value)} [dim]({layer}{who})[/dim]"


def _print_concept(session: Session, concept: concepts_pb2.Concept) -> None:
    session.console.print(
        f"{escape(concept.name)} [cyan]{escape(concept.kind)}[/cyan]  version {concept.version}, "
        f"of {_layer(concept)}, holds {_period(concept)}  "
        f"[dim]recorded {moment(concept.record_time)}"
        + (f", says {escape(concept.source)}" if concept.source else "")
        + "[/dim]"
    )
    session.console.print(f"  {escape(concept.description)}", soft_wrap=True)
    for key in sorted(concept.attributes):
        session.console.print(f"  [dim]{escape(key)}:[/dim] {escape(concept.attributes[key])}")


def _tree(answer: graph_pb2.TraverseResponse) -> Tree:
    """Each concept once, below the one it was first reached from, with the tie between them."""
    depths = {concept.name: concept.depth for concept in answer.concepts}
    start = answer.concepts[0].name
    tree = Tree(escape(start))
    branches = {start: tree}
    for depth in range(max(depths.values())):
        for tie in answer.relationships:
            for near, far, arrow in (
                (tie.from_concept, tie.to_concept, "->"),
                (tie.to_concept, tie.from_concept, "<-"),
            ):
                step = depths.get(near) == depth and depths.get(far) == depth + 1
                if step and far not in branches:
                    branches[far] = branches[near].add(
                        f"{arrow} [cyan]{escape(tie.kind)}[/cyan] {escape(far)}  "
                        f"[dim]{tie.strength:.2f}[/dim]"
                    )
    return tree
