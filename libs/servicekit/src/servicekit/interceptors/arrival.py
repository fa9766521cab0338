"""Waits for a call's first request message, but neither for ever nor with everybody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from servicekit.eager_server import ARRIVAL_SECONDS, first_message
from servicekit.errors import DeadlineExceeded, InvalidRequest, Overloaded
from servicekit.interceptors.call import Call, Proceed

__all__ = ["ArrivalInterceptor"]

_MAXIMUM_SINGLE = 16
"""How many calls with a single request may wait: of 1,000 made at once by clients that send headers
and message together, no more than 3 were seen to wait at a time. Each costs some 50 kB."""

_MAXIMUM_STREAMS = 128
"""How many calls with a stream of requests may wait: whoever opens 100 of them at once sends all
their headers before the first message."""


class ArrivalInterceptor:
    """Lets a call through once its first request message is there, and keeps it for the handler.

    Nearly all come with it, as `EagerServer` waited. The few that gRPC's own loop took wait here:
    it sets no limit, holds some 50 kB for each until the connection ends, and forgets calls whose
    caller ends its side without a message. Here they are refused after ten seconds, and of too many
    the one that waits longest gives way.
    """

    def __init__(self) -> None:
        self._single = _WaitingRoom(_MAXIMUM_SINGLE)
        self._streamed = _WaitingRoom(_MAXIMUM_STREAMS)

    async def intercept(self, call: Call, proceed: Proceed) -> Any:
        """Reads the first message, then passes the call on."""
        taken = first_message()
        if taken:
            first = taken.pop()
        else:
            room = self._streamed if call.streams_requests else self._single
            first = await room.first_message(call)
        if call.streams_requests:
            call.request = _with_first(first, call.request)
        elif first is grpc.aio.EOF:
            raise InvalidRequest("The call ended without a request message.")
        else:
            call.request = first
        return await proceed(call)


class _WaitingRoom:
    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        # Oldest first.
        self._waiting: dict[Call, asyncio.Timeout] = {}

    async def first_message(self, call: Call) -> Any:
        if len(self._waiting) >= self._maximum:
            oldest = next(iter(self._waiting))
            self._waiting.pop(oldest).reschedule(0)
        try:
            async with asyncio.timeout(ARRIVAL_SECONDS) as limit:
                self._waiting[call] = limit
                return await call.context.read()
        except TimeoutError:
            if call not in self._waiting:
                call.gave_way = True
                raise Overloaded(
                    f"More than {self._maximum} calls wait for their request; this one waited "
                    "longest. Send the request with the call."
                ) from None
            raise DeadlineExceeded(
                f"The request did not arrive within {ARRIVAL_SECONDS:g} s."
            ) from None
        finally:
            self._waiting.pop(call, None)


async def _with_first(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    if first is grpc.aio.EOF:
        return
    yield first
    async for message in rest:
        yield message
