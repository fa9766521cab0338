"""What the router makes of the collector's messages."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from datetime import timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from ai_router.adapters.collector_fleet import CollectorFleetSource
from ai_router.domain.fleet import FleetView, Readiness, ServerReport
from ai_router.domain.tiers import Tier
from gaming.common.v1 import tier_pb2
from gaming.gpu_metrics.v1 import fleet_pb2, gpu_metrics_pb2
from servicekit.testing import FakeClock

CLOCK = FakeClock()


class ScriptedCollector:
    """Answers each subscription with the next list of messages, then stays silent."""

    def __init__(self, *streams: list[gpu_metrics_pb2.WatchFleetResponse]) -> None:
        self._streams = list(streams)

    async def WatchFleet(  # noqa: N802  # named by the proto
        self, request: gpu_metrics_pb2.WatchFleetRequest
    ) -> AsyncIterator[gpu_metrics_pb2.WatchFleetResponse]:
        for message in self._streams.pop(0):
            yield message


def stamp(seconds: float) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(CLOCK.now() + timedelta(seconds=seconds))
    return made


def host(
    name: str,
    *,
    tier: tier_pb2.Tier.ValueType = tier_pb2.TIER_GOLD,
    endpoint: str = "http://h:1",
    received: float = 0.0,
    interruption: float | None = None,
    **fields: int,
) -> fleet_pb2.HostView:
    view = fleet_pb2.HostView(
        host=fleet_pb2.Host(host_id=f"h-{name}"),
        servers=[
            fleet_pb2.ModelServerSample(
                server_id=name,
                endpoint_url=endpoint,
                tier=tier,
                model="m",
                state=fleet_pb2.MODEL_SERVER_STATE_READY,
                **fields,  # type: ignore[arg-type]  # whole numbers
            )
        ],
        freshness=fleet_pb2.FRESHNESS_FRESH,
        receive_time=stamp(received),
    )
    if interruption is not None:
        view.host.interruption_time.CopyFrom(stamp(interruption))
    return view


def snapshot(*hosts: fleet_pb2.HostView, sent: float = 0.0) -> gpu_metrics_pb2.WatchFleetResponse:
    return gpu_metrics_pb2.WatchFleetResponse(
        resume_token="t",  # where to resume, no secret
        send_time=stamp(sent),
        snapshot=gpu_metrics_pb2.FleetSnapshot(hosts=hosts),
    )


def delta(
    *hosts: fleet_pb2.HostView, removed: tuple[str, ...] = ()
) -> gpu_metrics_pb2.WatchFleetResponse:
    return gpu_metrics_pb2.WatchFleetResponse(
        resume_token="t",  # as above
        send_time=stamp(0.0),
        delta=gpu_metrics_pb2.FleetDelta(changed_hosts=hosts, removed_host_ids=removed),
    )


def heartbeat() -> gpu_metrics_pb2.WatchFleetResponse:
    return gpu_metrics_pb2.WatchFleetResponse(
        resume_token="t",  # as above
        send_time=stamp(0.0),
        heartbeat=gpu_metrics_pb2.FleetHeartbeat(),
    )


async def views_of(
    messages: list[gpu_metrics_pb2.WatchFleetResponse], grace_seconds: float = 0.0
) -> list[FleetView | None]:
    source = CollectorFleetSource(
        ScriptedCollector(messages),  # type: ignore[arg-type]  # the one method that is called
        CLOCK,
        random=random.Random(1),  # noqa: S311  # jitter, no secret
        grace_seconds=grace_seconds,
    )
    views = aiter(source.views())
    return [await anext(views) for _ in messages]


def reports(view: FleetView | None) -> dict[str, ServerReport]:
    assert view is not None
    return {report.server_id: report for report in view.servers}


async def test_readings_come_over_and_what_is_missing_stays_missing() -> None:
    (view,) = await views_of(
        [
            snapshot(
                host(
                    "a",
                    running_requests=3,
                    waiting_requests=0,
                    kv_cache_usage_permille=250,
                    kv_cache_capacity_tokens=1000,
                ),
                host("b", tier=tier_pb2.TIER_BRONZE),
            )
        ]
    )
    a, b = reports(view)["a"], reports(view)["b"]
    assert (a.tier, a.readiness) == (Tier.GOLD, Readiness.READY)
    assert (a.running_requests, a.waiting_requests, a.kv_cache_used_tokens) == (3, 0, 250)
    assert b.tier is Tier.BRONZE
    assert (b.running_requests, b.kv_cache_used_tokens, b.interruption_at) == (None, None, None)


async def test_ages_are_by_the_collectors_clock_alone() -> None:
    # The collector's clock is an hour ahead; only differences of its own times count.
    sent = 3600.0
    (view,) = await views_of(
        [snapshot(host("a", received=sent - 7, interruption=sent + 120), sent=sent)]
    )
    report = reports(view)["a"]
    assert report.heard_at == CLOCK.monotonic() - 7
    assert report.interruption_at == CLOCK.monotonic() + 120


async def test_changes_and_departures_are_joined_to_the_whole() -> None:
    first, second, third, fourth = await views_of(
        [
            snapshot(host("a"), host("b")),
            delta(host("b", endpoint="http://h:2"), host("c")),
            heartbeat(),
            delta(removed=("h-a", "h-unknown")),
        ]
    )
    assert set(reports(first)) == {"a", "b"}
    assert set(reports(second)) == {"a", "b", "c"}
    assert reports(second)["b"].endpoint_url == "http://h:2"
    assert third is None
    assert set(reports(fourth)) == {"b", "c"}


async def test_servers_that_cannot_be_used_are_left_out() -> None:
    (view,) = await views_of(
        [
            snapshot(
                host("no-tier", tier=tier_pb2.TIER_UNSPECIFIED),
                host("no-url", endpoint="h:1"),
                host("good"),
            )
        ]
    )
    assert set(reports(view)) == {"good"}


async def test_hosts_that_a_new_snapshot_lacks_are_given_up_only_after_the_grace() -> None:
    messages = [snapshot(host("a"), host("b")), snapshot(host("b"))]
    kept = await views_of(messages, grace_seconds=20.0)
    assert set(reports(kept[1])) == {"a", "b"}
    gone = await views_of(messages, grace_seconds=0.0)
    assert set(reports(gone[1])) == {"b"}
