"""The collector's composition root."""

import asyncio
import importlib
import os
import uuid
from contextlib import AsyncExitStack
from functools import partial

from gpu_metrics.alert_desk import AlertDesk
from gpu_metrics.alerts import AlertReporter
from gpu_metrics.config import COLLECTOR_DEFAULT_ADDRESS, CollectorSettings
from gpu_metrics.domain.alert_book import AlertBook
from gpu_metrics.domain.event_journals import EventJournals
from gpu_metrics.domain.fleet import FleetView
from gpu_metrics.domain.last_xids import LastXids
from gpu_metrics.event_store import EventStore
from gpu_metrics.feed import FleetFeed
from gpu_metrics.fleet_instruments import FleetInstruments
from gpu_metrics.publisher import AggregatePublisher
from gpu_metrics.servicers import registrations
from messaging.service_bus import open_publisher, say_what_is_joined
from servicekit.clock import SteadyClock
from servicekit.runtime import ServiceRuntime, run_service

__all__ = ["main"]


async def run_collector(settings: CollectorSettings, runtime: ServiceRuntime) -> None:
    """Serve the fleet view until told to stop."""
    # Watchers take ages as the difference of two of its wall times.
    clock = SteadyClock(runtime.clock)
    history = settings.history.history(started=int(clock.now().timestamp()))
    view = FleetView(settings.fleet_policy(), history)
    feed = FleetFeed(
        view,
        history=history,
        clock=clock,
        telemetry=runtime.telemetry,
        epoch=uuid.uuid4().hex[:12],
        heartbeat_seconds=settings.heartbeat_seconds,
        maintenance_seconds=min(0.5, settings.stale_after_seconds / 10),
    )
    alerts = AlertDesk(
        feed,
        AlertBook(settings.alerts.policy(skew_seconds=view.policy.sample_window_seconds)),
        clock=clock,
        telemetry=runtime.telemetry,
        epoch=uuid.uuid4().hex[:12],
        heartbeat_seconds=settings.heartbeat_seconds,
        runbook_base_url=settings.alerts.runbook_base_url,
    )
    last_xids = LastXids()
    events = EventStore(
        EventJournals(settings.alerts.event_bounds()),
        clock=clock,
        telemetry=runtime.telemetry,
        heartbeat_seconds=settings.heartbeat_seconds,
        listeners=[
            alerts.take_events,
            lambda report, new: last_xids.take(report.host.host_id, new),
        ],
    )
    tasks = [feed.maintain, alerts.run]
    if settings.cloudwatch_enabled:
        tasks.append(partial(_publish_aggregates, settings, runtime, view))
    if runtime.telemetry.exporting:
        instruments = FleetInstruments(feed.hosts, clock=runtime.clock, telemetry=runtime.telemetry)
        tasks.append(instruments.look)
    say_what_is_joined(settings.messaging)
    async with AsyncExitStack() as stack:
        if settings.prometheus.address is not None:
            # The HTTP server is a fifth of the imports, for a page that only some want.
            from gpu_metrics.adapters.prometheus import (  # noqa: PLC0415  # see above
                serve_prometheus,
            )

            await stack.enter_async_context(
                serve_prometheus(
                    settings.prometheus.address,
                    feed.hosts,
                    clock=runtime.clock,
                    last_xid=last_xids.of,
                )
            )
        if settings.messaging.publishes:
            reporter = AlertReporter(
                clock=runtime.clock, telemetry=runtime.telemetry, buffer=settings.alerts.buffer
            )
            alerts.add_listener(reporter.offer)
            tasks.append(partial(_publish_alerts, settings, runtime, reporter))
        services = registrations(feed, runtime.clock, events=events, alerts=alerts)
        await runtime.serve(services, settings.server, *tasks)


async def _publish_aggregates(
    settings: CollectorSettings, runtime: ServiceRuntime, view: FleetView
) -> None:
    """Publishes to CloudWatch until cancelled.

    The AWS SDK takes half a second of CPU to load: the fleet is served meanwhile.
    """
    await asyncio.to_thread(importlib.import_module, "gpu_metrics.adapters.cloudwatch")
    from gpu_metrics.adapters.cloudwatch import CloudWatchAggregates  # noqa: PLC0415  # see above

    publisher = AggregatePublisher(
        view,
        CloudWatchAggregates(
            namespace=settings.cloudwatch_namespace,
            region=settings.aws_region,
            endpoint_url=settings.aws_endpoint_url,
            timeout_seconds=5.0,
        ),
        clock=runtime.clock,
        telemetry=runtime.telemetry,
        interval_seconds=settings.cloudwatch_interval_seconds,
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(publisher.observe())
        group.create_task(publisher.run())


async def _publish_alerts(
    settings: CollectorSettings, runtime: ServiceRuntime, reporter: AlertReporter
) -> None:
    """Publishes to the event bus until cancelled; alerts wait while it is being opened."""
    async with open_publisher(
        settings.messaging,
        clock=runtime.clock,
        telemetry=runtime.telemetry,
        random=runtime.random,
    ) as bus:
        await reporter.publish(bus)


def main() -> int:
    """Run a collector with the settings of the environment and return the exit code."""
    defaults = {
        "GAMEKEEPER_LISTEN_ADDRESS": COLLECTOR_DEFAULT_ADDRESS,
        # Each host's agent holds a stream; the rest is for watchers.
        "GAMEKEEPER_MAX_CONCURRENT_STREAMS": "2000",
    }
    environ = {**defaults, **os.environ}
    return run_service("gpu_metrics", CollectorSettings, run_collector, environ=environ)
