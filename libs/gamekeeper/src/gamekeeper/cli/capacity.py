"""Commands about capacity: tiers, decisions and why, overrides."""

from __future__ import annotations

import getpass
import socket
import uuid
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from gamekeeper.cli.failures import EXIT_USAGE
from gamekeeper.cli.session import (
    DEFAULT_TIMEOUT_SECONDS,
    GrpcurlOption,
    OutputFormat,
    OutputOption,
    Session,
    TimeoutOption,
    fail,
    message_json,
)
from gamekeeper.cli.tiers import TierName, tier_label, tier_number
from gamekeeper.cli.wording import age, enum_words, milliseconds, moment
from gaming.ai_router.v1 import ai_router_pb2
from gaming.autoscaler.v1 import autoscaler_pb2

__all__ = ["decisions", "override", "tiers", "why"]

_STREAM_SECONDS = 3600.0
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def tiers(
    context: typer.Context,
    *,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Show the tiers: sizes, queues, latency, cost and the last decision.

    Examples:
      gamekeeper tiers

      gamekeeper tiers -o json | jq '.autoscaler.tiers[].desired'
    """
    session = Session.of(context, output, grpcurl, timeout)
    sized = autoscaler_pb2.ListTiersRequest()
    routed = ai_router_pb2.ListTiersRequest()
    if grpcurl:
        session.print_grpcurl("autoscaler", "ListTiers", sized)
        session.print_grpcurl("ai_router", "ListTiers", routed)
        return
    capacity: autoscaler_pb2.ListTiersResponse = session.call("autoscaler", "ListTiers", sized)
    routing: ai_router_pb2.ListTiersResponse = session.call("ai_router", "ListTiers", routed)
    if session.as_json:
        session.emit_json({"autoscaler": message_json(capacity), "router": message_json(routing)})
        return
    routers = {tier.tier: tier for tier in routing.tiers}
    table = Table(box=None, padding=(0, 1))
    for heading in ("tier", "wanted", "ready", "coming", "going", "min-max", "queue"):
        table.add_column(heading, justify="left" if heading == "tier" else "right")
    for heading in ("first token", "per token", "$/h"):
        table.add_column(heading, justify="right", no_wrap=True)
    for tier in capacity.tiers:
        router = routers.get(tier.tier, ai_router_pb2.RouterTier())
        table.add_row(
            tier_label(tier.tier),
            str(tier.desired),
            str(tier.inputs.ready_servers),
            str(tier.inputs.pending_servers),
            str(tier.inputs.draining_servers),
            f"{tier.minimum}-{tier.maximum}",
            f"{router.queued_requests}/{router.queue_limit}",
            milliseconds(
                router.time_to_first_token_p95, known=router.HasField("time_to_first_token_p95")
            ),
            milliseconds(router.time_per_token_p95, known=router.HasField("time_per_token_p95")),
            f"{tier.cost_usd_per_hour:.2f}",
        )
    session.console.print(table)
    session.console.print("[dim] latencies at P95 over the last minute[/dim]\n")
    for tier in capacity.tiers:
        session.console.print(f" {escape(tier.last_decision.summary)}", soft_wrap=True)
        if tier.HasField("override"):
            hold = f" {tier_label(tier.tier)} is {_override_words(tier.override)}"
            session.console.print(hold, soft_wrap=True, markup=False, style="yellow")


def why(
    context: typer.Context,
    *,
    decision_id: Annotated[
        str, typer.Argument(help="A decision; left out, the latest that changed something.")
    ] = "",
    tier: Annotated[TierName | None, typer.Option(help="Only decisions on this tier.")] = None,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Explain a decision: what it was based on, step by step, and what would have changed it.

    Examples:
      gamekeeper why --tier gold

      gamekeeper why 01JD3ZK0W3   (an id from `gamekeeper decisions`)
    """
    session = Session.of(context, output, grpcurl, timeout)
    request = autoscaler_pb2.ExplainDecisionRequest(decision_id=decision_id, tier=tier_number(tier))
    session.show("autoscaler", "ExplainDecision", request, lambda answer: _explain(session, answer))


def decisions(
    context: typer.Context,
    *,
    tier: Annotated[TierName | None, typer.Option(help="Only this tier.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most this many.")] = 20,
    every: Annotated[
        bool, typer.Option("--all", help="Also decisions that changed nothing.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on with decisions as they are taken.")
    ] = False,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """List the autoscaler's decisions, newest first, or watch them as they are taken.

    With --watch and -o json, prints one JSON object per line.

    Examples:
      gamekeeper decisions --tier gold --limit 5

      gamekeeper decisions --watch
    """
    session = Session.of(context, output, grpcurl, timeout)
    if watch:
        _watch_decisions(session, tier, changes_only=not every)
        return
    request = autoscaler_pb2.ListDecisionsRequest(
        tier=tier_number(tier), changes_only=not every, page_size=limit
    )

    def render(answer: autoscaler_pb2.ListDecisionsResponse) -> None:
        table = _decision_table()
        for decision in answer.decisions:
            table.add_row(*_decision_row(decision))
        session.console.print(table)

    session.show("autoscaler", "ListDecisions", request, render)


override = typer.Typer(
    help="Hold a tier's size against the autoscaler, until a moment.", no_args_is_help=True
)


@override.command("set")
def override_set(
    context: typer.Context,
    *,
    tier: Annotated[TierName, typer.Argument(help="The tier to hold.")],
    reason: Annotated[str, typer.Option(help="Why, for those who find it later.")],
    pin: Annotated[
        int | None, typer.Option(min=0, max=1000, help="Exactly this many servers.")
    ] = None,
    minimum: Annotated[int | None, typer.Option("--min", min=0, max=1000, help="At least.")] = None,
    maximum: Annotated[int | None, typer.Option("--max", min=0, max=1000, help="At most.")] = None,
    freeze: Annotated[bool, typer.Option(help="Whatever is there stays.")] = False,
    duration: Annotated[
        str, typer.Option("--for", help="How long: 90s, 30m, 2h, 3d; at most 30 days.")
    ] = "30m",
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Pin, bound or freeze a tier; replaces the hold in force.

    Examples:
      gamekeeper override set gold --pin 5 --for 2h --reason "load test"

      gamekeeper override set silver --min 2 --max 8 --reason "release night"

      gamekeeper override set bronze --freeze --reason "incident 12"
    """
    session = Session.of(context, output, grpcurl, timeout)
    bounded = minimum is not None or maximum is not None
    if (pin is not None) + bounded + freeze != 1:
        fail("give exactly one of --pin, --min/--max and --freeze", exit_code=EXIT_USAGE)
    hold = autoscaler_pb2.Override(
        kind=autoscaler_pb2.OVERRIDE_KIND_PIN
        if pin is not None
        else autoscaler_pb2.OVERRIDE_KIND_BOUNDS
        if bounded
        else autoscaler_pb2.OVERRIDE_KIND_FREEZE,
        desired=pin,
        minimum=minimum,
        maximum=maximum,
        reason=reason,
        set_by=f"{getpass.getuser()}@{socket.gethostname()}",
    )
    hold.expire_time.FromDatetime(datetime.now(UTC) + _length(duration))
    request = autoscaler_pb2.SetOverrideRequest(
        tier=tier_number(tier), override=hold, request_id=str(uuid.uuid4())
    )
    session.show(
        "autoscaler",
        "SetOverride",
        request,
        lambda answer: session.console.print(
            f"{tier.value}: {_override_words(answer.override)}", markup=False, soft_wrap=True
        ),
    )


@override.command("clear")
def override_clear(
    context: typer.Context,
    *,
    tier: Annotated[TierName, typer.Argument(help="The tier to let go.")],
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """End a tier's hold at once.

    Example:
      gamekeeper override clear gold
    """
    session = Session.of(context, output, grpcurl, timeout)
    request = autoscaler_pb2.ClearOverrideRequest(
        tier=tier_number(tier), request_id=str(uuid.uuid4())
    )

    def render(answer: autoscaler_pb2.ClearOverrideResponse) -> None:
        ended = _override_words(answer.cleared) if answer.HasField("cleared") else "nothing"
        session.console.print(f"{tier.value}: ended {ended}", markup=False, soft_wrap=True)

    session.show("autoscaler", "ClearOverride", request, render)


def _watch_decisions(session: Session, tier: TierName | None, *, changes_only: bool) -> None:
    request = autoscaler_pb2.WatchDecisionsRequest(
        tier=tier_number(tier), changes_only=changes_only
    )
    if session.grpcurl:
        session.print_grpcurl("autoscaler", "WatchDecisions", request)
        return

    def hear(update: autoscaler_pb2.WatchDecisionsResponse) -> None:
        if not update.HasField("decision"):
            return
        if session.as_json:
            session.emit_json(message_json(update.decision), one_line=True)
            return
        table = _decision_table(headings=False)
        table.add_row(*_decision_row(update.decision))
        session.console.print(table)

    session.stream(
        "autoscaler", lambda stub: stub.WatchDecisions(request, timeout=_STREAM_SECONDS), hear
    )


def _decision_table(*, headings: bool = True) -> Table:
    table = Table(box=None, padding=(0, 1), show_header=headings)
    for heading in ("when", "tier", "size", "rule", "outcome", "why", "id"):
        table.add_column(heading, no_wrap=heading != "why", min_width=6)
    return table


def _decision_row(decision: autoscaler_pb2.Decision) -> list[str]:
    outcome = enum_words(autoscaler_pb2.DecisionOutcome.Name(decision.outcome), "DECISION_OUTCOME_")
    return [
        moment(decision.decide_time),
        tier_label(decision.tier),
        f"{decision.previous_desired}→{decision.desired}",
        enum_words(autoscaler_pb2.DecisionRule.Name(decision.rule), "DECISION_RULE_"),
        escape(f"{outcome}: {decision.outcome_message}" if decision.outcome_message else outcome),
        escape(decision.summary),
        decision.decision_id,
    ]


def _explain(session: Session, answer: autoscaler_pb2.ExplainDecisionResponse) -> None:
    decision, console = answer.decision, session.console
    inputs = decision.inputs
    console.print(
        f"[bold]{tier_label(decision.tier)} {decision.previous_desired} → {decision.desired}[/bold]"
        f"  {moment(decision.decide_time)}  by {decision.decided_by}",
        soft_wrap=True,
    )
    console.print(decision.summary, soft_wrap=True, markup=False)
    console.print("\n[bold]based on[/bold]")
    table = Table.grid(padding=(0, 2))
    demand_known = inputs.HasField("running_tokens")
    for label, value in (
        (
            "servers",
            (
                f"{inputs.ready_servers} ready, {inputs.pending_servers} coming, "
                f"{inputs.draining_servers} going, {inputs.interrupted_servers} called back"
            ),
        ),
        (
            "demand",
            f"{inputs.running_tokens:,} tokens running, {inputs.queued_tokens:,} queued"
            if demand_known
            else "not known",
        ),
        (
            "requests",
            (
                f"{inputs.running_requests} running, {inputs.queued_requests} queued, "
                f"{inputs.arrivals_per_second:.1f} arrive and {inputs.shed_per_second:.1f} are "
                "turned away per second"
            ),
        ),
        (
            "players",
            f"{inputs.players_online:,}" if inputs.HasField("players_online") else "not known",
        ),
        ("a server carries", f"{inputs.capacity_tokens_per_server:,.0f} tokens within the target"),
        (
            "age of the inputs",
            (
                f"fleet {age(inputs.fleet_age, known=inputs.HasField('fleet_age'))}, "
                f"demand {age(inputs.demand_age, known=inputs.HasField('demand_age'))}"
            ),
        ),
    ):
        table.add_row(f"  {label}", value)
    console.print(table)
    console.print("\n[bold]step by step[/bold]")
    steps = Table.grid(padding=(0, 2))
    for number, step in enumerate(answer.steps, start=1):
        steps.add_row(
            f"  {number}.", escape(step.title), escape(step.detail), f"→ {step.desired_after}"
        )
    console.print(steps)
    if answer.counterfactuals:
        console.print("\n[bold]it would have been[/bold]")
        for other in answer.counterfactuals:
            console.print(f"  {other.desired} {other.change}", soft_wrap=True, markup=False)
    console.print(f"\n[dim]decision {decision.decision_id}[/dim]")


def _override_words(hold: autoscaler_pb2.Override) -> str:
    if hold.kind == autoscaler_pb2.OVERRIDE_KIND_PIN:
        what = f"pinned to {hold.desired}"
    elif hold.kind == autoscaler_pb2.OVERRIDE_KIND_FREEZE:
        what = "frozen"
    else:
        least = str(hold.minimum) if hold.HasField("minimum") else "configured minimum"
        most = str(hold.maximum) if hold.HasField("maximum") else "configured maximum"
        what = f"held between {least} and {most}"
    return f"{what} until {moment(hold.expire_time)} by {hold.set_by or 'unknown'} ({hold.reason})"


def _length(text: str) -> timedelta:
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not number.isdigit() or int(number) == 0:
        fail(
            f"--for {text} is not a length of time",
            advice="write 90s, 30m, 2h or 3d",
            exit_code=EXIT_USAGE,
        )
    return timedelta(seconds=int(number) * _UNITS[unit])
