"""Consumes a resumable stream for ever: reconnects, resumes, and starts over when told to."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import TypeVar

import grpc
import grpc.aio
import structlog

from servicekit.clock import Clock

__all__ = ["watch"]

log = structlog.get_logger(__name__)

M = TypeVar("M")


async def watch(
    open_stream: Callable[[str], AsyncIterable[M]],
    *,
    token_of: Callable[[M], str],
    clock: Clock,
    name: str,
    first_backoff_seconds: float = 0.2,
    maximum_backoff_seconds: float = 5.0,
    idle_timeout_seconds: float = 15.0,
    on_reset: Callable[[], None] | None = None,
    jitter: random.Random | None = None,
) -> AsyncIterator[M]:
    """Yields the stream's messages without end, whatever happens to its server.

    Args:
        open_stream: opens the stream after a resume token (empty: from the start).
        token_of: the resume token of a message.
        clock: measures the pauses between tries.
        name: names the stream in logs.
        first_backoff_seconds: pause after the first failure; doubles up to the maximum.
        maximum_backoff_seconds: longest pause.
        idle_timeout_seconds: a stream silent for longer is opened again.
        on_reset: called when the server no longer knows the token and the stream starts over.
        jitter: randomness of the pauses.
    """
    # Pauses differ between clients so that they do not come back all at once; not a secret.
    jitter = jitter or random.Random()  # noqa: S311  # see above
    token = ""
    failures = 0
    while True:
        try:
            async for message in _until_idle(open_stream(token), idle_timeout_seconds):
                failures = 0
                token = token_of(message) or token
                yield message
            log.info("watch_ended", stream=name)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.OUT_OF_RANGE and token:
                log.info("watch_starts_over", stream=name)
                token = ""
                if on_reset is not None:
                    on_reset()
            log.warning("watch_interrupted", stream=name, code=error.code().name)
        except TimeoutError:
            log.warning("watch_idle", stream=name, idle_seconds=idle_timeout_seconds)
        pause = min(maximum_backoff_seconds, first_backoff_seconds * 2**failures)
        failures = min(failures + 1, 16)
        await clock.sleep(pause * jitter.uniform(0.5, 1.0))


async def _until_idle(stream: AsyncIterable[M], idle_timeout_seconds: float) -> AsyncIterator[M]:
    iterator = aiter(stream)
    try:
        while True:
            async with asyncio.timeout(idle_timeout_seconds):
                try:
                    message = await anext(iterator)
                except StopAsyncIteration:
                    return
            yield message
    finally:
        if isinstance(stream, grpc.aio.Call):
            stream.cancel()
