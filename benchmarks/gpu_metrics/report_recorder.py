"""A collector's end that acknowledges reports and keeps what they weigh and say.

What it keeps outlives its being stopped and started again, as a store behind a receiver would.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from gaming.gpu_metrics.v1 import (
    events_pb2,
    fleet_pb2,
    gpu_metrics_pb2,
    gpu_metrics_pb2_grpc,
    processes_pb2,
    samples_pb2,
)
from gpu_metrics.domain.samples import FleetMetric
from gpu_metrics.wire.samples import packed_series_from_message

__all__ = ["Reading", "Receiver", "Recorder", "recorder"]


@dataclass(frozen=True, slots=True)
class Reading:
    """One GPU in one report: when it came, and what is drawn from it."""

    received_at: float
    index: int
    memory_used_bytes: int | None
    hung: bool


@dataclass(slots=True)
class Recorder(gpu_metrics_pb2_grpc.GpuReportServiceServicer):
    """What came, by GPU; times are of the wall clock, which the driver's bursts go by."""

    readings: list[Reading] = field(default_factory=list)
    utilization: list[tuple[int, float, float]] = field(default_factory=list)
    """GPU, moment, and share of 1 of each sample of utilisation."""
    report_bytes: list[int] = field(default_factory=list)
    samples: int = 0
    cost: samples_pb2.AgentCost | None = None
    events: dict[int, events_pb2.GpuEvent] = field(default_factory=dict)
    """By their sequence in the host's one journal, so that one sent again is there once."""
    processes: processes_pb2.ProcessReading | None = None

    async def StreamReports(  # noqa: N802  # the method's name in the protocol
        self, request_iterator: AsyncIterator[gpu_metrics_pb2.StreamReportsRequest], context: Any
    ) -> AsyncIterator[gpu_metrics_pb2.StreamReportsResponse]:
        """Keep and acknowledge every report."""
        sequence = 0
        async for report in request_iterator:
            self.events.update((event.sequence, event) for event in report.events)
            if not report.events_only:
                sequence = report.sequence
                self._keep(report)
            yield gpu_metrics_pb2.StreamReportsResponse(
                boot_id=report.boot_id,
                acknowledged_sequence=sequence,
                journal_id=report.journal_id,
                acknowledged_event_sequence=max(self.events, default=0),
            )

    def _keep(self, report: gpu_metrics_pb2.StreamReportsRequest) -> None:
        now = time.time()
        self.report_bytes.append(report.ByteSize())
        if report.HasField("cost"):
            self.cost = report.cost
        if report.HasField("processes"):
            self.processes = report.processes
        for gpu in report.gpus:
            known = gpu.HasField("memory_used_bytes")
            # One late answer is no hang, and whoever hears of none better knows no more than that.
            hung = any(each.reason == fleet_pb2.MISSING_REASON_HUNG for each in gpu.missing)
            self.readings.append(
                Reading(now, gpu.index, gpu.memory_used_bytes if known else None, hung)
            )
        taken_at = report.sample_time.ToMicroseconds()
        # As a collector reads them: those in blocks and those alone.
        for series in packed_series_from_message(report):
            self.samples += len(series.values)
            if series.metric != FleetMetric.GPU_UTILIZATION_PERMILLE:
                continue
            moment = taken_at
            for number, (offset, value) in enumerate(
                zip(series.offset_microseconds, series.values, strict=True)
            ):
                # The first offset is before the report's time, each further one after the last.
                moment = taken_at - offset if number == 0 else moment + offset
                self.utilization.append((series.gpu_index, moment / 1e6, value / 1000))


class Receiver:
    """Serves a recorder on a port of loopback that it keeps."""

    def __init__(self) -> None:
        self.kept = Recorder()
        self._port = 0
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        """Return where agents reach it."""
        return f"127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Serve, again on the port of before."""
        self._server = grpc.aio.server()
        gpu_metrics_pb2_grpc.add_GpuReportServiceServicer_to_server(self.kept, self._server)
        self._port = self._server.add_insecure_port(self.address)
        await self._server.start()

    async def stop(self) -> None:
        """Break all streams at once and serve no more."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None


@asynccontextmanager
async def recorder() -> AsyncIterator[Receiver]:
    """Serve a recorder until the context ends."""
    receiver = Receiver()
    await receiver.start()
    try:
        yield receiver
    finally:
        await receiver.stop()
