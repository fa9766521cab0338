"""The methods for GPUs and for who uses them."""

from typing import Any

from gaming.gpu_metrics.v1 import fleet_pb2, gpu_metrics_pb2, gpu_metrics_pb2_grpc, processes_pb2
from gpu_metrics import wire
from gpu_metrics.domain.readings import Tier
from gpu_metrics.feed import FleetFeed
from gpu_metrics.pages import page_of_gpus
from gpu_metrics.wire.processes import processes_message
from servicekit.clock import Clock
from servicekit.errors import NotFound

__all__ = ["GpuMethods", "HostUnknown"]

_DEFAULT_PAGE_SIZE = 100


class HostUnknown(NotFound):
    """No host of that id is in the view."""

    reason = "HOST_UNKNOWN"


class GpuMethods(gpu_metrics_pb2_grpc.GpuMetricsServiceServicer):
    """The methods for GPUs and for who uses them."""

    _feed: FleetFeed
    _clock: Clock

    async def ListGpus(  # noqa: N802  # the method's name in the protocol
        self, request: gpu_metrics_pb2.ListGpusRequest, context: Any
    ) -> gpu_metrics_pb2.ListGpusResponse:
        """Return a page of GPUs."""
        page = page_of_gpus(
            self._feed.hosts(),
            tier=Tier(request.tier) if request.tier else None,
            host_id=request.host_id,
            page_size=request.page_size or _DEFAULT_PAGE_SIZE,
            page_token=request.page_token,
        )
        now = self._clock.monotonic()
        response = gpu_metrics_pb2.ListGpusResponse(next_page_token=page.next_page_token)
        for placed in page.items:
            listed = response.gpus.add(
                gpu=wire.gpu_message(placed.gpu),
                host=wire.host_message(placed.state.host),
                servers=map(wire.server_message, placed.servers()),
                freshness=fleet_pb2.Freshness.ValueType(placed.state.freshness.value),
            )
            listed.age.FromMilliseconds(round((now - placed.state.received_at) * 1000))
        return response

    async def GetGpuProcesses(  # noqa: N802  # the method's name in the protocol
        self, request: processes_pb2.GetGpuProcessesRequest, context: Any
    ) -> processes_pb2.GetGpuProcessesResponse:
        """Return who uses the GPUs of a host."""
        for state in self._feed.hosts():
            if state.host.host_id == request.host_id:
                break
        else:
            raise HostUnknown(
                "No host of that id is in the view; ListGpus has the hosts there are.",
                metadata={"host_id": request.host_id},
            )
        response = processes_pb2.GetGpuProcessesResponse(
            freshness=fleet_pb2.Freshness.ValueType(state.freshness.value)
        )
        if state.processes is not None:
            reading = state.processes.of_gpu(request.gpu_uuid)
            response.reading.CopyFrom(processes_message(reading))
            age = self._clock.monotonic() - state.processes_received_at
            response.age.FromMilliseconds(round(age * 1000))
        return response
