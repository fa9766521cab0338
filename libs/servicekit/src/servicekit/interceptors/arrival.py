"""Waits for a call's first request message, but neither for ever nor with everybody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from servicekit.errors import DeadlineExceeded, InvalidRequest, Overloaded
from servicekit.interceptors.call import Call, Proceed

__all__ = ["ARRIVAL_SECONDS", "MAXIMUM_WAITING", "ArrivalInterceptor"]

ARRIVAL_SECONDS = 10.0
"""How long a first message may take: the largest, 1 MiB, over 1 Mbit/s takes 8.4 s."""

MAXIMUM_WAITING = 128
"""How many calls may wait: of 1,000 calls made at once by clients that send headers and message
together, no more than 3 were seen to wait at a time."""


class ArrivalInterceptor:
    """Lets a call through once its first request message is there, and keeps it for the handler.

    A call exists as soon as its headers do. Whoever sends headers alone makes the server hold about
    18 kB for each call, and grpc.aio holds them until the connection ends: it sets no limit, and it
    forgets calls whose caller ends its side without a message. Here they are refused after
    `seconds`, and of more than `maximum_waiting` the one that waits longest gives way, so that a
    call whose message comes along, as a working client's does, passes in any crowd.
    """

    def __init__(
        self, *, maximum_waiting: int = MAXIMUM_WAITING, seconds: float = ARRIVAL_SECONDS
    ) -> None:
        self._maximum_waiting = maximum_waiting
        self._seconds = seconds
        # Oldest first.
        self._waiting: dict[Call, asyncio.Timeout] = {}

    async def intercept(self, call: Call, proceed: Proceed) -> Any:
        """Reads the first message, then passes the call on."""
        first = await self._first_message(call)
        if call.streams_requests:
            call.request = _with_first(first, call.request)
        elif first is grpc.aio.EOF:
            raise InvalidRequest("The call ended without a request message.")
        else:
            call.request = first
        return await proceed(call)

    async def _first_message(self, call: Call) -> Any:
        if len(self._waiting) >= self._maximum_waiting:
            oldest = next(iter(self._waiting))
            self._waiting.pop(oldest).reschedule(0)
        try:
            async with asyncio.timeout(self._seconds) as limit:
                self._waiting[call] = limit
                return await call.context.read()
        except TimeoutError:
            if call not in self._waiting:
                raise Overloaded(
                    f"More than {self._maximum_waiting} calls wait for their request; this one "
                    "waited longest. Send the request with the call."
                ) from None
            raise DeadlineExceeded(
                f"The request did not arrive within {self._seconds:g} s."
            ) from None
        finally:
            self._waiting.pop(call, None)


async def _with_first(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    if first is grpc.aio.EOF:
        return
    yield first
    async for message in rest:
        yield message
