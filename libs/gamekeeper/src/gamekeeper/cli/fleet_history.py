"""`gamekeeper gpus history`: one figure over time, as a table, JSON or a plot."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from gamekeeper.cli.failures import EXIT_USAGE
from gamekeeper.cli.fleet_plot import PlottedSeries, svg_plot, terminal_plot
from gamekeeper.cli.session import (
    DEFAULT_TIMEOUT_SECONDS,
    GrpcurlOption,
    OutputFormat,
    OutputOption,
    Session,
    TimeoutOption,
    fail,
)
from gamekeeper.cli.tiers import TierName, tier_number
from gamekeeper.cli.wording import moment
from gaming.gpu_metrics.v1 import history_pb2, samples_pb2

__all__ = ["FigureName", "show_history"]

_LENGTH = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)", re.ASCII)
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_SECONDS = 31 * 86400


class FigureName(StrEnum):
    """The figures that have a history."""

    UTILIZATION = "utilization"
    MEMORY_UTILIZATION = "memory-utilization"
    MEMORY_USED = "memory-used"
    POWER = "power"
    TEMPERATURE = "temperature"
    SM_CLOCK = "sm-clock"
    RUNNING_REQUESTS = "running-requests"
    WAITING_REQUESTS = "waiting-requests"
    KV_CACHE_USAGE = "kv-cache-usage"
    GENERATION_TOKENS = "generation-tokens"


class AggregationName(StrEnum):
    """How the samples of a step become one value."""

    MEAN = "mean"
    MINIMUM = "minimum"
    MAXIMUM = "maximum"
    P50 = "p50"
    P95 = "p95"
    P99 = "p99"
    SUM = "sum"


@dataclass(frozen=True, slots=True)
class _Figure:
    metric: samples_pb2.FleetMetric.ValueType
    divisor: float
    unit: str


_FIGURES: Mapping[FigureName, _Figure] = {
    FigureName.UTILIZATION: _Figure(samples_pb2.FLEET_METRIC_GPU_UTILIZATION_PERMILLE, 10, "%"),
    FigureName.MEMORY_UTILIZATION: _Figure(
        samples_pb2.FLEET_METRIC_GPU_MEMORY_UTILIZATION_PERMILLE, 10, "%"
    ),
    FigureName.MEMORY_USED: _Figure(samples_pb2.FLEET_METRIC_GPU_MEMORY_USED_BYTES, 2**30, "GiB"),
    FigureName.POWER: _Figure(samples_pb2.FLEET_METRIC_GPU_POWER_MILLIWATTS, 1000, "W"),
    FigureName.TEMPERATURE: _Figure(samples_pb2.FLEET_METRIC_GPU_TEMPERATURE_CELSIUS, 1, "°C"),
    FigureName.SM_CLOCK: _Figure(samples_pb2.FLEET_METRIC_GPU_SM_CLOCK_MEGAHERTZ, 1, "MHz"),
    FigureName.RUNNING_REQUESTS: _Figure(samples_pb2.FLEET_METRIC_RUNNING_REQUESTS, 1, ""),
    FigureName.WAITING_REQUESTS: _Figure(samples_pb2.FLEET_METRIC_WAITING_REQUESTS, 1, ""),
    FigureName.KV_CACHE_USAGE: _Figure(samples_pb2.FLEET_METRIC_KV_CACHE_USAGE_PERMILLE, 10, "%"),
    FigureName.GENERATION_TOKENS: _Figure(
        samples_pb2.FLEET_METRIC_GENERATION_TOKENS_PER_SECOND, 1, "tok/s"
    ),
}


def show_history(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="With --plot: a file that ends in .svg; none: the terminal."
        ),
    ] = None,
    *,
    metric: Annotated[FigureName, typer.Option(help="Which figure.")] = FigureName.UTILIZATION,
    gpu: Annotated[str, typer.Option("--gpu", metavar="UUID", help="Of this GPU.")] = "",
    server: Annotated[str, typer.Option("--server", metavar="ID", help="Of this server.")] = "",
    host: Annotated[str, typer.Option("--host", metavar="ID", help="Of this host.")] = "",
    tier: Annotated[TierName | None, typer.Option(help="Of this tier.")] = None,
    length: Annotated[
        str, typer.Option("--range", metavar="LENGTH", help="How far back: 90s, 10m, 1h, 7d.")
    ] = "10m",
    step: Annotated[
        str, typer.Option("--step", metavar="LENGTH", help="Length of a step; none: what fits.")
    ] = "",
    aggregation: Annotated[
        AggregationName, typer.Option(help="How the samples of a step become one value.")
    ] = AggregationName.MEAN,
    plot: Annotated[bool, typer.Option("--plot", help="Draw it.")] = False,
    output: OutputOption = OutputFormat.TABLE,
    grpcurl: GrpcurlOption = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Show one figure over time: of a GPU, server, host or tier, or of the whole fleet.

    Examples:
      gamekeeper gpus history --metric utilization --tier gold --range 1h --aggregation p95

      gamekeeper gpus history --metric power --host i-0f3a --plot power.svg
    """
    session = Session.of(context, output, grpcurl, timeout)
    scopes = {"gpu_uuid": gpu, "server_id": server, "host_id": host, "tier": tier_number(tier)}
    scope: dict[str, Any] = {name: value for name, value in scopes.items() if value}
    if len(scope) > 1:
        fail(
            "only one of --gpu, --server, --host and --tier can be asked for", exit_code=EXIT_USAGE
        )
    if file is not None and not plot:
        fail("a FILE is where --plot draws", advice="add --plot", exit_code=EXIT_USAGE)
    if file is not None and file.suffix.lower() != ".svg":
        fail(
            f"{file} would hold no such picture: what is drawn is SVG",
            advice=f"name it {file.with_suffix('.svg').name}",
            exit_code=EXIT_USAGE,
        )
    figure = _FIGURES[metric]
    request = history_pb2.QueryHistoryRequest(
        metric=figure.metric,
        aggregation=history_pb2.Aggregation.Value(f"AGGREGATION_{aggregation.upper()}"),
        **scope,
    )
    request.range.FromTimedelta(_timedelta("--range", length))
    if step:
        request.step.FromTimedelta(_timedelta("--step", step))
    of = next(iter(str(value) for value in (gpu, server, host, tier) if value), "the fleet")
    title = f"{metric} of {of}, {aggregation} of each {{step:g}} s"

    def render(answer: history_pb2.QueryHistoryResponse) -> None:
        told = title.format(step=answer.step.ToTimedelta().total_seconds())
        if plot:
            _plot(session, _series(answer, figure, told), file)
        else:
            session.console.print(_table(answer, figure))
        _say_what_is_forgotten(session, answer)

    session.show("gpu_metrics", "QueryHistory", request, render)


def _timedelta(option: str, text: str) -> timedelta:
    parts = _LENGTH.fullmatch(text)
    seconds = float(parts[1]) * _UNIT_SECONDS[parts[2]] if parts else 0.0
    if not 1 <= seconds <= _LONGEST_SECONDS:
        fail(
            f"{option} {text} is wrong",
            advice="a length is a number with s, m, h or d, from 1s to 31d",
            exit_code=EXIT_USAGE,
        )
    return timedelta(seconds=seconds)


def _series(answer: history_pb2.QueryHistoryResponse, figure: _Figure, title: str) -> PlottedSeries:
    points = answer.points
    step = answer.step.ToTimedelta()
    start = points[0].start_time.ToDatetime(UTC) if points else datetime.now(UTC)
    end = points[-1].start_time.ToDatetime(UTC) + step if points else start
    return PlottedSeries(
        title=title,
        unit=figure.unit,
        start=start.astimezone(),
        end=end.astimezone(),
        values=[
            point.value / figure.divisor if point.HasField("value") else None for point in points
        ],
    )


def _plot(session: Session, series: PlottedSeries, file: Path | None) -> None:
    if file is None:
        console = session.console
        for line in terminal_plot(series, width=min(console.width, 120)):
            console.print(Text(line))
        return
    try:
        file.write_text(svg_plot(series), encoding="utf-8")
    except OSError as error:
        fail(f"{file} cannot be written: {error.strerror}", exit_code=EXIT_USAGE)
    session.console.print(Text(f"drawn into {file}"))


def _table(answer: history_pb2.QueryHistoryResponse, figure: _Figure) -> Table:
    table = Table(box=None, padding=(0, 1))
    for heading in ("from", "value", "samples", "told by"):
        table.add_column(heading, justify="left" if heading == "from" else "right")
    for point in answer.points:
        known = point.HasField("value")
        value = f"{point.value / figure.divisor:,.1f} {figure.unit}".rstrip() if known else "-"
        table.add_row(
            moment(point.start_time),
            value,
            str(point.samples),
            f"{point.observed} of {point.expected}",
            style="" if known else "dim",
        )
    return table


def _say_what_is_forgotten(session: Session, answer: history_pb2.QueryHistoryResponse) -> None:
    if answer.points and answer.HasField("oldest_time"):
        oldest = answer.oldest_time
        if oldest.ToMicroseconds() > answer.points[0].start_time.ToMicroseconds():
            session.console.print(f"This collector remembers nothing before {moment(oldest)}.")
