"""How agents' reports come in: between the report stream and the feed."""

from collections.abc import AsyncIterator
from typing import Any

from gaming.gpu_metrics.v1 import gpu_metrics_pb2, gpu_metrics_pb2_grpc
from gpu_metrics import wire
from gpu_metrics.event_store import EventStore
from gpu_metrics.feed import FleetFeed
from servicekit.caller import current_caller
from servicekit.errors import FieldViolation, InvalidRequest, PermissionDenied
from servicekit.method_policies import Role

__all__ = ["ForeignHost", "GpuReportServicer", "HostOfStreamChanged"]


class HostOfStreamChanged(InvalidRequest):
    """A report stream went on with another host."""

    reason = "HOST_OF_STREAM_CHANGED"


class ForeignHost(PermissionDenied):
    """An agent reported for a host that is not the one its certificate names."""

    reason = "FOREIGN_HOST"


class GpuReportServicer(gpu_metrics_pb2_grpc.GpuReportServiceServicer):
    """Takes agents' reports into the view, their events into the store, and acknowledges both."""

    def __init__(self, feed: FleetFeed, events: EventStore) -> None:
        self._feed = feed
        self._events = events

    async def StreamReports(  # noqa: N802  # the method's name in the protocol
        self, request_iterator: AsyncIterator[gpu_metrics_pb2.StreamReportsRequest], context: Any
    ) -> AsyncIterator[gpu_metrics_pb2.StreamReportsResponse]:
        """Acknowledge reports once they are in the view and their events are in the store.

        Agents are spared most answers where they say so: to send one costs as much as to read one.
        """
        host_id = ""
        async for request in request_iterator:
            report = wire.lazy_report_from_message(request)
            host_id = host_id or report.host.host_id
            if report.host.host_id != host_id:
                message = "must be the same in all reports of a stream"
                raise HostOfStreamChanged(
                    f"host.host_id {message}",
                    field_violations=[FieldViolation("host.host_id", message)],
                )
            _check_speaks_for(host_id)
            # First, for what happened is told even where the view has no room for the host.
            held = self._events.take(report)
            acknowledgement = self._feed.apply(report)
            if request.no_answer:
                continue
            yield gpu_metrics_pb2.StreamReportsResponse(
                leaves_out_answers=True,
                boot_id=acknowledgement.boot_id,
                acknowledged_sequence=acknowledgement.sequence,
                journal_id=report.journal_id,
                acknowledged_event_sequence=held,
            )


def _check_speaks_for(host_id: str) -> None:
    """Refuses a report about another host than the caller's own, where callers are known.

    Whoever takes over one GPU host could else take any other out of the fleet, or send the players'
    requests of a whole tier to an endpoint of its own.
    """
    caller = current_caller()
    if caller.role is Role.GPU_AGENT and caller.name != host_id:
        raise ForeignHost(
            f"{caller.identity} may report for host {caller.name} only; set GPU_METRICS_HOST_ID "
            "to that, or give the agent a certificate of its host.",
            metadata={"identity": caller.identity},
        )
