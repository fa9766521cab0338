"""Between the wire and the domain."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from ai_router.demand_feed import DemandInterval
from ai_router.domain.demand import TierDemand
from ai_router.domain.explanation import ConsideredServer, Explanation, Verdict
from ai_router.domain.fleet_directory import ServerState, ServerStatus
from ai_router.domain.generation import (
    ChatMessage,
    ChatRole,
    FinishReason,
    GenerationEnd,
    GenerationEvent,
    GenerationRequest,
    RouteTaken,
    TextDelta,
)
from ai_router.domain.tier_activity import ActivitySummary
from ai_router.domain.tiers import Priority, Tier
from gaming.ai_router.v1 import ai_router_pb2 as pb
from gaming.common.v1 import tier_pb2

__all__ = [
    "SERVER_STATES",
    "demand_response",
    "duration",
    "end_message",
    "event_response",
    "explain_response",
    "generation_request",
    "route_message",
    "seconds",
    "tier_message",
]

_DEFAULT_OUTPUT_TOKENS = 256
_TIERS = {
    Tier.GOLD: tier_pb2.TIER_GOLD,
    Tier.SILVER: tier_pb2.TIER_SILVER,
    Tier.BRONZE: tier_pb2.TIER_BRONZE,
}
_ROLES = {
    pb.CHAT_ROLE_SYSTEM: ChatRole.SYSTEM,
    pb.CHAT_ROLE_USER: ChatRole.USER,
    pb.CHAT_ROLE_ASSISTANT: ChatRole.ASSISTANT,
}
_FINISH_REASONS = {
    FinishReason.UNKNOWN: pb.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}
_VERDICTS = {
    Verdict.SEND: pb.ROUTE_VERDICT_SEND,
    Verdict.QUEUE: pb.ROUTE_VERDICT_QUEUE,
    Verdict.REFUSE: pb.ROUTE_VERDICT_REFUSE,
    Verdict.CACHE: pb.ROUTE_VERDICT_CACHE,
}
SERVER_STATES = {
    ServerState.READY: pb.ROUTER_SERVER_STATE_READY,
    ServerState.DRAINING: pb.ROUTER_SERVER_STATE_DRAINING,
    ServerState.BROKEN: pb.ROUTER_SERVER_STATE_BROKEN,
    ServerState.UNAVAILABLE: pb.ROUTER_SERVER_STATE_UNAVAILABLE,
}


def duration(seconds_: float) -> Duration:
    """Returns the duration of `seconds_`, to the microsecond, not below 0."""
    made = Duration()
    made.FromMicroseconds(max(0, round(seconds_ * 1e6)))
    return made


def seconds(value: Duration) -> float:
    """Returns the duration in seconds."""
    return value.seconds + value.nanos / 1e9


def generation_request(
    request_id: str, spec: pb.GenerationSpec, *, caller: str = ""
) -> GenerationRequest:
    """Returns the request; unset fields get the meaning the proto gives them."""
    return GenerationRequest(
        request_id=request_id,
        messages=tuple(
            ChatMessage(_ROLES[message.role], message.content) for message in spec.messages
        ),
        tier=Tier(spec.tier) if spec.tier else None,
        latency_budget_seconds=(
            seconds(spec.latency_budget) if spec.HasField("latency_budget") else None
        ),
        priority=Priority(spec.priority) if spec.priority else Priority.NORMAL,
        max_output_tokens=spec.max_output_tokens or _DEFAULT_OUTPUT_TOKENS,
        temperature=spec.temperature if spec.HasField("temperature") else None,
        top_p=spec.top_p if spec.HasField("top_p") else None,
        seed=spec.seed if spec.HasField("seed") else None,
        stop=tuple(spec.stop),
        affinity_key=spec.affinity_key,
        forbid_fallback=spec.forbid_fallback,
        use_cache=spec.cache_mode != pb.CACHE_MODE_BYPASS,
        caller=caller,
    )


def event_response(event: GenerationEvent) -> pb.GenerateResponse:
    """Returns the event as it goes over the wire."""
    if isinstance(event, TextDelta):
        return pb.GenerateResponse(delta=pb.TextDelta(text=event.text))
    if isinstance(event, RouteTaken):
        return pb.GenerateResponse(route=route_message(event))
    return pb.GenerateResponse(end=end_message(event))


def route_message(route: RouteTaken) -> pb.RouteTaken:
    """Returns the route."""
    return pb.RouteTaken(
        request_id=route.request_id,
        tier=_TIERS[route.tier],
        wanted_tier=_TIERS[route.wanted_tier],
        server_id=route.server_id,
        model=route.model,
        cached=route.cached,
        queue_duration=duration(route.queue_seconds),
        failed_attempts=route.failed_attempts,
        reason=route.reason,
    )


def end_message(end: GenerationEnd) -> pb.GenerationEnd:
    """Returns the end."""
    return pb.GenerationEnd(
        finish_reason=_FINISH_REASONS[end.finish_reason],
        prompt_tokens=end.prompt_tokens,
        output_tokens=end.output_tokens,
        time_to_first_token=duration(end.first_token_seconds),
        total_duration=duration(end.total_seconds),
    )


def explain_response(explanation: Explanation) -> pb.ExplainRouteResponse:
    """Returns the explanation."""
    serving = explanation.serving_tier
    return pb.ExplainRouteResponse(
        wanted_tier=_TIERS[explanation.wanted_tier],
        tier_reason=explanation.tier_reason,
        serving_tier=_TIERS[serving] if serving is not None else tier_pb2.TIER_UNSPECIFIED,
        server_id=explanation.server_id,
        verdict=_VERDICTS[explanation.verdict],
        candidates=[_candidate(server) for server in explanation.candidates],
        estimated_tokens=explanation.estimated_tokens,
    )


def _candidate(server: ConsideredServer) -> pb.RouteCandidate:
    return pb.RouteCandidate(
        server_id=server.server_id,
        tier=_TIERS[server.tier],
        load_ratio=server.load_ratio,
        eligible=server.eligible,
        reason=server.reason,
    )


def tier_message(
    tier: Tier,
    servers: list[ServerStatus],
    activity: ActivitySummary,
    *,
    queued_requests: int,
    queue_limit: int,
) -> pb.RouterTier:
    """Returns the tier as ListTiers shows it."""
    message = pb.RouterTier(
        tier=_TIERS[tier],
        servers=[_server(status) for status in servers],
        queued_requests=queued_requests,
        queue_limit=queue_limit,
        completed_last_minute=activity.completed,
        shed_last_minute=activity.shed,
        failed_last_minute=activity.failed,
    )
    if activity.first_token_p95_seconds is not None:
        message.time_to_first_token_p95.CopyFrom(duration(activity.first_token_p95_seconds))
    if activity.token_p95_seconds is not None:
        message.time_per_token_p95.CopyFrom(duration(activity.token_p95_seconds))
    return message


def _server(status: ServerStatus) -> pb.RouterServer:
    return pb.RouterServer(
        server_id=status.report.server_id,
        state=SERVER_STATES[status.state],
        running_requests=status.running_requests,
        running_tokens=status.running_tokens,
        capacity_tokens=status.capacity_tokens,
        model=status.report.model,
        endpoint_url=status.report.endpoint_url,
    )


def demand_response(token: str, router_id: str, interval: DemandInterval) -> pb.WatchDemandResponse:
    """Returns the interval as it goes over the wire."""
    response = pb.WatchDemandResponse(
        resume_token=token,
        router_id=router_id,
        tiers=[_tier_demand(tier) for tier in interval.tiers],
    )
    response.start_time.FromDatetime(interval.start)
    response.end_time.FromDatetime(interval.end)
    return response


def _tier_demand(demand: TierDemand) -> pb.TierDemand:
    return pb.TierDemand(
        tier=_TIERS[demand.tier],
        arrived_requests=demand.arrived_requests,
        arrived_tokens=demand.arrived_tokens,
        shed_requests=demand.shed_requests,
        completed_requests=demand.completed_requests,
        failed_requests=demand.failed_requests,
        running_requests=demand.running_requests,
        running_tokens=demand.running_tokens,
        queued_requests=demand.queued_requests,
        queued_tokens=demand.queued_tokens,
        fallback_requests=demand.fallback_requests,
    )
