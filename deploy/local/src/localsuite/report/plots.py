"""The evening as four pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from localsuite.observe.fleet import TIERS
from localsuite.observe.picture import Remark
from localsuite.observe.recording import HOURS_PER_MONTH, Recording
from localsuite.targets import TARGETS

__all__ = ["draw_plots"]

_COLOURS = {"gold": "#b8860b", "silver": "#5f6b7a", "bronze": "#a0522d"}
_STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 110,
    "font.size": 10,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def draw_plots(
    directory: Path, recording: Recording, remarks: Sequence[Remark], *, budget: float
) -> list[Path]:
    """Writes the pictures into `directory` and returns their paths, in the order of the report."""
    with mpl.rc_context(_STYLE):
        return [
            _save(directory / "players.png", _players(recording, remarks)),
            _save(directory / "gpus.png", _servers(recording, remarks)),
            _save(directory / "latency.png", _latency(recording, remarks)),
            _save(directory / "cost.png", _cost(recording, budget)),
        ]


def _save(path: Path, figure: Figure) -> Path:
    figure.savefig(path)
    return path


def _minutes(recording: Recording) -> list[float]:
    return [moment.at_seconds / 60 for moment in recording.moments]


def _players(recording: Recording, remarks: Sequence[Remark]) -> Figure:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.add_subplot()
    times = _minutes(recording)
    players = [moment.players_online for moment in recording.moments]
    axes.fill_between(times, players, color="#4c9a6a", alpha=0.35, linewidth=0)
    axes.plot(times, players, color="#2f6f4a")
    axes.set_title("Players online", loc="left")
    axes.set_xlabel("minutes of the run")
    axes.set_ylim(bottom=0)
    _mark_incidents(axes, remarks)
    return figure


def _servers(recording: Recording, remarks: Sequence[Remark]) -> Figure:
    figure = Figure(figsize=(9, 6.2), layout="constrained")
    rows = figure.subplots(len(TIERS), 1, sharex=True)
    times = _minutes(recording)
    for axes, name in zip(rows, TIERS, strict=True):
        tiers = [moment.tiers[name] for moment in recording.moments]
        ready = [tier.ready for tier in tiers]
        coming = [tier.ready + tier.pending for tier in tiers]
        axes.fill_between(
            times, ready, step="post", color=_COLOURS[name], alpha=0.35, linewidth=0, label="ready"
        )
        axes.fill_between(
            times,
            ready,
            coming,
            step="post",
            facecolor="none",
            edgecolor=_COLOURS[name],
            hatch="////",
            alpha=0.5,
            linewidth=0,
            label="starting",
        )
        axes.step(
            times,
            [tier.desired for tier in tiers],
            where="post",
            color="black",
            linewidth=1.3,
            label="wanted",
        )
        axes.set_ylabel(name.capitalize())
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(bottom=0)
        _mark_incidents(axes, remarks, labelled=False)
    rows[0].set_title("GPU servers wanted, starting and ready", loc="left")
    rows[0].legend(loc="upper right", ncols=3)
    rows[-1].set_xlabel("minutes of the run")
    return figure


def _latency(recording: Recording, remarks: Sequence[Remark]) -> Figure:
    figure = Figure(figsize=(9, 6.2), layout="constrained")
    rows = figure.subplots(len(TIERS), 1, sharex=True)
    for axes, name in zip(rows, TIERS, strict=True):
        target = TARGETS[name]
        points = [
            (moment.at_seconds / 60, reading * 1000)
            for moment in recording.moments
            if (
                reading := target.measured(
                    first_token_seconds=moment.tiers[name].first_token_p95_seconds,
                    per_token_seconds=moment.tiers[name].seconds_per_token_p95,
                )
            )
            is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), color=_COLOURS[name])
        limit = target.limit_seconds * 1000
        axes.axhline(limit, color="#b03030", linestyle="--", linewidth=1)
        axes.annotate(
            f"target {limit:g} ms",
            (1.0, limit),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            color="#b03030",
            fontsize=8,
        )
        axes.set_ylim(0, max([limit * 1.3, *(value * 1.1 for _, value in points)]))
        what = "per token" if target.per_token else "first token"
        axes.set_ylabel(f"{name.capitalize()}\n{what}, ms")
        _mark_incidents(axes, remarks, labelled=False)
    rows[0].set_title("Latency at P95 over the last 10 s, as players felt it", loc="left")
    rows[-1].set_xlabel("minutes of the run")
    return figure


def _cost(recording: Recording, budget: float) -> Figure:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.add_subplot()
    # With hardly anybody online any fleet is dear per head; the curve says so and is cut off.
    points = [
        (
            moment.at_seconds / 60,
            moment.cost_usd_per_hour / moment.players_online * HOURS_PER_MONTH,
        )
        for moment in recording.moments
        if moment.players_online > 0
    ]
    highest = budget * 5
    if points:
        times, costs = zip(*points, strict=True)
        axes.plot(times, [min(cost, highest) for cost in costs], color="#35618e")
    axes.axhline(budget, color="#b03030", linestyle="--", linewidth=1, label=f"budget ${budget:g}")
    average = recording.average_cost_usd_per_player_month
    if average is not None:
        axes.axhline(
            min(average, highest),
            color="#35618e",
            linestyle=":",
            label=f"evening's average ${average:.2f}",
        )
    axes.set_ylim(0, highest)
    axes.set_title("Cost per player and month, at the present fleet and players", loc="left")
    axes.set_ylabel("US$ (cut off above)")
    axes.set_xlabel("minutes of the run")
    axes.legend(loc="upper right")
    return figure


def _mark_incidents(axes: Axes, remarks: Sequence[Remark], *, labelled: bool = True) -> None:
    for remark in remarks:
        if remark.kind != "incident":
            continue
        at = remark.at_seconds / 60
        axes.axvline(at, color="#7a3b8f", linewidth=1, alpha=0.7)
        if labelled:
            axes.annotate(
                remark.text,
                (at, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(3, -4),
                textcoords="offset points",
                rotation=90,
                va="top",
                fontsize=7,
                color="#7a3b8f",
            )
