"""How long it takes from what an agent says to what a subscriber hears, over real sockets.

    .venv/bin/python benchmarks/gpu_metrics/alert_latency.py [--hosts 50] [--rounds 200]

A collector process serves; this process is the agents (the agent's own links, journal and messages)
and the subscribers. While `--hosts` hosts of eight GPUs report once a second each, one host has an
XID (an event, and the alert it raises) and one a GPU that turns hot or cools down (an alert raised
by the report alone, hold times set to 0). Printed are the median, the 99th percentile and the
longest time from handing it to the agent's link to hearing it, against the limit of 50 ms, and
against what a subscriber would wait who asks twice a second. Both processes share the machine, and
the limit is for one that is otherwise idle.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack, aclosing
from datetime import UTC, datetime
from pathlib import Path

from kept_limits import Limit, at_most, exit_status

from gamekeeper.gpu_events import watch_gpu_events
from gaming.gpu_metrics.v1 import alerts_pb2, gpu_metrics_pb2_grpc
from gpu_metrics.adapters.collector_link import CollectorLink
from gpu_metrics.domain.gpu_events import GpuEventKind, ObservedEvent, Severity
from gpu_metrics.domain.readings import GpuReading, Host, HostReport
from gpu_metrics.journal import EventJournal
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.telemetry import Telemetry

_LIMIT_MILLISECONDS = 50.0
_POLL_MILLISECONDS = 500.0
_HOT = 0x40
_WAIT_SECONDS = 30.0


class Heard:
    """When each thing was said and heard, by its name."""

    def __init__(self) -> None:
        self.milliseconds: list[float] = []
        self._said: dict[object, float] = {}
        self._heard: dict[object, asyncio.Future[None]] = {}

    def say(self, name: object) -> asyncio.Future[None]:
        """Note that it is said now; the future is done once it was heard."""
        self._said[name] = time.perf_counter()
        self._heard[name] = asyncio.get_running_loop().create_future()
        return self._heard[name]

    def hear(self, name: object) -> None:
        """Note that it was heard."""
        if name in self._said:
            self.milliseconds.append((time.perf_counter() - self._said.pop(name)) * 1000)
            self._heard[name].set_result(None)

    def print(self, title: str) -> Limit:
        """Print the figures, and return whether the 99th percentile is within its limit."""
        ordered = sorted(self.milliseconds)
        p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        polled = _POLL_MILLISECONDS * 0.99
        print(
            f"{title:<34}{ordered[len(ordered) // 2]:7.1f}{p99:8.1f}{ordered[-1]:8.1f}"
            f"{p99 / _LIMIT_MILLISECONDS:11.2f}{p99 / polled:14.3f}"
        )
        return at_most(f"{title}, p99 in milliseconds", p99, _LIMIT_MILLISECONDS, ".1f")


def report_of(host_id: str, *, hot: bool = False) -> HostReport:
    """A host of eight busy GPUs."""
    return HostReport(
        host=Host(host_id=host_id, simulated=True),
        boot_id="benchmark",
        sequence=1,
        sample_time=datetime.now(UTC),
        gpus=tuple(
            GpuReading(
                gpu_uuid=f"GPU-{host_id}-{index}",
                index=index,
                utilization_permille=700,
                memory_used_bytes=20_000_000_000,
                power_milliwatts=210_000,
                temperature_celsius=71,
                sm_clock_megahertz=1500,
                clock_event_reasons=_HOT if hot and index == 0 else 0,
                ecc_uncorrected_total=0,
                driver_epoch=1,
            )
            for index in range(8)
        ),
    )


class Agents:
    """Hosts with the agent's own links."""

    def __init__(self, address: str, stack: AsyncExitStack) -> None:
        self._address = address
        self._stack = stack
        self._tasks: list[asyncio.Task[None]] = []

    async def link(self, host_id: str, journal: EventJournal | None = None) -> CollectorLink:
        """A link whose first report is in the collector's view."""
        link = CollectorLink(
            await self._stack.enter_async_context(open_channel(self._address)),
            name=self._address,
            clock=SystemClock(),
            jitter=random.Random(1),  # noqa: S311  # spreads retries, no secret
            telemetry=Telemetry("benchmark"),
            journal=journal,
        )
        link.offer(report_of(host_id))
        self._tasks.append(asyncio.create_task(link.run()))
        async with asyncio.timeout(_WAIT_SECONDS):
            await link.delivered()
        return link

    async def report_for_ever(self, hosts: int) -> None:
        """Have hosts report once a second, spread over the second."""
        links = [(f"b-{number}", await self.link(f"b-{number}")) for number in range(hosts)]

        async def report(offset: float, host_id: str, link: CollectorLink) -> None:
            await asyncio.sleep(offset)
            while True:
                link.offer(report_of(host_id))
                await asyncio.sleep(1.0)

        self._tasks += [
            asyncio.create_task(report(number / max(1, hosts), *each))
            for number, each in enumerate(links)
        ]

    async def stop(self) -> None:
        """End all links."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def collector(stack: AsyncExitStack) -> str:
    """Start a collector process and return its address."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    log_file = directory / "log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220  # nothing else runs yet
            [sys.executable, "-m", "gpu_metrics", "collector"],
            env={
                "PATH": os.environ["PATH"],
                "GAMEKEEPER_LISTEN_ADDRESS": "127.0.0.1:0",
                "GPU_METRICS_CLOUDWATCH_ENABLED": "false",
                "GPU_METRICS_ALERT_RAISE_SECONDS": "thermal-throttling=0",
                "GPU_METRICS_ALERT_CLEAR_SECONDS": "thermal-throttling=0",
            },
            stderr=log,
        )
    stack.callback(process.wait, 30)
    stack.callback(process.kill)
    async with asyncio.timeout(_WAIT_SECONDS):
        while True:
            for line in log_file.read_text().splitlines():
                if line.startswith("{") and json.loads(line).get("event") == "server_started":
                    return str(json.loads(line)["address"])
            await asyncio.sleep(0.05)


async def hear_alerts(address: str, heard: Heard, ready: asyncio.Event) -> None:
    """Follow the alerts; one is named by its XID, or by its GPU's being hot."""
    async with open_channel(address) as channel:
        stub = gpu_metrics_pb2_grpc.GpuMetricsServiceStub(channel)
        async for message in stub.WatchAlerts(alerts_pb2.WatchAlertsRequest(), timeout=600):
            ready.set()
            for alert in message.alerts:
                if alert.kind == alerts_pb2.ALERT_KIND_XID:
                    heard.hear(int(alert.xid))
                elif alert.kind == alerts_pb2.ALERT_KIND_THERMAL_THROTTLING:
                    heard.hear(("hot", not alert.HasField("clear_time")))


async def hear_events(address: str, heard: Heard) -> None:
    """Follow the events; one is named by its XID."""
    async with aclosing(watch_gpu_events([address])) as notices:
        async for notice in notices:
            if notice.event is not None:
                heard.hear(notice.event.xid)


async def main(hosts: int, rounds: int) -> int:
    """Print how long events and alerts take; return 1 when it is longer than the limit."""
    events, xid_alerts, hot_alerts = Heard(), Heard(), Heard()
    async with AsyncExitStack() as stack:
        address = await collector(stack)
        agents = Agents(address, stack)
        stack.push_async_callback(agents.stop)
        ready = asyncio.Event()
        both = Both(xid_alerts, hot_alerts)
        listeners = [
            asyncio.create_task(hear_alerts(address, both, ready)),
            asyncio.create_task(hear_events(address, events)),
        ]
        stack.callback(lambda: [task.cancel() for task in listeners])
        await ready.wait()
        await agents.report_for_ever(hosts)
        journal = EventJournal()
        probe = await agents.link("probe", journal)
        hot = await agents.link("hot")
        draw = random.Random(1)  # noqa: S311  # a repeatable run, no secret
        for number in range(1, rounds + 1):
            # At any moment of the second in which the others report.
            await asyncio.sleep(draw.uniform(0.0, 0.1))
            event = ObservedEvent(
                kind=GpuEventKind.XID,
                time=datetime.now(UTC),
                gpu_uuid="GPU-probe-0",
                xid=number,
                severity=Severity.CRITICAL,
            )
            probe.offer(report_of("probe"))
            waiting = [events.say(number), xid_alerts.say(number)]
            await journal.append([event])
            turned = ("hot", number % 2 == 1)
            waiting.append(hot_alerts.say(turned))
            hot.offer(report_of("hot", hot=turned[1]))
            async with asyncio.timeout(_WAIT_SECONDS):
                await asyncio.gather(*waiting)
    print(f"{hosts} hosts of 8 GPUs report once a second; milliseconds over {rounds} rounds")
    print(f"{'':<34}{'median':>7}{'p99':>8}{'longest':>8}{'of limit':>11}{'of polling':>14}")
    limits = [
        events.print("event to WatchGpuEvents"),
        xid_alerts.print("event to WatchAlerts"),
        hot_alerts.print("report to WatchAlerts"),
    ]
    return exit_status(limits)


class Both(Heard):
    """Hands what is heard to whom it concerns."""

    def __init__(self, xids: Heard, hot: Heard) -> None:
        super().__init__()
        self._xids, self._hot = xids, hot

    def hear(self, name: object) -> None:
        """Note that it was heard."""
        (self._xids if isinstance(name, int) else self._hot).hear(name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--hosts", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    sys.exit(asyncio.run(main(arguments.hosts, arguments.rounds)))
