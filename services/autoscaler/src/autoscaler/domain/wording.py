"""The sentences of an explanation."""

from collections.abc import Sequence
from types import MappingProxyType

from autoscaler.domain.decision import DecisionRule, Step
from autoscaler.domain.policy import TierPolicy
from autoscaler.domain.replacement import Replacement
from autoscaler.domain.requirement import Requirement
from autoscaler.domain.snapshot import TierSnapshot

__all__ = ["amount", "demand_steps", "plural", "replacement_detail", "summarize"]


def amount(value: float) -> str:
    """Write a number as people read it: `12,400`, `3.1`, `0.042`."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 1 or value == 0:
        return f"{value:.1f}".removesuffix(".0")
    return f"{value:.3f}"


def plural(count: int, noun: str) -> str:
    """Write a count with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def demand_steps(need: Requirement, policy: TierPolicy, current: int) -> list[Step]:
    """Tell how the need follows from the demand, in the order of the arithmetic."""
    learned = "configured" if need.capacity_tokens == policy.default_capacity_tokens else "measured"
    in_flight = (
        f"routers count {amount(need.router_tokens)} tokens running and queued, "
        f"servers show {amount(need.fleet_tokens)}; smoothed {amount(need.smoothed_tokens)}"
    )
    forecast = (
        f"{amount(need.arrivals_now)} requests/s now, {amount(need.arrivals_forecast)}/s in "
        f"{amount(need.horizon_seconds)} s by {need.forecast_basis}; x "
        f"{amount(need.residence_seconds)} s x {amount(need.tokens_per_request)} tokens = "
        f"{amount(need.forecast_tokens)} tokens"
    )
    capacity = (
        f"{amount(need.capacity_tokens)} tokens {learned}, filled to "
        f"{policy.target_utilization:.0%}"
    )
    if need.is_wanted:
        usable = need.capacity_tokens * policy.target_utilization
        result = (
            f"{amount(need.demand_tokens)} / {amount(usable)} = "
            f"{amount(need.demand_tokens / usable)}, so {plural(need.servers, 'server')}"
        )
    elif current == 0:
        result = "nobody asks for the tier"
    else:
        result = f"nobody has asked for the tier for {amount(policy.idle_to_zero_seconds)} s"
    if need.in_panic:
        result += "; panic mode: unsmoothed demand counts"
    return [
        Step("tokens in flight", in_flight, current),
        Step("arrivals expected", forecast, current),
        Step("capacity per server", capacity, current),
        Step("demand over capacity", result, need.servers),
    ]


def replacement_detail(replacement: Replacement, want: int, now: float) -> str:
    """Tell which servers are replaced and why."""
    parts = [
        f"{i.instance_id} is taken back by the cloud in {(i.interruption_time or now) - now:.0f} s"
        for i in replacement.interrupted
    ]
    parts += [
        f"{i.instance_id} is {i.phase.value} for {i.phase_age_seconds:.0f} s"
        for i in replacement.failed
    ]
    if replacement.drain_now:
        going = ", ".join(i.instance_id for i in replacement.drain_now)
        parts.append(f"draining now: {going}")
    parts.append(f"{plural(want, 'server')} with their replacements")
    return "; ".join(parts)


def summarize(
    snapshot: TierSnapshot, rule: DecisionRule, desired: int, steps: Sequence[Step]
) -> str:
    """Tell the decision in one sentence."""
    name = snapshot.tier.value.capitalize()
    current = snapshot.current
    size = f"stays at {current}" if desired == current else f"{current} → {desired}"
    told = _decisive_step(rule, steps)
    limit = steps[-1] if steps[-1].title in _LIMITS and steps[-1] is not told else None
    limited = f"; {limit.title}: {limit.detail}" if limit else ""
    return f"{name} {size}: {told.title}: {told.detail}{limited}."


_LIMITS = ("budget", "maximum")
_DECISIVE_TITLES = MappingProxyType(
    {
        DecisionRule.STEADY: ("demand over capacity",),
        DecisionRule.START_FROM_ZERO: ("start from zero",),
        DecisionRule.REPLACE_INTERRUPTED: ("servers to replace",),
    }
)


def _decisive_step(rule: DecisionRule, steps: Sequence[Step]) -> Step:
    titles = _DECISIVE_TITLES.get(rule, ())
    if rule is DecisionRule.SCALE_OUT_DEMAND:
        replaces = any(step.title == "replace ahead of time" for step in steps)
        titles = ("servers to replace",) if replaces else ("demand over capacity",)
    return next((step for step in steps if step.title in titles), steps[-1])
