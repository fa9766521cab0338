"""What tests of the suite use of this service: a real collector on a free port."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc.aio

from gaming.gpu_metrics.v1 import gpu_metrics_pb2_grpc
from gpu_metrics.alert_desk import AlertDesk
from gpu_metrics.domain.alert_book import AlertBook
from gpu_metrics.domain.alerts import AlertPolicy
from gpu_metrics.domain.event_journals import EventBounds, EventJournals
from gpu_metrics.domain.fleet import FleetPolicy, FleetView
from gpu_metrics.event_store import EventStore
from gpu_metrics.feed import FleetFeed
from gpu_metrics.history_settings import HistorySettings
from gpu_metrics.servicers import registrations
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.server import RpcServer, ServerSettings
from servicekit.settings import load_settings
from servicekit.telemetry import Telemetry

__all__ = ["CollectorForTest", "collector_for_test"]


@dataclass(frozen=True, slots=True)
class CollectorForTest:
    """A collector that serves, and a channel to it."""

    address: str
    view: FleetView
    channel: grpc.aio.Channel
    # The asynchronous stubs exist for the type checker only.
    fleet: "gpu_metrics_pb2_grpc.GpuMetricsServiceAsyncStub"
    reports: "gpu_metrics_pb2_grpc.GpuReportServiceAsyncStub"


@asynccontextmanager
async def collector_for_test(
    *,
    stale_after_seconds: float = 5.0,
    expire_after_seconds: float = 60.0,
    heartbeat_seconds: float = 5.0,
    maximum_hosts: int = 1000,
    port: int = 0,
    server_environ: Mapping[str, str] | None = None,
    event_bounds: EventBounds | None = None,
    alert_policy: AlertPolicy | None = None,
) -> AsyncIterator[CollectorForTest]:
    """Serve a collector on loopback, by default on a free port, until the context ends.

    `server_environ` holds settings of its server as environment variables.
    """
    clock = SystemClock()
    history = load_settings(HistorySettings, {}).history(started=int(clock.now().timestamp()))
    view = FleetView(
        FleetPolicy(
            stale_after_seconds=stale_after_seconds,
            expire_after_seconds=expire_after_seconds,
            maximum_hosts=maximum_hosts,
        ),
        history,
    )
    feed = FleetFeed(
        view,
        history=history,
        clock=clock,
        telemetry=Telemetry("test"),
        epoch=uuid.uuid4().hex[:12],
        heartbeat_seconds=heartbeat_seconds,
        maintenance_seconds=min(0.5, stale_after_seconds / 10),
    )
    environ = {"GAMEKEEPER_LISTEN_ADDRESS": f"127.0.0.1:{port}", **(server_environ or {})}
    settings = load_settings(ServerSettings, environ)
    alerts = AlertDesk(
        feed,
        AlertBook(alert_policy),
        clock=clock,
        telemetry=Telemetry("test"),
        epoch=uuid.uuid4().hex[:12],
        heartbeat_seconds=heartbeat_seconds,
    )
    events = EventStore(
        EventJournals(event_bounds),
        clock=clock,
        telemetry=Telemetry("test"),
        heartbeat_seconds=heartbeat_seconds,
        listeners=[alerts.take_events],
    )
    services = registrations(feed, clock, events=events, alerts=alerts)
    server = RpcServer(services, settings, clock=clock)
    await server.start()
    await server.set_serving(True)
    tasks = [asyncio.ensure_future(run) for run in (feed.maintain(), alerts.run())]
    try:
        async with open_channel(server.address) as channel:
            yield CollectorForTest(
                address=server.address,
                view=view,
                channel=channel,
                fleet=gpu_metrics_pb2_grpc.GpuMetricsServiceStub(channel),
                reports=gpu_metrics_pb2_grpc.GpuReportServiceStub(channel),
            )
    finally:
        for task in tasks:
            task.cancel()
        await server.stop(0)
