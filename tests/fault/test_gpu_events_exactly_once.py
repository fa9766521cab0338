"""Whatever dies or is cut off, a subscriber gets each GPU event once and none is left out."""

import asyncio
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import pytest
from fake_driver import FakeDriver, build
from fault_proxy import FaultProxy

from gamekeeper.gpu_events import GpuEventPositions, watch_gpu_events
from gpu_metrics.adapters.collector_link import CollectorLink
from gpu_metrics.adapters.event_journal_file import open_journal
from gpu_metrics.domain.gpu_events import GpuEventKind, ObservedEvent, Severity
from gpu_metrics.domain.readings import Host, HostReport
from gpu_metrics.journal import EventJournal
from gpu_metrics.testing import collector_for_test
from localsuite.ports import free_ports
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.telemetry import Telemetry

WAIT_SECONDS = 60
SEED = 20
_BATCH = 900
"""As many as an agent takes at once; it says so when it has to give some up."""
_WAIT = "nvmlEventSetWait_v2"
_SERIALS = itertools.count(1)
"""The driver tells what has a greater serial than anything before; a code may happen again."""


class Subscriber:
    """Follows both collectors and counts what it gets; stops and goes on where it stood."""

    def __init__(self, *collectors: str) -> None:
        self._collectors = collectors
        self._positions = ""
        self.times_seen: Counter[tuple[str, int]] = Counter()
        self.xids: Counter[int] = Counter()
        self.lost = 0
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        positions = GpuEventPositions.load(self._positions)
        events = watch_gpu_events(
            self._collectors, positions, maximum_backoff_seconds=0.2, idle_timeout_seconds=8
        )
        async with aclosing(events):
            async for notice in events:
                self.lost += notice.lost_events
                self.times_seen[notice.journal_id, notice.sequence] += 1
                if notice.event is not None:
                    self.xids[notice.event.xid] += 1
                # What a consumer does with an event and where it stands are stored together.
                self._positions = positions.dump()
                self._changed.set()

    async def has_xids(self, codes: range) -> None:
        """Return once every code was seen."""
        missing = set(codes)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while missing := {code for code in missing if code not in self.xids}:
                    assert self._task is not None
                    assert not self._task.done()
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pytest.fail(f"{len(missing)} events never came, the first of them is {min(missing)}")

    def check(self) -> None:
        """Each event of each journal once, without gaps, none told as lost."""
        assert set(self.times_seen.values()) == {1}
        for _, group in itertools.groupby(sorted(self.times_seen), key=lambda key: key[0]):
            sequences = [sequence for _, sequence in group]
            assert sequences == list(range(1, len(sequences) + 1))
        assert self.lost == 0


class TwoCollectors:
    """Collectors behind bad networks, for the agent and for the subscriber each its own."""

    def __init__(self, ports: list[int]) -> None:
        addresses = [f"127.0.0.1:{port}" for port in ports]
        self.for_agents = [FaultProxy(address, seed=SEED) for address in addresses]
        self.for_subscribers = [FaultProxy(address, seed=SEED) for address in addresses]

    @property
    def proxies(self) -> list[FaultProxy]:
        return self.for_agents + self.for_subscribers

    async def __aenter__(self) -> Self:
        for proxy in self.proxies:
            await proxy.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        for proxy in self.proxies:
            await proxy.__aexit__(None, None, None)


@asynccontextmanager
async def linked(journal: EventJournal, *addresses: str) -> AsyncIterator[None]:
    """An agent's links to its collectors, without anything else of the agent."""
    async with AsyncExitStack() as stack:
        tasks = []
        for address in addresses:
            channel = await stack.enter_async_context(open_channel(address))
            link = CollectorLink(
                channel,
                name=address,
                clock=SystemClock(),
                jitter=random.Random(SEED),  # noqa: S311  # a repeatable run, no secret
                telemetry=Telemetry("test"),
                journal=journal,
                maximum_backoff_seconds=0.2,
                acknowledge_timeout_seconds=2.0,
            )
            link.offer(
                HostReport(
                    host=Host(host_id="i-1"),
                    boot_id="boot",
                    sequence=1,
                    sample_time=datetime.now(UTC),
                )
            )
            tasks.append(asyncio.create_task(link.run()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_resets_and_a_collector_that_starts_anew_lose_and_double_no_event() -> None:
    draw = random.Random(SEED)  # noqa: S311  # a repeatable run, no secret
    journal = EventJournal()
    ports = free_ports(2)
    async with TwoCollectors(ports) as collectors, AsyncExitStack() as stack:
        serving = [await stack.enter_async_context(AsyncExitStack()) for _ in ports]
        for place, port in zip(serving, ports, strict=True):
            await place.enter_async_context(collector_for_test(port=port))
        addresses = [proxy.address for proxy in collectors.for_agents]
        await stack.enter_async_context(linked(journal, *addresses))
        subscriber = Subscriber(*(proxy.address for proxy in collectors.for_subscribers))
        subscriber.start()
        for code in range(1, 301):
            event = ObservedEvent(
                kind=GpuEventKind.XID,
                time=datetime.now(UTC),
                gpu_uuid="GPU-1",
                xid=code,
                severity=Severity.INFO,
            )
            await journal.append([event])
            if code % 20 == 0:
                draw.choice(collectors.proxies).reset_all()
                # Part of it was sent by now and part was not.
                await asyncio.sleep(draw.uniform(0, 0.05))
            if code in (100, 200):
                number = code // 100 - 1
                await serving[number].aclose()
                await serving[number].enter_async_context(collector_for_test(port=ports[number]))
            if code == 150:
                await subscriber.stop()
                subscriber.start()
        await subscriber.has_xids(range(1, 301))
        await subscriber.stop()
    subscriber.check()
    assert len(subscriber.times_seen) == 300


class Service:
    """A process of the service that can be killed and started again."""

    def __init__(self, role: str, log_file: Path, environ: dict[str, str]) -> None:
        self._role = role
        self._log_file = log_file
        self._environ = {"PATH": os.environ["PATH"], **environ}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gpu_metrics", self._role], env=self._environ, stderr=log
            )

    async def logged(self, event: str, times: int = 1) -> None:
        assert self._process is not None
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                lines = self._log_file.read_text().splitlines()
                found = [json.loads(line) for line in lines if line.startswith("{")]
                if sum(line["event"] == event for line in found) >= times:
                    return
                assert self._process.poll() is None, self._log_file.read_text()[-2000:]
                await asyncio.sleep(0.05)

    async def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(self._process.wait, WAIT_SECONDS)


@pytest.mark.endurance
@pytest.mark.timeout(400)
async def test_of_ten_thousand_xids_none_is_lost_or_doubled_by_resets_and_kill_9(
    tmp_path: Path,
) -> None:
    """Real collectors, a real agent with the stand-in driver, a subscriber through the SDK."""
    draw = random.Random(SEED)  # noqa: S311  # a repeatable run, no secret
    driver = FakeDriver(build(tmp_path), tmp_path)
    driver.write("gpu 0 uuid GPU-1\ngpu 0 utilization 50\n")
    ports = free_ports(2)
    async with TwoCollectors(ports) as collectors, AsyncExitStack() as stack:
        services = [
            Service(
                "collector",
                tmp_path / f"collector-{port}.log",
                {
                    "GAMEKEEPER_LISTEN_ADDRESS": f"127.0.0.1:{port}",
                    "GPU_METRICS_CLOUDWATCH_ENABLED": "false",
                },
            )
            for port in ports
        ]
        agent = Service(
            "agent",
            tmp_path / "agent.log",
            {
                "GPU_METRICS_COLLECTORS": ",".join(each.address for each in collectors.for_agents),
                "GPU_METRICS_HOST_ID": "i-1",
                "GPU_METRICS_IMDS_ENABLED": "false",
                "GPU_METRICS_STATE_DIRECTORY": str(tmp_path / "state"),
                **driver.environ(),
            },
        )
        for service in (*services, agent):
            service.start()
            stack.push_async_callback(service.kill)
        subscriber = Subscriber(*(proxy.address for proxy in collectors.for_subscribers))
        subscriber.start()
        listening = 0
        for number, first in enumerate(range(1, 10_001, _BATCH)):
            listening = await listens(driver, listening)
            codes = range(first, min(first + _BATCH, 10_001))
            happen(driver, codes)
            for _ in range(3):
                await asyncio.sleep(draw.uniform(0, 0.1))
                draw.choice(collectors.proxies).reset_all()
            if number % 4 in (0, 1):
                await services[number % 4].kill()
                services[number % 4].start()
            elif number % 4 == 2:
                await agent.kill()
                # What the driver had told nobody, or an agent that did not write it down, happens
                # again: a real driver keeps nothing for who is not there.
                written = journalled(tmp_path / "state" / "i-1")
                agent.start()
                listening = await listens(driver, waits(driver))
                happen(driver, [code for code in codes if code not in written])
            if number % 5 == 4:
                await subscriber.stop()
                subscriber.start()
            await subscriber.has_xids(codes)
        await subscriber.stop()
    subscriber.check()
    assert dict(subscriber.xids) == dict.fromkeys(range(1, 10_001), 1)


def happen(driver: FakeDriver, codes: Iterable[int]) -> None:
    """Have the driver tell an XID of each code."""
    events = "".join(f"event {next(_SERIALS)} gpu 0 xid {code}\n" for code in codes)
    driver.write(f"gpu 0 uuid GPU-1\ngpu 0 utilization 50\n{events}")


async def listens(driver: FakeDriver, before: int) -> int:
    """Return how often events were waited for, once that is more often than before."""
    async with asyncio.timeout(WAIT_SECONDS):
        while (count := waits(driver)) <= before:  # noqa: ASYNC110  # another process has no event
            await asyncio.sleep(0.02)
    return count


def waits(driver: FakeDriver) -> int:
    """Return how often any agent has waited for events."""
    counts = driver.counts()
    return counts[_WAIT].calls if _WAIT in counts else 0


def journalled(directory: Path) -> set[int]:
    """Return the codes in the journal of an agent that is dead."""
    journal, file = open_journal(directory)
    file.close()
    written: set[int] = set()
    position = 0
    while (batch := journal.next_batch({journal.journal_id: position}, 1000)) is not None:
        written.update(event.xid for event in batch.events)
        position = batch.events[-1].sequence
    return written
