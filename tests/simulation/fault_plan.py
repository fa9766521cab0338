"""Which faults a seed brings, and when: everything a run does is a function of this plan.

Each seed draws some kinds of fault and leaves out others ("swarm testing", Groce et al. 2012), so
that a kind that hides another one does not do so in every run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from random import Random

from virtual_network import WeatherReport

__all__ = ["Fault", "FaultKind", "FaultPlan", "plan_for"]

FAULTS_BEGIN, FAULTS_END = 40.0, 240.0
"""Virtual seconds: before, the suite starts; after, it must come to rest."""

REPLICAS = ("replica-a", "replica-b")
ROUTERS = ("router-1", "router-2")
SUBSCRIBERS = ("subscriber-1", "subscriber-2")
PROCESSES = (*REPLICAS, *ROUTERS, "collector", "hub", "knowledge_base", *SUBSCRIBERS)


class FaultKind(StrEnum):
    """What goes wrong."""

    DROP = "drop"
    DUPLICATE = "duplicate"
    LATE = "late"
    BREAK = "stream break"
    CUT = "cut"
    CRASH = "crash"
    STOP = "stop"
    FREEZE = "stale feed"
    DATABASE = "database away"
    CLOUD = "cloud away"
    HOST = "host dies"
    SPOT = "spot interruption"
    SKEW = "clock skew"
    JUMP = "clock jump"
    STOCK = "no stock"
    FROZEN = "frozen"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that goes wrong at `time` for `seconds`."""

    time: float
    kind: FaultKind
    target: str
    seconds: float = 0.0
    other: str = ""
    amount: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPlan:
    """All that goes wrong in a run, and how the clocks stand at its start."""

    kinds: tuple[FaultKind, ...]
    weather: WeatherReport
    faults: tuple[Fault, ...]
    wall_offsets_seconds: dict[str, float] = field(default_factory=dict)


def plan_for(seed: int) -> FaultPlan:
    """Return the plan of a seed."""
    rng = Random(f"{seed} faults")  # noqa: S311  # not a secret
    kinds = tuple(kind for kind in FaultKind if rng.random() < 0.4)
    weather = WeatherReport(
        drop=_if(FaultKind.DROP in kinds, rng.uniform(0.005, 0.08)),
        duplicate=_if(FaultKind.DUPLICATE in kinds, rng.uniform(0.01, 0.15)),
        late=_if(FaultKind.LATE in kinds, rng.uniform(0.01, 0.1)),
        late_seconds=rng.choice((1.0, 4.0, 9.0)),
        stream_break=_if(FaultKind.BREAK in kinds, rng.uniform(0.002, 0.05)),
    )
    faults: list[Fault] = []
    for kind in kinds:
        for _ in range(rng.randint(1, 4)):
            fault = _fault(kind, rng)
            if fault is not None:
                faults.append(fault)
    offsets: dict[str, float] = {}
    if FaultKind.SKEW in kinds:
        for name in (*PROCESSES, "database", "game"):
            offsets[name] = rng.choice((0.0, rng.uniform(-5, 5), rng.uniform(-60, 60)))
        for name in REPLICAS:
            offsets[name] = rng.choice((offsets[name], 0.0, 3600.0, -3600.0))
    faults.sort(key=lambda fault: fault.time)
    return FaultPlan(
        kinds=kinds, weather=weather, faults=tuple(faults), wall_offsets_seconds=offsets
    )


def _if(condition: bool, value: float) -> float:  # a table of yes and no
    return value if condition else 0.0


def _fault(kind: FaultKind, rng: Random) -> Fault | None:
    time = rng.uniform(FAULTS_BEGIN, FAULTS_END - 30.0)
    longest = FAULTS_END - time
    if kind is FaultKind.CUT:
        ends = ("database", "cloud", "collector", *ROUTERS, *REPLICAS, "hub", *SUBSCRIBERS)
        target, other = rng.sample(ends, 2)
        return Fault(
            time=time,
            kind=kind,
            target=target,
            other=other,
            seconds=min(longest, rng.choice((3.0, 12.0, 40.0, 90.0))),
            amount=float(rng.random() < 0.3),  # one way only
        )
    if kind is FaultKind.FROZEN:
        return Fault(
            time=time,
            kind=kind,
            target=rng.choice((*PROCESSES, *REPLICAS, *REPLICAS)),
            seconds=min(longest, rng.choice((2.0, 9.0, 20.0, 45.0))),
        )
    if kind in (FaultKind.CRASH, FaultKind.STOP):
        return Fault(
            time=time,
            kind=kind,
            target=rng.choice(PROCESSES if kind is FaultKind.CRASH else REPLICAS),
            seconds=min(longest, rng.choice((0.5, 3.0, 20.0, 60.0))),
            amount=float(rng.random() < 0.3),  # with its machine
        )
    if kind in (FaultKind.FREEZE, FaultKind.DATABASE, FaultKind.CLOUD):
        return Fault(
            time=time,
            kind=kind,
            target=kind.value,
            seconds=min(longest, rng.choice((4.0, 14.0, 30.0, 80.0))),
        )
    if kind in (FaultKind.HOST, FaultKind.SPOT):
        return Fault(time=time, kind=kind, target="", amount=rng.random())
    if kind is FaultKind.STOCK:
        return Fault(time=time, kind=kind, target="gold", seconds=min(longest, 60.0))
    if kind is FaultKind.JUMP:
        return Fault(
            time=time,
            kind=kind,
            target=rng.choice(REPLICAS),
            amount=rng.choice((-3600.0, -20.0, 20.0, 300.0, 3600.0)),
        )
    return None
