"""The methods for the fleet as it is now: once, as a stream, and page by page."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from gaming.gpu_metrics.v1 import fleet_pb2, gpu_metrics_pb2, gpu_metrics_pb2_grpc
from gpu_metrics import wire
from gpu_metrics.domain.aggregate import TierAggregate
from gpu_metrics.domain.distributions import DistributionRun, DistributionScope
from gpu_metrics.domain.host_state import HostState
from gpu_metrics.domain.readings import Tier
from gpu_metrics.feed import FleetFeed, FleetUpdate
from gpu_metrics.pages import page_of_servers
from gpu_metrics.wire.distributions import distribution_message
from servicekit.clock import Clock
from servicekit.errors import FailedPrecondition

__all__ = ["FleetMethods", "FleetTooLarge", "HostMessages"]

_DEFAULT_PAGE_SIZE = 100
_DEFAULT_INTERVAL_SECONDS = 1.0
_MAXIMUM_ANSWER_BYTES = 4 * 2**20
"""What a gRPC client reads if it is not told otherwise (GRPC_DEFAULT_MAX_RECV_MESSAGE_LENGTH)."""


class FleetTooLarge(FailedPrecondition):
    """The distributions asked for do not fit into an answer."""

    reason = "FLEET_TOO_LARGE"


def _check_is_readable(response: gpu_metrics_pb2.GetFleetResponse) -> None:
    size = response.ByteSize()
    if size > _MAXIMUM_ANSWER_BYTES:
        raise FleetTooLarge(
            f"the answer would have {size} bytes, more than {_MAXIMUM_ANSWER_BYTES}; ask for the "
            "distributions of fewer parts (distribution_scopes), or for one tier at a time (tiers)",
            metadata={"bytes": str(size), "maximum_bytes": str(_MAXIMUM_ANSWER_BYTES)},
        )


class HostMessages:
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


class FleetMethods(gpu_metrics_pb2_grpc.GpuMetricsServiceServicer):
    """The methods for the fleet as it is now."""

    _feed: FleetFeed
    _clock: Clock
    _messages: HostMessages

    async def GetFleet(  # noqa: N802  # the method's name in the protocol
        self, request: gpu_metrics_pb2.GetFleetRequest, context: Any
    ) -> gpu_metrics_pb2.GetFleetResponse:
        """Return the fleet once."""
        fleet = self._feed.now(wire.filter_from_message(request))
        response = gpu_metrics_pb2.GetFleetResponse(
            fleet=self._snapshot(fleet.hosts, fleet.aggregates),
            snapshot_time=wire.timestamp(fleet.time),
        )
        if request.include_distributions:
            run = DistributionRun(
                self._feed.history,
                now=self._clock.monotonic(),
                second=int(fleet.time.timestamp()),
                scopes=[DistributionScope(scope) for scope in request.distribution_scopes],
            )
            for state in fleet.hosts:
                run.take(state)
                # Each host takes a millisecond; reports come in between.
                await asyncio.sleep(0)
            response.distributions.extend(map(distribution_message, run.distributions()))
            _check_is_readable(response)
        return response

    async def WatchFleet(  # noqa: N802  # the method's name in the protocol
        self, request: gpu_metrics_pb2.WatchFleetRequest, context: Any
    ) -> AsyncIterator[gpu_metrics_pb2.WatchFleetResponse]:
        """Stream a snapshot, then changes and heartbeats."""
        interval = _DEFAULT_INTERVAL_SECONDS
        if request.HasField("minimum_interval"):
            interval = request.minimum_interval.ToTimedelta().total_seconds()
        wanted = wire.filter_from_message(request)
        async for update in self._feed.watch(wanted, request.resume_token, interval):
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
