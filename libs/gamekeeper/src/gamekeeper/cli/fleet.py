"""Commands about the fleet: GPUs and their model servers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import typer
from rich.table import Table

from gamekeeper.cli.session import (
    DEFAULT_TIMEOUT_SECONDS,
    GrpcurlOption,
    OutputFormat,
    OutputOption,
    Session,
    TimeoutOption,
)
from gamekeeper.cli.tiers import TierName, tier_number
from gamekeeper.cli.wording import enum_words, optional_number
from gaming.gpu_metrics.v1 import fleet_pb2, gpu_metrics_pb2

__all__ = ["gpus"]

gpus = typer.Typer(invoke_without_command=True)


@gpus.callback()
def show_fleet(
    context: typer.Context,
    *,
    tier: Annotated[TierName | None, typer.Option(help="Only this tier.")] = None,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Shows every GPU and model server, now. A dash is a reading that is missing, not a zero.

    Examples:
      gamekeeper gpus --tier gold

      gamekeeper gpus -o json | jq '.fleet.hosts[].host.hostId'
    """
    if context.invoked_subcommand is not None:
        return
    session = Session.of(context, output, grpcurl, timeout)
    request = gpu_metrics_pb2.GetFleetRequest(tiers=[tier_number(tier)] if tier else [])

    def render(answer: gpu_metrics_pb2.GetFleetResponse) -> None:
        now = answer.snapshot_time.ToMicroseconds()
        width = session.console.width
        shown = [column for column in _COLUMNS if column.least_width <= width]
        table = Table(box=None, padding=(0, 1))
        for column in shown:
            table.add_column(column.heading, no_wrap=True, justify=column.justify)
        for view in answer.fleet.hosts:
            age_seconds = max(0, now - view.receive_time.ToMicroseconds()) / 1e6
            for server in view.servers:
                row = _row(view, server, age_seconds)
                table.add_row(*(row[column.heading] for column in shown))
        session.console.print(table)
        hosts = len(answer.fleet.hosts)
        count = sum(len(view.gpus) for view in answer.fleet.hosts)
        simulated = all(view.host.simulated for view in answer.fleet.hosts)
        session.console.print(f"GPUs: {count}, hosts: {hosts}" + ", all simulated" * simulated)

    session.show("gpu_metrics", "GetFleet", request, render)


@dataclass(frozen=True, slots=True)
class _Column:
    """A column, and the terminal's width from which on it is shown."""

    heading: str
    least_width: int = 0
    justify: Literal["left", "right"] = "right"


_COLUMNS = (
    _Column("server", justify="left"),
    _Column("state", justify="left"),
    _Column("host", 90, justify="left"),
    _Column("type", 110, justify="left"),
    _Column("zone", 130, justify="left"),
    _Column("paid", justify="left"),
    _Column("running"),
    _Column("waiting", 110),
    _Column("KV cache"),
    _Column("GPU busy"),
    _Column("power", 130),
    _Column("temp", 130),
    _Column("age"),
)


def _row(
    view: fleet_pb2.HostView, server: fleet_pb2.ModelServerSample, age_seconds: float
) -> dict[str, str]:
    mine = set(server.gpu_uuids)
    gpu = next((each for each in view.gpus if each.gpu_uuid in mine), fleet_pb2.GpuSample())
    state = enum_words(fleet_pb2.ModelServerState.Name(server.state), "MODEL_SERVER_STATE_")
    if view.freshness == fleet_pb2.FRESHNESS_STALE:
        state = f"[red]silent[/red], was {state}"
    if view.host.HasField("interruption_time"):
        state += ", [magenta]called back[/magenta]"
    paid = enum_words(fleet_pb2.PurchaseOption.Name(view.host.purchase_option), "PURCHASE_OPTION_")
    return {
        "server": server.server_id,
        "state": state,
        "host": view.host.host_id,
        "type": view.host.instance_type or "-",
        "zone": view.host.availability_zone or "-",
        "paid": paid,
        "running": optional_number(
            server.running_requests, known=server.HasField("running_requests")
        ),
        "waiting": optional_number(
            server.waiting_requests, known=server.HasField("waiting_requests")
        ),
        "KV cache": optional_number(
            server.kv_cache_usage_permille / 10,
            known=server.HasField("kv_cache_usage_permille"),
            unit=" %",
        ),
        "GPU busy": optional_number(
            gpu.utilization_permille / 10, known=gpu.HasField("utilization_permille"), unit=" %"
        ),
        "power": optional_number(
            gpu.power_milliwatts / 1000, known=gpu.HasField("power_milliwatts"), unit=" W"
        ),
        "temp": optional_number(
            gpu.temperature_celsius, known=gpu.HasField("temperature_celsius"), unit=" °C"
        ),
        "age": f"{age_seconds:.1f} s",
    }
