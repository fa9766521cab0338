"""Plots of a figure over time."""

from collections.abc import Sequence
from datetime import datetime
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gamekeeper.cli.fleet_plot import PlottedSeries, svg_plot, terminal_plot

START, END = datetime(2026, 1, 1, 12), datetime(2026, 1, 1, 13)  # noqa: DTZ001  # shown as local
SVG = "{http://www.w3.org/2000/svg}"


def a_series(values: Sequence[float | None]) -> PlottedSeries:
    return PlottedSeries("power of i-1 <&>", "W", START, END, values)


def test_a_gap_is_left_blank_and_marked_in_the_terminal() -> None:
    lines = terminal_plot(a_series([50.0] * 40 + [None] * 20 + [50.0] * 40), width=111)
    axis = next(line for line in lines if "└" in line)
    assert axis.count("x") == pytest.approx(20, abs=1)
    columns = [lines.index(line) for line in lines if "⠒" in line or "⠤" in line or "⠉" in line]
    (drawn,) = {lines[column] for column in columns if "┤" in lines[column]}
    assert drawn[55:65].strip() == ""


def test_a_gap_splits_the_line_and_is_shaded_in_the_file() -> None:
    document = ET.fromstring(svg_plot(a_series([1, 2, None, None, 3, 4, None, 5])))  # noqa: S314  # our own
    assert len(document.findall(f"{SVG}polyline")) == 2
    assert len(document.findall(f"{SVG}circle")) == 1
    assert len([r for r in document.findall(f"{SVG}rect") if r.get("fill") == "#f3d9d9"]) == 2


def test_nothing_to_draw_is_a_plot_of_gaps() -> None:
    assert any("no sample" in line for line in terminal_plot(a_series([None] * 10), width=80))
    ET.fromstring(svg_plot(a_series([])))  # noqa: S314  # our own


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.none() | st.floats(0, 1e12, allow_nan=False), max_size=400), st.integers(30, 200)
)
def test_any_values_are_drawn_within_the_width(values: list[float | None], width: int) -> None:
    series = a_series(values)
    assert all(len(line) <= width for line in terminal_plot(series, width=width)[1:])
    ET.fromstring(svg_plot(series))  # noqa: S314  # our own
    assert all(value is None or value <= series.top for value in values)
