"""One figure over time out of the history: steps, how they are made, and of what."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate

from gpu_metrics.domain.history import SERVER_METRICS, History, Subject
from gpu_metrics.domain.history_cells import points_of
from gpu_metrics.domain.history_ring import HistoryLengths
from gpu_metrics.domain.log_histogram import LogHistogram
from gpu_metrics.domain.readings import Tier
from gpu_metrics.domain.samples import FleetMetric
from servicekit.errors import InvalidRequest, NotFound

__all__ = [
    "Aggregation",
    "HistoryPoint",
    "HistoryQuery",
    "HistoryRun",
    "MetricOfServers",
    "NoSuchPart",
    "Scope",
    "TooManySteps",
]

DEFAULT_STEPS = 300
MOST_STEPS = 5000
_RESOLUTIONS = (1, 10, 60)


class TooManySteps(InvalidRequest):
    """The range holds more steps than one answer may."""

    reason = "HISTORY_TOO_MANY_STEPS"


class NoSuchPart(NotFound):
    """No GPU, server or host of that name is remembered."""

    reason = "HISTORY_UNKNOWN"


class MetricOfServers(InvalidRequest):
    """The figure is one of model servers, the part a GPU."""

    reason = "METRIC_OF_SERVERS"


class Aggregation(Enum):
    """How the samples of a step become one value; the numbers are those of the protocol."""

    MEAN = 1
    MINIMUM = 2
    MAXIMUM = 3
    P50 = 4
    P95 = 5
    P99 = 6
    SUM = 7


_PERCENTILES = {Aggregation.P50: 0.5, Aggregation.P95: 0.95, Aggregation.P99: 0.99}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Of which part of the fleet; without any of them, of all of it."""

    gpu_uuid: str = ""
    server_id: str = ""
    host_id: str = ""
    tier: Tier | None = None

    def covers(self, subject: Subject) -> bool:
        """Return whether a GPU or server belongs to this part."""
        if self.gpu_uuid:
            return subject.key == self.gpu_uuid
        if self.server_id:
            return self.server_id in subject.server_ids
        if self.host_id:
            return subject.host_id == self.host_id
        return self.tier is None or self.tier in subject.tiers

    @property
    def names_one(self) -> bool:
        """Return whether it names a thing that must be there."""
        return bool(self.gpu_uuid or self.server_id or self.host_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryQuery:
    """Which figure, of what, from when to when (seconds since 1970), in which steps."""

    metric: FleetMetric
    scope: Scope
    start: int
    end: int
    step: int | None = None
    aggregation: Aggregation = Aggregation.MEAN


@dataclass(frozen=True, slots=True)
class HistoryPoint:
    """One step; `value` is None when there was no sample."""

    start: int
    value: float | None
    samples: int
    observed: int
    expected: int


class _Step:
    __slots__ = ("histogram", "maximum", "means", "minimum", "observed", "samples", "total")

    def __init__(self) -> None:
        self.samples = 0
        self.observed = 0
        self.total = 0.0
        self.means = 0.0
        self.minimum = math.inf
        self.maximum = -math.inf
        self.histogram: list[LogHistogram] = []


def resolution_of(lengths: HistoryLengths, age: int) -> int:
    """Return the shortest cells that reach back `age` seconds."""
    for resolution in _RESOLUTIONS:
        if age <= lengths.span_seconds(resolution):
            return resolution
    return _RESOLUTIONS[-1]


class HistoryRun:
    """Answers one query, one GPU or server after the other, so that others run in between.

    Raises `TooManySteps`, `NoSuchPart` and `MetricOfServers` when it begins.
    """

    def __init__(self, history: History, query: HistoryQuery, now: int) -> None:
        self._query = query
        finest = resolution_of(history.lengths, now - query.start)
        length = query.end - query.start
        shortest = query.step if query.step is not None else math.ceil(length / DEFAULT_STEPS)
        self.step = math.ceil(max(shortest, 1) / finest) * finest
        self.start = query.start // self.step * self.step
        count = math.ceil((query.end - self.start) / self.step)
        if count > MOST_STEPS:
            raise TooManySteps(
                f"the range has {count} steps; at most {MOST_STEPS} fit into an answer, so ask "
                "for longer steps or a shorter range"
            )
        self._resolution = finest
        if query.aggregation not in _PERCENTILES:
            # Longer cells hold the same means and extremes, and are fewer.
            self._resolution = max(r for r in _RESOLUTIONS if r >= finest and self.step % r == 0)
        of_servers = query.metric in SERVER_METRICS
        if of_servers and query.scope.gpu_uuid:
            raise MetricOfServers("that figure is one of model servers; name a server or a host")
        self._history = history
        subjects = history.servers() if of_servers else history.gpus()
        self._subjects = [subject for subject in subjects if query.scope.covers(subject)]
        if query.scope.names_one and not self._subjects:
            raise NoSuchPart("nothing of that name has told this figure")
        self._steps = [_Step() for _ in range(count)]
        # What was known longer ago than the longest cells reach is not known any more.
        self.oldest = max(history.started, now - history.lengths.span_seconds(60))

    def parts(self) -> Iterator[None]:
        """Take in the samples; yields after each GPU or server."""
        for subject in self._subjects:
            self._take(subject)
            yield

    def _take(self, subject: Subject) -> None:
        self._history.fold(subject)
        percentile = self._query.aggregation in _PERCENTILES
        end = self.start + len(self._steps) * self.step
        own: dict[int, tuple[int, float]] = {}
        points: dict[int, list[tuple[float, int]]] = {}
        for begin, fields in subject.cells(self._query.metric, self.start, end, self._resolution):
            number = (begin - self.start) // self.step
            step = self._steps[number]
            count, total = own.get(number, (0, 0.0))
            own[number] = (count + int(fields[0]), total + fields[0] * fields[1])
            step.minimum = min(step.minimum, fields[2])
            step.maximum = max(step.maximum, fields[3])
            if percentile:
                points.setdefault(number, []).extend(points_of(fields))
        for number, (count, total) in own.items():
            step = self._steps[number]
            step.samples += count
            step.total += total
            step.means += total / count
            step.observed += 1
            if percentile:
                found = LogHistogram.of_weighted(points[number])
                if step.histogram:
                    found = step.histogram.pop().plus(found)
                step.histogram.append(found)

    def points(self) -> Iterator[HistoryPoint]:
        """Yield the steps in order of time."""
        expected = self._expected()
        for number, step in enumerate(self._steps):
            yield HistoryPoint(
                self.start + number * self.step,
                self._value(step),
                step.samples,
                step.observed,
                max(expected[number], step.observed),
            )

    def _expected(self) -> list[int]:
        """Return how many GPUs or servers were known in each step."""
        count = len(self._steps)
        begun = [0] * (count + 1)
        for subject in self._subjects:
            counted = -1
            for begin, until in subject.stays:
                first = max(counted + 1, (begin - self.start) // self.step, 0)
                last = count - 1 if until is None else (until - self.start) // self.step
                last = min(last, count - 1)
                if first <= last:
                    begun[first] += 1
                    begun[last + 1] -= 1
                    counted = last
        return list(accumulate(begun[:count]))

    def _value(self, step: _Step) -> float | None:
        if not step.samples:
            return None
        match self._query.aggregation:
            case Aggregation.MEAN:
                return step.total / step.samples
            case Aggregation.MINIMUM:
                return step.minimum
            case Aggregation.MAXIMUM:
                return step.maximum
            case Aggregation.SUM:
                return step.means
            case percentile:
                return step.histogram[0].quantile(_PERCENTILES[percentile])
