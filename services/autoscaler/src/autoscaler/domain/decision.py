"""What a decision is: the size, the rule, the reasoning, and what is to be done."""

from dataclasses import dataclass
from enum import StrEnum

from autoscaler.domain.tiers import Tier

__all__ = [
    "Counterfactual",
    "Decision",
    "DecisionInputs",
    "DecisionRecord",
    "DecisionRule",
    "Outcome",
    "Plan",
    "Step",
]


class DecisionRule(StrEnum):
    """Why the size was set; the names are those of the published contract."""

    STEADY = "STEADY"
    SCALE_OUT_DEMAND = "SCALE_OUT_DEMAND"
    START_FROM_ZERO = "START_FROM_ZERO"
    SCALE_IN_DEMAND = "SCALE_IN_DEMAND"
    HOLD_STABILISATION = "HOLD_STABILISATION"
    HOLD_STALE_INPUT = "HOLD_STALE_INPUT"
    HOLD_DATABASE_AWAY = "HOLD_DATABASE_AWAY"
    OVERRIDE = "OVERRIDE"
    AT_MAXIMUM = "AT_MAXIMUM"
    AT_MINIMUM = "AT_MINIMUM"
    REPLACE_INTERRUPTED = "REPLACE_INTERRUPTED"
    AT_BUDGET = "AT_BUDGET"


class Outcome(StrEnum):
    """What came of a decision."""

    APPLIED = "APPLIED"
    NO_CHANGE = "NO_CHANGE"
    DRY_RUN = "DRY_RUN"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the reasoning: what was looked at, the arithmetic, and the size after it."""

    title: str
    detail: str
    desired_after: int


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """What the size would have been had one thing been otherwise."""

    change: str
    desired: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionInputs:
    """The numbers a decision was based on; None where they were not known."""

    running_requests: int | None
    queued_requests: int | None
    running_tokens: int | None
    queued_tokens: int | None
    arrivals_per_second: float | None
    shed_per_second: float | None
    players_online: int | None
    ready_servers: int
    pending_servers: int
    draining_servers: int
    interrupted_servers: int
    capacity_tokens_per_server: float
    fleet_age_seconds: float | None
    demand_age_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be done, in this order: resume, set the size, begin drains.

    `group_desired` is the absolute size to set, draining instances included; None leaves it.
    """

    resume_instance_ids: tuple[str, ...] = ()
    group_desired: int | None = None
    drain_instance_ids: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be done."""
        return (
            not self.resume_instance_ids
            and self.group_desired is None
            and not self.drain_instance_ids
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The answer to "how many servers": the size, the rule and the reasoning."""

    tier: Tier
    previous_desired: int
    desired: int
    rule: DecisionRule
    summary: str
    inputs: DecisionInputs
    steps: tuple[Step, ...]
    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRecord:
    """A decision as the journal keeps it; `decide_time` is Unix seconds.

    `outcome` is None between the intent and what came of it.
    """

    decision_id: str
    decide_time: float
    decision: Decision
    counterfactuals: tuple[Counterfactual, ...]
    decided_by: str
    lease_epoch: int
    outcome: Outcome | None = None
    outcome_message: str = ""

    @property
    def is_change(self) -> bool:
        """Whether it changed the size, chose servers to drain, or failed."""
        decision = self.decision
        return (
            decision.desired != decision.previous_desired
            or bool(decision.plan.drain_instance_ids)
            or self.outcome is Outcome.FAILED
        )
