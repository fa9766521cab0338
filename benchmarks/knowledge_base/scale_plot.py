"""Draws how the cost of a search grows, and how rivals compare."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from scale_measures import Latency
from scale_rivals import Comparison

__all__ = ["Growth", "draw"]


@dataclass(frozen=True, slots=True)
class Growth:
    """How long a search took by the events of its world, in a database of so many worlds."""

    worlds: int
    events: int
    by_events: Mapping[int, Latency]


def draw(path: Path, growths: Sequence[Growth], comparisons: Sequence[Comparison]) -> None:
    """Writes the PNG."""
    figure = Figure(figsize=(11, 4.2), dpi=110)
    left, right = figure.subplots(1, 2)
    for growth in growths:
        sizes = sorted(growth.by_events)
        label = f"{growth.worlds:,} worlds, {growth.events:,} events"
        (line,) = left.plot(
            sizes, [growth.by_events[size].percentile(50) for size in sizes], "o-", label=label
        )
        left.plot(
            sizes,
            [growth.by_events[size].percentile(95) for size in sizes],
            ":",
            color=line.get_color(),
        )
    left.set(
        xscale="log",
        yscale="log",
        xlabel="events in the world",
        ylabel="milliseconds a search",
        title="Recall: p50, and p95 dotted",
    )
    left.grid(visible=True, which="both", alpha=0.25)
    left.legend(fontsize=8)

    searches = [comparison for comparison in comparisons if comparison.unit == "ms"]
    names = [f"{item.what}\n{item.rival}" for item in searches]
    bars = right.barh(names, [item.ratio for item in searches], color="#5a7fa8")
    right.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    right.margins(x=0.08)  # room for the figures at the bars
    right.axvline(1.0, color="black", linewidth=0.8)
    right.invert_yaxis()
    right.tick_params(axis="y", labelsize=7)
    right.set(title="How many times as long as the knowledge base", xlabel="ratio of medians")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
