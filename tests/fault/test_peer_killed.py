"""Callers of two replicas: one dies without a word, or both ask to be connected to anew."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
import pytest
from fault_proxy import FaultProxy
from service_processes import ServiceProcess, collector_process

from gaming.gpu_metrics.v1 import gpu_metrics_pb2 as pb
from gaming.gpu_metrics.v1 import gpu_metrics_pb2_grpc as rpc
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.watching import watch

CALLERS = 40
STREAMS = 3
QUICK_HEARTBEAT = {
    "GPU_METRICS_HEARTBEAT_SECONDS": "0.2",
    # Calls that a busy machine keeps waiting are not to be turned away: here it is who answers.
    "GAMEKEEPER_SHED_WAIT_SECONDS": "60",
}


@dataclass(slots=True)
class Tally:
    """What callers and watchers saw."""

    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    updates: list[int] = field(default_factory=lambda: [0] * STREAMS)
    longest_seconds: float = 0.0
    streams_opened: int = 0
    resets: int = 0

    async def more(self, answers: int, updates: int) -> None:
        """Returns after so many more answers, and so many more updates of every stream."""
        answered = self.answered + answers
        counts = [count + updates for count in self.updates]
        async with asyncio.timeout(30):
            while self.answered < answered or any(  # noqa: ASYNC110  # counted by many
                seen < wanted for seen, wanted in zip(self.updates, counts, strict=True)
            ):
                await asyncio.sleep(0.01)


@asynccontextmanager
async def under_load(target: str) -> AsyncIterator[Tally]:
    """Calls and watches the collectors behind `target` without a pause."""
    loop, tally = asyncio.get_running_loop(), Tally()
    async with open_channel(target) as channel:
        stub = rpc.GpuMetricsServiceStub(channel)

        async def call() -> None:
            while True:
                begun = loop.time()
                try:
                    await stub.GetFleet(pb.GetFleetRequest(), timeout=10)
                except grpc.aio.AioRpcError as error:
                    tally.failed[f"{error.code().name}: {error.details()}"] += 1
                else:
                    tally.answered += 1
                tally.longest_seconds = max(tally.longest_seconds, loop.time() - begun)
                await asyncio.sleep(0.02)

        def reset() -> None:
            tally.resets += 1

        def open_stream(token: str) -> AsyncIterable[pb.WatchFleetResponse]:
            tally.streams_opened += 1
            request = pb.WatchFleetRequest(resume_token=token)
            request.minimum_interval.FromMilliseconds(200)
            return stub.WatchFleet(request)

        async def follow(number: int) -> None:
            updates = watch(
                open_stream,
                token_of=lambda message: message.resume_token,
                clock=SystemClock(),
                name=f"fleet {number}",
                on_reset=reset,
            )
            async for _ in updates:
                tally.updates[number] += 1

        tasks = [asyncio.create_task(call()) for _ in range(CALLERS)]
        tasks += [asyncio.create_task(follow(number)) for number in range(STREAMS)]
        try:
            yield tally
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def two_collectors(
    stack: AsyncExitStack, directory: Path
) -> tuple[ServiceProcess, ServiceProcess]:
    one, two = await asyncio.gather(
        *(
            stack.enter_async_context(
                collector_process(directory / f"{name}.log", **QUICK_HEARTBEAT)
            )
            for name in ("one", "two")
        )
    )
    return one, two


async def test_no_repeatable_call_fails_when_one_of_two_replicas_is_killed(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    async with AsyncExitStack() as stack:
        victim, survivor = await two_collectors(stack, tmp_path)
        tally = await stack.enter_async_context(
            under_load(f"ipv4:{victim.address},{survivor.address}")
        )
        await tally.more(answers=5 * CALLERS, updates=1)
        await victim.kill()
        await tally.more(answers=10 * CALLERS, updates=2)
    record_property("calls answered", tally.answered)
    record_property("calls failed", tally.failed.total())
    record_property("streams started over", tally.resets)
    assert tally.failed == {}
    # Streams of the victim went over to the survivor, which does not know their tokens.
    assert tally.resets <= STREAMS


@pytest.mark.endurance
async def test_no_repeatable_call_fails_when_one_of_two_replicas_freezes(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    async with AsyncExitStack() as stack:
        victim, survivor = await two_collectors(stack, tmp_path)
        tally = await stack.enter_async_context(
            under_load(f"ipv4:{victim.address},{survivor.address}")
        )
        await tally.more(answers=5 * CALLERS, updates=1)
        victim.freeze()
        await tally.more(answers=40 * CALLERS, updates=5)
        victim.thaw()
    record_property("calls answered", tally.answered)
    record_property("calls failed", tally.failed.total())
    record_property("longest call, s", round(tally.longest_seconds, 2))
    assert tally.failed == {}
    assert tally.longest_seconds <= 3.0


@pytest.mark.endurance
async def test_no_call_fails_and_no_stream_breaks_when_connections_are_renewed_all_the_time(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    async with (
        collector_process(
            tmp_path / "collector.log", GAMEKEEPER_CONNECTION_AGE_SECONDS="0.3", **QUICK_HEARTBEAT
        ) as collector,
        FaultProxy(collector.address, seed=1) as counting,
        under_load(counting.address) as tally,
    ):
        async with asyncio.timeout(60):
            while counting.accepted < 8:
                await tally.more(answers=CALLERS, updates=1)
        connections = counting.accepted
    record_property("connections", connections)
    record_property("calls answered", tally.answered)
    record_property("calls failed", tally.failed.total())
    assert tally.failed == {}
    assert tally.streams_opened == STREAMS
