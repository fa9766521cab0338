"""What else our agent does that a page to be polled does not, on the same driver at the same time.

Three XIDs come within a second on one GPU. As soon as the first has arrived, the receiver is
stopped for 3 s, and the rival's poller rests for as long.

- events: which XIDs arrived, and what of them the rival's page shows.
- attribution: what is told of the process that uses the GPUs, which is of an ECS task.
- acknowledged streaming: samples of the 3 s that arrive after them, against polls of that time.
"""

import asyncio
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from gpu_host import CONTAINER, MODEL, SERVICE, TASK_ARN
from kept_limits import Limit, at_least, at_most
from measured_program import FakeDriver
from report_recorder import Receiver, Recorder
from rival_page import Polls

from gaming.gpu_metrics.v1 import events_pb2

__all__ = ["XIDS", "Outage", "compare_advantages", "hold_outage"]

XIDS = (13, 31, 48)
"""A program's fault, its memory access, and an uncorrectable memory error."""

_FIRST_XID_SECONDS, _BETWEEN_XIDS_SECONDS = 1.0, 0.4
_AWAY_SECONDS = 3.0
_WAIT_SECONDS = 15.0
_AFTERWARDS_SECONDS = 4.0
_RING_SECONDS = 1 / 6
_SAMPLES_LIMIT_SHARE = 0.99
_GAP_LIMIT_SECONDS = 2 * _RING_SECONDS
"""A ring has a sample every sixth of a second; one that is lost shows as twice that."""


@dataclass(frozen=True, slots=True)
class Outage:
    """When the receiver was away, and when XIDs happened by code; times of the wall clock."""

    began: float
    ended: float
    xid_times: dict[int, float]


async def hold_outage(
    receiver: Receiver, polls: Polls, drivers: list[FakeDriver], started: float
) -> Outage:
    """Have XIDs happen and the receiver be away, and return once what was held back had time."""
    first = time.time() + _FIRST_XID_SECONDS
    times = {xid: first + _BETWEEN_XIDS_SECONDS * turn for turn, xid in enumerate(XIDS)}
    for driver in drivers:
        for serial, (xid, moment) in enumerate(times.items(), start=1):
            driver.add(f"event {serial} gpu 0 xid {xid} {round((moment - started) * 1e6)}")
    await _until(lambda: bool(receiver.kept.events))
    polls.away, began = True, time.time()
    await receiver.stop()
    await asyncio.sleep(_AWAY_SECONDS)
    await receiver.start()
    polls.away, ended = False, time.time()
    await _until(lambda: len(receiver.kept.events) >= len(XIDS))
    await asyncio.sleep(_AFTERWARDS_SECONDS)
    return Outage(began, ended, times)


async def _until(condition: Callable[[], bool]) -> None:
    """Return when it holds, or when it took too long, which the limits then tell."""
    give_up = time.monotonic() + _WAIT_SECONDS
    while not condition() and time.monotonic() < give_up:  # noqa: ASYNC110  # of streams, seldom
        await asyncio.sleep(0.005)


def compare_advantages(
    kept: Recorder, polls: Polls, outage: Outage, *, gpus: int, process_id: int, with_rival: bool
) -> list[Limit]:
    """Print what each tells, and return what we claim."""
    print(f"{len(XIDS)} XIDs within a second, and {_AWAY_SECONDS:.0f} s without a receiver")
    limits = _events(kept, outage)
    limits += _attribution(kept, process_id)
    limits += _streaming(kept, outage, gpus)
    if with_rival:
        limits += _rival(polls, outage, process_id)
    return limits


def _events(kept: Recorder, outage: Outage) -> list[Limit]:
    events = [
        event
        for _, event in sorted(kept.events.items())
        if event.kind == events_pb2.GPU_EVENT_KIND_XID
    ]
    off = [abs(event.time.ToMicroseconds() / 1e6 - outage.xid_times[event.xid]) for event in events]
    for event in events:
        severity = events_pb2.Severity.Name(event.severity).removeprefix("SEVERITY_").lower()
        print(f"  ours: XID {event.xid}, {severity}: {event.description}")
    codes = [event.xid for event in events]
    return [
        Limit(f"XIDs that arrived, each once and in order: {codes}", kept=codes == list(XIDS)),
        Limit(
            "each with a GPU, a severity and what it means",
            kept=bool(events)
            and all(each.gpu_uuid and each.severity and each.description for each in events),
        ),
        at_most(
            "their times are off by, seconds", max(off, default=None), _BETWEEN_XIDS_SECONDS, ".3f"
        ),
    ]


def _attribution(kept: Recorder, process_id: int) -> list[Limit]:
    found = [
        each
        for each in (kept.processes.processes if kept.processes is not None else ())
        if each.process_id == process_id
    ]
    told = {
        (each.container_id, each.ecs_task_arn, each.ecs_service, each.container_name, each.model)
        for each in found
    }
    if found:
        print(
            f"  ours: process {process_id} is {found[0].ecs_service}'s {found[0].container_name}, "
            f"serves {found[0].model}, task {found[0].ecs_task_arn.rpartition('/')[2]}"
        )
    return [
        Limit(
            "processes told with container, ECS task, service and model: "
            f"{len(found) if told == {_TRUTH} else 0} of {len(found)}",
            kept=told == {_TRUTH},
        )
    ]


_TRUTH = (CONTAINER, TASK_ARN, SERVICE, "vllm", MODEL)


def _streaming(kept: Recorder, outage: Outage, gpus: int) -> list[Limit]:
    length = outage.ended - outage.began
    samples, longest = 0, 0.0
    for gpu in range(gpus):
        moments = sorted({at for index, at, _ in kept.utilization if index == gpu})
        samples += sum(outage.began <= at < outage.ended for at in moments)
        gaps = [
            later - at
            for at, later in pairwise(moments)
            if later > outage.began and at < outage.ended
        ]
        longest = max([longest, *(gaps or [length])])
    # Rounded down: one more of each GPU may lie between two moments of that distance.
    made = gpus * int(length / _RING_SECONDS)
    print(f"  ours: {samples} utilisation samples of the {length:.1f} s arrived after them")
    return [
        at_least(
            "utilisation samples of the time without a receiver, of those made",
            samples / made,
            _SAMPLES_LIMIT_SHARE,
            ".0%",
        ),
        at_most("longest time without a sample in it, seconds", longest, _GAP_LIMIT_SECONDS, ".3f"),
    ]


def _rival(polls: Polls, outage: Outage, process_id: int) -> list[Limit]:
    polled = sum(outage.began <= at < outage.ended for at in polls.polled_at)
    xid_lines = [line for line in polls.page.splitlines() if re.search(r"(?i)xid", line)]
    process_lines = [line for line in polls.page.splitlines() if f'pid="{process_id}"' in line]
    labels = sorted(set(re.findall(r'(\w+)="', " ".join(process_lines))))
    print(f"  nvitop-exporter: {len(xid_lines)} lines about XIDs on its page")
    print(f"  nvitop-exporter: a process has {', '.join(labels) or 'no line'}")
    print(f"  nvitop-exporter: {polled} polls in that time, and its page tells of now alone")
    # A model may stand among the arguments of its server, which the page shows as one text.
    named = [each for each in (CONTAINER, TASK_ARN) if each in polls.page]
    named += [each for each in ("container", "task", "service") if each in labels]
    return [
        Limit("nvitop-exporter's page shows no XID", kept=not xid_lines),
        Limit(
            "nvitop-exporter's page shows the process, so it could have named its task",
            kept=bool(process_lines),
        ),
        Limit("nvitop-exporter's page names no container, task or service", kept=not named),
        Limit("a poller that was away has nothing of that time", kept=not polled),
    ]
