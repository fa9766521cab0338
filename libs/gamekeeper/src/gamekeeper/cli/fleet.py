"""Commands about the fleet: GPUs, who uses them, and their model servers."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable
from typing import Annotated, Any

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from gamekeeper.cli.failures import EXIT_USAGE
from gamekeeper.cli.fleet_alerts import alerts, show_events
from gamekeeper.cli.fleet_history import show_history
from gamekeeper.cli.fleet_recording import record, replay
from gamekeeper.cli.fleet_table import FleetSort, ShownFleet, throttling
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
from gamekeeper.cli.tiers import TierName, tier_number
from gamekeeper.cli.wording import age, moment, optional_number
from gaming.gpu_metrics.v1 import fleet_pb2, gpu_metrics_pb2, processes_pb2
from servicekit.clock import SystemClock
from servicekit.watching import watch as watch_stream

__all__ = ["gpus"]

gpus = typer.Typer(invoke_without_command=True)
gpus.add_typer(alerts, name="alerts")
gpus.command("events")(show_events)
gpus.command("record")(record)
gpus.command("replay")(replay)

_REFRESHES_PER_SECOND = 2
_MEBIBYTE = 2**20

TierOption = Annotated[TierName | None, typer.Option(help="Only this tier.")]
HostOption = Annotated[
    str, typer.Option("--host", metavar="TEXT", help="Only hosts whose id contains this.")
]


@gpus.callback()
def show_fleet(
    context: typer.Context,
    *,
    tier: TierOption = None,
    host: HostOption = "",
    server: Annotated[
        list[str] | None,
        typer.Option("--server", metavar="ID", help="Only hosts of this server; may be repeated."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME", help="Only hosts that serve it; may be repeated."),
    ] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option("--gpu", metavar="UUID", help="Only the host of this GPU; may be repeated."),
    ] = None,
    sort: Annotated[
        FleetSort, typer.Option(help="Hosts by id, or the highest figure first.")
    ] = FleetSort.HOST,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", "-w", help="Keep showing until Ctrl-C: live, or one below another in a pipe."
        ),
    ] = False,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Shows every GPU and model server, now. A dash is a reading that is missing, not a zero.

    Examples:
      gamekeeper gpus --tier gold

      gamekeeper gpus --watch --sort utilization

      gamekeeper gpus --model studio/gold-3b

      gamekeeper gpus -o json | jq '.fleet.hosts[].host.hostId'
    """
    if context.invoked_subcommand is not None:
        return
    session = Session.of(context, output, grpcurl, timeout)
    tiers = [tier_number(tier)] if tier else []
    wanted = gpu_metrics_pb2.FleetFilter(
        server_ids=server or [], models=model or [], gpu_uuids=gpu or []
    )
    fleet = ShownFleet(host, sort)
    if watch:
        _watch(session, fleet, gpu_metrics_pb2.WatchFleetRequest(tiers=tiers, filter=wanted))
        return

    def render(answer: gpu_metrics_pb2.GetFleetResponse) -> None:
        fleet.replace(answer.fleet.hosts)
        console = session.console
        console.print(fleet.render(answer.snapshot_time, console))

    request = gpu_metrics_pb2.GetFleetRequest(tiers=tiers, filter=wanted)
    session.show("gpu_metrics", "GetFleet", request, render)


def _watch(session: Session, fleet: ShownFleet, request: gpu_metrics_pb2.WatchFleetRequest) -> None:
    if session.grpcurl:
        session.print_grpcurl("gpu_metrics", "WatchFleet", request)
        return
    if session.as_json:
        session.stream(
            "gpu_metrics",
            lambda stub: stub.WatchFleet(request),
            lambda message: session.emit_json(message_json(message), one_line=True),
        )
        return
    # So that an address that is wrong is said, rather than tried for ever.
    asked = gpu_metrics_pb2.GetFleetRequest(tiers=request.tiers, filter=request.filter)
    session.call("gpu_metrics", "GetFleet", asked)
    screen = _LiveFleet(session, fleet)

    def calls(stub: Any) -> AsyncIterable[gpu_metrics_pb2.WatchFleetResponse]:
        def open_stream(token: str) -> AsyncIterable[gpu_metrics_pb2.WatchFleetResponse]:
            follow = gpu_metrics_pb2.WatchFleetRequest(
                tiers=request.tiers, filter=request.filter, resume_token=token
            )
            answers: AsyncIterable[gpu_metrics_pb2.WatchFleetResponse] = stub.WatchFleet(follow)
            return answers

        return watch_stream(
            open_stream,
            token_of=lambda message: message.resume_token,
            clock=SystemClock(),
            name="fleet",
        )

    if not session.console.is_terminal:
        session.stream("gpu_metrics", calls, screen.print_change)
        return
    with Live(
        console=session.console,
        get_renderable=screen.render,
        refresh_per_second=_REFRESHES_PER_SECOND,
        screen=True,
        vertical_overflow="crop",
    ):
        session.stream("gpu_metrics", calls, screen.hear)


class _LiveFleet:
    """What a subscription told, and the collector's time since: ages go on between messages."""

    def __init__(self, session: Session, fleet: ShownFleet) -> None:
        self._console = session.console
        self._fleet = fleet
        self._told_microseconds = 0
        self._told_at = time.monotonic()

    def hear(self, message: gpu_metrics_pb2.WatchFleetResponse) -> None:
        if message.HasField("snapshot"):
            self._fleet.replace(message.snapshot.hosts)
        elif message.HasField("delta"):
            self._fleet.change(message.delta.changed_hosts, message.delta.removed_host_ids)
        self._told_microseconds = message.send_time.ToMicroseconds()
        self._told_at = time.monotonic()

    def print_change(self, message: gpu_metrics_pb2.WatchFleetResponse) -> None:
        """Print the fleet whole, one below another, where nothing can be drawn over."""
        self.hear(message)
        if not message.HasField("heartbeat"):
            self._console.print(moment(message.send_time))
            self._console.print(self.render())
            self._console.file.flush()

    def render(self) -> RenderableType:
        now = Timestamp()
        since_microseconds = round((time.monotonic() - self._told_at) * 1e6)
        now.FromMicroseconds(self._told_microseconds + since_microseconds)
        return self._fleet.render(now, self._console)


@gpus.command("list")
def list_gpus(
    context: typer.Context,
    *,
    tier: TierOption = None,
    host: Annotated[str, typer.Option("--host", metavar="ID", help="Only this host.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most this many.")] = 1000,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """List GPUs, one a line, with their UUIDs and the servers on them.

    Example:
      gamekeeper gpus list --tier gold
    """
    session = Session.of(context, output, grpcurl, timeout)
    request = gpu_metrics_pb2.ListGpusRequest(tier=tier_number(tier), host_id=host, page_size=limit)

    def render(answer: gpu_metrics_pb2.ListGpusResponse) -> None:
        table = Table(box=None, padding=(0, 1))
        for heading in ("host", "GPU", "uuid", "type", "servers"):
            table.add_column(heading, no_wrap=True)
        for heading in ("busy", "memory", "power", "temp"):
            table.add_column(heading, no_wrap=True, justify="right")
        table.add_column("limits")
        table.add_column("age", justify="right")
        for each in answer.gpus:
            gpu = each.gpu
            stale = each.freshness == fleet_pb2.FRESHNESS_STALE
            table.add_row(
                escape(each.host.host_id),
                str(gpu.index),
                escape(gpu.gpu_uuid),
                escape(gpu.product_name) or "-",
                escape(", ".join(server.server_id for server in each.servers)) or "-",
                optional_number(
                    gpu.utilization_permille / 10,
                    known=gpu.HasField("utilization_permille"),
                    unit=" %",
                ),
                optional_number(
                    gpu.memory_used_bytes / _MEBIBYTE,
                    known=gpu.HasField("memory_used_bytes"),
                    unit=" MiB",
                ),
                optional_number(
                    gpu.power_milliwatts / 1000, known=gpu.HasField("power_milliwatts"), unit=" W"
                ),
                optional_number(
                    gpu.temperature_celsius, known=gpu.HasField("temperature_celsius"), unit=" °C"
                ),
                throttling(gpu),
                age(each.age, known=True),
                style="dim" if stale else "",
            )
        session.console.print(table)
        if answer.next_page_token:
            session.console.print(f"Only the first {limit}; --limit shows more, --host one host.")

    session.show("gpu_metrics", "ListGpus", request, render)


@gpus.command("processes")
def processes(
    context: typer.Context,
    host: Annotated[str, typer.Argument(metavar="HOST", help="The host's id.")],
    *,
    gpu: Annotated[str, typer.Option("--gpu", metavar="UUID", help="Only this GPU.")] = "",
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Show who uses the GPUs of a host: process, container, ECS task and model.

    Example:
      gamekeeper gpus processes i-0f3a
    """
    if not host:
        fail("a host id is needed", exit_code=EXIT_USAGE)
    session = Session.of(context, output, grpcurl, timeout)
    request = processes_pb2.GetGpuProcessesRequest(host_id=host, gpu_uuid=gpu)

    def render(answer: processes_pb2.GetGpuProcessesResponse) -> None:
        console = session.console
        if not answer.HasField("reading"):
            console.print(
                "No processes were read on this host: its agent has just begun, or its GPUs are "
                "simulated and run none."
            )
            return
        table = Table(box=None, padding=(0, 1))
        for heading in ("pid", "program", "GPU", "memory", "service", "container", "task", "model"):
            table.add_column(heading, overflow="fold")
        for each in answer.reading.processes:
            unknown = escape(f"unknown: {each.unknown_because}") if each.unknown_because else "-"
            table.add_row(
                str(each.process_id),
                escape(each.name) or "-",
                escape(each.gpu_uuid),
                optional_number(
                    each.memory_used_bytes / _MEBIBYTE,
                    known=each.HasField("memory_used_bytes"),
                    unit=" MiB",
                ),
                escape(each.ecs_service) or "-",
                escape(each.container_name or each.container_id[:12]) or unknown,
                escape(each.ecs_task_arn.rpartition("/")[2]) or unknown,
                escape(each.model) or "-",
            )
        console.print(table)
        for missing in answer.reading.missing:
            console.print(f"[yellow]not read:[/yellow] {escape(missing.field)}")
        console.print(f"read {age(answer.age, known=True)} ago")

    session.show("gpu_metrics", "GetGpuProcesses", request, render)


gpus.command("history")(show_history)
