"""A router and a collector as real gRPC services, saying what a test puts into them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from autoscaler.adapters.proto_tiers import WIRE_OF_TIER
from autoscaler.domain.tiers import TIERS, Tier
from gaming.ai_router.v1 import ai_router_pb2, ai_router_pb2_grpc
from gaming.gpu_metrics.v1 import fleet_pb2, gpu_metrics_pb2, gpu_metrics_pb2_grpc
from servicekit.errors import FailedPrecondition, NotFound
from servicekit.server import ServiceRegistration

__all__ = ["Asked", "ScriptedCollector", "ScriptedRouter"]

_INTERVAL_SECONDS = 0.05
_NOT_OFFERED = "The scripted service of a test does not offer this."


def _now() -> Timestamp:
    moment = Timestamp()
    moment.FromDatetime(datetime.now(UTC))
    return moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a router is asked of a tier, all the time."""

    arrivals_per_second: float = 0.0
    tokens_per_request: int = 600
    shed_per_second: float = 0.0
    running_requests: int = 0
    queued_requests: int = 0


@dataclass(slots=True)
class ScriptedRouter(ai_router_pb2_grpc.AiRouterServiceServicer):
    """Streams demand and drains servers; `running` holds requests per server id."""

    name: str = "router-1"
    asked: dict[Tier, Asked] = field(default_factory=dict)
    running: dict[str, int] = field(default_factory=dict)
    draining: set[str] = field(default_factory=set)
    resumed: list[str] = field(default_factory=list)
    unknown_servers: set[str] = field(default_factory=set)
    _sequence: int = 0

    @property
    def messages(self) -> int:
        """How many messages of demand it has sent, to all who watch together."""
        return self._sequence

    @property
    def registration(self) -> ServiceRegistration:
        """What a server of the suite serves."""
        return ServiceRegistration.of(
            ai_router_pb2_grpc.add_AiRouterServiceServicer_to_server,
            self,
            ai_router_pb2.DESCRIPTOR.services_by_name["AiRouterService"],
        )

    async def WatchDemand(  # noqa: N802 - the contract's name
        self, request: ai_router_pb2.WatchDemandRequest, context: Any
    ) -> AsyncIterator[ai_router_pb2.WatchDemandResponse]:
        """Send an interval every few hundredths of a second; counts are those of a second."""
        while True:
            self._sequence += 1
            end = _now()
            start = Timestamp()
            start.FromNanoseconds(end.ToNanoseconds() - 1_000_000_000)
            yield ai_router_pb2.WatchDemandResponse(
                resume_token=str(self._sequence),
                router_id=self.name,
                start_time=start,
                end_time=end,
                tiers=[self._tier(tier, self.asked.get(tier, Asked())) for tier in TIERS],
            )
            await asyncio.sleep(_INTERVAL_SECONDS)

    async def Generate(  # noqa: N802 - the contract's name
        self, request: ai_router_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[ai_router_pb2.GenerateResponse]:
        """Refuse: this router answers no players."""
        raise FailedPrecondition(_NOT_OFFERED)
        yield

    async def GenerateOnce(  # noqa: N802 - the contract's name
        self, request: ai_router_pb2.GenerateOnceRequest, context: Any
    ) -> ai_router_pb2.GenerateOnceResponse:
        """Refuse: this router answers no players."""
        raise FailedPrecondition(_NOT_OFFERED)

    async def ExplainRoute(  # noqa: N802 - the contract's name
        self, request: ai_router_pb2.ExplainRouteRequest, context: Any
    ) -> ai_router_pb2.ExplainRouteResponse:
        """Refuse: this router routes nothing."""
        raise FailedPrecondition(_NOT_OFFERED)

    async def ListTiers(  # noqa: N802 - the contract's name
        self, request: ai_router_pb2.ListTiersRequest, context: Any
    ) -> ai_router_pb2.ListTiersResponse:
        """Refuse: this router routes nothing."""
        raise FailedPrecondition(_NOT_OFFERED)

    async def DrainServer(  # noqa: N802 - the contract's name
        self, request: ai_router_pb2.DrainServerRequest, context: Any
    ) -> ai_router_pb2.DrainServerResponse:
        """Mark the server and tell what runs on it."""
        if request.server_id in self.unknown_servers:
            raise NotFound("There is no such server.")
        self.draining.add(request.server_id)
        return ai_router_pb2.DrainServerResponse(
            running_requests=self.running.get(request.server_id, 0)
        )

    async def ResumeServer(  # noqa: N802 - the contract's name
        self, request: ai_router_pb2.ResumeServerRequest, context: Any
    ) -> ai_router_pb2.ResumeServerResponse:
        """Mark the server as in use."""
        self.draining.discard(request.server_id)
        self.resumed.append(request.server_id)
        return ai_router_pb2.ResumeServerResponse(state=ai_router_pb2.ROUTER_SERVER_STATE_READY)

    def _tier(self, tier: Tier, asked: Asked) -> ai_router_pb2.TierDemand:
        arrived = round(asked.arrivals_per_second)
        return ai_router_pb2.TierDemand(
            tier=WIRE_OF_TIER[tier],
            arrived_requests=arrived,
            arrived_tokens=arrived * asked.tokens_per_request,
            shed_requests=round(asked.shed_per_second),
            completed_requests=arrived,
            running_requests=asked.running_requests,
            running_tokens=asked.running_requests * asked.tokens_per_request,
            queued_requests=asked.queued_requests,
            queued_tokens=asked.queued_requests * asked.tokens_per_request,
        )


@dataclass(slots=True)
class ScriptedCollector(gpu_metrics_pb2_grpc.GpuMetricsServiceServicer):
    """Streams the fleet: a ready server on every host in `hosts`."""

    hosts: dict[str, Tier] = field(default_factory=dict)
    interruptions: dict[str, float] = field(default_factory=dict)
    _sequence: int = 0

    @property
    def registration(self) -> ServiceRegistration:
        """What a server of the suite serves."""
        return ServiceRegistration.of(
            gpu_metrics_pb2_grpc.add_GpuMetricsServiceServicer_to_server,
            self,
            gpu_metrics_pb2.DESCRIPTOR.services_by_name["GpuMetricsService"],
        )

    async def WatchFleet(  # noqa: N802 - the contract's name
        self, request: gpu_metrics_pb2.WatchFleetRequest, context: Any
    ) -> AsyncIterator[gpu_metrics_pb2.WatchFleetResponse]:
        """Send a snapshot, then a delta or a heartbeat every few hundredths of a second."""
        sent: dict[str, fleet_pb2.HostView] = {}
        first = True
        while True:
            self._sequence += 1
            message = gpu_metrics_pb2.WatchFleetResponse(
                resume_token=str(self._sequence), send_time=_now()
            )
            views = {host: self._view(host, tier) for host, tier in list(self.hosts.items())}
            removed = [host for host in sent if host not in views]
            changed = [view for host, view in views.items() if sent.get(host) != view]
            if first:
                message.snapshot.hosts.extend(views.values())
                message.snapshot.tiers.extend(self._tiers())
            elif changed or removed:
                message.delta.changed_hosts.extend(changed)
                message.delta.removed_host_ids.extend(removed)
                message.delta.tiers.extend(self._tiers())
            else:
                message.heartbeat.SetInParent()
            first, sent = False, views
            yield message
            await asyncio.sleep(_INTERVAL_SECONDS)

    async def GetFleet(  # noqa: N802 - the contract's name
        self, request: gpu_metrics_pb2.GetFleetRequest, context: Any
    ) -> gpu_metrics_pb2.GetFleetResponse:
        """Refuse: this collector only streams."""
        raise FailedPrecondition(_NOT_OFFERED)

    async def ListServers(  # noqa: N802 - the contract's name
        self, request: gpu_metrics_pb2.ListServersRequest, context: Any
    ) -> gpu_metrics_pb2.ListServersResponse:
        """Refuse: this collector only streams."""
        raise FailedPrecondition(_NOT_OFFERED)

    def _view(self, host_id: str, tier: Tier) -> fleet_pb2.HostView:
        host = fleet_pb2.Host(host_id=host_id, instance_type="g5.xlarge")
        at = self.interruptions.get(host_id)
        if at is not None:
            host.interruption_time.FromNanoseconds(round(at * 1e9))
        server = fleet_pb2.ModelServerSample(
            server_id=f"server-{host_id}",
            endpoint_url="http://127.0.0.1:1",
            tier=WIRE_OF_TIER[tier],
            state=fleet_pb2.MODEL_SERVER_STATE_READY,
            running_requests=0,
            waiting_requests=0,
        )
        return fleet_pb2.HostView(host=host, servers=[server], freshness=fleet_pb2.FRESHNESS_FRESH)

    def _tiers(self) -> list[fleet_pb2.TierAggregate]:
        counts = {tier: sum(t is tier for t in self.hosts.values()) for tier in TIERS}
        return [
            fleet_pb2.TierAggregate(
                tier=WIRE_OF_TIER[tier],
                known_servers=count,
                fresh_servers=count,
                ready_servers=count,
                running_requests=0,
                waiting_requests=0,
            )
            for tier, count in counts.items()
        ]
