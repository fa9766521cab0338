"""What this replica can tell of the tiers: the leader from its own rounds, others from the journal.

Everything here is the last known state, so questions are answered while the database is away.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from autoscaler.domain.decision import DecisionRecord
from autoscaler.domain.observation import Players
from autoscaler.domain.overrides import Override
from autoscaler.domain.tiers import Tier
from autoscaler.ports import TierReport

__all__ = ["Picture"]


@dataclass(slots=True)
class Picture:
    """The last known state; owned by the control loop, read by the servicer."""

    reports: dict[Tier, TierReport] = field(default_factory=dict)
    overrides: dict[Tier, Override] = field(default_factory=dict)
    players: Players | None = None
    requests_per_player_second: dict[Tier, float] = field(default_factory=dict)

    @property
    def usd_per_hour(self) -> float:
        """What all tiers' instances cost."""
        return sum(report.usd_per_hour for report in self.reports.values())

    def last_decision(self, tier: Tier) -> DecisionRecord | None:
        """Return the tier's last decision."""
        report = self.reports.get(tier)
        return None if report is None else report.record
