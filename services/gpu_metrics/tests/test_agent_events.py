"""How an agent writes down events that come faster than a disk takes them one by one."""

import asyncio
from collections.abc import Sequence

from gpu_metrics.agent import Agent
from gpu_metrics.domain.gpu_events import GpuEvent, GpuEventKind, ObservedEvent
from gpu_metrics.domain.readings import Host
from gpu_metrics.domain.xid_counts import XidCounts
from gpu_metrics.journal import EventJournal
from servicekit.testing import FakeClock

from .builders import NOON


class FixedHost:
    async def read_host(self) -> Host:
        return Host(host_id="i-1")


class Storm:
    """A source of which all that waits is taken at once."""

    def __init__(self) -> None:
        self._waiting: list[ObservedEvent] = []
        self._came = asyncio.Event()

    def see(self, count: int) -> None:
        self._waiting += [
            ObservedEvent(kind=GpuEventKind.XID, time=NOON, gpu_uuid="G1", xid=48)
        ] * count
        self._came.set()

    async def next_events(self) -> Sequence[ObservedEvent]:
        await self._came.wait()
        self._came.clear()
        events, self._waiting = self._waiting, []
        return events


class SlowDisk:
    """Takes an append whenever the test lets it, and keeps how many events each was."""

    def __init__(self) -> None:
        self.appends: list[int] = []
        self.begun = asyncio.Event()
        self.done = asyncio.Event()

    async def append(self, events: Sequence[GpuEvent], acknowledged: int) -> None:
        self.appends.append(len(events))
        self.begun.set()
        await self.done.wait()

    async def compact(
        self, events: Sequence[GpuEvent], counts: XidCounts, acknowledged: int
    ) -> None:
        raise AssertionError("nothing to compact yet")


async def test_events_that_come_while_others_are_written_are_one_append() -> None:
    disk, storm = SlowDisk(), Storm()
    journal = EventJournal(store=disk)
    written = asyncio.Event()
    journal.add_listener(lambda: written.set() if len(disk.appends) > 1 else None)
    agent = Agent(
        host=FixedHost(),
        gpus=[],
        servers=[],
        sinks=[],
        clock=FakeClock(),
        boot_id="boot",
        journal=journal,
        event_sources=[storm],
    )
    running = asyncio.ensure_future(agent.run(asyncio.Event()))
    storm.see(1)
    await asyncio.wait_for(disk.begun.wait(), 30)
    for _ in range(100):
        storm.see(40)
    disk.done.set()
    await asyncio.wait_for(written.wait(), 30)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert disk.appends == [1, 4000]
    batch = journal.next_batch({}, 5000)
    assert batch is not None
    assert [event.sequence for event in batch.events] == list(range(1, 4002))
    assert batch.events[-1].xid_count == 4001
