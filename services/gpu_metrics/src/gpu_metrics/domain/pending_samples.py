"""What a host told lately and is in no cell of the history yet.

Samples wait as they came, until somebody asks for them or a bound is reached. Those of several
reports then become cells at once, so most of the work is begun once and not for every report.
"""

from array import array
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import NamedTuple, cast

from gpu_metrics.domain.history_ring import FIELDS_OF_SECOND, cells_of
from gpu_metrics.domain.host_ingest import AcceptedReport
from gpu_metrics.domain.samples import FleetMetric, PackedValues, column_of

__all__ = ["GPU_METRICS", "MOST_PIECES", "MOST_SAMPLES", "MOST_SECONDS", "PendingSamples"]

GPU_METRICS = (
    FleetMetric.GPU_UTILIZATION_PERMILLE,
    FleetMetric.GPU_MEMORY_UTILIZATION_PERMILLE,
    FleetMetric.GPU_MEMORY_USED_BYTES,
    FleetMetric.GPU_POWER_MILLIWATTS,
    FleetMetric.GPU_TEMPERATURE_CELSIUS,
    FleetMetric.GPU_SM_CLOCK_MEGAHERTZ,
)
"""The figures of a GPU, in the order of `GPU_HISTORY_FIGURES`."""

MOST_PIECES = 64
"""Blocks, series apart and reports' readings of a host that wait at most, but for the last."""

MOST_SAMPLES = 16_384
"""Samples that wait at most, but for the last; mostly of two bytes each."""

MOST_SECONDS = 10
"""Seconds from the first sample that waits to the last."""

_NOTHING: AbstractSet[int] = frozenset()
_NEVER = 1 << 80


class _Piece(NamedTuple):
    """Values in columns that are `length` long; of those `columns[n]` is the figure `places[n]`.

    One that is `whole` has a column for each figure of the host and no other, in order.
    """

    moments: tuple[tuple[int, int, int], ...]
    length: int
    columns: Sequence[int]
    places: Sequence[int]
    whole: bool
    values: Sequence[float] | PackedValues


class _Figures(NamedTuple):
    """Which columns of a block are a figure of the host, and where those are among its figures."""

    columns: tuple[int, ...]
    places: tuple[int, ...]
    names: frozenset[int]
    whole: bool


@lru_cache(maxsize=256)
def _figures(columns: tuple[int, ...], gpus: int) -> _Figures:
    """Return what columns of `column_of` are to a host with so many GPUs."""
    wanted = {
        column_of(gpu_index, metric): gpu_index * len(GPU_METRICS) + place
        for gpu_index in range(gpus)
        for place, metric in enumerate(GPU_METRICS)
    }
    found = [(number, wanted[column]) for number, column in enumerate(columns) if column in wanted]
    places = tuple([place for _, place in found])
    whole = len(columns) == len(wanted) and places == tuple(range(len(wanted)))
    return _Figures(tuple([number for number, _ in found]), places, frozenset(places), whole)


class PendingSamples:
    """Samples of a host with so many GPUs, until they are taken; `full` once no more may wait."""

    __slots__ = ("_every_place", "_gpus", "_newest", "_oldest", "_pieces", "_samples", "full")

    def __init__(self, gpus: int) -> None:
        self._gpus = gpus
        self._every_place = tuple(range(gpus * len(GPU_METRICS)))
        self._begin()

    def _begin(self) -> None:
        self._pieces: list[_Piece] = []
        self._samples = 0
        self._oldest, self._newest = _NEVER, 0
        # Whether as much waits as may.
        self.full = False

    def add_samples(self, accepted: AcceptedReport) -> AbstractSet[int]:
        """Keep what is accepted of a report's samples; return the places of their figures."""
        told = _NOTHING
        for moments, block in accepted.blocks:
            columns, places, of_block, whole = _figures(block.columns, self._gpus)
            length = len(block.offset_microseconds)
            self._keep(_Piece(moments, length, columns, places, whole, block.values))
            told = told | of_block if told else of_block
        for each in accepted.series:
            column = column_of(each.gpu_index, each.metric)
            columns, places, of_one, whole = _figures((column,), self._gpus)
            values = array("d", each.values)
            self._keep(_Piece(each.moments, len(values), columns, places, whole, values))
            told |= of_one
        return told

    def add_readings(
        self, second: int, figures: list[float | None], told: AbstractSet[int]
    ) -> None:
        """Keep the readings of a report, but for figures of which samples told already."""
        # The samples of a series are the same figure, told better.
        for place in told:
            figures[place] = None
        moments = ((second, 0, 1),)
        if None in figures:
            places = [place for place, each in enumerate(figures) if each is not None]
            values = [each for each in figures if each is not None]
            self._keep(_Piece(moments, 1, range(len(places)), places, False, values))
        else:
            values = cast("list[float]", figures)
            self._keep(_Piece(moments, 1, self._every_place, self._every_place, True, values))

    def _keep(self, piece: _Piece) -> None:
        if piece.places:
            self._pieces.append(piece)
            self._samples += len(piece.values)
            first, last = piece.moments[0][0], piece.moments[-1][0]
            self._oldest = min(self._oldest, first)
            self._newest = max(self._newest, last)
            self.full = (
                self._newest - self._oldest >= MOST_SECONDS
                or len(self._pieces) >= MOST_PIECES
                or self._samples >= MOST_SAMPLES
            )

    def take(self) -> list[tuple[int, list[float]]]:
        """Return what waited by second, in order of time, and wait for more.

        With each second come the fields of a cell for every figure, one after the other.
        """
        pieces = self._pieces
        if not pieces:
            return []
        self._begin()
        rows: dict[int, list[Sequence[float]]] = {}
        apart: dict[int, list[tuple[int, Sequence[float]]]] = {}
        for moments, length, columns, places, whole, packed in pieces:
            values = packed.numbers() if isinstance(packed, PackedValues) else packed
            for second, start, end in moments:
                if whole:
                    # All figures at one moment after the other are fewer slices than each figure.
                    of_second = rows.setdefault(second, [])
                    if length == 1:
                        of_second.append(values)
                    else:
                        of_second += [values[at::length] for at in range(start, end)]
                else:
                    apart.setdefault(second, []).extend(
                        (place, values[column * length + start : column * length + end])
                        for column, place in zip(columns, places, strict=True)
                    )
        seconds = sorted(rows.keys() | apart.keys())
        columns_of_all: list[Sequence[float]] = []
        for second in seconds:
            columns_of_all += self._columns(rows.get(second, ()), apart.get(second, ()))
        fields = cells_of(columns_of_all)
        width = len(self._every_place) * FIELDS_OF_SECOND
        return [
            (second, fields[number * width : (number + 1) * width])
            for number, second in enumerate(seconds)
        ]

    def _columns(
        self, rows: Iterable[Sequence[float]], apart: Iterable[tuple[int, Sequence[float]]]
    ) -> list[Sequence[float]]:
        columns: list[Sequence[float]] = list(zip(*rows, strict=True))
        if not columns:
            columns = [()] * len(self._every_place)
        for place, values in apart:
            columns[place] = (*columns[place], *values)
        return columns
