"""The two gRPC services of the collector, between messages and the feed."""

from collections.abc import AsyncIterator, Iterable
from typing import Any

from gaming.gpu_metrics.v1 import fleet_pb2, gpu_metrics_pb2, gpu_metrics_pb2_grpc
from gpu_metrics import wire
from gpu_metrics.domain.aggregate import TierAggregate
from gpu_metrics.domain.host_state import HostState
from gpu_metrics.domain.readings import Tier
from gpu_metrics.feed import FleetFeed, FleetUpdate
from gpu_metrics.pages import page_of_servers
from servicekit.caller import current_caller
from servicekit.clock import Clock
from servicekit.errors import FieldViolation, InvalidRequest, PermissionDenied
from servicekit.method_policies import Role
from servicekit.server import ServiceRegistration

__all__ = [
    "ForeignHost",
    "GpuMetricsServicer",
    "GpuReportServicer",
    "HostOfStreamChanged",
    "registrations",
]

_DEFAULT_PAGE_SIZE = 100
_DEFAULT_INTERVAL_SECONDS = 1.0


class HostOfStreamChanged(InvalidRequest):
    """A report stream went on with another host."""

    reason = "HOST_OF_STREAM_CHANGED"


class ForeignHost(PermissionDenied):
    """An agent reported for a host that is not the one its certificate names."""

    reason = "FOREIGN_HOST"


class GpuReportServicer(gpu_metrics_pb2_grpc.GpuReportServiceServicer):
    """Takes agents' reports into the view and acknowledges each."""

    def __init__(self, feed: FleetFeed) -> None:
        self._feed = feed

    async def StreamReports(  # noqa: N802  # the method's name in the protocol
        self, request_iterator: AsyncIterator[gpu_metrics_pb2.StreamReportsRequest], context: Any
    ) -> AsyncIterator[gpu_metrics_pb2.StreamReportsResponse]:
        """Acknowledge every report once it is in the view."""
        host_id = ""
        async for request in request_iterator:
            report = wire.report_from_message(request)
            host_id = host_id or report.host.host_id
            if report.host.host_id != host_id:
                message = "must be the same in all reports of a stream"
                raise HostOfStreamChanged(
                    f"host.host_id {message}",
                    field_violations=[FieldViolation("host.host_id", message)],
                )
            _check_speaks_for(host_id)
            acknowledgement = self._feed.apply(report)
            yield gpu_metrics_pb2.StreamReportsResponse(
                boot_id=acknowledgement.boot_id, acknowledged_sequence=acknowledgement.sequence
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


class GpuMetricsServicer(gpu_metrics_pb2_grpc.GpuMetricsServiceServicer):
    """Shows the fleet."""

    def __init__(self, feed: FleetFeed, clock: Clock) -> None:
        self._feed = feed
        self._clock = clock
        self._messages = _HostMessages()

    async def GetFleet(  # noqa: N802  # the method's name in the protocol
        self, request: gpu_metrics_pb2.GetFleetRequest, context: Any
    ) -> gpu_metrics_pb2.GetFleetResponse:
        """Return the fleet once."""
        fleet = self._feed.now(wire.tiers_from_message(request.tiers))
        return gpu_metrics_pb2.GetFleetResponse(
            fleet=self._snapshot(fleet.hosts, fleet.aggregates),
            snapshot_time=wire.timestamp(fleet.time),
        )

    async def WatchFleet(  # noqa: N802  # the method's name in the protocol
        self, request: gpu_metrics_pb2.WatchFleetRequest, context: Any
    ) -> AsyncIterator[gpu_metrics_pb2.WatchFleetResponse]:
        """Stream a snapshot, then changes and heartbeats."""
        interval = _DEFAULT_INTERVAL_SECONDS
        if request.HasField("minimum_interval"):
            interval = request.minimum_interval.ToTimedelta().total_seconds()
        tiers = wire.tiers_from_message(request.tiers)
        async for update in self._feed.watch(tiers, request.resume_token, interval):
            yield self._response(update)

    async def ListServers(  # noqa: N802  # the method's name in the protocol
        self, request: gpu_metrics_pb2.ListServersRequest, context: Any
    ) -> gpu_metrics_pb2.ListServersResponse:
        """Return a page of model servers."""
        page = page_of_servers(
            self._feed.now().hosts,
            tier=Tier(request.tier) if request.tier else None,
            page_size=request.page_size or _DEFAULT_PAGE_SIZE,
            page_token=request.page_token,
        )
        now = self._clock.monotonic()
        response = gpu_metrics_pb2.ListServersResponse(next_page_token=page.next_page_token)
        for placed in page.items:
            listed = response.servers.add(
                server=wire.server_message(placed.server),
                host=wire.host_message(placed.state.host),
                freshness=fleet_pb2.Freshness.ValueType(placed.state.freshness.value),
            )
            listed.age.FromMilliseconds(round((now - placed.state.received_at) * 1000))
        return response

    def _response(self, update: FleetUpdate) -> gpu_metrics_pb2.WatchFleetResponse:
        response = gpu_metrics_pb2.WatchFleetResponse(
            resume_token=update.token, send_time=wire.timestamp(update.time)
        )
        if update.snapshot is not None:
            snapshot = self._snapshot(update.snapshot.hosts, update.snapshot.aggregates)
            response.snapshot.CopyFrom(snapshot)
        elif update.changes is not None:
            self._messages.forget(update.changes.removed_host_ids)
            response.delta.changed_hosts.extend(map(self._messages.of, update.changes.changed))
            response.delta.removed_host_ids.extend(update.changes.removed_host_ids)
            response.delta.tiers.extend(map(wire.aggregate_message, update.aggregates))
        else:
            response.heartbeat.SetInParent()
        return response

    def _snapshot(
        self, hosts: tuple[HostState, ...], aggregates: tuple[TierAggregate, ...]
    ) -> gpu_metrics_pb2.FleetSnapshot:
        return gpu_metrics_pb2.FleetSnapshot(
            hosts=map(self._messages.of, hosts), tiers=map(wire.aggregate_message, aggregates)
        )


class _HostMessages:
    """Messages of hosts, made once per revision however many subscribers there are."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[int, fleet_pb2.HostView]] = {}

    def of(self, state: HostState) -> fleet_pb2.HostView:
        """Return the host's message."""
        made = self._made.get(state.host.host_id)
        if made is None or made[0] != state.revision:
            made = (state.revision, wire.host_view_message(state))
            self._made[state.host.host_id] = made
        return made[1]

    def forget(self, host_ids: Iterable[str]) -> None:
        """Drop the messages of hosts that went away."""
        for host_id in host_ids:
            self._made.pop(host_id, None)


def registrations(feed: FleetFeed, clock: Clock) -> list[ServiceRegistration]:
    """Return both services for a server."""
    services = gpu_metrics_pb2.DESCRIPTOR.services_by_name
    return [
        ServiceRegistration.of(
            gpu_metrics_pb2_grpc.add_GpuMetricsServiceServicer_to_server,
            GpuMetricsServicer(feed, clock),
            services["GpuMetricsService"],
        ),
        ServiceRegistration.of(
            gpu_metrics_pb2_grpc.add_GpuReportServiceServicer_to_server,
            GpuReportServicer(feed),
            services["GpuReportService"],
        ),
    ]
