"""Rings of rows over time, packed: the memory of one GPU or model server, a cell for each figure.

Three levels: cells of a second, of ten and of sixty seconds. Samples go into the cells of a
second; once a longer cell can get no more samples it is made out of those and stands for itself.
Longer cells of a minute are made at once, or when somebody asks.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gpu_metrics.domain.history_cells import (
    LONGER_CELL,
    SECOND_CELL,
    Cells,
    SecondCells,
    add_earlier,
    longer_cells,
)

__all__ = [
    "BYTES_PER_CELL",
    "BYTES_PER_SECOND_CELL",
    "HistoryLengths",
    "Part",
    "Track",
    "make_longer_cells",
    "put_cells",
]

BYTES_PER_SECOND_CELL = SECOND_CELL.itemsize
"""Memory of a cell of a second."""

BYTES_PER_CELL = LONGER_CELL.itemsize
"""Memory of a longer cell."""

# So many seconds are written at once, so that longer cells are made before the ring needs the room.
_MOST_AT_ONCE = 60


@dataclass(frozen=True, slots=True)
class HistoryLengths:
    """How many cells of each level are kept, and how late a sample may still come, in seconds.

    Cells of a second must reach back two minutes and a half more than samples may be late.
    """

    seconds: int = 600
    ten_seconds: int = 2160
    minutes: int = 10080
    late_seconds: int = 60

    @property
    def bytes_per_figure(self) -> int:
        """Return what one figure of one GPU takes once its rings are full."""
        longer = self.ten_seconds + self.minutes
        return self.seconds * BYTES_PER_SECOND_CELL + longer * BYTES_PER_CELL

    def span_seconds(self, resolution: int) -> int:
        """Return how far back cells of a resolution (1, 10 or 60 seconds) reach."""
        return {1: self.seconds, 10: 10 * self.ten_seconds, 60: 60 * self.minutes}[resolution]


class _Ring:
    """The last rows of one resolution; memory grows with time up to the capacity.

    Before the first row there is room for `before` others.
    """

    __slots__ = ("_before", "_blank", "_bytes", "_origin", "_size", "capacity", "newest")

    def __init__(self, size: int, capacity: int, before: int = 0) -> None:
        self._size = size
        self._blank = bytes(size)
        self.capacity = capacity
        self._before = min(before, capacity - 1)
        self._bytes = bytearray()
        self._origin = 0
        self.newest = -1

    def write(self, number: int, rows: bytes) -> None:
        """Set rows from `number` on, those that are kept; what is left out between is blank."""
        size, count = self._size, len(rows) // self._size
        if self.newest < 0 or number - self.newest >= self.capacity:
            self._origin = number - self._before
            self._bytes = bytearray(self._before * size)
            self.newest = number - 1
        elif number > self.newest + 1:
            self.write(self.newest + 1, self._blank * (number - self.newest - 1))
        self.newest = max(self.newest, number + count - 1)
        begin = max(0, self.oldest - number)
        while begin < count:
            place = (number + begin - self._origin) % self.capacity
            run = min(count - begin, self.capacity - place)
            part = rows if run == count else rows[begin * size : (begin + run) * size]
            self._bytes[place * size : (place + run) * size] = part
            begin += run

    @property
    def oldest(self) -> int:
        """Return the oldest row that is kept."""
        return max(self._origin, self.newest - self.capacity + 1)

    def rows(self, first: int, last: int) -> bytes:
        """Return the rows from `first` to before `last`, blank where they are not kept."""
        size = self._size
        begin, end = max(first, self.oldest), min(last, self.newest + 1)
        if begin >= end:
            return self._blank * (last - first)
        pieces: list[bytes | bytearray] = [self._blank * (begin - first)]
        while begin < end:
            place = (begin - self._origin) % self.capacity
            run = min(end - begin, self.capacity - place)
            pieces.append(self._bytes[place * size : (place + run) * size])
            begin += run
        pieces.append(self._blank * (last - end))
        return b"".join(pieces)

    def kept(self, first: int, last: int) -> tuple[int, int]:
        """Return what of the rows from `first` to before `last` may hold something."""
        if self.newest < 0:
            return first, first
        return max(first, self.oldest), min(last, self.newest + 1)

    @property
    def bytes_held(self) -> int:
        """Return the memory of the rows."""
        return len(self._bytes)


class Track:
    """The figures of one GPU or server over time. Times are in whole seconds since 1970."""

    __slots__ = ("_closed", "_late", "_longer", "_minutes", "_seconds", "_tens", "width")

    def __init__(self, lengths: HistoryLengths, width: int) -> None:
        self.width = width
        self._late = lengths.late_seconds
        self._seconds = _Ring(width * SECOND_CELL.itemsize, lengths.seconds, self._late)
        self._tens = _Ring(width * LONGER_CELL.itemsize, lengths.ten_seconds)
        self._minutes = _Ring(width * LONGER_CELL.itemsize, lengths.minutes)
        # Before this second no more samples are taken; a multiple of ten.
        self._closed = 0
        # Before this second all is in the longer cells; a multiple of ten.
        self._longer = 0

    @property
    def newest(self) -> int:
        """Return the newest second with samples, -1 before the first."""
        return self._seconds.newest

    def row(self, second: int) -> bytes:
        """Return the cells of a second, blank where there are none."""
        return self._seconds.rows(second, second + 1)

    def write(self, first: int, rows: bytes) -> None:
        """Set the cells of the seconds from `first` on, but for those that come too late."""
        size = self.width * SECOND_CELL.itemsize
        if self._seconds.newest < 0:
            self._closed = self._longer = self._closed_by(first)
        elif first + len(rows) // size - self._longer // 60 * 60 > self._seconds.capacity:
            # What longer cells are made of would be gone.
            self._closed = max(self._closed, self._closed_by(first))
            make_longer_cells((self,))
            self._longer = self._closed
        if first < self._closed:
            rows, first = rows[(self._closed - first) * size :], self._closed
        if rows:
            self._seconds.write(first, rows)
            self._closed = max(self._closed, self._closed_by(self._seconds.newest))

    def _closed_by(self, second: int) -> int:
        return (second - self._late) // 10 * 10

    @property
    def makes_longer(self) -> bool:
        """Return whether a minute has ended that is not in the longer cells."""
        return self._longer // 60 < self._closed // 60

    def due(self) -> tuple[int, int]:
        """Return from when to before when longer cells are due, both multiples of ten.

        After a long silence there is nothing between what was heard last and now.
        """
        return self._longer, min(self._closed, (self._seconds.newest // 60 + 1) * 60)

    def seconds(self, first: int, last: int) -> bytes:
        """Return the cells of the seconds from `first` to before `last`."""
        return self._seconds.rows(first, last)

    def write_longer(self, tens: tuple[int, Cells], minutes: tuple[int, Cells]) -> None:
        """Set the longer cells that were due, rows from the number of the first on."""
        for ring, (number, cells) in ((self._tens, tens), (self._minutes, minutes)):
            told = np.flatnonzero(cells["count"].any(axis=1))
            if len(told):
                # A row that tells nothing must not begin or end a ring.
                first, last = int(told[0]), int(told[-1])
                ring.write(number + first, cells[first : last + 1].tobytes())
        self._longer = self._closed

    def cells(
        self, column: int, start: int, end: int, resolution: int
    ) -> Iterator[tuple[int, tuple[float, ...]]]:
        """Yield what was observed from `start` to before `end`: when a cell begins, and its fields.

        The fields are samples, mean, minimum, maximum and what `points_of` needs. What no cell of
        the resolution holds yet comes in cells of a second, so the last seconds are there.
        """
        longer = start
        if resolution > 1:
            make_longer_cells((self,))
            longer = self._longer // resolution * resolution
            ring = self._tens if resolution == 10 else self._minutes
            last = -(-min(end, longer) // resolution)
            for number, fields in self._column(
                ring, LONGER_CELL, column, start // resolution, last
            ):
                yield number * resolution, fields
        yield from self._column(self._seconds, SECOND_CELL, column, max(start, longer), end)

    def _column(
        self, ring: _Ring, cell: np.dtype[np.void], column: int, first: int, last: int
    ) -> Iterator[tuple[int, tuple[float, ...]]]:
        first, last = ring.kept(first, last)
        if first < last:
            rows = np.frombuffer(ring.rows(first, last), cell).reshape(-1, self.width)
            for number, fields in enumerate(rows[:, column].tolist(), first):
                if fields[0]:
                    yield number, fields

    @property
    def bytes_held(self) -> int:
        """Return the memory of all its cells."""
        return self._seconds.bytes_held + self._tens.bytes_held + self._minutes.bytes_held


def make_longer_cells(tracks: Iterable[Track]) -> None:
    """Bring the longer cells of tracks up to date, of tracks that are alike at once."""
    alike: dict[tuple[int, int, int], list[Track]] = {}
    for track in tracks:
        start, end = track.due()
        if start < end:
            alike.setdefault((track.width, start, end), []).append(track)
    for (width, start, end), group in alike.items():
        # The minute that begins before what is due, and all that ends with it.
        begin = start // 60 * 60
        rows = b"".join([track.seconds(begin, end) for track in group])
        cells = np.frombuffer(rows, SECOND_CELL).reshape(len(group), end - begin, width)
        tens = _made_of(10, cells[:, start - begin :])
        minutes = _made_of(60, cells[:, : end // 60 * 60 - begin])
        for track, of_ten, of_minute in zip(group, tens, minutes, strict=True):
            track.write_longer((start // 10, of_ten), (begin // 60, of_minute))


def _made_of(seconds: int, cells: Cells) -> Cells:
    """Return the cells of so many seconds each, of tracks' rows of cells of a second."""
    tracks, length, width = cells.shape
    if not length:
        return np.empty((tracks, 0, width), LONGER_CELL)
    return longer_cells(cells.reshape(tracks, length // seconds, seconds, width).swapaxes(2, 3))


Part = tuple[Track | None, int, int]
"""The track of a GPU or server, and from where to before where its figures are in a row."""


def put_cells(parts: Sequence[Part], told: SecondCells) -> None:
    """Add cells to those of the tracks that all columns of them belong to, one after the other."""
    newest = max([track.newest for track, _, _ in parts if track is not None], default=-1)
    for number, second in enumerate(told.seconds):
        if second > newest:
            break
        rows = [
            track.row(second) if track is not None else bytes((end - begin) * SECOND_CELL.itemsize)
            for track, begin, end in parts
        ]
        add_earlier(told.fields[:, number], np.frombuffer(b"".join(rows), SECOND_CELL))
    packed = told.packed().view(np.uint8)
    size = SECOND_CELL.itemsize
    runs = list(_runs(told.seconds, range(len(told.seconds))))
    for track, begin, end in parts:
        if track is None:
            continue
        if not told.complete:
            has_samples = told.fields[0, :, begin:end].any(axis=1)
            runs = list(_runs(told.seconds, np.flatnonzero(has_samples).tolist()))
        for first, last in runs:
            rows_of_track = packed[first:last, begin * size : end * size]
            track.write(told.seconds[first], rows_of_track.tobytes())
    make_longer_cells([track for track, _, _ in parts if track is not None and track.makes_longer])


def _runs(seconds: Sequence[int], numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield runs of seconds that follow each other: from which number to before which."""
    begin = 0
    for end in range(1, len(numbers) + 1):
        if (
            end == len(numbers)
            or seconds[numbers[end]] - seconds[numbers[begin]] != end - begin
            or end - begin == _MOST_AT_ONCE
        ):
            yield numbers[begin], numbers[end - 1] + 1
            begin = end
