"""What a decision would have been had one thing been otherwise."""

from collections.abc import Iterator
from dataclasses import replace

from autoscaler.domain.control_state import ControlState
from autoscaler.domain.decide import decide
from autoscaler.domain.decision import Counterfactual, Decision, DecisionRule
from autoscaler.domain.estimates import Estimates
from autoscaler.domain.policy import TierPolicy
from autoscaler.domain.snapshot import Demand, FleetLoad, TierSnapshot

__all__ = ["counterfactuals"]

_WITHOUT_LIMIT = 1_000_000

_Case = tuple[str, TierSnapshot, ControlState, TierPolicy, bool]


def counterfactuals(
    decision: Decision,
    snapshot: TierSnapshot,
    state: ControlState,
    policy: TierPolicy,
    now: float,
) -> tuple[Counterfactual, ...]:
    """Decide again with one thing changed at a time; `state` is the one before the decision.

    Only changes that touch this decision are asked: nobody wants to know what an override that
    does not exist would have changed.
    """
    results = []
    for change, other_snapshot, other_state, other_policy, forecast in _cases(
        decision, snapshot, state, policy, now
    ):
        other, _ = decide(other_snapshot, other_state, other_policy, now, use_forecast=forecast)
        results.append(Counterfactual(change, other.desired))
    return tuple(results)


def _cases(
    decision: Decision,
    snapshot: TierSnapshot,
    state: ControlState,
    policy: TierPolicy,
    now: float,
) -> Iterator[_Case]:
    for share in (0.5, 1.5):
        yield (
            f"with {share:.0%} of the demand",
            _scaled_snapshot(snapshot, share),
            replace(state, estimates=_scaled_estimates(state.estimates, share)),
            policy,
            True,
        )
    yield "without the forecast", snapshot, state, policy, False
    if decision.rule is DecisionRule.HOLD_STABILISATION:
        patient = replace(state, fresh_since=float("-inf"), last_scale_in_time=None)
        impatient = replace(policy, stabilization_seconds=0.0)
        yield "without the stabilisation window", snapshot, patient, impatient, True
    if decision.rule is DecisionRule.HOLD_STALE_INPUT:
        fresh = replace(
            snapshot,
            demand_age_seconds=0.0,
            fleet_age_seconds=0.0,
            group_age_seconds=0.0,
        )
        settled = replace(state, fresh_since=float("-inf"))
        yield "with fresh inputs for the whole window", fresh, settled, policy, True
    if decision.rule is DecisionRule.HOLD_DATABASE_AWAY:
        yield (
            "with the database reachable",
            replace(snapshot, database_reachable=True),
            state,
            policy,
            True,
        )
    if snapshot.override is not None and snapshot.override.in_force(now):
        yield "without the override", replace(snapshot, override=None), state, policy, True
    if snapshot.affordable_servers is not None and any(s.title == "budget" for s in decision.steps):
        yield "without the budget", replace(snapshot, affordable_servers=None), state, policy, True
    if any(s.title == "maximum" for s in decision.steps):
        free = replace(snapshot, group_maximum=_WITHOUT_LIMIT)
        yield "without the maximum", free, state, replace(policy, maximum=_WITHOUT_LIMIT), True
    if any(i.is_interrupted for i in snapshot.staying):
        calm = tuple(replace(i, interruption_time=None) for i in snapshot.instances)
        yield "without the interruption", replace(snapshot, instances=calm), state, policy, True


def _scaled_snapshot(snapshot: TierSnapshot, share: float) -> TierSnapshot:
    return replace(
        snapshot,
        demand=_scaled_demand(snapshot.demand, share) if snapshot.demand else None,
        fleet=_scaled_fleet(snapshot.fleet, share) if snapshot.fleet else None,
    )


def _scaled_demand(demand: Demand, share: float) -> Demand:
    return Demand(
        running_requests=round(demand.running_requests * share),
        queued_requests=round(demand.queued_requests * share),
        running_tokens=round(demand.running_tokens * share),
        queued_tokens=round(demand.queued_tokens * share),
        arrivals_per_second=demand.arrivals_per_second * share,
        arrived_tokens_per_second=demand.arrived_tokens_per_second * share,
        shed_per_second=demand.shed_per_second * share,
        completed_per_second=demand.completed_per_second * share,
    )


def _scaled_fleet(fleet: FleetLoad, share: float) -> FleetLoad:
    return replace(
        fleet,
        running_requests=_scaled(fleet.running_requests, share),
        waiting_requests=_scaled(fleet.waiting_requests, share),
        latency=None,  # another load would have had another latency, which nobody measured
    )


def _scaled(value: int | None, share: float) -> int | None:
    return None if value is None else round(value * share)


def _scaled_estimates(estimates: Estimates, share: float) -> Estimates:
    def times(value: float | None) -> float | None:
        return None if value is None else value * share

    return replace(
        estimates,
        tokens=times(estimates.tokens),
        arrivals=times(estimates.arrivals),
        arrivals_fast=times(estimates.arrivals_fast),
        arrivals_trend=estimates.arrivals_trend * share,
        arrivals_noise=estimates.arrivals_noise * share,
        running=times(estimates.running),
        completed_per_second=times(estimates.completed_per_second),
        requests_per_player_second=times(estimates.requests_per_player_second),
    )
