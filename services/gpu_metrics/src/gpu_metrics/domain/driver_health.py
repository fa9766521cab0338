"""How a GPU's driver behaves, from reading to reading: answering, hung or lost; and its epoch."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from gpu_metrics.domain.gpu_events import GpuEventKind
from gpu_metrics.domain.readings import CountReading, MissingReason

__all__ = ["CounterWatch", "DriverEpochs", "GpuHealth", "change_of_health", "health_of"]


class GpuHealth(Enum):
    """What a reading said of the GPU's driver."""

    ANSWERING = 1
    SLOW = 2
    HUNG = 3
    LOST = 4


_EVENTS = {GpuHealth.HUNG: GpuEventKind.GPU_HUNG, GpuHealth.LOST: GpuEventKind.GPU_LOST}


def health_of(figures: Mapping[str, CountReading]) -> GpuHealth:
    """Return what one reading says; a GPU is lost when nothing was read and that is the reason."""
    reasons = {value for value in figures.values() if isinstance(value, MissingReason)}
    if any(not isinstance(value, MissingReason) for value in figures.values()):
        return GpuHealth.ANSWERING
    if MissingReason.HUNG in reasons:
        return GpuHealth.HUNG
    if MissingReason.LOST in reasons:
        return GpuHealth.LOST
    # Out of reach as a whole, as when there is no driver, is no statement on this GPU.
    return GpuHealth.SLOW


def change_of_health(before: GpuHealth, seen: GpuHealth) -> tuple[GpuHealth, GpuEventKind | None]:
    """Return the health to remember and what happened, if anything did.

    A slow reading says nothing new: a GPU that was hung or lost stays so until it answers.
    """
    if seen is GpuHealth.SLOW or seen is before:
        return before, None
    if seen is GpuHealth.ANSWERING:
        return seen, GpuEventKind.GPU_BACK if before in _EVENTS else None
    return seen, _EVENTS[seen]


class CounterWatch:
    """Notices that the counters of one GPU start anew: any of them falls.

    `names` are fields of a reading that only grow while the driver is loaded.
    """

    names = (
        "energy_millijoules",
        "pcie_replays_total",
        "ecc_corrected_total",
        "ecc_uncorrected_total",
    )

    def __init__(self) -> None:
        self._highest: dict[str, int] = {}

    def restarted(self, figures: Mapping[str, CountReading]) -> bool:
        """Return whether these figures are of a later run than those before; remember them."""
        now = {
            name: value
            for name in self.names
            if not isinstance(value := figures.get(name, MissingReason.NOT_TOLD), MissingReason)
        }
        fell = any(value < self._highest.get(name, 0) for name, value in now.items())
        if fell:
            self._highest.clear()
        self._highest.update(now)
        return fell


@dataclass(slots=True)
class DriverEpochs:
    """Names the runs of a host's driver by the millisecond since 1970 at which each was noticed.

    GPUs are read one after the other, so they notice a new run one after the other: the first
    starts an epoch, the others join it.
    """

    current: int = 0

    def start(self, now_milliseconds: int) -> int:
        """Return the epoch of a run that begins; greater than all before."""
        self.current = max(now_milliseconds, self.current + 1)
        return self.current

    def restart(self, epoch_of_gpu: int, now_milliseconds: int) -> tuple[int, bool]:
        """Return the epoch of a GPU whose counters fell, and whether that tells of a new run."""
        if epoch_of_gpu < self.current:
            return self.current, False
        return self.start(now_milliseconds), True
