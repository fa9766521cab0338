"""One host as the view shows it."""

from datetime import datetime
from enum import Enum
from typing import NamedTuple

from gpu_metrics.domain.processes import ProcessReading
from gpu_metrics.domain.readings import Host, HostReport, Tier
from gpu_metrics.domain.samples import AgentCost

__all__ = ["Freshness", "HostState"]


class Freshness(Enum):
    """How much a host's readings can be relied on; the numbers are those of the protocol."""

    FRESH = 1
    STALE = 2


class HostState(NamedTuple):
    """One host as last reported; `revision` is the last change, its freshness included.

    `shape_revision` is the last change of which GPUs and servers it has, 0 if there was none.
    `clock_skew_seconds` is by how much the host's clock is ahead of the collector's, `clock_sets`
    how often the agent's run saw it set. Processes and cost are those of the last report that had
    them.
    """

    report: HostReport
    receive_time: datetime
    received_at: float
    freshness: Freshness
    revision: int
    tiers_ever: frozenset[Tier]
    shape_revision: int = 0
    clock_skew_seconds: float = 0.0
    clock_sets: int = 0
    processes: ProcessReading | None = None
    processes_received_at: float = 0.0
    cost: AgentCost | None = None

    @property
    def host(self) -> Host:
        """Return the machine."""
        return self.report.host

    @property
    def tiers(self) -> frozenset[Tier]:
        """Return the tiers that the host serves now."""
        return frozenset(server.tier for server in self.report.servers)
