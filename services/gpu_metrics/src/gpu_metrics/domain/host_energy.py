"""Tokens and joules of the model servers of one host, from counters, over the last minute.

Both are increases over the same stretch of time: one between two reports counts only when every
server's tokens and every GPU's energy are known at both its ends. A token counter that fell is a
server that started again, an energy counter that fell or is of another run of the driver a driver
that was loaded anew; that stretch is left out of both, so no rate is ever negative or too high.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpu_metrics.domain.readings import EnergyCounter, HostReport, Tier, gpu_energy, known

__all__ = ["EnergyUse", "HostEnergy"]


@dataclass(frozen=True, slots=True)
class EnergyUse:
    """Tokens generated and millijoules used for them."""

    tokens: int = 0
    millijoules: int = 0

    def plus(self, other: "EnergyUse") -> "EnergyUse":
        """Return both together."""
        return EnergyUse(self.tokens + other.tokens, self.millijoules + other.millijoules)


@dataclass(frozen=True, slots=True)
class _Counters:
    """What a tier of the host stood at: tokens by server, energy by GPU and run of its driver."""

    tokens: Mapping[str, int]
    millijoules: Mapping[tuple[str, int], int]


class HostEnergy:
    """Keeps what each tier of one host generated and used, by slots of time."""

    __slots__ = ("_last", "_retained_slots", "_slot_seconds", "_slots")

    def __init__(self, *, slot_seconds: float, retained_seconds: float) -> None:
        self._slot_seconds = slot_seconds
        self._retained_slots = int(retained_seconds / slot_seconds) + 2
        self._last: dict[Tier, _Counters] = {}
        self._slots: dict[Tier, deque[tuple[int, EnergyUse]]] = {}

    def observe(self, report: HostReport, now: float) -> None:
        """Take in the counters of one report."""
        counters = _counters(report)
        for tier, later in counters.items():
            earlier = self._last.get(tier)
            use = _between(earlier, later) if earlier is not None else None
            if use is not None:
                self._put(tier, int(now // self._slot_seconds), use)
        self._last = counters
        for tier in self._slots.keys() - counters.keys():
            del self._slots[tier]

    def _put(self, tier: Tier, number: int, use: EnergyUse) -> None:
        slots = self._slots.setdefault(tier, deque(maxlen=self._retained_slots))
        if slots and slots[-1][0] == number:
            slots[-1] = (number, slots[-1][1].plus(use))
        else:
            slots.append((number, use))

    def between(self, tier: Tier, slots: tuple[int, int]) -> EnergyUse | None:
        """Return what was generated and used in the slots, first to last; None when not known."""
        found = [use for number, use in self._slots.get(tier, ()) if slots[0] <= number <= slots[1]]
        if not found:
            return None
        return EnergyUse(sum(use.tokens for use in found), sum(use.millijoules for use in found))


def _counters(report: HostReport) -> dict[Tier, _Counters]:
    """Return the counters of each tier that are all there."""
    gpus = gpu_energy(report.gpus)
    found: dict[Tier, _Counters] = {}
    for tier in {server.tier for server in report.servers}:
        servers = [server for server in report.servers if server.tier is tier]
        tokens = {server.server_id: known(server.generation_tokens_total) for server in servers}
        energy = _energy_of(report, tier, gpus)
        if energy and all(counter.millijoules is not None for counter in energy):
            told = {name: total for name, total in tokens.items() if total is not None}
            if len(told) == len(tokens):
                found[tier] = _Counters(
                    told,
                    {
                        (counter.gpu_uuid, counter.driver_epoch): counter.millijoules
                        for counter in energy
                        if counter.millijoules is not None
                    },
                )
    return found


def _energy_of(
    report: HostReport, tier: Tier, gpus: Sequence[EnergyCounter]
) -> Sequence[EnergyCounter]:
    """Return the counters of the GPUs that work for a tier, none when they cannot be told apart."""
    naming = [server for server in report.servers if server.gpu_uuids]
    if not naming:
        return gpus if len({server.tier for server in report.servers}) == 1 else ()
    uuids = {uuid for server in naming if server.tier is tier for uuid in server.gpu_uuids}
    of_tier = [counter for counter in gpus if counter.gpu_uuid in uuids]
    # A GPU that a server names and the host does not tell of has no counter.
    return of_tier if len(of_tier) == len(uuids) else ()


def _between(earlier: _Counters, later: _Counters) -> EnergyUse | None:
    if earlier.tokens.keys() != later.tokens.keys():
        return None
    if earlier.millijoules.keys() != later.millijoules.keys():
        return None
    tokens = [later.tokens[key] - earlier.tokens[key] for key in later.tokens]
    energy = [later.millijoules[key] - earlier.millijoules[key] for key in later.millijoules]
    if min(tokens) < 0 or min(energy) < 0:
        return None
    return EnergyUse(sum(tokens), sum(energy))
