"""What this agent itself costs the machine."""

import os
import resource
from collections.abc import Sequence
from pathlib import Path

from gpu_metrics.adapters.collector_link import CollectorLink
from gpu_metrics.domain.samples import AgentCost
from gpu_metrics.journal import EventJournal
from gpu_metrics.ports import DriverSource

__all__ = ["CostMeter"]

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STATM = Path("/proc/self/statm")


class CostMeter:
    """Adds up what the kernel, the drivers, the links and the journal counted."""

    def __init__(
        self,
        *,
        drivers: Sequence[DriverSource],
        links: Sequence[CollectorLink],
        journal: EventJournal,
    ) -> None:
        self._drivers = tuple(drivers)
        self._links = tuple(links)
        self._journal = journal

    def __call__(self) -> AgentCost:
        """Return the cost since the start; memory is 0 where there is no /proc."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        costs = [driver.cost for driver in self._drivers]
        return AgentCost(
            driver_calls=sum(cost.calls for cost in costs),
            driver_seconds=sum(cost.seconds for cost in costs),
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            resident_bytes=_resident_bytes(),
            replaced_reports=sum(link.replaced_reports for link in self._links),
            lost_events=self._journal.lost_events + sum(cost.lost_events for cost in costs),
        )


def _resident_bytes() -> int:
    try:
        return int(_STATM.read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0
