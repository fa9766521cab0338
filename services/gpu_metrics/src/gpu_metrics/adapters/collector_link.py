"""Delivers an agent's reports and events to one collector over an acknowledged gRPC stream."""

import asyncio
import random
from collections.abc import Sequence

import grpc
import grpc.aio
import structlog

from gaming.gpu_metrics.v1 import gpu_metrics_pb2, gpu_metrics_pb2_grpc
from gpu_metrics import metric_names, wire
from gpu_metrics.domain.readings import HostReport
from gpu_metrics.domain.report_merge import merged
from gpu_metrics.journal import EventBatch, EventJournal
from servicekit.clock import Clock
from servicekit.telemetry import Telemetry

__all__ = ["CollectorLink"]

log = structlog.get_logger(__name__)

_MAXIMUM_EVENTS = 256
"""Events in one message, the protocol's limit."""
_MOST_UNANSWERED = 4
"""Reports in a row to which a collector that leaves out answers need send none."""
_LONGEST_UNANSWERED_SECONDS = 4.5
"""After so long an answer is wanted; so one that hangs is found at most so much later."""
_AWAY_SECONDS = 5.0
"""Streams are opened again now and then; a collector that is away is so for longer."""
_LONGEST_UNREACHED_SECONDS = 1.0
"""A try that reaches no collector costs it nothing; so one that is back is found soon."""


class _StreamBroken(Exception):
    """The stream to the collector ended; `cause_name` says how, in one word."""

    def __init__(self, cause_name: str) -> None:
        super().__init__(cause_name)
        self.cause_name = cause_name


class CollectorLink:
    """Sends the newest report, waits for its acknowledgement, sends the newest again.

    There is never more than one report under way and one waiting; a slow or absent collector
    misses the readings in between, which the newest ones make obsolete anyway, but not the samples:
    those of a report that is replaced go into the newer one, up to a bound. A broken stream is
    opened again after a pause that doubles up to a maximum, with jitter.

    A collector that leaves out answers is asked for one with every fifth report, and with all that
    is urgent. The samples of reports that it had not acknowledged when the stream broke go into the
    next, unless it says then that it has them.

    Events of `journal` are sent as soon as they are in it, in messages of their own unless a report
    waits. A stream begins by asking where the collector stands, and goes on from there: from the
    beginning of what the journal holds with a collector that starts anew. One that takes no events
    is sent none.

    Each report says how many of the links `before` this one work, so that a host is counted by one
    of its collectors.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        name: str,
        clock: Clock,
        jitter: random.Random,
        telemetry: Telemetry,
        journal: EventJournal | None = None,
        before: Sequence["CollectorLink"] = (),
        acknowledge_timeout_seconds: float = 5.0,
        first_backoff_seconds: float = 0.2,
        maximum_backoff_seconds: float = 5.0,
    ) -> None:
        self._stub = gpu_metrics_pb2_grpc.GpuReportServiceStub(channel)
        self._name = name
        self._clock = clock
        self._jitter = jitter
        self._journal = journal
        self._before = tuple(before)
        # Since when the collector takes nothing; None while it does.
        self._away_since: float | None = None
        self._acknowledge_timeout_seconds = acknowledge_timeout_seconds
        self._first_backoff_seconds = first_backoff_seconds
        self._maximum_backoff_seconds = maximum_backoff_seconds
        self._waiting: HostReport | None = None
        self._under_way: HostReport | None = None
        self._newest: HostReport | None = None
        # What no answer has told of yet, on this stream and from those that broke, by sequence.
        self._unanswered: dict[int, HostReport] = {}
        self._lost: dict[int, HostReport] = {}
        self._leaves_out_answers = False
        self._answered_at = 0.0
        # Whether somebody waits until all is acknowledged.
        self._asked = False
        # The newest report that the collector had when it was asked where it stands.
        self._acknowledged = 0
        # By journal, where the collector stands; None until this stream was told.
        self._positions: dict[str, int] | None = None
        self._takes_events = journal is not None
        self._stalled = False
        self._offered = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._sequence = 0
        self._failures = 0
        self.replaced_reports = 0
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
        if journal is not None:
            journal.add_listener(self._events_came)

    def offer(self, report: HostReport) -> None:
        """Take the newest report in place of one that still waits, whose samples it takes over."""
        if self._waiting is not None:
            self.replaced_reports += 1
            self._replaced.add(1, {"collector": self._name})
            report = merged(self._waiting, report)
        self._waiting = self._newest = report
        self._idle.clear()
        self._offered.set()

    @property
    def works(self) -> bool:
        """Return whether the collector takes reports, or stopped doing so a moment ago."""
        away = self._away_since
        return away is None or self._clock.monotonic() - away < _AWAY_SECONDS

    async def delivered(self) -> None:
        """Return once all that was offered is acknowledged, reports and events."""
        if self._newest is not None and (self._unanswered or not self._idle.is_set()):
            self._asked = True
            self._idle.clear()
            self._offered.set()
        await self._idle.wait()

    async def run(self) -> None:
        """Deliver what is offered until cancelled."""
        while True:
            longest = self._maximum_backoff_seconds
            try:
                await self._deliver()
            except _StreamBroken as broken:
                if broken.cause_name == grpc.StatusCode.UNAVAILABLE.name:
                    longest = min(longest, _LONGEST_UNREACHED_SECONDS)
                if self._away_since is None:
                    self._away_since = self._clock.monotonic()
                self._broken.add(1, {"collector": self._name})
                if self._failures == 0:
                    log.warning(
                        "report_stream_broken", collector=self._name, cause=broken.cause_name
                    )
            pause = self._first_backoff_seconds * 2 ** min(self._failures, 16)
            self._failures += 1
            pause = min(longest, pause) * self._jitter.uniform(0.5, 1.0)
            await self._clock.sleep(pause)

    def _events_came(self) -> None:
        self._stalled = False
        if self._takes_events:
            self._idle.clear()
        # Nothing can be sent before the first report has said what host this is.
        if self._newest is not None:
            self._offered.set()

    async def _deliver(self) -> None:
        """Open one stream and use it until it breaks; raises `_StreamBroken`."""
        await self._offered.wait()
        self._positions = None
        self._takes_events, self._stalled = self._journal is not None, False
        self._leaves_out_answers, self._acknowledged = False, 0
        call = self._stub.StreamReports()
        try:
            while True:
                await self._offered.wait()
                self._offered.clear()
                while await self._send_next(call):
                    pass
                self._asked = False
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
            self._keep_unacknowledged()

    def _keep_unacknowledged(self) -> None:
        self._lost |= self._unanswered
        self._unanswered = {}
        if self._under_way is not None:
            self._lost[self._sequence] = self._under_way
            self._under_way = None
        if self._lost:
            self._idle.clear()
        if self._waiting is not None or not self._idle.is_set():
            self._offered.set()

    def _take_back_lost(self) -> None:
        """Have the samples of reports that the collector lacks sent with the next one."""
        for sequence in sorted(self._lost, reverse=True):
            lost = self._lost.pop(sequence)
            if sequence > self._acknowledged:
                # What came since holds its readings, but not its samples.
                newer = self._waiting
                self._waiting = lost if newer is None else merged(lost, newer)

    async def _send_next(self, call: "_Call") -> bool:
        """Send what is next, if anything; return whether there may be more."""
        if self._journal is not None and self._takes_events and self._positions is None:
            # Where the collector stands decides what it is sent.
            await self._send_events(call, None)
            return True
        self._take_back_lost()
        batch = self._pending_events()
        if self._waiting is not None:
            answered = batch is not None or self._wants_answer(self._waiting)
            self._under_way, self._waiting = self._waiting, None
            self._sequence += 1
            report = self._under_way._replace(
                sequence=self._sequence,
                collectors_before=sum(link.works for link in self._before),
            )
            with_events = _with_events(report, batch, self._journal)
            await self._send(call, with_events, batch, answered=answered)
            if not answered:
                self._unanswered[self._sequence] = self._under_way
            self._under_way = None
            return True
        if batch is None and not (self._asked and self._unanswered):
            return False
        await self._send_events(call, batch)
        return not self._stalled

    def _wants_answer(self, report: HostReport) -> bool:
        return (
            report.leaving
            or self._asked
            or not self._leaves_out_answers
            # Only an answer to a report shows that the collector works again.
            or self._failures > 0
            or len(self._unanswered) >= _MOST_UNANSWERED
            or self._clock.monotonic() - self._answered_at >= _LONGEST_UNANSWERED_SECONDS
        )

    def _pending_events(self) -> EventBatch | None:
        if self._journal is None or self._positions is None or not self._takes_events:
            return None
        return self._journal.next_batch(self._positions, _MAXIMUM_EVENTS)

    async def _send_events(self, call: "_Call", batch: EventBatch | None) -> None:
        newest = self._newest
        assert newest is not None  # noqa: S101  # offered before the stream was opened
        report = HostReport(
            host=newest.host,
            boot_id=newest.boot_id,
            sequence=max(1, self._sequence),
            sample_time=self._clock.now(),
            events_only=True,
        )
        await self._send(call, _with_events(report, batch, self._journal), batch)

    async def _send(
        self,
        call: "_Call",
        report: HostReport,
        batch: EventBatch | None,
        *,
        answered: bool = True,
    ) -> None:
        message = wire.report_message(report)
        message.no_answer = not answered
        async with asyncio.timeout(self._acknowledge_timeout_seconds):
            await call.write(message)
            if not answered:
                return
            answer = await call.read()
        if not isinstance(answer, gpu_metrics_pb2.StreamReportsResponse):
            raise _StreamBroken("ENDED")
        if self._journal is not None:
            self._take_position(answer, report, batch)
        if answer.boot_id != report.boot_id:
            if self._failures == 0:
                log.error(
                    "report_superseded",
                    collector=self._name,
                    host_id=report.host.host_id,
                    explanation="a newer agent run reports for the same host id",
                )
            raise _StreamBroken("SUPERSEDED")
        self._unanswered.clear()
        self._leaves_out_answers = answer.leaves_out_answers
        self._answered_at, self._acknowledged = (
            self._clock.monotonic(),
            answer.acknowledged_sequence,
        )
        if not report.events_only:
            self._away_since = None
        if self._failures > 0 and not report.events_only:
            log.info("report_stream_restored", collector=self._name, failures=self._failures)
            self._failures = 0

    def _take_position(
        self,
        answer: gpu_metrics_pb2.StreamReportsResponse,
        report: HostReport,
        batch: EventBatch | None,
    ) -> None:
        if answer.journal_id != report.journal_id or self._journal is None:
            if self._takes_events:
                log.warning("collector_takes_no_events", collector=self._name)
            self._takes_events = False
            return
        position = answer.acknowledged_event_sequence
        if self._positions is None:
            self._positions = {}
        self._positions[answer.journal_id] = position
        self._journal.acknowledge(answer.journal_id, position)
        # A collector that does not take what it is sent is asked again with the next report.
        self._stalled = batch is not None and position < batch.events[0].sequence


_Call = grpc.aio.StreamStreamCall[
    gpu_metrics_pb2.StreamReportsRequest, gpu_metrics_pb2.StreamReportsResponse
]


def _with_events(
    report: HostReport, batch: EventBatch | None, journal: EventJournal | None
) -> HostReport:
    if batch is None:
        return report._replace(journal_id=journal.journal_id) if journal is not None else report
    return report._replace(
        events=batch.events,
        journal_id=batch.journal_id,
        oldest_event_sequence=batch.oldest_sequence,
    )
