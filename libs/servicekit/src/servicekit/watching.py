"""Consumes a resumable stream for ever: reconnects, resumes, and starts over when told to."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

import grpc
import grpc.aio
import structlog

from servicekit.clock import Clock

__all__ = ["watch"]

log = structlog.get_logger(__name__)

M = TypeVar("M")


async def watch(
    open_stream: Callable[[str], AsyncIterable[M]] | Sequence[Callable[[str], AsyncIterable[M]]],
    *,
    token_of: Callable[[M], str],
    clock: Clock,
    name: str,
    first_backoff_seconds: float = 0.2,
    maximum_backoff_seconds: float = 5.0,
    idle_timeout_seconds: float = 15.0,
    on_reset: Callable[[], None] | None = None,
    jitter: random.Random | None = None,
) -> AsyncGenerator[M, None]:
    """Yields the stream's messages without end, whatever happens to its server.

    The call in progress is cancelled as soon as the iteration ends: when the consuming task is
    cancelled, or the generator is closed (`contextlib.aclosing` does so after a `break`).

    Args:
        open_stream: opens the stream after a resume token (empty: from the start). Of several, at
            servers that each hold the whole, one is watched at a time: a stream that fails or falls
            silent is opened at the next at once, from the start, as tokens of one server mean
            nothing to another. Pauses come only after all of them failed.
        token_of: the resume token of a message.
        clock: measures the pauses between tries and the silence of a stream.
        name: names the stream in logs.
        first_backoff_seconds: pause after the first failure; doubles up to the maximum.
        maximum_backoff_seconds: longest pause.
        idle_timeout_seconds: a stream silent for longer is opened again.
        on_reset: called when the stream starts over: the server no longer knows the token, or
            another one is asked.
        jitter: randomness of the pauses.
    """
    # Pauses differ between clients so that they do not come back all at once; not a secret.
    jitter = jitter or random.Random()  # noqa: S311  # see above
    places = (open_stream,) if callable(open_stream) else tuple(open_stream)
    place = 0
    token = ""
    failures = 0
    while True:
        starts_over = False
        try:
            messages = _until_idle(places[place](token), clock, idle_timeout_seconds)
            async with aclosing(messages):
                async for message in messages:
                    failures = 0
                    token = token_of(message) or token
                    yield message
            log.info("watch_ended", stream=name)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.OUT_OF_RANGE and token:
                log.info("watch_starts_over", stream=name)
                starts_over = True
            else:
                log.warning("watch_interrupted", stream=name, code=error.code().name)
        except _Idle:
            log.warning("watch_idle", stream=name, idle_seconds=idle_timeout_seconds)
        failures += 1
        if len(places) > 1 and not starts_over:
            place = (place + 1) % len(places)
            log.info("watch_moves_on", stream=name, place=place)
            starts_over = bool(token)
        if starts_over:
            token = ""
            if on_reset is not None:
                on_reset()
        if failures % len(places) == 0:
            rounds = min(failures // len(places) - 1, 16)
            pause = min(maximum_backoff_seconds, first_backoff_seconds * 2**rounds)
            await clock.sleep(pause * jitter.uniform(0.5, 1.0))


class _Idle(Exception):
    """The stream was silent for too long."""


async def _until_idle(
    stream: AsyncIterable[M], clock: Clock, idle_timeout_seconds: float
) -> AsyncGenerator[M, None]:
    iterator = aiter(stream)
    watchdog = _Watchdog(clock, idle_timeout_seconds)
    guard = asyncio.create_task(watchdog.run())
    try:
        while True:
            try:
                async with asyncio.timeout(None) as silence:
                    watchdog.begin(silence)
                    message = await anext(iterator)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if silence.expired():
                    raise _Idle from None
                raise
            finally:
                watchdog.end()
            yield message
    finally:
        guard.cancel()
        await _close(stream, iterator)


async def _close(stream: AsyncIterable[M], iterator: AsyncIterator[M]) -> None:
    if isinstance(stream, grpc.aio.Call):
        stream.cancel()
    elif isinstance(iterator, AsyncGenerator):
        await iterator.aclose()


class _Watchdog:
    """Ends the wait for a message when it lasts too long by the injected clock.

    One task per stream, not per message: each message only moves the time it looks at.
    """

    def __init__(self, clock: Clock, idle_timeout_seconds: float) -> None:
        self._clock = clock
        self._idle_timeout_seconds = idle_timeout_seconds
        self._silence: asyncio.Timeout | None = None
        self._due = clock.monotonic() + idle_timeout_seconds

    def begin(self, silence: asyncio.Timeout) -> None:
        """A wait for a message begins."""
        self._silence = silence
        self._due = self._clock.monotonic() + self._idle_timeout_seconds

    def end(self) -> None:
        """A message came, or the stream ended."""
        self._silence = None

    async def run(self) -> None:
        """Watches until it is cancelled."""
        while True:
            remaining = self._due - self._clock.monotonic()
            if remaining > 0:
                await self._clock.sleep(remaining)
            elif self._silence is None:
                # The consumer is busy with the last message; that is not the stream's silence.
                await self._clock.sleep(self._idle_timeout_seconds)
            else:
                self._silence.reschedule(asyncio.get_running_loop().time())
                self._silence = None
