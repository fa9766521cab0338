"""The router on the wire: proto in, domain, proto out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import grpc.aio

from ai_router import proto_mapping as mapping
from ai_router.demand_feed import DemandFeed
from ai_router.domain.errors import UpstreamFailed
from ai_router.domain.generation import GenerationEnd, GenerationRequest, RouteTaken, TextDelta
from ai_router.domain.tiers import Tier
from ai_router.router import Router
from gaming.ai_router.v1 import ai_router_pb2 as pb
from gaming.ai_router.v1 import ai_router_pb2_grpc as rpc
from servicekit.caller import current_caller
from servicekit.clock import Clock

__all__ = ["AiRouterServicer"]

_Context = grpc.aio.ServicerContext[Any, Any]
_DEFAULT_LEASE_SECONDS = 600.0


class AiRouterServicer(rpc.AiRouterServiceServicer):
    """Serves gaming.ai_router.v1.AiRouterService.

    `make_request_id` names requests whose callers gave them no name.
    """

    def __init__(
        self, router: Router, demand: DemandFeed, clock: Clock, make_request_id: Callable[[], str]
    ) -> None:
        self._router = router
        self._demand = demand
        self._clock = clock
        self._make_request_id = make_request_id

    async def Generate(  # noqa: N802  # named by the proto
        self, request: pb.GenerateRequest, context: _Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Streams the route, the text and the end."""
        request_id = request.request_id or self._make_request_id()
        wanted = _asked(request_id, request.spec)
        async with aclosing(self._router.generate(wanted, context.time_remaining())) as events:
            async for event in events:
                yield mapping.event_response(event)

    async def GenerateOnce(  # noqa: N802  # named by the proto
        self, request: pb.GenerateOnceRequest, context: _Context
    ) -> pb.GenerateOnceResponse:
        """Returns the whole text."""
        request_id = request.request_id or self._make_request_id()
        wanted = _asked(request_id, request.spec)
        texts: list[str] = []
        response = pb.GenerateOnceResponse()
        async with aclosing(self._router.generate(wanted, context.time_remaining())) as events:
            async for event in events:
                match event:
                    case TextDelta(text):
                        texts.append(text)
                    case RouteTaken():
                        response.route.CopyFrom(mapping.route_message(event))
                    case GenerationEnd():
                        response.end.CopyFrom(mapping.end_message(event))
        if not response.HasField("end"):
            raise UpstreamFailed("the answer had no end")
        response.text = "".join(texts)
        return response

    async def ExplainRoute(  # noqa: N802  # named by the proto
        self, request: pb.ExplainRouteRequest, context: _Context
    ) -> pb.ExplainRouteResponse:
        """Tells where a request would go, and why."""
        wanted = _asked("", request.spec)
        return mapping.explain_response(self._router.explain(wanted))

    async def ListTiers(  # noqa: N802  # named by the proto
        self, request: pb.ListTiersRequest, context: _Context
    ) -> pb.ListTiersResponse:
        """Returns the tiers as this router sees them."""
        now = self._clock.monotonic()
        desk, cache = self._router.desk, self._router.cache
        response = pb.ListTiersResponse(
            tiers=[
                mapping.tier_message(
                    tier,
                    list(desk.directory.statuses(tier, now)),
                    desk.activity[tier].summary(now),
                    queued_requests=len(desk.queued(tier)),
                    queue_limit=desk.queued(tier).limit,
                )
                for tier in Tier
            ],
            router_id=self._demand.router_id,
            cached_answers=len(cache),
            cache_hits=cache.hits,
            cache_misses=cache.misses,
        )
        age = desk.directory.feed_age_seconds(now)
        if age is not None:
            response.fleet_age.CopyFrom(mapping.duration(age))
        return response

    async def DrainServer(  # noqa: N802  # named by the proto
        self, request: pb.DrainServerRequest, context: _Context
    ) -> pb.DrainServerResponse:
        """Stops new requests to a server."""
        lease = _DEFAULT_LEASE_SECONDS
        if request.HasField("lease_duration"):
            lease = mapping.seconds(request.lease_duration)
        running = self._router.drain(request.server_id, lease)
        response = pb.DrainServerResponse(running_requests=running)
        response.lease_expire_time.FromDatetime(self._clock.now() + timedelta(seconds=lease))
        return response

    async def ResumeServer(  # noqa: N802  # named by the proto
        self, request: pb.ResumeServerRequest, context: _Context
    ) -> pb.ResumeServerResponse:
        """Lets a draining server take requests again."""
        state = self._router.resume(request.server_id)
        return pb.ResumeServerResponse(state=mapping.SERVER_STATES[state])

    async def WatchDemand(  # noqa: N802  # named by the proto
        self, request: pb.WatchDemandRequest, context: _Context
    ) -> AsyncIterator[pb.WatchDemandResponse]:
        """Streams the demand, interval by interval."""
        async for step in self._demand.subscribe(request.resume_token):
            if step.item is not None:
                yield mapping.demand_response(step.token, self._demand.router_id, step.item)


def _asked(request_id: str, spec: pb.GenerationSpec) -> GenerationRequest:
    return mapping.generation_request(request_id, spec, caller=current_caller().identity)
