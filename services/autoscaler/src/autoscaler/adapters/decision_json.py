"""Decisions and tier reports as JSON texts, the way the journal stores them.

Readers take what older versions wrote: a field that is missing has the value it had before it
existed.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from autoscaler.domain.decision import (
    Counterfactual,
    Decision,
    DecisionInputs,
    DecisionRecord,
    DecisionRule,
    Outcome,
    Plan,
    Step,
)
from autoscaler.domain.tiers import Tier
from autoscaler.ports import TierReport

__all__ = ["record_from_json", "record_to_json", "report_from_json", "report_to_json"]


def record_to_json(record: DecisionRecord) -> str:
    """Return a decision as JSON."""
    return json.dumps(asdict(record))


def record_from_json(text: str) -> DecisionRecord:
    """Return the decision a JSON text holds."""
    return _record(json.loads(text))


def report_to_json(report: TierReport) -> str:
    """Return a tier report as JSON."""
    return json.dumps(asdict(report))


def report_from_json(text: str) -> TierReport:
    """Return the tier report a JSON text holds."""
    values = json.loads(text)
    return TierReport(
        record=_record(values["record"]),
        minimum=values["minimum"],
        maximum=values["maximum"],
        usd_per_hour=values["usd_per_hour"],
    )


def _record(values: dict[str, Any]) -> DecisionRecord:
    outcome = values["outcome"]
    return DecisionRecord(
        decision_id=values["decision_id"],
        decide_time=values["decide_time"],
        decision=_decision(values["decision"]),
        counterfactuals=tuple(Counterfactual(**c) for c in values["counterfactuals"]),
        decided_by=values["decided_by"],
        lease_epoch=values["lease_epoch"],
        outcome=None if outcome is None else Outcome(outcome),
        outcome_message=values["outcome_message"],
    )


def _decision(values: dict[str, Any]) -> Decision:
    plan = values["plan"]
    return Decision(
        tier=Tier(values["tier"]),
        previous_desired=values["previous_desired"],
        desired=values["desired"],
        rule=DecisionRule(values["rule"]),
        summary=values["summary"],
        inputs=DecisionInputs(**values["inputs"]),
        steps=tuple(Step(**step) for step in values["steps"]),
        plan=Plan(
            resume_instance_ids=tuple(plan["resume_instance_ids"]),
            group_desired=plan["group_desired"],
            drain_instance_ids=tuple(plan["drain_instance_ids"]),
        ),
    )
