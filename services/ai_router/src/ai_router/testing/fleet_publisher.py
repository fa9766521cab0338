"""A collector for tests: a real gRPC service that shows whatever fleet a test puts into it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from gaming.common.v1 import tier_pb2
from gaming.gpu_metrics.v1 import fleet_pb2, gpu_metrics_pb2, gpu_metrics_pb2_grpc
from servicekit.clock import Clock, SystemClock
from servicekit.server import ServiceRegistration
from servicekit.streams import ResumableLog

__all__ = ["FleetPublisher"]

_TIERS = {
    "gold": tier_pb2.TIER_GOLD,
    "silver": tier_pb2.TIER_SILVER,
    "bronze": tier_pb2.TIER_BRONZE,
}


class FleetPublisher(gpu_metrics_pb2_grpc.GpuMetricsServiceServicer):
    """Serves WatchFleet with one host per server; subscribers see every change at once."""

    def __init__(self, epoch: str, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._hosts: dict[str, fleet_pb2.HostView] = {}
        self._log: ResumableLog[gpu_metrics_pb2.FleetDelta] = ResumableLog(
            clock=self._clock, epoch=epoch, heartbeat_seconds=0.2
        )

    @property
    def registration(self) -> ServiceRegistration:
        """What a server needs to serve this."""
        return ServiceRegistration.of(
            gpu_metrics_pb2_grpc.add_GpuMetricsServiceServicer_to_server,
            self,
            gpu_metrics_pb2.DESCRIPTOR.services_by_name["GpuMetricsService"],
        )

    @property
    def subscribers(self) -> int:
        """How many watch."""
        return self._log.subscriber_count

    def put(
        self,
        server_id: str,
        endpoint_url: str,
        *,
        tier: str = "gold",
        model: str = "gamekeeper-gold-3b",
        state: fleet_pb2.ModelServerState.ValueType = fleet_pb2.MODEL_SERVER_STATE_READY,
        freshness: fleet_pb2.Freshness.ValueType = fleet_pb2.FRESHNESS_FRESH,
        **readings: int,
    ) -> None:
        """Shows a server, new or changed; `readings` are fields of ModelServerSample."""
        sample = fleet_pb2.ModelServerSample(
            server_id=server_id,
            endpoint_url=endpoint_url,
            tier=_TIERS[tier],
            model=model,
            state=state,
            **readings,  # type: ignore[arg-type]  # all readings are whole numbers
        )
        view = fleet_pb2.HostView(
            host=fleet_pb2.Host(host_id=f"host-of-{server_id}", simulated=True),
            servers=[sample],
            freshness=freshness,
        )
        view.receive_time.FromDatetime(self._clock.now())
        view.sample_time.FromDatetime(self._clock.now())
        self._hosts[view.host.host_id] = view
        self._log.publish(gpu_metrics_pb2.FleetDelta(changed_hosts=[view]))

    def remove(self, server_id: str) -> None:
        """Takes a server out of the fleet."""
        host_id = f"host-of-{server_id}"
        del self._hosts[host_id]
        self._log.publish(gpu_metrics_pb2.FleetDelta(removed_host_ids=[host_id]))

    async def GetFleet(  # noqa: N802  # named by the proto
        self,
        request: gpu_metrics_pb2.GetFleetRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> gpu_metrics_pb2.GetFleetResponse:
        """Returns the whole fleet."""
        fleet = gpu_metrics_pb2.FleetSnapshot(hosts=list(self._hosts.values()))
        return gpu_metrics_pb2.GetFleetResponse(fleet=fleet)

    async def ListServers(  # noqa: N802  # named by the proto
        self,
        request: gpu_metrics_pb2.ListServersRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> gpu_metrics_pb2.ListServersResponse:
        """Returns all servers on one page."""
        listed = [
            gpu_metrics_pb2.ListedServer(server=server, host=view.host, freshness=view.freshness)
            for view in self._hosts.values()
            for server in view.servers
        ]
        return gpu_metrics_pb2.ListServersResponse(servers=listed)

    async def WatchFleet(  # noqa: N802  # named by the proto
        self,
        request: gpu_metrics_pb2.WatchFleetRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[gpu_metrics_pb2.WatchFleetResponse]:
        """Streams a snapshot, or what came after the token, then every change."""
        token = request.resume_token
        if not token:
            token = self._log.latest_token
            snapshot = gpu_metrics_pb2.FleetSnapshot(hosts=list(self._hosts.values()))
            yield self._response(token, snapshot=snapshot)
        async for step in self._log.subscribe(token):
            if step.item is None:
                heartbeat = gpu_metrics_pb2.FleetHeartbeat()
                yield self._response(step.token, heartbeat=heartbeat)
            else:
                yield self._response(step.token, delta=step.item)

    def _response(self, token: str, **update: Any) -> gpu_metrics_pb2.WatchFleetResponse:
        response = gpu_metrics_pb2.WatchFleetResponse(resume_token=token, **update)
        response.send_time.FromDatetime(self._clock.now())
        return response
