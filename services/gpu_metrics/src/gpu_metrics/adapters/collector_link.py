"""Delivers an agent's reports to one collector over an acknowledged gRPC stream."""

import asyncio
import random
from dataclasses import replace

import grpc
import grpc.aio
import structlog

from gaming.gpu_metrics.v1 import gpu_metrics_pb2, gpu_metrics_pb2_grpc
from gpu_metrics import metric_names, wire
from gpu_metrics.domain.readings import HostReport
from servicekit.clock import Clock
from servicekit.telemetry import Telemetry

__all__ = ["CollectorLink"]

log = structlog.get_logger(__name__)


class _StreamBroken(Exception):
    """The stream to the collector ended; `cause_name` says how, in one word."""

    def __init__(self, cause_name: str) -> None:
        super().__init__(cause_name)
        self.cause_name = cause_name


class CollectorLink:
    """Sends the newest report, waits for its acknowledgement, sends the newest again.

    There is never more than one report under way and one waiting; a slow or absent collector
    misses the reports in between, which the newest one makes obsolete anyway. A broken stream is
    opened again after a pause that doubles up to a maximum, with jitter.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        name: str,
        clock: Clock,
        jitter: random.Random,
        telemetry: Telemetry,
        acknowledge_timeout_seconds: float = 5.0,
        first_backoff_seconds: float = 0.2,
        maximum_backoff_seconds: float = 5.0,
    ) -> None:
        self._stub = gpu_metrics_pb2_grpc.GpuReportServiceStub(channel)
        self._name = name
        self._clock = clock
        self._jitter = jitter
        self._acknowledge_timeout_seconds = acknowledge_timeout_seconds
        self._first_backoff_seconds = first_backoff_seconds
        self._maximum_backoff_seconds = maximum_backoff_seconds
        self._waiting: HostReport | None = None
        self._under_way: HostReport | None = None
        self._offered = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._sequence = 0
        self._failures = 0
        self._replaced = telemetry.counter(
            metric_names.AGENT_REPORTS_REPLACED,
            unit="1",
            description="reports replaced by a newer one before they were sent",
        )
        self._broken = telemetry.counter(
            metric_names.AGENT_STREAMS_BROKEN,
            unit="1",
            description="report streams that had to be opened again",
        )

    def offer(self, report: HostReport) -> None:
        """Take the newest report in place of one that still waits."""
        if self._waiting is not None:
            self._replaced.add(1, {"collector": self._name})
        self._waiting = report
        self._idle.clear()
        self._offered.set()

    async def delivered(self) -> None:
        """Return once nothing waits or is under way."""
        await self._idle.wait()

    async def run(self) -> None:
        """Deliver what is offered until cancelled."""
        while True:
            try:
                await self._deliver()
            except _StreamBroken as broken:
                self._broken.add(1, {"collector": self._name})
                if self._failures == 0:
                    log.warning(
                        "report_stream_broken", collector=self._name, cause=broken.cause_name
                    )
            pause = self._first_backoff_seconds * 2 ** min(self._failures, 16)
            self._failures += 1
            pause = min(self._maximum_backoff_seconds, pause) * self._jitter.uniform(0.5, 1.0)
            await self._clock.sleep(pause)

    async def _deliver(self) -> None:
        """Open one stream and use it until it breaks; raises `_StreamBroken`."""
        await self._offered.wait()
        call = self._stub.StreamReports()
        try:
            while True:
                await self._offered.wait()
                self._under_way, self._waiting = self._waiting, None
                self._offered.clear()
                if self._under_way is not None:
                    await self._send(call, self._under_way)
                self._under_way = None
                if self._waiting is None:
                    self._idle.set()
        except TimeoutError:
            raise _StreamBroken("ACKNOWLEDGE_TIMEOUT") from None
        except grpc.aio.AioRpcError as error:
            raise _StreamBroken(error.code().name) from None
        except asyncio.InvalidStateError:
            # grpc.aio says so when the call ended between two uses of it.
            raise _StreamBroken("ENDED") from None
        finally:
            call.cancel()
            if self._under_way is not None and self._waiting is None:
                # Not acknowledged and nothing newer came: it is still the report to deliver.
                self._waiting = self._under_way
                self._offered.set()
            self._under_way = None

    async def _send(
        self,
        call: grpc.aio.StreamStreamCall[
            gpu_metrics_pb2.StreamReportsRequest, gpu_metrics_pb2.StreamReportsResponse
        ],
        report: HostReport,
    ) -> None:
        self._sequence += 1
        message = wire.report_message(replace(report, sequence=self._sequence))
        async with asyncio.timeout(self._acknowledge_timeout_seconds):
            await call.write(message)
            answer = await call.read()
        if not isinstance(answer, gpu_metrics_pb2.StreamReportsResponse):
            raise _StreamBroken("ENDED")
        if answer.boot_id != report.boot_id:
            if self._failures == 0:
                log.error(
                    "report_superseded",
                    collector=self._name,
                    host_id=report.host.host_id,
                    explanation="a newer agent run reports for the same host id",
                )
            raise _StreamBroken("SUPERSEDED")
        if self._failures > 0:
            log.info("report_stream_restored", collector=self._name, failures=self._failures)
            self._failures = 0
