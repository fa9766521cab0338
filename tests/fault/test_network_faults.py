"""A bad network between the SDK and a router: nothing hangs, nothing grows, all is well again."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio
import psutil
import pytest
import pytest_asyncio
from fault_proxy import FaultProxy, Link
from service_processes import ServiceProcess, router_process

from ai_router.testing.scripted_model_server import Script, serve_script
from gaming.ai_router.v1 import ai_router_pb2 as pb
from gaming.ai_router.v1 import ai_router_pb2_grpc as rpc
from gaming.common.v1 import tier_pb2
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.watching import watch

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEADLINE_SECONDS = 2.0
LATE_SECONDS = 1.0
"""How much later than its deadline a busy machine may tell a caller."""
RECOVERY_SECONDS = 5.0
GROWTH_MEBIBYTES = 10.0
CALLERS = 10
MEGABIT = 125_000.0
RESET_EVERY_SECONDS = 0.3
LONG_PROMPT = "x" * 20_000
"""Together with its frames this takes a sixth of a second of a megabit link."""


async def blackhole(proxy: FaultProxy, seconds: float) -> None:
    proxy.blackhole()
    await asyncio.sleep(seconds)


async def requests_lost(proxy: FaultProxy, seconds: float) -> None:
    proxy.set(up=Link(open=False))
    await asyncio.sleep(seconds)


async def answers_lost(proxy: FaultProxy, seconds: float) -> None:
    proxy.set(down=Link(open=False))
    await asyncio.sleep(seconds)


async def megabit(proxy: FaultProxy, seconds: float) -> None:
    proxy.set(up=Link(bytes_per_second=MEGABIT), down=Link(bytes_per_second=MEGABIT))
    await asyncio.sleep(seconds)


async def jitter(proxy: FaultProxy, seconds: float) -> None:
    proxy.set(up=Link(delay_seconds=(0, 0.2)), down=Link(delay_seconds=(0, 0.2)))
    await asyncio.sleep(seconds)


async def resets(proxy: FaultProxy, seconds: float) -> None:
    pauses = random.Random(7)  # noqa: S311  # a repeatable network, no secret
    async with asyncio.timeout(seconds + 5):
        while seconds > 0:
            proxy.reset_all()
            pause = pauses.uniform(0.5, 1.5) * RESET_EVERY_SECONDS
            seconds -= pause
            await asyncio.sleep(pause)


async def half_open(proxy: FaultProxy, seconds: float) -> None:
    proxy.lose_servers()
    await asyncio.sleep(seconds)


Fault = Callable[[FaultProxy, float], Awaitable[None]]
SLOW: list[Fault] = [megabit, jitter]
"""Links that are bad and not broken: no call may fail on them."""
BROKEN: list[Fault] = [blackhole, requests_lost, answers_lost, resets, half_open]


@dataclass(slots=True)
class Tally:
    """What callers saw."""

    answered: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    longest_seconds: float = 0.0
    updates: int = 0

    async def well_again(self) -> None:
        """Returns once every caller could have been answered, and the stream goes on."""
        answered, updates = self.answered + 2 * CALLERS, self.updates + 2
        async with asyncio.timeout(60):
            while self.answered < answered or self.updates < updates:  # noqa: ASYNC110  # many count
                await asyncio.sleep(0.01)


@asynccontextmanager
async def game(target: str) -> AsyncIterator[Tally]:
    """Callers and a watcher of the router at `target`."""
    loop, tally = asyncio.get_running_loop(), Tally()
    message = pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=LONG_PROMPT)
    spec = pb.GenerationSpec(messages=[message], tier=tier_pb2.TIER_GOLD, max_output_tokens=8)
    async with open_channel(target) as channel:
        stub = rpc.AiRouterServiceStub(channel)

        async def call(number: int) -> None:
            while True:
                begun = loop.time()
                try:
                    if number == 0:
                        request = pb.GenerateOnceRequest(spec=spec)
                        await stub.GenerateOnce(request, timeout=DEADLINE_SECONDS)
                    else:
                        await stub.ListTiers(pb.ListTiersRequest(), timeout=DEADLINE_SECONDS)
                except grpc.aio.AioRpcError as error:
                    tally.codes[error.code().name] += 1
                else:
                    tally.answered += 1
                tally.longest_seconds = max(tally.longest_seconds, loop.time() - begun)
                await asyncio.sleep(0.05)

        async def follow() -> None:
            updates = watch(
                lambda token: stub.WatchDemand(pb.WatchDemandRequest(resume_token=token)),
                token_of=lambda update: update.resume_token,
                clock=SystemClock(),
                name="demand",
            )
            async for _ in updates:
                tally.updates += 1

        tasks = [asyncio.create_task(call(number)) for number in range(CALLERS)]
        tasks.append(asyncio.create_task(follow()))
        try:
            yield tally
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def router(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServiceProcess]:
    log_file = tmp_path_factory.mktemp("network") / "router.log"
    async with (
        serve_script(Script()) as models,
        router_process(
            log_file,
            AI_ROUTER_STATIC_SERVERS=f"gold:lamp@{models.url}",
            AI_ROUTER_DEMAND_INTERVAL_SECONDS="0.2",
        ) as running,
    ):
        yield running


async def play(
    router: ServiceProcess,
    fault: Fault,
    seconds: float,
    record_property: Callable[[str, object], None],
) -> Tally:
    """Plays while the network is bad, and until it is well again; returns what callers saw."""
    loop = asyncio.get_running_loop()
    async with FaultProxy(router.address, seed=1) as proxy, game(proxy.address) as tally:
        await tally.well_again()
        before = router.resident_mebibytes(), own_mebibytes()
        tally.longest_seconds, answered = 0.0, tally.answered
        await fault(proxy, seconds)
        during = tally.answered - answered
        proxy.heal()
        healed = loop.time()
        await tally.well_again()
        recovery = loop.time() - healed
        growth = router.resident_mebibytes() - before[0], own_mebibytes() - before[1]
    record_property("answered meanwhile", during)
    record_property("failed", dict(tally.codes))
    record_property("longest call, s", round(tally.longest_seconds, 2))
    record_property("well again after, s", round(recovery, 2))
    record_property("router and client grew, MiB", [round(each, 1) for each in growth])
    assert tally.longest_seconds <= DEADLINE_SECONDS + LATE_SECONDS
    assert recovery <= RECOVERY_SECONDS
    assert max(growth) < GROWTH_MEBIBYTES
    return tally


def own_mebibytes() -> float:
    return float(psutil.Process().memory_info().rss) / 1024**2


@pytest.mark.parametrize("fault", [megabit])
async def test_no_call_fails_on_a_slow_link(
    router: ServiceProcess, fault: Fault, record_property: Callable[[str, object], None]
) -> None:
    tally = await play(router, fault, 1.0, record_property)
    assert tally.codes == {}


@pytest.mark.parametrize("fault", [blackhole])
async def test_nothing_hangs_on_a_broken_link_and_all_is_well_once_it_is_mended(
    router: ServiceProcess, fault: Fault, record_property: Callable[[str, object], None]
) -> None:
    tally = await play(router, fault, 2.0, record_property)
    assert set(tally.codes) <= {"UNAVAILABLE", "DEADLINE_EXCEEDED"}


@pytest.mark.endurance
@pytest.mark.parametrize("fault", SLOW)
async def test_no_call_fails_on_a_slow_link_for_long(
    router: ServiceProcess, fault: Fault, record_property: Callable[[str, object], None]
) -> None:
    tally = await play(router, fault, 10.0, record_property)
    assert tally.codes == {}


@pytest.mark.endurance
@pytest.mark.parametrize("fault", BROKEN)
async def test_nothing_hangs_on_a_link_that_stays_broken_for_long(
    router: ServiceProcess, fault: Fault, record_property: Callable[[str, object], None]
) -> None:
    tally = await play(router, fault, 10.0, record_property)
    assert set(tally.codes) <= {"UNAVAILABLE", "DEADLINE_EXCEEDED"}
