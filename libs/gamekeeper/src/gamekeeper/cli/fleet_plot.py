"""A figure over time, drawn with dots in the terminal or as an SVG file. A gap stays a gap."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from xml.sax.saxutils import escape

__all__ = ["PlottedSeries", "svg_plot", "terminal_plot"]

_LABEL_CELLS = 8
# Bits of a braille cell by dot row and column, from Unicode's block of braille patterns.
_DOT_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BRAILLE_BLANK = 0x2800


@dataclass(frozen=True, slots=True)
class PlottedSeries:
    """Values at even steps; None where nothing was told."""

    title: str
    unit: str
    start: datetime
    end: datetime
    values: Sequence[float | None]

    @property
    def top(self) -> float:
        """Return a round figure above all values, from which the scale goes down to 0."""
        highest = max((value for value in self.values if value is not None), default=0.0)
        if highest <= 0:
            return 1.0
        magnitude = 10.0 ** math.floor(math.log10(highest))
        steps = (step * magnitude for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10))
        return next((step for step in steps if step >= highest), highest)

    def runs(self) -> Iterator[list[tuple[int, float]]]:
        """Yield the stretches between gaps, as positions with values."""
        run: list[tuple[int, float]] = []
        for position, value in enumerate(self.values):
            if value is None:
                if run:
                    yield run
                run = []
            else:
                run.append((position, value))
        if run:
            yield run


def terminal_plot(series: PlottedSeries, *, width: int, height: int = 13) -> list[str]:
    """Return the lines of a plot at most `width` cells wide; gaps are marked below the axis."""
    cells = max(10, width - _LABEL_CELLS - 3)
    columns, rows = 2 * cells, 4 * height
    top, steps = series.top, len(series.values)
    dots: set[tuple[int, int]] = set()

    def place(position: float, value: float) -> tuple[int, int]:
        column = 0 if steps < 2 else round(position * (columns - 1) / (steps - 1))
        row = round((1 - min(1.0, max(0.0, value / top))) * (rows - 1))
        return column, row

    for run in series.runs():
        previous = place(*run[0])
        dots.add(previous)
        for position, value in run[1:]:
            here = place(position, value)
            dots |= _line(previous, here)
            previous = here
    lines = [f"{series.title}"]
    for line in range(height):
        text = "".join(_braille(dots, cell, line) for cell in range(cells))
        at = top * (1 - line / (height - 1)) if height > 1 else top
        label = _figure(at) if line % 3 == 0 or line == height - 1 else ""
        lines.append(f"{label:>{_LABEL_CELLS}} ┤{text}".rstrip())
    lines.append(f"{series.unit:>{_LABEL_CELLS}} └{_gap_marks(series.values, cells)}")
    begins, ends = f"{series.start:%H:%M:%S}", f"{series.end:%H:%M:%S}"
    lines.append(" " * (_LABEL_CELLS + 2) + begins + ends.rjust(cells - len(begins)))
    if any(value is None for value in series.values):
        lines.append(" " * (_LABEL_CELLS + 2) + "x: no sample")
    return lines


def _line(start: tuple[int, int], end: tuple[int, int]) -> set[tuple[int, int]]:
    length = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    return {
        (
            round(start[0] + (end[0] - start[0]) * part / length),
            round(start[1] + (end[1] - start[1]) * part / length),
        )
        for part in range(length + 1)
    }


def _braille(dots: set[tuple[int, int]], cell: int, line: int) -> str:
    bits = sum(
        bit
        for row, pair in enumerate(_DOT_BITS)
        for column, bit in enumerate(pair)
        if (2 * cell + column, 4 * line + row) in dots
    )
    return chr(_BRAILLE_BLANK + bits) if bits else " "


def _gap_marks(values: Sequence[float | None], cells: int) -> str:
    """`x` in each cell of the axis whose steps are all without a sample."""
    marks = []
    for cell in range(cells):
        first = cell * len(values) // cells
        last = max(first + 1, (cell + 1) * len(values) // cells)
        marks.append("x" if all(value is None for value in values[first:last]) else "─")
    return "".join(marks)


def _figure(value: float) -> str:
    if 10 <= value < 100_000 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.2g}"


_WIDTH, _HEIGHT = 960, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 36, 32


def svg_plot(series: PlottedSeries) -> str:
    """Return the plot as an SVG document: a line for each stretch, a shade over each gap."""
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    top, steps = series.top, max(1, len(series.values) - 1)

    def x(position: float) -> float:
        return _LEFT + inner_width * position / steps

    def y(value: float) -> float:
        return _TOP + inner_height * (1 - min(1.0, value / top))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"',
        ' font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="20" font-size="14">{escape(series.title)}</text>',
    ]
    for part in range(5):
        value = top * part / 4
        parts += [
            f'<path d="M{_LEFT} {y(value):.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>',
            f'<text x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">',
            f"{_figure(value)} {escape(series.unit)}</text>",
        ]
    for first, last in _gaps(series.values):
        left, right = x(max(0, first - 0.5)), x(min(steps, last + 0.5))
        parts.append(
            f'<rect x="{left:.1f}" y="{_TOP}" width="{max(1.0, right - left):.1f}" '
            f'height="{inner_height}" fill="#f3d9d9"><title>no sample</title></rect>'
        )
    for run in series.runs():
        if len(run) == 1:
            (position, value), *_ = run
            parts.append(f'<circle cx="{x(position):.1f}" cy="{y(value):.1f}" r="2" fill="#06c"/>')
            continue
        points = " ".join(f"{x(position):.1f},{y(value):.1f}" for position, value in run)
        parts.append(f'<polyline points="{points}" fill="none" stroke="#06c" stroke-width="1.5"/>')
    for anchor, at, moment in (
        ("start", _LEFT, series.start),
        ("end", _WIDTH - _RIGHT, series.end),
    ):
        parts.append(
            f'<text x="{at}" y="{_HEIGHT - 10}" text-anchor="{anchor}">'
            f"{moment:%Y-%m-%d %H:%M:%S}</text>"
        )
    return "\n".join([*parts, "</svg>", ""])


def _gaps(values: Sequence[float | None]) -> Iterator[tuple[int, int]]:
    first: int | None = None
    for position, value in enumerate([*values, 0.0]):
        if value is None and first is None:
            first = position
        elif value is not None and first is not None:
            yield first, position - 1
            first = None
