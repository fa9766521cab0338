"""When the load shedder looks, what counts as a wait, and what it lets pass."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from servicekit.errors import Overloaded
from servicekit.interceptors import shedding
from servicekit.interceptors.call import Call
from servicekit.interceptors.shedding import SheddingInterceptor
from servicekit.load_shedding import LoadShedder
from servicekit.method_policies import MethodDeclaration

ENOUGH_LOOKS = 4


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shedding, "_LOOK_SECONDS", 0.0)


def a_call(**properties: bool) -> Call:
    nothing: Any = None
    declaration: MethodDeclaration | None = nothing
    call = Call("/s/M", declaration, None, nothing, {}, 0.0, nothing)
    call.declaration = nothing if properties.pop("foreign", False) else object()  # type: ignore[assignment]  # only whether there is one matters
    for name, value in properties.items():
        setattr(call, name, value)
    return call


async def answered(_: Call) -> str:
    return "answer"


async def gives_way(call: Call) -> None:
    call.gave_way = True
    raise Overloaded("too many wait")


async def looked(
    interceptor: SheddingInterceptor,
    waits: list[float | None],
    meanwhile: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """Lets the interceptor look as often as there are waits to find, in their order."""
    left = list(waits)
    done = asyncio.Event()

    async def wait_seconds() -> float | None:
        if not left:
            done.set()
            return await asyncio.Future()
        seconds = left.pop(0)
        if meanwhile is not None:
            await meanwhile()
        return seconds

    running = asyncio.create_task(interceptor.run(wait_seconds))
    async with asyncio.timeout(30):
        await done.wait()
    running.cancel()
    await asyncio.wait({running})


async def test_calls_that_wait_too_long_are_turned_away_until_they_no_longer_do() -> None:
    shedder = LoadShedder(target_seconds=0.25)
    interceptor = SheddingInterceptor(shedder)
    await looked(interceptor, [1.0] * ENOUGH_LOOKS)
    assert shedder.admit()  # the first after a look always is
    with pytest.raises(Overloaded):
        await interceptor.intercept(a_call(), answered)
    await looked(interceptor, [0.0] * 20)
    assert await interceptor.intercept(a_call(), answered) == "answer"
    assert not shedder.shedding


@pytest.mark.parametrize("kind", ["foreign", "long_lived"])
async def test_streams_health_and_reflection_pass(kind: str) -> None:
    shedder = LoadShedder(target_seconds=0.25)
    interceptor = SheddingInterceptor(shedder)
    await looked(interceptor, [1.0] * ENOUGH_LOOKS)
    for _ in range(5):
        assert await interceptor.intercept(a_call(**{kind: True}), answered) == "answer"


async def test_a_look_that_could_not_wait_changes_nothing() -> None:
    shedder = LoadShedder(target_seconds=0.25)
    await looked(SheddingInterceptor(shedder), [None] * 10)
    assert not shedder.shedding


async def test_a_wait_for_calls_without_requests_is_no_overload() -> None:
    shedder = LoadShedder(target_seconds=0.25)
    interceptor = SheddingInterceptor(shedder)

    async def flood() -> None:
        for _ in range(2):
            with pytest.raises(Overloaded):
                await interceptor.intercept(a_call(), gives_way)
        await interceptor.intercept(a_call(), answered)

    await looked(interceptor, [1.0] * 10, flood)
    assert not shedder.shedding


async def test_a_few_calls_without_requests_hide_no_overload() -> None:
    shedder = LoadShedder(target_seconds=0.25)
    interceptor = SheddingInterceptor(shedder)

    async def drip() -> None:
        with pytest.raises(Overloaded):
            await interceptor.intercept(a_call(long_lived=True), gives_way)
        await interceptor.intercept(a_call(long_lived=True), answered)

    await looked(interceptor, [1.0] * 10, drip)
    assert shedder.shedding


async def looks_in(rounds: int, interceptor: SheddingInterceptor, *calls: Call) -> int:
    """How often it looks in so many rounds, when these calls come in each."""
    looks = 0

    async def wait_seconds() -> float | None:
        nonlocal looks
        looks += 1
        return 0.0

    running = asyncio.create_task(interceptor.run(wait_seconds))
    for _ in range(rounds):
        for call in calls:
            await interceptor.intercept(call, answered)
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait({running})
    return looks


async def test_while_no_calls_come_few_looks_are_made() -> None:
    shedder = LoadShedder(target_seconds=0.25)
    assert 15 <= await looks_in(100, SheddingInterceptor(shedder)) <= 21
    streams = (a_call(long_lived=True), a_call(foreign=True))
    assert 15 <= await looks_in(100, SheddingInterceptor(shedder), *streams) <= 21


async def test_while_calls_come_every_look_is_made() -> None:
    interceptor = SheddingInterceptor(LoadShedder(target_seconds=0.25))
    assert await looks_in(100, interceptor, a_call()) >= 95


async def test_while_calls_are_turned_away_every_look_is_made() -> None:
    shedder = LoadShedder(target_seconds=0.25)
    interceptor = SheddingInterceptor(shedder)
    shedder.share = 0.0
    shedder.observe = lambda wait_seconds: None  # type: ignore[method-assign]  # it stays as slow
    assert await looks_in(100, interceptor) >= 95


async def test_looks_that_find_no_end_are_bounded() -> None:
    looks = 0

    async def wait_seconds() -> float | None:
        nonlocal looks
        looks += 1
        return await asyncio.Future()

    running = asyncio.create_task(
        SheddingInterceptor(LoadShedder(target_seconds=0.25)).run(wait_seconds)
    )
    for _ in range(500):
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait({running})
    assert 1 < looks <= 25
