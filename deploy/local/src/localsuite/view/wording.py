"""How numbers and decisions are worded: the same on screen, in lines and in the report."""

from __future__ import annotations

from gaming.autoscaler.v1 import autoscaler_pb2
from localsuite.observe.fleet import tier_name

__all__ = [
    "clock",
    "decision_reason",
    "decision_sentence",
    "duration",
    "money",
    "rule_words",
    "spark",
]

_SPARKS = "▁▂▃▄▅▆▇█"


def clock(seconds: float) -> str:
    """`1:07` for 67 seconds."""
    whole = max(0, int(seconds))
    return f"{whole // 60}:{whole % 60:02d}"


def duration(seconds: float | None) -> str:
    """`9.1 ms`, `213 ms`, `2.4 s`, or a dash for what was not measured."""
    if seconds is None:
        return "-"
    if seconds < 0.1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 1.0:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s"


def money(dollars: float | None) -> str:
    """`$12.08`, or a dash for what is not known."""
    return "-" if dollars is None else f"${dollars:,.2f}"


def rule_words(rule: autoscaler_pb2.DecisionRule.ValueType) -> str:
    """`scale out demand` for DECISION_RULE_SCALE_OUT_DEMAND."""
    try:
        name = autoscaler_pb2.DecisionRule.Name(rule)
    except ValueError:
        return f"rule {rule}"
    return name.removeprefix("DECISION_RULE_").replace("_", " ").lower()


def decision_reason(decision: autoscaler_pb2.Decision) -> str:
    """Why a decision fell, without the tier and sizes that the autoscaler puts first."""
    tier, sizes = tier_name(decision.tier), f"{decision.previous_desired} → {decision.desired}: "
    return decision.summary.removeprefix(f"{tier.capitalize()} {sizes}") or rule_words(
        decision.rule
    )


def decision_sentence(decision: autoscaler_pb2.Decision) -> str:
    """One decision in a line: tier, sizes, why."""
    sizes = (
        f"{decision.previous_desired} → {decision.desired}"
        if decision.previous_desired != decision.desired
        else f"stays {decision.desired}"
    )
    failed = decision.outcome == autoscaler_pb2.DECISION_OUTCOME_FAILED
    trouble = f" (failed: {decision.outcome_message})" if failed else ""
    return f"{tier_name(decision.tier)} {sizes}: {decision_reason(decision)}{trouble}"


def spark(values: list[float], *, width: int) -> str:
    """The values as a line of blocks, the newest at the right; empty without values."""
    if not values or width <= 0:
        return ""
    step = max(1.0, len(values) / width)
    picked = [values[min(len(values) - 1, int(index * step))] for index in range(width)]
    if len(values) < width:
        picked = values
    highest = max(*picked, 1e-9)
    return "".join(_SPARKS[min(7, int(value / highest * 7.999))] for value in picked)
