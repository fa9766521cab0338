"""The collector's fleet feed: watched for ever, the last state kept with its age."""

from __future__ import annotations

import random
from collections.abc import AsyncIterable, Iterable, Sequence
from functools import partial

import grpc.aio
from google.protobuf.duration_pb2 import Duration

from autoscaler.adapters.proto_tiers import TIER_OF_WIRE
from autoscaler.domain.fleet_view import FleetHost, FleetServer, FleetTier, FleetView
from autoscaler.domain.latency import Histogram
from autoscaler.domain.tiers import Tier
from gaming.gpu_metrics.v1 import fleet_pb2, gpu_metrics_pb2, gpu_metrics_pb2_grpc
from servicekit.clock import Clock
from servicekit.watching import watch

__all__ = ["WatchedFleet"]


# A collector says something every second and a half at the least. With another one to turn to, two
# seconds of silence are enough to do so.
_SILENCE_SECONDS = 15.0
_SILENCE_BEFORE_NEXT_SECONDS = 2.0


class WatchedFleet:
    """The fleet as the collector last told it; `run` keeps it current.

    With `further` channels to collectors, each of which holds the whole fleet, the next takes the
    place of one that fails or falls silent.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        clock: Clock,
        jitter: random.Random,
        further: Sequence[grpc.aio.Channel] = (),
        interval_seconds: float = 1.0,
        idle_timeout_seconds: float | None = None,
    ) -> None:
        self._stubs = [
            gpu_metrics_pb2_grpc.GpuMetricsServiceStub(each) for each in (channel, *further)
        ]
        self._clock = clock
        self._jitter = jitter
        self._interval = Duration()
        self._interval.FromNanoseconds(round(interval_seconds * 1e9))
        if idle_timeout_seconds is None:
            idle_timeout_seconds = _SILENCE_BEFORE_NEXT_SECONDS if further else _SILENCE_SECONDS
        self._idle_timeout_seconds = idle_timeout_seconds
        self._hosts: dict[str, FleetHost] = {}
        self._tiers: dict[Tier, FleetTier] = {}
        self._received_at: float | None = None

    def view(self) -> FleetView:
        """Return the last state; its age counts from the last message, heartbeats included."""
        age = None
        if self._received_at is not None:
            age = max(0.0, self._clock.monotonic() - self._received_at)
        return FleetView(hosts=dict(self._hosts), tiers=dict(self._tiers), age_seconds=age)

    async def run(self) -> None:
        """Watch until cancelled."""
        async for message in watch(
            [partial(self._open, stub) for stub in self._stubs],
            token_of=lambda m: m.resume_token,
            clock=self._clock,
            name="fleet",
            idle_timeout_seconds=self._idle_timeout_seconds,
            jitter=self._jitter,
        ):
            self.take(message)

    def take(self, message: gpu_metrics_pb2.WatchFleetResponse) -> None:
        """Take in one message of the feed."""
        kind = message.WhichOneof("update")
        # Moments in the message are by the collector's clock; ours may differ from it.
        ahead_seconds = self._clock.now().timestamp() - message.send_time.ToNanoseconds() / 1e9
        if kind == "snapshot":
            self._hosts = {h.host.host_id: _host(h, ahead_seconds) for h in message.snapshot.hosts}
            self._tiers = _tiers(message.snapshot.tiers)
        elif kind == "delta":
            for host in message.delta.changed_hosts:
                self._hosts[host.host.host_id] = _host(host, ahead_seconds)
            for host_id in message.delta.removed_host_ids:
                self._hosts.pop(host_id, None)
            self._tiers = _tiers(message.delta.tiers)
        self._received_at = self._clock.monotonic()

    def _open(
        self, stub: gpu_metrics_pb2_grpc.GpuMetricsServiceAsyncStub, token: str
    ) -> AsyncIterable[gpu_metrics_pb2.WatchFleetResponse]:
        return stub.WatchFleet(
            gpu_metrics_pb2.WatchFleetRequest(resume_token=token, minimum_interval=self._interval)
        )


def _tiers(tiers: Iterable[fleet_pb2.TierAggregate]) -> dict[Tier, FleetTier]:
    return {TIER_OF_WIRE[t.tier]: _tier(t) for t in tiers if t.tier in TIER_OF_WIRE}


def _tier(tier: fleet_pb2.TierAggregate) -> FleetTier:
    return FleetTier(
        running_requests=tier.running_requests if tier.HasField("running_requests") else None,
        waiting_requests=tier.waiting_requests if tier.HasField("waiting_requests") else None,
        fresh_servers=tier.fresh_servers,
        ready_servers=tier.ready_servers,
        first_token=(
            _histogram(tier.time_to_first_token) if tier.HasField("time_to_first_token") else None
        ),
        inter_token=(
            _histogram(tier.inter_token_latency) if tier.HasField("inter_token_latency") else None
        ),
    )


def _histogram(wire: fleet_pb2.LatencyHistogram) -> Histogram | None:
    if len(wire.bucket_counts) != len(wire.upper_bounds_seconds) + 1:
        return None  # a collector of another version; no latency is better than a wrong one
    return Histogram(tuple(wire.upper_bounds_seconds), tuple(wire.bucket_counts))


def _host(view: fleet_pb2.HostView, ahead_seconds: float) -> FleetHost:
    option = view.host.purchase_option
    return FleetHost(
        host_id=view.host.host_id,
        is_fresh=view.freshness == fleet_pb2.FRESHNESS_FRESH,
        is_spot=(
            None
            if option == fleet_pb2.PURCHASE_OPTION_UNSPECIFIED
            else option == fleet_pb2.PURCHASE_OPTION_SPOT
        ),
        interruption_time=(
            view.host.interruption_time.ToNanoseconds() / 1e9 + ahead_seconds
            if view.host.HasField("interruption_time")
            else None
        ),
        servers=tuple(
            FleetServer(
                server_id=s.server_id,
                tier=TIER_OF_WIRE[s.tier],
                is_ready=s.state == fleet_pb2.MODEL_SERVER_STATE_READY,
                running_requests=s.running_requests if s.HasField("running_requests") else None,
                waiting_requests=s.waiting_requests if s.HasField("waiting_requests") else None,
            )
            for s in view.servers
            if s.tier in TIER_OF_WIRE
        ),
    )
