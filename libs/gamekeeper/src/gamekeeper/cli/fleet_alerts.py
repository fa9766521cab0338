"""Commands about what needs attention in the fleet, and what happened to its GPUs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from typing import Annotated, Any

import grpc.aio
import typer
from rich.table import Table
from rich.text import Text

from gamekeeper.call_errors import CallFailed
from gamekeeper.cli.session import (
    DEFAULT_TIMEOUT_SECONDS,
    GrpcurlOption,
    OutputFormat,
    OutputOption,
    Session,
    TimeoutOption,
    message_json,
)
from gamekeeper.cli.wording import enum_words, moment
from gamekeeper.gpu_alerts import AcknowledgedAlert, acknowledge_alert
from gamekeeper.gpu_events import GpuEventNotice, watch_gpu_events
from gaming.gpu_metrics.v1 import alerts_pb2, events_pb2

__all__ = ["alerts", "alerts_table", "events_table", "show_events"]

_STREAM_SECONDS = 24 * 3600.0
_COLOURS = {
    events_pb2.SEVERITY_CRITICAL: "red",
    events_pb2.SEVERITY_WARNING: "yellow",
}

HostOption = Annotated[str, typer.Option("--host", metavar="HOST_ID", help="Only this host.")]
WatchOption = Annotated[
    bool, typer.Option("--watch", "-w", help="Go on with what comes, until Ctrl-C.")
]

alerts = typer.Typer(invoke_without_command=True, help="What needs attention, the gravest first.")


@alerts.callback()
def show_alerts(
    context: typer.Context,
    *,
    host: HostOption = "",
    ended: Annotated[
        bool, typer.Option("--ended", help="Also those that ended, as far as remembered.")
    ] = False,
    watch: WatchOption = False,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Shows what needs attention in the fleet, with the runbook of each.

    Examples:
      gamekeeper gpus alerts --watch

      gamekeeper gpus alerts -o json | jq '.alerts[].runbookUrl'
    """
    if context.invoked_subcommand is not None:
        return
    session = Session.of(context, output, grpcurl, timeout)
    if watch:
        _watch_alerts(session, host)
        return
    request = alerts_pb2.ListAlertsRequest(include_cleared=ended, host_id=host, page_size=1000)

    def render(answer: alerts_pb2.ListAlertsResponse) -> None:
        if not answer.alerts:
            session.console.print("Nothing needs attention.")
            return
        session.console.print(alerts_table(answer.alerts))
        for url in sorted({alert.runbook_url for alert in answer.alerts}):
            session.console.print(f"runbook: {url}", markup=False, soft_wrap=True)
        if answer.next_page_token:
            session.console.print("There are more; --host shows those of one host.")

    session.show("gpu_metrics", "ListAlerts", request, render)


@alerts.command("ack")
def acknowledge(
    context: typer.Context,
    *,
    alert_id: Annotated[str, typer.Argument(metavar="ID", help="As `gpus alerts` shows it.")],
    note: Annotated[str, typer.Option(help="What you are doing, for others to read.")] = "",
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Notes that you look after an alert. It stands until its condition ends.

    Each collector keeps that note itself: where several run side by side, name them all
    (--gpu-metrics A:50061,B:50061), and all are told. What could not be told is said.

    Examples:
      gamekeeper gpus alerts ack gpu-lost-3f9a0c61d2e4b7a85f10 --note "replacing the instance"
    """
    session = Session.of(context, output, grpcurl, timeout)
    request = alerts_pb2.AcknowledgeAlertRequest(alert_id=alert_id, note=note)
    if session.grpcurl:
        session.print_grpcurl("gpu_metrics", "AcknowledgeAlert", request)
        return

    def render(answer: alerts_pb2.AcknowledgeAlertResponse) -> None:
        alert = answer.alert
        session.console.print(
            f"{alert.alert_id}: {alert.acknowledged_by} since {moment(alert.acknowledge_time)}",
            markup=False,
            soft_wrap=True,
        )

    noted = session.run("gpu_metrics", _acknowledge(session, alert_id, note))
    session.emit(alerts_pb2.AcknowledgeAlertResponse(alert=noted.alert), render)
    for each in noted.untold:
        typer.echo(f"{each.collector} was not told: {each.failure.message}", err=True)


async def _acknowledge(session: Session, alert_id: str, note: str) -> AcknowledgedAlert:
    try:
        return await acknowledge_alert(
            session.addresses.every("gpu_metrics"),
            alert_id,
            note=note,
            settings=session.channel,
            timeout_seconds=session.timeout_seconds,
        )
    except CallFailed as failure:
        if isinstance(failure.__cause__, grpc.aio.AioRpcError):
            raise failure.__cause__ from None
        raise


def show_events(
    context: typer.Context,
    *,
    host: HostOption = "",
    watch: WatchOption = False,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Shows what happened to GPUs and hosts: XID errors, GPUs lost and back, Spot notices.

    With -o json, prints one JSON object per line. With --watch, only what happens from now on, each
    event once, also when the collector is started anew meanwhile.

    Examples:
      gamekeeper gpus events --host i-0abc

      gamekeeper gpus events --watch -o json | jq .event.xid
    """
    session = Session.of(context, output, grpcurl, timeout)
    request = events_pb2.WatchGpuEventsRequest(host_id=host, only_new=watch)
    if session.grpcurl:
        session.print_grpcurl("gpu_metrics", "WatchGpuEvents", request)
        return
    if watch:
        # So that an address that is wrong is said, rather than tried for ever.
        session.call("gpu_metrics", "ListAlerts", alerts_pb2.ListAlertsRequest(page_size=1))
        session.run("gpu_metrics", _follow_events(session, host))
        return
    table = _blocks()

    def hear(message: events_pb2.WatchGpuEventsResponse) -> None:
        if not message.HasField("event"):
            return
        if session.as_json:
            session.emit_json(message_json(message), one_line=True)
        else:
            table.add_row(*_event_row(message.position.host_id, message.event))

    session.stream("gpu_metrics", lambda stub: _held(stub, request, timeout), hear)
    if not session.as_json:
        session.console.print(table if table.row_count else "Nothing happened, or nobody tells.")


async def _held(
    stub: Any, request: events_pb2.WatchGpuEventsRequest, timeout_seconds: float
) -> AsyncIterator[events_pb2.WatchGpuEventsResponse]:
    """Yields what the collector holds; its first heartbeat says that this was all."""
    call = stub.WatchGpuEvents(request, timeout=timeout_seconds)
    try:
        async for message in call:
            if not message.HasField("position"):
                return
            yield message
    finally:
        call.cancel()


async def _follow_events(session: Session, host_id: str) -> None:
    notices = watch_gpu_events(
        session.addresses.every("gpu_metrics"),
        host_id=host_id,
        only_new=True,
        settings=session.channel,
    )
    try:
        async with aclosing(notices):
            async for notice in notices:
                _tell(session, notice)
    except CallFailed as failure:
        if isinstance(failure.__cause__, grpc.aio.AioRpcError):
            raise failure.__cause__ from None
        raise


def _tell(session: Session, notice: GpuEventNotice) -> None:
    if notice.lost_events:
        lost = f"{notice.host_id}: {notice.lost_events} events before this one are lost"
        typer.echo(lost, err=True)
    if notice.event is None:
        return
    if session.as_json:
        session.emit_json(
            {"hostId": notice.host_id, "event": message_json(notice.event)}, one_line=True
        )
        return
    session.console.print(events_table([(notice.host_id, notice.event)]))


def _watch_alerts(session: Session, host_id: str) -> None:
    request = alerts_pb2.WatchAlertsRequest()
    if session.grpcurl:
        session.print_grpcurl("gpu_metrics", "WatchAlerts", request)
        return

    def hear(message: alerts_pb2.WatchAlertsResponse) -> None:
        for alert in message.alerts:
            if host_id not in ("", alert.host_id):
                continue
            if session.as_json:
                session.emit_json(message_json(alert), one_line=True)
                continue
            session.console.print(alerts_table([alert]))

    session.stream(
        "gpu_metrics", lambda stub: stub.WatchAlerts(request, timeout=_STREAM_SECONDS), hear
    )


def alerts_table(alerts: Iterable[alerts_pb2.Alert]) -> Table:
    """Returns alerts as they are shown, in the order given."""
    table = _blocks()
    for alert in alerts:
        table.add_row(*_alert_row(alert))
    return table


def events_table(events: Iterable[tuple[str, events_pb2.GpuEvent]]) -> Table:
    """Returns events of hosts, by their ids, as they are shown, in the order given."""
    table = _blocks()
    for host_id, event in events:
        table.add_row(*_event_row(host_id, event))
    return table


def _blocks() -> Table:
    """Returns a table of two columns: how grave it is, and what there is to say in a few lines.

    So that an id can be copied and a sentence read whole however narrow the terminal is.
    """
    table = Table(box=None, padding=(0, 1), show_header=False)
    table.add_column(no_wrap=True, min_width=8)
    table.add_column(overflow="fold")
    return table


def _lines(headline: str, *more: str) -> Text:
    text = Text(headline, style="bold")
    for line in filter(None, more):
        text.append(f"\n{line}", style="not bold")
    return text


def _alert_row(alert: alerts_pb2.Alert) -> tuple[str, Text]:
    about = enum_words(alerts_pb2.AlertKind.Name(alert.kind), "ALERT_KIND_")
    part = alert.gpu_uuid or alert.server_id
    state = "nobody looks after it"
    if alert.HasField("clear_time"):
        state = f"ended {moment(alert.clear_time)}"
    elif alert.acknowledged_by:
        state = f"looked after by {alert.acknowledged_by}"
        state += f": {alert.note}" if alert.note else ""
    return _severity(alert.severity), _lines(
        alert.reason,
        f"{about} on {alert.host_id}" + (f", {part}" if part else ""),
        f"since {moment(alert.raise_time)}, {state}",
        alert.alert_id,
    )


def _event_row(host_id: str, event: events_pb2.GpuEvent) -> tuple[str, Text]:
    name = enum_words(events_pb2.GpuEventKind.Name(event.kind), "GPU_EVENT_KIND_")
    if event.kind == events_pb2.GPU_EVENT_KIND_XID:
        name = f"XID {event.xid}" + (f" ({event.xid_count}.)" if event.xid_count > 1 else "")
    said = [event.description, event.recommended_action]
    if event.HasField("due_time"):
        said.append(f"due {moment(event.due_time)}")
    what = ". ".join(text.rstrip(".") for text in said if text)
    where = f"{moment(event.time)}  {host_id}" + (f"  {event.gpu_uuid}" if event.gpu_uuid else "")
    return _severity(event.severity), _lines(f"{name}: {what}" if what else name, where)


def _severity(severity: events_pb2.Severity.ValueType) -> str:
    words = enum_words(events_pb2.Severity.Name(severity), "SEVERITY_")
    colour = _COLOURS.get(severity)
    return f"[{colour}]{words}[/{colour}]" if colour else words
