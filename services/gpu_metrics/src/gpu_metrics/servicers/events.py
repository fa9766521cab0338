"""The methods for what happened: events of hosts' journals, each once and none left out."""

from collections.abc import AsyncIterator
from typing import Any

from gaming.gpu_metrics.v1 import events_pb2, gpu_metrics_pb2_grpc
from gpu_metrics.event_store import EventStore, FollowedEvent
from gpu_metrics.wire.events import event_message, position_from_message, position_message
from gpu_metrics.wire.moments import timestamp

__all__ = ["EventMethods"]


class EventMethods(gpu_metrics_pb2_grpc.GpuMetricsServiceServicer):
    """The methods for what happened."""

    _events: EventStore

    async def WatchGpuEvents(  # noqa: N802  # the method's name in the protocol
        self, request: events_pb2.WatchGpuEventsRequest, context: Any
    ) -> AsyncIterator[events_pb2.WatchGpuEventsResponse]:
        """Stream what follows the subscriber's positions, and heartbeats."""
        steps = self._events.follow(
            map(position_from_message, request.positions),
            host_id=request.host_id,
            only_new=request.only_new,
        )
        async for step in steps:
            yield _response(step)


def _response(step: FollowedEvent) -> events_pb2.WatchGpuEventsResponse:
    held, position = step.held, step.position
    return events_pb2.WatchGpuEventsResponse(
        position=position_message(position) if position is not None else None,
        event=event_message(held.event) if held is not None else None,
        receive_time=timestamp(held.receive_time) if held is not None else None,
        lost_events=step.lost,
    )
