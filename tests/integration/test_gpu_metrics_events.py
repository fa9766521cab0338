"""What happens to GPUs reaches every subscriber once, in order, and no gap is hidden."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc.aio

from gaming.gpu_metrics.v1 import events_pb2, gpu_metrics_pb2
from gpu_metrics.domain.event_journals import EventBounds
from gpu_metrics.testing import CollectorForTest, collector_for_test

WAIT_SECONDS = 60


class ScriptedAgent:
    """One report stream; says what a test makes it say."""

    def __init__(self, collector: CollectorForTest, host_id: str = "i-1") -> None:
        self.host_id = host_id
        self.sequence = 0
        self._call: grpc.aio.StreamStreamCall[Any, Any] = collector.reports.StreamReports(
            timeout=WAIT_SECONDS
        )

    async def send(
        self,
        sequences: Sequence[int] = (),
        *,
        journal_id: str = "j",
        oldest: int = 0,
        events_only: bool = True,
    ) -> gpu_metrics_pb2.StreamReportsResponse:
        """Send events and return what the collector says to them."""
        self.sequence += not events_only
        request = gpu_metrics_pb2.StreamReportsRequest(
            boot_id="boot",
            sequence=max(1, self.sequence),
            journal_id=journal_id,
            oldest_event_sequence=oldest,
            events_only=events_only,
        )
        request.host.host_id = self.host_id
        request.sample_time.GetCurrentTime()
        for number in sequences:
            event = request.events.add(
                sequence=number, kind=events_pb2.GPU_EVENT_KIND_XID, xid=79, gpu_uuid="GPU-1"
            )
            event.time.GetCurrentTime()
        await self._call.write(request)
        answer = await self._call.read()
        assert isinstance(answer, gpu_metrics_pb2.StreamReportsResponse)
        return answer


def watched(
    collector: CollectorForTest, **request: Any
) -> AsyncIterator[events_pb2.WatchGpuEventsResponse]:
    return aiter(
        collector.fleet.WatchGpuEvents(
            events_pb2.WatchGpuEventsRequest(**request), timeout=WAIT_SECONDS
        )
    )


async def until_idle(
    stream: AsyncIterator[events_pb2.WatchGpuEventsResponse],
) -> list[tuple[str, str, int, int]]:
    """Host, journal, sequence and lost events of all messages before the next heartbeat."""
    found = []
    async for message in stream:
        place = message.position
        if not message.HasField("position"):
            break
        found.append((place.host_id, place.journal_id, place.sequence, message.lost_events))
    return found


async def test_a_subscriber_gets_what_was_and_what_comes_and_another_goes_on_where_it_stood() -> (
    None
):
    async with collector_for_test(heartbeat_seconds=0.2) as collector:
        agent = ScriptedAgent(collector)
        answer = await agent.send([1, 2])
        assert (answer.journal_id, answer.acknowledged_event_sequence) == ("j", 2)
        stream = watched(collector)
        assert await until_idle(stream) == [("i-1", "j", 1, 0), ("i-1", "j", 2, 0)]
        assert (await agent.send([2, 3])).acknowledged_event_sequence == 3
        message = await anext(stream)
        while not message.HasField("event"):
            message = await anext(stream)
        assert (message.event.sequence, message.event.xid) == (3, 79)
        assert message.HasField("receive_time")
        position = events_pb2.JournalPosition(host_id="i-1", journal_id="j", sequence=2)
        assert await until_idle(watched(collector, positions=[position])) == [("i-1", "j", 3, 0)]
        # Where it starts is told, so that it can go on from there elsewhere.
        (start,) = await until_idle(watched(collector, only_new=True))
        assert start == ("i-1", "j", 3, 0)
        assert await until_idle(watched(collector, host_id="i-2")) == []


async def test_events_alone_change_nothing_in_the_view_and_a_report_may_carry_some_too() -> None:
    async with collector_for_test() as collector:
        agent = ScriptedAgent(collector)
        answer = await agent.send([1])
        assert (answer.boot_id, answer.acknowledged_sequence) == ("boot", 0)
        assert len(collector.view.hosts(0.0)) == 0
        answer = await agent.send([2], events_only=False)
        assert (answer.acknowledged_sequence, answer.acknowledged_event_sequence) == (1, 2)
        received = collector.view.hosts(0.0)[0].received_at
        answer = await agent.send([3])
        assert (answer.acknowledged_sequence, answer.acknowledged_event_sequence) == (1, 3)
        assert collector.view.hosts(0.0)[0].received_at == received


async def test_a_collector_that_starts_anew_asks_for_all_that_the_journal_still_holds() -> None:
    async with collector_for_test() as collector:
        agent = ScriptedAgent(collector)
        assert (await agent.send([40, 41], oldest=7)).acknowledged_event_sequence == 0
        answer = await agent.send(range(7, 42), oldest=7)
        assert answer.acknowledged_event_sequence == 41
        position = events_pb2.JournalPosition(host_id="i-1", journal_id="j", sequence=3)
        found = await until_idle(watched(collector, positions=[position]))
        assert found[0] == ("i-1", "j", 7, 3)
        assert [each[2] for each in found] == list(range(7, 42))
        assert sum(each[3] for each in found) == 3


async def test_a_subscriber_that_falls_behind_the_bound_is_told_how_many_it_missed() -> None:
    bounds = EventBounds(per_host=100, in_all=1000)
    async with collector_for_test(event_bounds=bounds) as collector:
        agent = ScriptedAgent(collector)
        stream = watched(collector)
        await until_idle(stream)
        for first in range(1, 50_001, 250):
            await agent.send(range(first, first + 250))
        seen, lost, last = 0, 0, 0
        while last < 50_000:
            message = await anext(stream)
            if message.HasField("position"):
                assert message.position.sequence == last + message.lost_events + 1
                last, lost, seen = message.position.sequence, lost + message.lost_events, seen + 1
        assert seen + lost == 50_000
        assert lost > 0


async def test_every_host_and_journal_is_followed_at_once() -> None:
    async with collector_for_test(heartbeat_seconds=0.2) as collector:
        agents = [ScriptedAgent(collector, f"i-{number}") for number in range(5)]
        stream = watched(collector)
        await until_idle(stream)
        await asyncio.gather(*(agent.send([1, 2, 3]) for agent in agents))
        await agents[0].send([1], journal_id="another")
        found: list[tuple[str, str, int, int]] = []
        while len(found) < 16:
            found += await until_idle(stream)
        assert len(set(found)) == 16
        for agent in agents:
            mine = [each[2] for each in found if each[:2] == (agent.host_id, "j")]
            assert mine == [1, 2, 3]
