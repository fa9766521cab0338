"""Between the contract's messages and the domain's values; nothing is decided here."""

from __future__ import annotations

from types import MappingProxyType

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from autoscaler.adapters.proto_tiers import TIER_OF_WIRE, WIRE_OF_TIER
from autoscaler.domain.decision import DecisionInputs, DecisionRecord, DecisionRule, Outcome
from autoscaler.domain.overrides import Override, OverrideKind
from autoscaler.domain.policy import LatencySignal, TierPolicy
from autoscaler.domain.tiers import Tier
from autoscaler.ports import DecisionFilter, TierReport
from gaming.autoscaler.v1 import autoscaler_pb2 as pb
from servicekit.paging import decode_page_token, encode_page_token

__all__ = [
    "decision_to_wire",
    "duration_to_wire",
    "explanation_to_wire",
    "filter_from_wire",
    "override_from_wire",
    "override_to_wire",
    "page_token",
    "seconds_of",
    "tier_from_wire",
    "tier_to_wire",
]

_KIND_TO_WIRE = MappingProxyType(
    {
        OverrideKind.PIN: pb.OVERRIDE_KIND_PIN,
        OverrideKind.BOUNDS: pb.OVERRIDE_KIND_BOUNDS,
        OverrideKind.FREEZE: pb.OVERRIDE_KIND_FREEZE,
    }
)
_KIND_FROM_WIRE = MappingProxyType({wire: kind for kind, wire in _KIND_TO_WIRE.items()})
_RULE_TO_WIRE = MappingProxyType(
    {rule: pb.DecisionRule.Value(f"DECISION_RULE_{rule.value}") for rule in DecisionRule}
)
_OUTCOME_TO_WIRE = MappingProxyType(
    {outcome: pb.DecisionOutcome.Value(f"DECISION_OUTCOME_{outcome.value}") for outcome in Outcome}
)
_SIGNAL_NAMES = MappingProxyType(
    {
        LatencySignal.INTER_TOKEN: "time between tokens",
        LatencySignal.FIRST_TOKEN: "time to first token",
    }
)


def tier_from_wire(tier: int) -> Tier | None:
    """Return the tier; None for the unspecified one."""
    return TIER_OF_WIRE.get(tier)


def seconds_of(moment: Timestamp) -> float:
    """Return a timestamp as Unix seconds."""
    return moment.ToNanoseconds() / 1e9


def duration_to_wire(seconds: float) -> Duration:
    """Return seconds as a duration."""
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def decision_to_wire(record: DecisionRecord) -> pb.Decision:
    """Return a journalled decision."""
    decision = record.decision
    return pb.Decision(
        decision_id=record.decision_id,
        tier=WIRE_OF_TIER[decision.tier],
        decide_time=_timestamp(record.decide_time),
        previous_desired=decision.previous_desired,
        desired=decision.desired,
        rule=_RULE_TO_WIRE[decision.rule],
        summary=decision.summary,
        inputs=_inputs_to_wire(decision.inputs),
        outcome=_OUTCOME_TO_WIRE[record.outcome] if record.outcome else None,
        outcome_message=record.outcome_message,
        decided_by=record.decided_by,
        drained_instance_ids=decision.plan.drain_instance_ids,
    )


def explanation_to_wire(record: DecisionRecord) -> pb.ExplainDecisionResponse:
    """Return a decision with its reasoning."""
    return pb.ExplainDecisionResponse(
        decision=decision_to_wire(record),
        steps=[
            pb.ExplanationStep(title=s.title, detail=s.detail, desired_after=s.desired_after)
            for s in record.decision.steps
        ],
        counterfactuals=[
            pb.Counterfactual(change=c.change, desired=c.desired) for c in record.counterfactuals
        ],
    )


def tier_to_wire(
    policy: TierPolicy, report: TierReport | None, override: Override | None
) -> pb.TierState:
    """Return a tier; one that was never looked at has only its configuration."""
    target = policy.latency_target_seconds
    written = f"{target * 1000:g} ms" if target < 1 else f"{target:g} s"
    state = pb.TierState(
        tier=WIRE_OF_TIER[policy.tier],
        minimum=policy.minimum,
        maximum=policy.maximum,
        latency_target=f"{_SIGNAL_NAMES[policy.latency_signal]} at most {written} at P95",
        override=override_to_wire(override) if override else None,
    )
    if report is not None:
        decision = decision_to_wire(report.record)
        state.desired = decision.desired
        state.minimum, state.maximum = report.minimum, report.maximum
        state.inputs.CopyFrom(decision.inputs)
        state.last_decision.CopyFrom(decision)
        state.cost_usd_per_hour = report.usd_per_hour
    return state


def override_from_wire(wire: pb.Override, set_by: str) -> Override:
    """Return a hold as asked for; whether it makes sense is not looked at."""
    return Override(
        kind=_KIND_FROM_WIRE[wire.kind],
        desired=wire.desired if wire.HasField("desired") else None,
        minimum=wire.minimum if wire.HasField("minimum") else None,
        maximum=wire.maximum if wire.HasField("maximum") else None,
        expire_time=seconds_of(wire.expire_time),
        reason=wire.reason,
        set_by=set_by,
    )


def override_to_wire(override: Override) -> pb.Override:
    """Return a hold."""
    return pb.Override(
        kind=_KIND_TO_WIRE[override.kind],
        desired=override.desired,
        minimum=override.minimum,
        maximum=override.maximum,
        expire_time=_timestamp(override.expire_time),
        reason=override.reason,
        set_by=override.set_by,
    )


def filter_from_wire(request: pb.ListDecisionsRequest) -> DecisionFilter:
    """Return what a list is to hold. Raises InvalidPageToken."""
    start = seconds_of(request.start_time) if request.HasField("start_time") else None
    end = seconds_of(request.end_time) if request.HasField("end_time") else None
    position = decode_page_token(request.page_token, _list_scope(request), (str,))
    return DecisionFilter(
        tier=tier_from_wire(request.tier),
        changes_only=request.changes_only,
        start_time=start,
        end_time=end,
        before_id=str(position[0]) if position else None,
    )


def page_token(request: pb.ListDecisionsRequest, last_id: str) -> str:
    """Return the token of the page after `last_id` of the same list."""
    return encode_page_token(_list_scope(request), (last_id,))


def _list_scope(request: pb.ListDecisionsRequest) -> tuple[str, ...]:
    return (
        "decisions",
        f"{request.tier}/{request.changes_only:d}",
        f"{request.start_time.ToNanoseconds()}/{request.end_time.ToNanoseconds()}",
    )


def _inputs_to_wire(inputs: DecisionInputs) -> pb.DecisionInputs:
    return pb.DecisionInputs(
        running_requests=inputs.running_requests,
        queued_requests=inputs.queued_requests,
        running_tokens=inputs.running_tokens,
        queued_tokens=inputs.queued_tokens,
        arrivals_per_second=inputs.arrivals_per_second,
        shed_per_second=inputs.shed_per_second,
        players_online=inputs.players_online,
        ready_servers=inputs.ready_servers,
        pending_servers=inputs.pending_servers,
        draining_servers=inputs.draining_servers,
        interrupted_servers=inputs.interrupted_servers,
        capacity_tokens_per_server=inputs.capacity_tokens_per_server,
        fleet_age=_age(inputs.fleet_age_seconds),
        demand_age=_age(inputs.demand_age_seconds),
    )


def _age(seconds: float | None) -> Duration | None:
    return None if seconds is None else duration_to_wire(seconds)


def _timestamp(unix_seconds: float) -> Timestamp:
    moment = Timestamp()
    # Microseconds: finer ones a float of this size does not hold, nor does PostgreSQL, and the same
    # moment must read the same wherever it comes from.
    moment.FromMicroseconds(round(unix_seconds * 1e6))
    return moment
