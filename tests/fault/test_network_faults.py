"""A bad network between the SDK and a router: nothing hangs, nothing grows, all is well again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import psutil
import pytest
import pytest_asyncio
from fault_proxy import FaultProxy, Link
from network_players import DEADLINE_SECONDS, Tally, players_of
from service_processes import ServiceProcess, router_process

from ai_router.testing.scripted_model_server import Script, serve_script

pytestmark = pytest.mark.asyncio(loop_scope="module")

LATE_SECONDS = 1.9
"""How much later than its deadline a busy machine may tell a caller; less than one more of them."""
RECOVERY_SECONDS = 10.0
"""Twice the longest pause that a watcher makes between tries: it may just have begun one."""
GROWTH_MEBIBYTES = 10.0
MEGABIT = 125_000.0
RESET_EVERY_SECONDS = 0.3


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
    async with (
        FaultProxy(router.address, seed=1) as proxy,
        players_of(proxy.address, with_text=True) as tally,
    ):
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
