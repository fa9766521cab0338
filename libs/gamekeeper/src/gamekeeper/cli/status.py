"""`gamekeeper status`: is everything up, and what does it cost."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass

import grpc
import typer
from grpc_health.v1 import health_pb2
from rich.table import Table

from gamekeeper.addresses import SERVICES
from gamekeeper.cli.failures import EXIT_UNREACHABLE
from gamekeeper.cli.grpcurl import grpcurl_command
from gamekeeper.cli.session import (
    GrpcurlOption,
    OutputFormat,
    OutputOption,
    Session,
    TimeoutOption,
    message_json,
)
from gamekeeper.cli.wording import age
from gamekeeper.health import HEALTHY, service_health
from gaming.autoscaler.v1 import autoscaler_pb2

__all__ = ["status"]

_TIMEOUT_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class _Health:
    address: str
    state: str
    source: str

    @property
    def healthy(self) -> bool:
        return self.state == HEALTHY


def status(
    context: typer.Context,
    *,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = _TIMEOUT_SECONDS,
) -> None:
    """Show whether every service is healthy, who leads, and what the fleet costs.

    Exits with 3 when a service is not healthy.

    Examples:
      gamekeeper status

      gamekeeper status -o json | jq .autoscaler.costUsdPerPlayerMonth
    """
    session = Session.of(context, output, grpcurl, timeout)
    request = autoscaler_pb2.GetStatusRequest()
    if grpcurl:
        for service in SERVICES:
            session.print_line(
                grpcurl_command(
                    address=session.addresses.of(service),
                    method="grpc.health.v1.Health/Check",
                    request=health_pb2.HealthCheckRequest(),
                    tls=session.channel.tls,
                )
            )
        session.print_grpcurl("autoscaler", "GetStatus", request)
        return
    health, answer = asyncio.run(_look(session, request))
    if session.as_json:
        session.emit_json(
            {
                "services": {name: asdict(each) for name, each in health.items()},
                "autoscaler": message_json(answer) if answer is not None else None,
            }
        )
    else:
        _print(session, health, answer)
    if not all(each.healthy for each in health.values()):
        raise typer.Exit(EXIT_UNREACHABLE)


async def _look(
    session: Session, request: autoscaler_pb2.GetStatusRequest
) -> tuple[dict[str, _Health], autoscaler_pb2.GetStatusResponse | None]:
    states = await asyncio.gather(*(_health(session, service) for service in SERVICES))
    health = dict(zip(SERVICES, states, strict=True))
    if not health["autoscaler"].healthy:
        return health, None
    try:
        return health, await session.ask("autoscaler", "GetStatus", request)
    except grpc.aio.AioRpcError:
        return health, None


async def _health(session: Session, service: str) -> _Health:
    address = session.addresses.of(service)
    source = session.addresses.sources.get(service, "")
    try:
        async with session.open(service) as channel:
            state = await service_health(channel, timeout_seconds=session.timeout_seconds)
    except grpc.aio.AioRpcError as error:
        return _Health(address, f"NOT REACHED ({error.code().name})", source)
    return _Health(address, state, source)


def _print(
    session: Session,
    health: dict[str, _Health],
    answer: autoscaler_pb2.GetStatusResponse | None,
) -> None:
    table = Table(box=None, padding=(0, 1))
    for heading in ("service", "address", "state", "address from"):
        table.add_column(heading)
    for name, each in health.items():
        colour = "green" if each.healthy else "red"
        table.add_row(name, each.address, f"[{colour}]{each.state}[/{colour}]", each.source)
    session.console.print(table)
    if answer is None:
        return
    players = f"{answer.players_online:,}" if answer.HasField("players_online") else "not reported"
    per_player = (
        f"${answer.cost_usd_per_player_month:,.2f}"
        if answer.HasField("cost_usd_per_player_month")
        else "-"
    )
    lines = Table.grid(padding=(0, 2))
    for label, value in (
        ("leader", f"{answer.leader_id or 'none'}{' (dry run)' if answer.dry_run else ''}"),
        ("players online", players),
        (
            "cost",
            (
                f"${answer.cost_usd_per_hour:,.2f} per hour, {per_player} per player and month "
                f"(budget ${answer.budget_usd_per_player_month:,.2f})"
            ),
        ),
        ("prices", answer.price_source or "-"),
        (
            "inputs",
            (
                f"fleet {age(answer.fleet_age, known=answer.HasField('fleet_age'))} old, "
                f"demand {age(answer.demand_age, known=answer.HasField('demand_age'))} old"
            ),
        ),
        (
            "journal",
            "database reachable"
            if answer.database_reachable
            else f"database away, {answer.buffered_decisions} decisions wait",
        ),
    ):
        lines.add_row(f"[dim]{label}[/dim]", value)
    session.console.print()
    session.console.print(lines)
