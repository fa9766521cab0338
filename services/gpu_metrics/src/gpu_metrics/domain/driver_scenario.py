"""Turns a recording of a driver into a scenario of the stand-in driver, which plays it again."""

import itertools
from collections import defaultdict
from statistics import median

from gpu_metrics.domain.driver_recording import Recording, call_costs, ring_samples

__all__ = ["scenario_of"]

_FIRST_SERIAL = 1_000_000
# What the stand-in takes itself is less.
_LEAST_LATENCY_MICROSECONDS = 100


def scenario_of(recording: Recording, *, started_microseconds: int) -> str:
    """Return the scenario that answers from `started_microseconds` on as the driver did.

    Figures are played as they were seen, rings sample by sample, errors of calls and fields that
    never succeeded as such, and each call takes as long as it took in the median. Processes are
    those seen last.
    """
    lines = [
        f"driver version {recording.driver_version}",
        f"driver started {started_microseconds}",
    ]
    for index, gpu in enumerate(recording.gpus):
        lines += [f"gpu {index} uuid {gpu.uuid}", f"gpu {index} name {gpu.name}"]
        made = [call for call in recording.calls if call.gpu == index]
        lines += [
            f"gpu {index} latency {name} {cost.median_microseconds:.0f}"
            for name, cost in call_costs(made).items()
            if cost.median_microseconds >= _LEAST_LATENCY_MICROSECONDS
        ]
    rings = ring_samples(recording)
    lines += _figures(recording, {(gpu, name) for (gpu, name), each in rings.items() if each})
    for (index, name), samples in rings.items():
        lines += _ring(index, name, samples)
    lines += _refusals(recording)
    lines += _processes(recording)
    lines += [
        f"event {_FIRST_SERIAL + number} gpu {call.gpu} xid {call.answer['xid']} "
        f"{max(call.at_microseconds, 1)}"
        for number, call in enumerate(call for call in recording.calls if "xid" in call.answer)
    ]
    return "\n".join(lines) + "\n"


def _figures(recording: Recording, in_rings: set[tuple[int, str]]) -> list[str]:
    traces: dict[tuple[int, str], list[tuple[int, float]]] = defaultdict(list)
    for moment, gpu, name, value in recording.figures():
        points = traces[gpu, name]
        if name != "xid" and (gpu, name) not in in_rings and (not points or points[-1][1] != value):
            points.append((moment, value))
    return [
        f"gpu {gpu} {name} "
        + (
            f"{points[0][1]}"
            if len(points) == 1
            else "trace " + " ".join(f"{moment}:{value}" for moment, value in points)
        )
        for (gpu, name), points in traces.items()
        if points
    ]


def _ring(gpu: int, name: str, samples: list[tuple[int, int]]) -> list[str]:
    if len(samples) < 2:
        return [f"gpu {gpu} {name} {samples[0][1]}"] if samples else []
    moments = [moment for moment, _ in samples]
    period = median(after - before for before, after in itertools.pairwise(moments))
    # The stand-in's ring has a sample at every multiple of the period; a gap stays a gap.
    points = " ".join(
        f"{round((round((moment - moments[0]) / period) + 1) * period)}:{value}"
        for moment, value in samples
    )
    return [f"gpu {gpu} ring {name} {period / 1000} 120", f"gpu {gpu} {name} trace {points}"]


def _refusals(recording: Recording) -> list[str]:
    """Calls and fields that never succeeded are not there on that GPU."""
    codes: dict[tuple[int, str], set[int]] = defaultdict(set)
    fields: dict[tuple[int, str], set[int]] = defaultdict(set)
    rings: dict[tuple[int, str], bool] = {}
    for call in recording.calls:
        if call.call == "nvmlDeviceGetSamples":
            key = (call.gpu, call.answer.get("ring", ""))
            rings[key] = rings.get(key, False) or bool(call.answer.get("samples"))
        elif "xid" not in call.answer:
            codes[call.gpu, call.call].add(call.code)
        for number, (status, _) in call.answer.get("fields", {}).items():
            fields[call.gpu, number].add(status)
    lines = [
        f"gpu {gpu} fail {name} {min(found)}"
        for (gpu, name), found in codes.items()
        # One function may be asked for several things, so it is refused only if it always was.
        if 0 not in found
    ]
    lines += [
        f"gpu {gpu} field {number} fail {min(found)}"
        for (gpu, number), found in fields.items()
        if 0 not in found
    ]
    lines += [f"gpu {gpu} ring {name} empty" for (gpu, name), had in rings.items() if not had]
    return lines


def _processes(recording: Recording) -> list[str]:
    last: dict[int, list[tuple[int, int | None]]] = {}
    for call in recording.calls:
        if "processes" in call.answer:
            last[call.gpu] = call.answer["processes"]
    not_available = 2**64 - 1
    return [
        f"gpu {gpu} process {process} {not_available if memory is None else memory}"
        for gpu, processes in last.items()
        for process, memory in processes
    ]
