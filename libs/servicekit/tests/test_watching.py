"""watch(): resumes, starts over, reopens the silent, waits between tries, and lets go at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from itertools import pairwise
from typing import Self

import grpc
import grpc.aio

from servicekit.testing import FakeClock
from servicekit.watching import watch


class Server:
    """Answers each opening of the stream with the next script; remembers the tokens it got."""

    def __init__(self, *scripts: list[str | grpc.StatusCode | None]) -> None:
        self.scripts: list[list[str | grpc.StatusCode | None]] = list(scripts)
        self.tokens: list[str] = []
        self.open = 0

    async def stream(self, token: str) -> AsyncIterator[str]:
        self.tokens.append(token)
        script = self.scripts.pop(0) if self.scripts else [None]
        self.open += 1
        try:
            for step in script:
                if step is None:
                    await asyncio.Event().wait()
                elif isinstance(step, grpc.StatusCode):
                    metadata = grpc.aio.Metadata()
                    raise grpc.aio.AioRpcError(step, metadata, metadata, "scripted")
                else:
                    yield step
        finally:
            self.open -= 1


class Steady(random.Random):
    """No jitter: every pause is as long as it may be."""

    def uniform(self, a: float, b: float) -> float:
        return b


class Watching:
    """Consumes a watch in a task and remembers what came."""

    def __init__(
        self, server: Server, clock: FakeClock, on_reset: Callable[[], None] | None = None
    ) -> None:
        self.seen: list[str] = []
        self._messages = watch(
            server.stream,
            token_of=lambda message: message,
            clock=clock,
            name="test",
            on_reset=on_reset,
            jitter=Steady(),
            idle_timeout_seconds=15,
        )
        self.task = asyncio.create_task(self._consume())

    async def _consume(self) -> None:
        async for message in self._messages:
            self.seen.append(message)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


async def test_it_resumes_after_the_last_message() -> None:
    clock, server = FakeClock(), Server(["e.1", "e.2", UNAVAILABLE], ["e.3", None])
    async with Watching(server, clock) as watching:
        await clock.advance(0.3)
        assert watching.seen == ["e.1", "e.2", "e.3"]
        assert server.tokens == ["", "e.2"]


async def test_a_stream_the_server_ends_is_opened_again() -> None:
    clock, server = FakeClock(), Server(["e.1"], ["e.2"], [None])
    async with Watching(server, clock):
        await clock.advance(1)
        assert server.tokens == ["", "e.1", "e.2"]


async def test_it_starts_over_when_its_token_is_too_old_and_says_so() -> None:
    resets: list[str] = []
    clock = FakeClock()
    server = Server(["e.1", UNAVAILABLE], [grpc.StatusCode.OUT_OF_RANGE], ["f.1", None])
    async with Watching(server, clock, lambda: resets.append("reset")) as watching:
        await clock.advance(2)
        assert server.tokens == ["", "e.1", ""]
        assert watching.seen == ["e.1", "f.1"]
        assert resets == ["reset"]


async def test_pauses_double_up_to_the_maximum_and_start_again_after_a_message() -> None:
    clock = FakeClock()
    server = Server(["e.1", UNAVAILABLE], [UNAVAILABLE])
    server.scripts[:0] = [[UNAVAILABLE]] * 8
    opened: list[float] = []
    inner = server.stream

    def stream(token: str) -> AsyncIterator[str]:
        opened.append(round(clock.monotonic(), 3))
        return inner(token)

    server.stream = stream  # type: ignore[method-assign]  # records the times
    async with Watching(server, clock):
        for _ in range(400):
            await clock.advance(0.1)
    pauses = [round(later - former, 1) for former, later in pairwise(opened)]
    assert pauses[:10] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0, 0.2, 0.4]


async def test_a_silent_stream_is_closed_and_opened_again() -> None:
    clock, server = FakeClock(), Server(["e.1", None], ["e.2", None])
    async with Watching(server, clock) as watching:
        await clock.advance(14.9)
        assert server.tokens == [""]
        await clock.advance(0.2)
        await asyncio.sleep(0.01)  # the timeout strikes through the event loop's own timer
        assert server.open == 0
        await clock.advance(0.3)
        assert server.tokens == ["", "e.1"]
        assert watching.seen == ["e.1", "e.2"]


async def test_a_busy_consumer_is_not_a_silent_stream() -> None:
    clock, server = FakeClock(), Server(["e.1", "e.2", None])
    messages = watch(server.stream, token_of=str, clock=clock, name="test", idle_timeout_seconds=15)
    assert await anext(messages) == "e.1"
    await clock.advance(60)
    assert await anext(messages) == "e.2"
    assert server.tokens == [""]
    await messages.aclose()


async def test_ending_the_iteration_ends_the_call_and_leaves_no_task() -> None:
    clock, server = FakeClock(), Server(["e.1", None])
    async with Watching(server, clock):
        await clock.settle()
        assert server.open == 1
    await clock.settle()
    assert server.open == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_closing_the_generator_ends_the_call() -> None:
    clock, server = FakeClock(), Server(["e.1", None])
    messages = watch(server.stream, token_of=str, clock=clock, name="test")
    await anext(messages)
    await messages.aclose()
    assert server.open == 0


class WatchingSeveral(Watching):
    """Consumes a watch of several servers."""

    def __init__(
        self, servers: list[Server], clock: FakeClock, on_reset: Callable[[], None] | None = None
    ) -> None:
        self.seen = []
        self._messages = watch(
            [server.stream for server in servers],
            token_of=lambda message: message,
            clock=clock,
            name="test",
            on_reset=on_reset,
            jitter=Steady(),
            idle_timeout_seconds=2,
        )
        self.task = asyncio.create_task(self._consume())


async def test_a_stream_that_fails_goes_on_at_the_next_server_at_once_and_from_the_start() -> None:
    clock, resets = FakeClock(), []
    lost = Server(["a1", grpc.StatusCode.UNAVAILABLE])
    other = Server(["b1", None])
    async with WatchingSeveral([lost, other], clock, lambda: resets.append(1)) as watching:
        await clock.settle()
        assert watching.seen == ["a1", "b1"]
        assert other.tokens == [""]
        assert resets == [1]


async def test_a_server_that_falls_silent_is_left_for_the_next() -> None:
    clock = FakeClock()
    silent, other = Server(["a1", None]), Server(["b1", None])
    async with WatchingSeveral([silent, other], clock) as watching:
        await clock.settle()
        await clock.advance(2.1)
        assert watching.seen == ["a1", "b1"]
        assert silent.open == 0


async def test_a_token_that_is_too_old_is_dropped_where_it_was_given() -> None:
    clock = FakeClock()
    forgetful, other = Server(["a1", grpc.StatusCode.OUT_OF_RANGE], ["a2", None]), Server()
    async with WatchingSeveral([forgetful, other], clock) as watching:
        await clock.settle()
        await clock.advance(0.3)
        assert watching.seen == ["a1", "a2"]
        assert forgetful.tokens == ["", ""]
        assert other.tokens == []


async def test_pauses_come_only_after_every_server_failed() -> None:
    clock = FakeClock()
    away = [grpc.StatusCode.UNAVAILABLE]
    one, two = Server(list(away), list(away), ["a", None]), Server(list(away), list(away))
    async with WatchingSeveral([one, two], clock) as watching:
        await clock.settle()
        assert (len(one.tokens), len(two.tokens)) == (1, 1)
        await clock.advance(0.2)
        assert (len(one.tokens), len(two.tokens)) == (2, 2)
        await clock.advance(0.4)
        assert watching.seen == ["a"]
