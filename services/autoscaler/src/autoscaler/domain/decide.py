"""The control law: how many servers a tier is to have, and the reasons.

`decide` is pure: the same snapshot, state, policy and time give the same decision. The order is

    demand -> need -> replacements -> bounds -> budget -> guards against taking away -> override

Growing is immediate. Shrinking needs fresh inputs, a reachable database, and a lower need for the
whole stabilisation window; it then goes in bounded steps with a pause between them.
"""

import math
from dataclasses import dataclass, replace

from autoscaler.domain.control_state import ControlState
from autoscaler.domain.decision import Decision, DecisionInputs, DecisionRule, Plan, Step
from autoscaler.domain.estimates import observe
from autoscaler.domain.overrides import Override, OverrideKind
from autoscaler.domain.policy import TierPolicy
from autoscaler.domain.replacement import Replacement, find_replacements
from autoscaler.domain.requirement import Requirement, require
from autoscaler.domain.snapshot import InstancePhase, TierSnapshot
from autoscaler.domain.victims import choose_resumes, choose_victims
from autoscaler.domain.wording import (
    demand_steps,
    plural,
    replacement_detail,
    summarize,
)

__all__ = ["decide"]


@dataclass(slots=True)
class _Draft:
    """A decision in the making: the size so far, the rule that shaped it last, the steps."""

    desired: int
    rule: DecisionRule
    steps: list[Step]

    def note(self, title: str, detail: str) -> None:
        self.steps.append(Step(title, detail, self.desired))

    def settle(self, title: str, detail: str, desired: int, rule: DecisionRule) -> None:
        self.desired, self.rule = desired, rule
        self.note(title, detail)


@dataclass(frozen=True, slots=True)
class _Bounds:
    least: int
    most: int
    from_override: bool

    def clamp(self, servers: int) -> int:
        return min(max(servers, self.least), self.most)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Matter:
    """What all steps of one decision look at; `base` is the size without servers drained now."""

    snapshot: TierSnapshot
    state: ControlState
    policy: TierPolicy
    need: Requirement
    bounds: _Bounds
    replacement: Replacement
    stale: tuple[str, ...]
    base: int
    now: float

    @property
    def limit_rule(self) -> DecisionRule | None:
        return DecisionRule.OVERRIDE if self.bounds.from_override else None


def decide(
    snapshot: TierSnapshot,
    state: ControlState,
    policy: TierPolicy,
    now: float,
    *,
    use_forecast: bool = True,
) -> tuple[Decision, ControlState]:
    """Return how many servers the tier is to have, and what to remember for the next decision.

    `now` is Unix seconds and never goes back between calls with the same state.
    """
    estimates = observe(state.estimates, snapshot, policy, now)
    need = require(
        estimates, snapshot, policy, now, panic_until=state.panic_until, use_forecast=use_forecast
    )
    stale = snapshot.stale_inputs(policy)
    state = replace(state, estimates=estimates).with_freshness(now, fresh=not stale)
    if need.panic_triggered:
        state = replace(state, panic_until=now + policy.panic_window_seconds)
    state = state.with_recommendation(now, need.servers, policy.stabilization_seconds)

    override = snapshot.override
    if override is not None and not override.in_force(now):
        override = None
    bounds = _bounds(snapshot, policy, override)
    replacement = find_replacements(
        snapshot,
        policy,
        now,
        needed=bounds.clamp(need.servers),
        start_seconds=need.horizon_seconds,
        may_take_away=snapshot.database_reachable and not stale,
    )
    base = snapshot.current - len(replacement.drain_now)
    matter = _Matter(
        snapshot=snapshot,
        state=state,
        policy=policy,
        need=need,
        bounds=bounds,
        replacement=replacement,
        stale=stale,
        base=base,
        now=now,
    )
    draft = _Draft(base, DecisionRule.STEADY, demand_steps(need, policy, snapshot.current))
    _size_by_need(draft, matter)
    if override is not None:
        _apply_hold(draft, matter, override)
    if replacement.drain_now and draft.desired <= base:
        draft.rule = _replacement_rule(replacement)
    if draft.desired < base:
        state = replace(state, last_scale_in_time=now)
    decision = Decision(
        tier=snapshot.tier,
        previous_desired=snapshot.current,
        desired=draft.desired,
        rule=draft.rule,
        summary=summarize(snapshot, draft.rule, draft.desired, draft.steps),
        inputs=_inputs(snapshot, need),
        steps=tuple(draft.steps),
        plan=_plan(snapshot, draft.desired, base, replacement),
    )
    return decision, state


def _size_by_need(draft: _Draft, matter: _Matter) -> None:
    need, bounds, base = matter.need, matter.bounds, matter.base
    needed = bounds.clamp(need.servers)
    want = min(needed + matter.replacement.kept, bounds.most)
    if matter.replacement.interrupted or matter.replacement.failed:
        detail = replacement_detail(matter.replacement, want, matter.now)
        draft.steps.append(Step("servers to replace", detail, want))
    if want > base:
        _grow(draft, matter, want)
    elif want < base:
        _shrink(draft, matter)
    elif need.servers > bounds.most:
        draft.settle(
            "maximum",
            _at_most(matter),
            base,
            matter.limit_rule or DecisionRule.AT_MAXIMUM,
        )
    elif need.servers < bounds.least:
        draft.settle(
            "minimum",
            f"{plural(need.servers, 'server')} needed, at least {bounds.least} kept",
            base,
            matter.limit_rule or DecisionRule.AT_MINIMUM,
        )


def _grow(draft: _Draft, matter: _Matter, want: int) -> None:
    need, bounds, base = matter.need, matter.bounds, matter.base
    needed = bounds.clamp(need.servers)
    if need.servers < bounds.least and base < bounds.least:
        draft.settle(
            "minimum",
            f"at least {bounds.least} are kept",
            want,
            matter.limit_rule or DecisionRule.AT_MINIMUM,
        )
    elif base == 0:
        draft.settle(
            "start from zero",
            "the tier has no server and is asked for",
            want,
            DecisionRule.START_FROM_ZERO,
        )
    elif needed <= base:
        rule = _replacement_rule(matter.replacement)
        draft.settle("replace ahead of time", f"{base} → {want}", want, rule)
    else:
        mode = ", in panic mode" if need.in_panic else ""
        draft.settle("scale out", f"{base} → {want}{mode}", want, DecisionRule.SCALE_OUT_DEMAND)
    if need.servers > bounds.most:
        draft.note("maximum", _at_most(matter))
    _cap_by_budget(draft, matter)


def _cap_by_budget(draft: _Draft, matter: _Matter) -> None:
    affordable = matter.snapshot.affordable_servers
    if affordable is None or draft.desired <= max(affordable, matter.base, matter.bounds.least):
        return
    allowed = max(affordable, matter.base, matter.bounds.least)
    draft.settle(
        "budget",
        f"{plural(matter.snapshot.players_online or 0, 'player')} online pay for "
        f"{plural(affordable, 'server')} at "
        f"${matter.snapshot.usd_per_hour_per_server:.3f}/h here",
        allowed,
        DecisionRule.AT_BUDGET if allowed == matter.base else draft.rule,
    )


def _shrink(draft: _Draft, matter: _Matter) -> None:
    state, policy, base, now = matter.state, matter.policy, matter.base, matter.now
    hold = DecisionRule.HOLD_STABILISATION
    observed = state.observed_seconds(now)
    last = state.last_scale_in_time
    peak = 0 if matter.need.servers == 0 else state.highest_recommendation()
    held = min(matter.bounds.clamp(peak) + matter.replacement.kept, matter.bounds.most)
    if not matter.snapshot.database_reachable:
        why = "nothing is taken away until it is back"
        draft.settle("database away", why, base, DecisionRule.HOLD_DATABASE_AWAY)
    elif matter.stale:
        draft.settle("stale input", "; ".join(matter.stale), base, DecisionRule.HOLD_STALE_INPUT)
    elif observed < policy.stabilization_seconds:
        why = f"inputs watched for {observed:.0f} of {policy.stabilization_seconds:.0f} s"
        draft.settle("stabilisation", why, base, hold)
    elif held >= base:
        why = f"{plural(held, 'server')} needed in the last {policy.stabilization_seconds:.0f} s"
        draft.settle("stabilisation", why, base, hold)
    elif last is not None and now - last < policy.scale_in_interval_seconds:
        pause = policy.scale_in_interval_seconds
        why = f"the last step was {now - last:.0f} s ago, the pause is {pause:.0f} s"
        draft.settle("pause between steps", why, base, hold)
    else:
        step = max(1, math.floor(base * policy.scale_in_step_ratio))
        why = (
            f"no more than {held} needed for {policy.stabilization_seconds:.0f} s; "
            f"a step takes at most {step}"
        )
        draft.settle("scale in", why, max(held, base - step), DecisionRule.SCALE_IN_DEMAND)


def _apply_hold(draft: _Draft, matter: _Matter, override: Override) -> None:
    snapshot, base = matter.snapshot, matter.base
    by = f"{override.reason} (set by {override.set_by})"
    if override.kind is OverrideKind.FREEZE:
        draft.settle("override: frozen", by, base, DecisionRule.OVERRIDE)
    elif override.kind is OverrideKind.PIN:
        pinned = min(max(override.desired or 0, snapshot.group_minimum), snapshot.group_maximum)
        if pinned < base and not snapshot.database_reachable:
            why = f"pinned to {pinned}, but nothing is taken away now"
            draft.settle("database away", why, base, DecisionRule.HOLD_DATABASE_AWAY)
        else:
            draft.settle(f"override: pinned to {pinned}", by, pinned, DecisionRule.OVERRIDE)
    else:
        limits = f"override: {matter.bounds.least} to {matter.bounds.most} servers"
        draft.steps.append(Step(limits, by, draft.desired))


def _at_most(matter: _Matter) -> str:
    servers = plural(matter.need.servers, "server")
    return f"{servers} needed, at most {matter.bounds.most} allowed"


def _plan(snapshot: TierSnapshot, desired: int, base: int, replacement: Replacement) -> Plan:
    """Turn the size into acts; the group's size counts draining servers until they are gone."""
    drains = [i.instance_id for i in replacement.drain_now]
    resumes: tuple[str, ...] = ()
    if desired > base:
        taken_back = choose_resumes(snapshot.draining, desired - base)
        resumes = tuple(i.instance_id for i in taken_back)
    elif desired < base:
        already = set(drains)
        remaining = tuple(i for i in snapshot.staying if i.instance_id not in already)
        surplus = base - desired - min(snapshot.unlaunched, base - desired)
        drains += [i.instance_id for i in choose_victims(remaining, surplus)]
    draining = len(snapshot.draining) - len(resumes) + len(drains)
    size = min(desired + draining, snapshot.group_maximum)
    # Below the live instances the group would choose a victim itself; we terminate by id instead.
    size = max(size, min(len(snapshot.instances), snapshot.group_maximum))
    return Plan(
        resume_instance_ids=resumes,
        group_desired=None if size == snapshot.group_desired else size,
        drain_instance_ids=tuple(drains),
    )


def _bounds(snapshot: TierSnapshot, policy: TierPolicy, override: Override | None) -> _Bounds:
    least, most, overridden = policy.minimum, policy.maximum, False
    if override is not None and override.kind is OverrideKind.BOUNDS:
        overridden = True
        least = least if override.minimum is None else override.minimum
        most = most if override.maximum is None else override.maximum
        if override.minimum is None:
            least = min(least, most)
        if override.maximum is None:
            most = max(least, most)
    most = min(most, snapshot.group_maximum)
    least = min(max(least, snapshot.group_minimum), most)
    return _Bounds(least, most, overridden)


def _replacement_rule(replacement: Replacement) -> DecisionRule:
    if replacement.interrupted:
        return DecisionRule.REPLACE_INTERRUPTED
    return DecisionRule.SCALE_OUT_DEMAND


def _inputs(snapshot: TierSnapshot, need: Requirement) -> DecisionInputs:
    demand = snapshot.demand
    pending = sum(1 for i in snapshot.staying if i.phase is InstancePhase.PENDING)
    return DecisionInputs(
        running_requests=demand.running_requests if demand else None,
        queued_requests=demand.queued_requests if demand else None,
        running_tokens=demand.running_tokens if demand else None,
        queued_tokens=demand.queued_tokens if demand else None,
        arrivals_per_second=demand.arrivals_per_second if demand else None,
        shed_per_second=demand.shed_per_second if demand else None,
        players_online=snapshot.players_online,
        ready_servers=len(snapshot.ready),
        pending_servers=pending + snapshot.unlaunched,
        draining_servers=len(snapshot.draining),
        interrupted_servers=sum(1 for i in snapshot.instances if i.is_interrupted),
        capacity_tokens_per_server=need.capacity_tokens,
        fleet_age_seconds=snapshot.fleet_age_seconds,
        demand_age_seconds=snapshot.demand_age_seconds,
    )
