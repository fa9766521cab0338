"""Publishes tier aggregates at a fixed interval, each observation exactly once or not at all."""

from collections import deque
from collections.abc import Sequence

import structlog

from gpu_metrics import metric_names
from gpu_metrics.domain.fleet import FleetView
from gpu_metrics.domain.tier_samples import TierSamples
from gpu_metrics.ports import (
    AggregateSink,
    MetricBatch,
    Publication,
    PublishFailed,
    PublishOutcome,
)
from servicekit.clock import Clock
from servicekit.telemetry import Telemetry

__all__ = ["AggregatePublisher"]

log = structlog.get_logger(__name__)


class AggregatePublisher:
    """Hands a sink the tiers' state now and what was observed since the last publication.

    Latencies are those of the whole slots since, so intervals neither overlap nor leave gaps;
    GPU figures are those of every report since. A batch that certainly had no effect waits and is
    sent again at the next interval, with its own time and after those before it; at most
    `buffer_batches` wait, and the oldest gives way. A batch of which the effect is unknown is
    counted and not repeated: it could count everything twice. Of collectors side by side each
    publishes the hosts that count at it, so no sum is doubled; mostly one of them has them all.
    """

    def __init__(
        self,
        view: FleetView,
        sink: AggregateSink,
        *,
        clock: Clock,
        telemetry: Telemetry,
        interval_seconds: float,
        observe_seconds: float = 0.5,
        buffer_batches: int = 60,
    ) -> None:
        self._view = view
        self._sink = sink
        self._clock = clock
        self._interval_seconds = interval_seconds
        self._observe_seconds = observe_seconds
        self._buffer_batches = buffer_batches
        self._samples = TierSamples()
        self._waiting: deque[MetricBatch] = deque()
        self._failures = telemetry.counter(
            metric_names.PUBLISH_FAILURES, unit="1", description="failed publications, by outcome"
        )
        self._dropped = telemetry.counter(
            metric_names.PUBLISH_DROPPED, unit="1", description="batches given up, by reason"
        )

    async def observe(self) -> None:
        """Count what the hosts report until cancelled; more often than they report."""
        while True:
            self._samples.observe(self._view.hosts(self._clock.monotonic()))
            await self._clock.sleep(self._observe_seconds)

    async def run(self) -> None:
        """Publish until cancelled."""
        next_slot = self._view.slot_at(self._clock.monotonic())
        while True:
            await self._clock.sleep(self._interval_seconds)
            now = self._clock.monotonic()
            first_slot, next_slot = next_slot, self._view.slot_at(now)
            publication = Publication(
                self._clock.now(),
                self._view.aggregates(
                    now, latency_slots=(first_slot, next_slot - 1), counted_here=True
                ),
                self._samples.take(),
            )
            self._keep(self._sink.batches(publication))
            await self._send_waiting()

    def _keep(self, batches: Sequence[MetricBatch]) -> None:
        self._waiting.extend(batches)
        while len(self._waiting) > self._buffer_batches:
            self._waiting.popleft()
            self._dropped.add(1, {"reason": "buffer_full"})

    async def _send_waiting(self) -> None:
        """Send what waits, oldest first, until it is empty or the sink fails."""
        while self._waiting:
            # Away before it is sent: whatever ends the sending, nothing is sent twice.
            batch = self._waiting.popleft()
            try:
                await self._sink.send(batch)
            except PublishFailed as failed:
                self._failures.add(1, {"outcome": failed.outcome.value})
                log.warning(
                    "publish_failed",
                    cause=failed.cause_name,
                    outcome=failed.outcome.value,
                    waiting=len(self._waiting),
                )
                if failed.outcome is PublishOutcome.NOT_TAKEN:
                    self._waiting.appendleft(batch)
                else:
                    self._dropped.add(1, {"reason": failed.outcome.value})
                return
