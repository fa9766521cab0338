"""How the fleet is shown: hosts one below another, their GPUs with bars, their model servers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gamekeeper.cli.wording import enum_words, optional_number
from gaming.gpu_metrics.v1 import fleet_pb2, samples_pb2

__all__ = ["FleetSort", "ShownFleet", "bar", "show_hosts", "throttling"]

_BAR_CELLS = 10
_EIGHTHS = " ▏▎▍▌▋▊▉"
_GIBIBYTE = 2**30
_NARROW = 100
_NARROW_MEMORY = 17
_LONGEST_NAME = 40

# Bits of nvmlClocksEventReasons in NVIDIA's NVML reference.
_HOT = 0x20 | 0x40
_POWER = 0x04 | 0x80
_SLOWED = 0x08


class FleetSort(StrEnum):
    """What comes first: hosts by name, or those with the highest figure on any GPU."""

    HOST = "host"
    UTILIZATION = "utilization"
    MEMORY = "memory"
    POWER = "power"
    TEMPERATURE = "temperature"


def _memory_share(gpu: fleet_pb2.GpuSample) -> float:
    return gpu.memory_used_bytes / gpu.memory_total_bytes if gpu.memory_total_bytes else 0.0


_SORT_KEYS: dict[FleetSort, Callable[[fleet_pb2.GpuSample], float]] = {
    FleetSort.UTILIZATION: lambda gpu: gpu.utilization_permille,
    FleetSort.MEMORY: _memory_share,
    FleetSort.POWER: lambda gpu: gpu.power_milliwatts,
    FleetSort.TEMPERATURE: lambda gpu: gpu.temperature_celsius,
}


@dataclass(slots=True)
class ShownFleet:
    """The hosts as a subscription tells of them, ready to be shown at any moment."""

    host: str = ""
    sort: FleetSort = FleetSort.HOST
    _hosts: dict[str, fleet_pb2.HostView] = field(default_factory=dict, init=False)

    def replace(self, hosts: Iterable[fleet_pb2.HostView]) -> None:
        """Forget what was known and take these."""
        self._hosts = {view.host.host_id: view for view in hosts}

    def change(self, changed: Iterable[fleet_pb2.HostView], removed: Iterable[str]) -> None:
        """Take what is new of some hosts and drop others."""
        for view in changed:
            self._hosts[view.host.host_id] = view
        for host_id in removed:
            self._hosts.pop(host_id, None)

    def render(self, now: Timestamp, console: Console) -> RenderableType:
        """Return the hosts wanted, in the order wanted, as of `now` by the collector's clock."""
        views = [view for view in self._hosts.values() if self.host in view.host.host_id]
        return show_hosts(views, now, console, sort=self.sort)


@dataclass(frozen=True, slots=True)
class _Column:
    """A column and its width; those of the lowest rank are shown as far as the terminal is wide."""

    heading: str
    width: int
    rank: int
    right: bool = False

    @property
    def cells(self) -> int:
        """What the column takes, with a space on either side."""
        return self.width + 2


_COLUMNS = (
    _Column("GPU", 3, 0, right=True),
    _Column("type", 14, 10),
    _Column("busy", 16, 0),
    _Column("peak", 5, 11, right=True),
    _Column("memory", 29, 1),
    _Column("power", 9, 6, right=True),
    _Column("temp", 5, 5, right=True),
    _Column("clock", 9, 12, right=True),
    _Column("limits", 10, 4),
    _Column("server", 18, 2),
    _Column("state", 9, 3),
    _Column("running", 7, 7, right=True),
    _Column("waiting", 7, 9, right=True),
    _Column("KV cache", 8, 8, right=True),
)


def _fitting(width: int) -> list[_Column]:
    """Return the columns of the lowest ranks that fit, in their order.

    On a narrow terminal memory goes without its bar, so that what a server is and whether it is
    well can be seen; what is left over goes to the servers' names.
    """
    columns = [
        replace(column, width=_NARROW_MEMORY) if _is_narrow(width, column) else column
        for column in _COLUMNS
    ]
    shown: set[str] = set()
    for column in sorted(columns, key=lambda column: column.rank):
        if column.cells > width:
            break
        width -= column.cells
        shown.add(column.heading)
    return [
        replace(column, width=min(_LONGEST_NAME, column.width + width))
        if column.heading == "server"
        else column
        for column in columns
        if column.heading in shown
    ]


def _is_narrow(width: int, column: _Column) -> bool:
    return width < _NARROW and column.heading == "memory"


def show_hosts(
    views: Sequence[fleet_pb2.HostView],
    now: Timestamp,
    console: Console,
    *,
    sort: FleetSort = FleetSort.HOST,
) -> RenderableType:
    """Return hosts with their GPUs and servers, and a line that counts them."""
    columns = _fitting(console.width)
    key = _SORT_KEYS.get(sort)
    ordered = sorted(views, key=lambda view: view.host.host_id)
    if key is not None:
        ordered.sort(key=lambda view: max(map(key, view.gpus), default=-1.0), reverse=True)
    parts: list[RenderableType] = [_table(columns, heading=True)]
    plain = "utf" not in console.encoding.lower()
    narrow = console.width < _NARROW
    for view in ordered:
        parts.append(_heading(view, now))
        table = _table(columns)
        for row, style in _rows(view, key, plain=plain, narrow=narrow):
            table.add_row(*(row.get(column.heading, "") for column in columns), style=style)
        if table.row_count:
            parts.append(table)
    parts.append(_count_line(views))
    return Group(*parts)


def _table(columns: Sequence[_Column], *, heading: bool = False) -> Table:
    table = Table(box=None, padding=(0, 1), show_header=heading, pad_edge=True)
    for column in columns:
        table.add_column(
            column.heading,
            width=column.width,
            no_wrap=True,
            justify="right" if column.right else "left",
        )
    return table


def _count_line(views: Sequence[fleet_pb2.HostView]) -> str:
    gpus = sum(len(view.gpus) for view in views)
    silent = sum(view.freshness == fleet_pb2.FRESHNESS_STALE for view in views)
    simulated = bool(views) and all(view.host.simulated for view in views)
    return (
        f"GPUs: {gpus}, hosts: {len(views)}"
        + f", of these silent: {silent}" * bool(silent)
        + ", all simulated" * simulated
    )


def _heading(view: fleet_pb2.HostView, now: Timestamp) -> Text:
    host = view.host
    age_seconds = max(0, now.ToMicroseconds() - view.receive_time.ToMicroseconds()) / 1e6
    stale = view.freshness == fleet_pb2.FRESHNESS_STALE
    heading = Text(no_wrap=True, overflow="ellipsis")
    heading.append(host.host_id, style="bold dim" if stale else "bold")
    paid = enum_words(fleet_pb2.PurchaseOption.Name(host.purchase_option), "PURCHASE_OPTION_")
    about = [host.instance_type, host.availability_zone, "" if paid == "unspecified" else paid]
    for word in filter(None, about):
        heading.append(f"  {word}", style="dim")
    if stale:
        heading.append(f"  silent for {age_seconds:.0f} s", style="red")
    else:
        heading.append(f"  {age_seconds:.1f} s ago", style="dim")
    if host.HasField("interruption_time"):
        heading.append("  called back", style="magenta")
    elif host.HasField("rebalance_time"):
        heading.append("  may be called back", style="magenta")
    if view.HasField("agent_cost"):
        _append_agent_cost(heading, view.agent_cost)
    return heading


def _append_agent_cost(heading: Text, cost: samples_pb2.AgentCost) -> None:
    """Say what the agent had to give up, and then what it cost since its start."""
    if cost.lost_events:
        heading.append(f"  {_counted(cost.lost_events, 'event')} lost", style="red")
    if cost.replaced_reports:
        heading.append(f"  {_counted(cost.replaced_reports, 'report')} replaced", style="yellow")
    cpu_seconds = cost.cpu_time.ToMicroseconds() / 1e6
    driver_seconds = cost.driver_time.ToMicroseconds() / 1e6
    heading.append(
        f"  agent: {cpu_seconds:,.1f} s CPU, {driver_seconds:,.1f} s in {cost.driver_calls:,} "
        f"driver calls, {cost.resident_bytes / 1e6:,.0f} MB",
        style="dim",
    )


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + "s" * (number != 1)


def _rows(
    view: fleet_pb2.HostView,
    key: Callable[[fleet_pb2.GpuSample], float] | None,
    *,
    plain: bool,
    narrow: bool,
) -> Iterable[tuple[dict[str, RenderableType], str]]:
    style = "dim" if view.freshness == fleet_pb2.FRESHNESS_STALE else ""
    gpus = sorted(view.gpus, key=lambda gpu: gpu.index)
    if key is not None:
        gpus.sort(key=key, reverse=True)
    # A server is shown once, at the first of its GPUs; one without GPUs in a row of its own.
    homeless = list(view.servers)
    for gpu in gpus:
        row = _gpu_cells(gpu, plain=plain, narrow=narrow, stale=bool(style))
        mine = [server for server in homeless if gpu.gpu_uuid in server.gpu_uuids]
        for number, server in enumerate(mine or [None]):
            cells = _server_cells(server) if server is not None else {}
            yield ({**row, **cells} if number == 0 else cells), style
        homeless = [server for server in homeless if server not in mine]
    for server in homeless:
        yield _server_cells(server), style


def _gpu_cells(
    gpu: fleet_pb2.GpuSample, *, plain: bool, narrow: bool, stale: bool
) -> dict[str, RenderableType]:
    busy_known = gpu.HasField("utilization_permille")
    memory_known = gpu.HasField("memory_used_bytes") and gpu.memory_total_bytes > 0
    share = _memory_share(gpu)
    used = gpu.memory_used_bytes / _GIBIBYTE
    total = gpu.memory_total_bytes / _GIBIBYTE
    power = optional_number(gpu.power_milliwatts / 1000, known=gpu.HasField("power_milliwatts"))
    if gpu.HasField("power_limit_milliwatts"):
        power += f"/{gpu.power_limit_milliwatts / 1000:,.0f}"
    return {
        "GPU": str(gpu.index),
        "type": escape(gpu.product_name.removeprefix("NVIDIA ")) or "-",
        "busy": _measured(gpu.utilization_permille / 1000, "", busy_known, plain, stale)
        if busy_known
        else _missing(gpu, "utilization_permille"),
        "peak": optional_number(
            gpu.peak_utilization_permille / 10,
            known=gpu.HasField("peak_utilization_permille"),
            unit=" %",
        ),
        "memory": _measured(
            share,
            f"{used:.{1 if used < 100 else 0}f}/{total:.0f} GiB",
            memory_known,
            plain,
            stale,
            bar_cells=0 if narrow else _BAR_CELLS,
        )
        if memory_known
        else _missing(gpu, "memory_used_bytes"),
        "power": power + " W" * gpu.HasField("power_milliwatts"),
        "temp": optional_number(
            gpu.temperature_celsius, known=gpu.HasField("temperature_celsius"), unit=" °C"
        ),
        "clock": optional_number(
            gpu.sm_clock_megahertz, known=gpu.HasField("sm_clock_megahertz"), unit=" MHz"
        ),
        "limits": throttling(gpu),
    }


def _missing(gpu: fleet_pb2.GpuSample, field: str) -> Text:
    """`-`, and why, where a GPU does not tell a figure for a reason that matters."""
    for missing in gpu.missing:
        if missing.field == field and missing.reason != fleet_pb2.MISSING_REASON_UNSUPPORTED:
            words = enum_words(fleet_pb2.MissingReason.Name(missing.reason), "MISSING_REASON_")
            return Text(f"- {words}", style="red")
    return Text("-")


def _measured(
    share: float,
    note: str,
    known: bool,
    plain: bool,
    stale: bool,
    *,
    bar_cells: int = _BAR_CELLS,
) -> Text:
    text = Text(no_wrap=True)
    if known:
        style = "dim" if stale else "red" if share >= 0.9 else "yellow" if share >= 0.7 else "green"
        if bar_cells:
            text.append(bar(share, cells=bar_cells, plain=plain) + " ", style=style)
        text.append(f"{100 * share:3.0f} %", style="" if bar_cells else style)
        if note:
            text.append(f" {note}")
    return text


def bar(share: float, *, cells: int = _BAR_CELLS, plain: bool = False) -> str:
    """Return a bar that is full at 1, in eighths of a cell, or in whole `#` where that fails."""
    share = min(1.0, max(0.0, share))
    if plain:
        return ("#" * round(share * cells)).ljust(cells, ".")
    eighths = round(share * cells * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(cells, "·")


def throttling(gpu: fleet_pb2.GpuSample) -> Text:
    """Return what holds the GPU's clocks back: heat, power, or the board's own slowdown."""
    reasons = gpu.clock_event_reasons
    text = Text()
    if reasons & _HOT:
        text.append("HOT ", style="bold red")
    if reasons & _POWER:
        text.append("POWER ", style="yellow")
    if reasons & _SLOWED and not reasons & (_HOT | _POWER):
        text.append("SLOWED", style="bold red")
    return text


def _server_cells(server: fleet_pb2.ModelServerSample) -> dict[str, RenderableType]:
    state = enum_words(fleet_pb2.ModelServerState.Name(server.state), "MODEL_SERVER_STATE_")
    return {
        "server": escape(server.server_id),
        "state": Text(state, style="red" if state == "unhealthy" else ""),
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
    }
