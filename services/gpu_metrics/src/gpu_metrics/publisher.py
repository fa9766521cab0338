"""Publishes tier aggregates at a fixed interval, each observed latency exactly once."""

import structlog

from gpu_metrics import metric_names
from gpu_metrics.domain.fleet import FleetView
from gpu_metrics.ports import AggregateSink, PublishFailed
from servicekit.clock import Clock
from servicekit.telemetry import Telemetry

__all__ = ["AggregatePublisher"]

log = structlog.get_logger(__name__)


class AggregatePublisher:
    """Hands a sink the tiers' state now and their latencies since the last publication.

    Latencies are those of the whole slots since, so intervals neither overlap nor leave gaps. A
    publication that fails is counted, logged and not repeated: its counts would stand at the
    wrong time, and the collector goes on whatever happens to the sink.
    """

    def __init__(
        self,
        view: FleetView,
        sink: AggregateSink,
        *,
        clock: Clock,
        telemetry: Telemetry,
        interval_seconds: float,
    ) -> None:
        self._view = view
        self._sink = sink
        self._clock = clock
        self._interval_seconds = interval_seconds
        self._failures = telemetry.counter(
            metric_names.PUBLISH_FAILURES, unit="1", description="failed publications"
        )

    async def run(self) -> None:
        """Publish until cancelled."""
        next_slot = self._view.slot_at(self._clock.monotonic())
        while True:
            await self._clock.sleep(self._interval_seconds)
            now = self._clock.monotonic()
            first_slot, next_slot = next_slot, self._view.slot_at(now)
            aggregates = self._view.aggregates(now, latency_slots=(first_slot, next_slot - 1))
            try:
                await self._sink.publish(aggregates)
            except PublishFailed as failed:
                self._failures.add(1)
                log.warning("publish_failed", cause=failed.cause_name)
