"""The fleet as the metrics collector shows it."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from functools import partial
from random import Random

import structlog
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from ai_router.domain.fleet import FleetView, Readiness, ServerReport
from ai_router.domain.tiers import Tier
from gaming.common.v1 import tier_pb2
from gaming.gpu_metrics.v1 import fleet_pb2, gpu_metrics_pb2, gpu_metrics_pb2_grpc
from servicekit.clock import Clock
from servicekit.watching import watch

__all__ = ["CollectorFleetSource"]

log = structlog.get_logger(__name__)

_TIERS = {
    tier_pb2.TIER_GOLD: Tier.GOLD,
    tier_pb2.TIER_SILVER: Tier.SILVER,
    tier_pb2.TIER_BRONZE: Tier.BRONZE,
}
_READINESS = {
    fleet_pb2.MODEL_SERVER_STATE_READY: Readiness.READY,
    fleet_pb2.MODEL_SERVER_STATE_STARTING: Readiness.STARTING,
    fleet_pb2.MODEL_SERVER_STATE_UNHEALTHY: Readiness.UNHEALTHY,
    # The agent does not know: the router finds out by itself.
    fleet_pb2.MODEL_SERVER_STATE_UNSPECIFIED: Readiness.READY,
}


# A collector says something every second and a half at the least. With another one to turn to, two
# seconds of silence are enough to do so.
_SILENCE_SECONDS = 15.0
_SILENCE_BEFORE_NEXT_SECONDS = 2.0


class CollectorFleetSource:
    """Watches a collector for ever; while it is away, nothing is yielded and the last view stands.

    With `further` collectors the next takes its place as soon as it fails or falls silent; each
    holds the whole fleet.

    A collector that was restarted knows only the hosts that have reported since. Hosts that its
    first snapshot lacks are therefore kept for `grace_seconds`; one that the collector itself says
    has left goes at once.
    """

    def __init__(
        self,
        stub: gpu_metrics_pb2_grpc.GpuMetricsServiceAsyncStub,
        clock: Clock,
        *,
        random: Random,
        further: Sequence[gpu_metrics_pb2_grpc.GpuMetricsServiceAsyncStub] = (),
        minimum_interval_seconds: float = 0.5,
        grace_seconds: float = 20.0,
    ) -> None:
        self._stubs = (stub, *further)
        self._clock = clock
        self._random = random
        self._interval = Duration()
        self._interval.FromMilliseconds(round(minimum_interval_seconds * 1000))
        self._grace_seconds = grace_seconds
        self._hosts: dict[str, tuple[ServerReport, ...]] = {}
        # Hosts that a new snapshot lacked, and when they are given up.
        self._missed_until: dict[str, float] = {}

    async def views(self) -> AsyncIterator[FleetView | None]:
        """Yields the whole fleet at each change, None when it is known to be unchanged."""
        messages = watch(
            [partial(self._open, stub) for stub in self._stubs],
            token_of=lambda message: message.resume_token,
            clock=self._clock,
            name="fleet",
            idle_timeout_seconds=(
                _SILENCE_SECONDS if len(self._stubs) == 1 else _SILENCE_BEFORE_NEXT_SECONDS
            ),
            jitter=self._random,
        )
        async for message in messages:
            changed = self._take(message)
            yield self._view() if changed else None

    def _open(
        self, stub: gpu_metrics_pb2_grpc.GpuMetricsServiceAsyncStub, token: str
    ) -> AsyncIterable[gpu_metrics_pb2.WatchFleetResponse]:
        return stub.WatchFleet(
            gpu_metrics_pb2.WatchFleetRequest(resume_token=token, minimum_interval=self._interval)
        )

    def _take(self, message: gpu_metrics_pb2.WatchFleetResponse) -> bool:
        now = self._clock.monotonic()
        sent = message.send_time
        update = message.WhichOneof("update")
        if update == "snapshot":
            present = {view.host.host_id for view in message.snapshot.hosts}
            for host_id in self._hosts.keys() - present:
                self._missed_until.setdefault(host_id, now + self._grace_seconds)
            for view in message.snapshot.hosts:
                self._put(view, sent, now)
        elif update == "delta":
            for view in message.delta.changed_hosts:
                self._put(view, sent, now)
            for host_id in message.delta.removed_host_ids:
                self._hosts.pop(host_id, None)
                self._missed_until.pop(host_id, None)
        given_up = [host for host, until in self._missed_until.items() if now >= until]
        for host_id in given_up:
            log.info("fleet_host_given_up", host_id=host_id)
            self._hosts.pop(host_id, None)
            del self._missed_until[host_id]
        return update in ("snapshot", "delta") or bool(given_up)

    def _put(self, view: fleet_pb2.HostView, sent: Timestamp, now: float) -> None:
        host_id = view.host.host_id
        self._missed_until.pop(host_id, None)
        self._hosts[host_id] = tuple(
            _report(sample, view, sent, now)
            for sample in view.servers
            if sample.tier in _TIERS and sample.endpoint_url.startswith(("http://", "https://"))
        )

    def _view(self) -> FleetView:
        return FleetView(tuple(report for reports in self._hosts.values() for report in reports))


def _report(
    sample: fleet_pb2.ModelServerSample, view: fleet_pb2.HostView, sent: Timestamp, now: float
) -> ServerReport:
    capacity = (
        sample.kv_cache_capacity_tokens if sample.HasField("kv_cache_capacity_tokens") else None
    )
    used: int | None = None
    if capacity is not None and sample.HasField("kv_cache_usage_permille"):
        used = capacity * sample.kv_cache_usage_permille // 1000
    interruption_at: float | None = None
    if view.host.HasField("interruption_time"):
        interruption_at = now + _seconds_between(sent, view.host.interruption_time)
    # Both times are by the collector's clock, so their difference needs no agreement with ours.
    age = max(0.0, _seconds_between(view.receive_time, sent))
    return ServerReport(
        server_id=sample.server_id,
        endpoint_url=sample.endpoint_url,
        tier=_TIERS[sample.tier],
        model=sample.model,
        readiness=_READINESS.get(sample.state, Readiness.READY),
        stale=view.freshness == fleet_pb2.FRESHNESS_STALE,
        heard_at=now - age,
        running_requests=sample.running_requests if sample.HasField("running_requests") else None,
        waiting_requests=sample.waiting_requests if sample.HasField("waiting_requests") else None,
        kv_cache_used_tokens=used,
        kv_cache_capacity_tokens=capacity,
        interruption_at=interruption_at,
    )


def _seconds_between(earlier: Timestamp, later: Timestamp) -> float:
    return (later.seconds - earlier.seconds) + (later.nanos - earlier.nanos) / 1e9
