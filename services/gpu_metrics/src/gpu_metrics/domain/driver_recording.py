"""What a GPU driver answered and how long it took, kept to be looked at and played again.

A recording is a file of JSON lines: first a header, then one line for each call into the driver in
the order they were made. Figures bear the names of scenarios of the stand-in driver, in the
driver's own units: percent, bytes, milliwatts, millijoules, degrees Celsius, MHz.
"""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

__all__ = [
    "CallCost",
    "DriverCall",
    "RecordedGpu",
    "Recording",
    "RecordingMalformed",
    "call_costs",
    "read_recording",
    "refresh_periods",
]

FORMAT_VERSION = 1


class RecordingMalformed(Exception):
    """The file is no recording of this format."""


@dataclass(frozen=True, slots=True)
class RecordedGpu:
    """A GPU of the machine that was recorded."""

    uuid: str
    name: str


@dataclass(frozen=True, slots=True)
class DriverCall:
    """One call: when it was made, for which GPU, NVML's return code, how long it took.

    `answer` holds what a successful call gave: figures by name; `fields` by number with status and
    value; `ring` with `samples` (pairs of microseconds since 1970 and a value); `processes` (pairs
    of an id and bytes, null when unknown); `xid`. `thread` is 0 for a call that was made alone,
    else which of two threads made it that asked at once; such a call is kept for its latency.
    """

    at_microseconds: int
    gpu: int
    call: str
    code: int
    took_microseconds: float
    answer: Mapping[str, Any]
    thread: int = 0

    def as_line(self) -> str:
        """Return the call as a line of the file."""
        row: dict[str, Any] = {
            "at": self.at_microseconds,
            "gpu": self.gpu,
            "call": self.call,
            "code": self.code,
            "took": round(self.took_microseconds, 1),
            "answer": self.answer,
        }
        if self.thread:
            row["thread"] = self.thread
        return json.dumps(row, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Recording:
    """A machine's driver over some time; moments of calls count from `started_microseconds`.

    `calls` were made one at a time, those of `contended` after that, by two threads at once.
    """

    driver_version: str
    started_microseconds: int
    gpus: tuple[RecordedGpu, ...]
    calls: tuple[DriverCall, ...] = ()
    contended: tuple[DriverCall, ...] = ()

    @property
    def seconds(self) -> float:
        """Return how long calls were made one at a time."""
        return self.calls[-1].at_microseconds / 1e6 if self.calls else 0.0

    def header(self) -> str:
        """Return the first line of the file."""
        return json.dumps(
            {
                "recording": FORMAT_VERSION,
                "driver_version": self.driver_version,
                "started": self.started_microseconds,
                "gpus": [{"uuid": gpu.uuid, "name": gpu.name} for gpu in self.gpus],
            }
        )

    def figures(self) -> Iterator[tuple[int, int, str, float]]:
        """Yield moment, GPU, name and value of every figure that was told, in the order of time."""
        for call in self.calls:
            for name, value in call.answer.items():
                if isinstance(value, int | float):
                    yield call.at_microseconds, call.gpu, name, value
            for number, (status, value) in call.answer.get("fields", {}).items():
                if status == 0:
                    yield call.at_microseconds, call.gpu, f"field {number}", value


def read_recording(lines: Iterable[str]) -> Recording:
    """Return the recording in these lines. Raises `RecordingMalformed`."""
    rows = iter(lines)
    try:
        header = json.loads(next(rows))
        if header["recording"] != FORMAT_VERSION:
            raise RecordingMalformed(f"of format {header['recording']}, not {FORMAT_VERSION}")
        calls = tuple(_call(json.loads(row)) for row in rows if row.strip())
        gpus = tuple(RecordedGpu(gpu["uuid"], gpu["name"]) for gpu in header["gpus"])
        return Recording(
            header["driver_version"],
            header["started"],
            gpus,
            tuple(call for call in calls if not call.thread),
            tuple(call for call in calls if call.thread),
        )
    except (StopIteration, ValueError, KeyError, TypeError) as error:
        raise RecordingMalformed("not a recording of a GPU driver") from error


def _call(row: Mapping[str, Any]) -> DriverCall:
    return DriverCall(
        row["at"],
        row["gpu"],
        row["call"],
        row["code"],
        row["took"],
        dict(row["answer"]),
        int(row.get("thread", 0)),
    )


@dataclass(frozen=True, slots=True)
class CallCost:
    """How long one function took, in microseconds."""

    calls: int
    median_microseconds: float
    worst_microseconds: float
    failed: int


def call_costs(calls: Sequence[DriverCall]) -> dict[str, CallCost]:
    """Return what each function cost, by its name."""
    by_name: dict[str, list[DriverCall]] = defaultdict(list)
    for call in calls:
        by_name[call.call].append(call)
    return {
        name: CallCost(
            len(made),
            median(call.took_microseconds for call in made),
            max(call.took_microseconds for call in made),
            sum(call.code != 0 for call in made),
        )
        for name, made in sorted(by_name.items())
    }


def refresh_periods(recording: Recording) -> dict[str, float]:
    """Return the median milliseconds between two changes of a figure, over all GPUs.

    A figure that changed less than three times is left out: nothing can be said of it. A period
    cannot be shorter than the time between two readings. Rings are told by the distance of samples.
    """
    last: dict[tuple[int, str], tuple[int, float]] = {}
    gaps: dict[str, list[int]] = defaultdict(list)
    for moment, gpu, name, value in recording.figures():
        changed_at, before = last.setdefault((gpu, name), (moment, value))
        if value != before:
            gaps[name].append(moment - changed_at)
            last[gpu, name] = (moment, value)
    for (_, ring), samples in ring_samples(recording).items():
        moments = [moment for moment, _ in samples]
        gaps[f"ring {ring}"] += [after - before for before, after in itertools.pairwise(moments)]
    return {name: median(each) / 1000 for name, each in sorted(gaps.items()) if len(each) >= 3}


def ring_samples(recording: Recording) -> dict[tuple[int, str], list[tuple[int, int]]]:
    """Return the samples of each ring by GPU and name, each once, in the order of time."""
    found: dict[tuple[int, str], dict[int, int]] = defaultdict(dict)
    for call in recording.calls:
        if "ring" in call.answer:
            found[call.gpu, call.answer["ring"]].update(call.answer["samples"])
    return {key: sorted(samples.items()) for key, samples in found.items()}
