"""A gRPC server that takes calls from gRPC's core as they come, and begins those with a request.

grpc.aio asks its core for one call, waits until another thread hands it over, and only then asks
for the next. That costs 0.1 ms of CPU time a call, more than anything else about it; and calls that
come in together stand in the core's queue, where everybody waits behind a crowd and what is too
many is ended without a word. Here several are asked for at any time.

A call exists as soon as its headers do. Whoever sends headers alone makes grpc.aio build everything
a handler needs and hold it until the connection ends. Here a call waits for its first message
before anything is built for it, so that to hold it, and to refuse it, costs a fraction.

grpc.aio has no setting for any of this. The functions that its own loop is made of are called from
here; they exist in the versions that servicekit's requirements allow.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import structlog
from grpc._cython import cygrpc
from grpc.aio import _server as aio_server

from servicekit.errors import DeadlineExceeded, Overloaded
from servicekit.interceptors.errors import Trailer, trailer_of

__all__ = ["ARRIVAL_SECONDS", "MAXIMUM_WAITING", "EagerServer", "fair_excess", "first_message"]

log = structlog.get_logger(__name__)

ARRIVAL_SECONDS = 10.0
"""How long a first message may take: the largest, 1 MiB, over 1 Mbit/s takes 8.4 s."""

MAXIMUM_WAITING = 48
"""How many calls may wait for their first message, at some 15 kB each. Clients that work send it
with the headers or right behind them."""

_TAKEN_AT_ONCE = 16
"""How many calls are asked for at a time, and so the most that begin in one turn of the event
loop."""

_NEWEST = _TAKEN_AT_ONCE
"""Calls that do not give way, as what was sent with their headers may be on its way to us."""

_GIVING_WAY = _TAKEN_AT_ONCE
"""How many give way at a time, so that who has most waiting is not found out for every call."""

_MAXIMUM_REFUSALS = 32
"""How many refusals may be under way; what is to be refused beyond is dropped without a word."""

_STATUS_SECONDS = 5.0
"""How long the status of a refused call may take, as its peer may not read."""

_DROPPED_SECONDS = 0.1
"""How long it may take to learn that a call without a message was dropped by its caller."""

_TELLING_SECONDS = 1.0

_first: ContextVar[list[Any]] = ContextVar("first_message")


def first_message() -> list[Any]:
    """Returns the first message of the call that this task handles, as bytes, in a list.

    `EOF` when the caller ended the call without one. The list is empty when the message is yet to
    be read: gRPC's own loop takes one call in 17, and hands it on at once. Whoever takes the
    message takes it out of the list, which lives as long as the call.
    """
    return _first.get([])


def fair_excess(holders: Sequence[str], allowed: int) -> list[int]:
    """Returns which of the places in use to give up so that no more than `allowed` are left.

    Whoever holds most gives up first, the oldest of his places (max-min fairness).

    Args:
        holders: who holds each place, oldest first.
        allowed: how many places may stay in use.
    """
    held = Counter(holders)
    share = max(held.values(), default=0)
    while share > 0 and sum(min(count, share) for count in held.values()) > allowed:
        share -= 1
    over = {holder: count - share for holder, count in held.items()}
    given_up = []
    for place, holder in enumerate(holders):
        if over[holder] > 0:
            over[holder] -= 1
            given_up.append(place)
    return given_up


@dataclass(slots=True, eq=False)
class _Arrival:
    """A call whose first message is not there yet."""

    peer: str
    task: asyncio.Task[None]
    refusal: Trailer | None = None

    def refuse(self, refusal: Trailer) -> None:
        """Ends the wait."""
        if self.refusal is not None:
            return
        self.refusal = refusal
        self.task.cancel()


class EagerServer(aio_server.Server):
    """A grpc.aio server whose handlers begin with their first message at hand.

    Calls without one are refused after ten seconds. When too many wait, those of the connections
    that have most of them waiting give way, the oldest first; one whose message comes along, as a
    working client's does, passes in any crowd.

    Args:
        interceptors: as of `grpc.aio.server`.
        options: as of `grpc.aio.server`.
        on_gave_way: told how many calls gave way.
    """

    def __init__(
        self,
        interceptors: Sequence[grpc.aio.ServerInterceptor],
        options: Sequence[tuple[str, int]],
        *,
        on_gave_way: Callable[[int], None] = lambda count: None,
    ) -> None:
        super().__init__(None, (), tuple(interceptors), tuple(options), None, None)
        self._interceptors = tuple(interceptors)
        self._handlers: list[grpc.GenericRpcHandler] = []
        self._on_gave_way = on_gave_way
        self._taking: set[asyncio.Task[None]] = set()
        self._calls: set[asyncio.Task[None]] = set()
        self._refusals_under_way = 0
        self._untold = 0
        # Oldest first.
        self._waiting: dict[_Arrival, None] = {}
        self._gave_way = trailer_of(
            Overloaded(
                f"More than {MAXIMUM_WAITING} calls wait for their request, and most of them on "
                "connections like this one. Send the request with the call."
            )
        )
        self._too_late = trailer_of(
            DeadlineExceeded(f"The request did not arrive within {ARRIVAL_SECONDS:g} s.")
        )

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[Any]) -> None:
        """Registers handlers; only before the start."""
        handlers = tuple(generic_rpc_handlers)
        self._handlers.extend(handlers)
        super().add_generic_rpc_handlers(handlers)

    async def start(self) -> None:
        """Serves."""
        await super().start()
        for _ in range(_TAKEN_AT_ONCE):
            self._keep(self._taking, self._take_calls())

    async def stop(self, grace: float | None) -> None:
        """Takes no more calls, and ends those under way after `grace` seconds."""
        await super().stop(grace)
        for task in self._taking:
            task.cancel()
        if self._taking:
            await asyncio.wait(self._taking)

    async def _take_calls(self) -> None:
        core = self._server
        while core.is_running():
            try:
                state = await core._request_call()  # noqa: SLF001  # see the module's first lines
            except cygrpc._RequestCallError:  # noqa: SLF001  # the same
                return  # the server was stopped
            self._keep(self._calls, self._begin(state))

    async def _begin(self, state: Any) -> None:
        loop = asyncio.get_running_loop()
        message = await self._message(state, loop)
        if message is None:
            return
        _first.set([message])
        handling = cygrpc._handle_rpc(self._handlers, self._interceptors, state, loop, False)  # noqa: SLF001  # the same
        if message is grpc.aio.EOF:
            await _without_message(state, handling, loop)
        else:
            await cygrpc._schedule_rpc_coro(handling, state, loop)  # noqa: SLF001  # the same

    async def _message(self, state: Any, loop: asyncio.AbstractEventLoop) -> Any:
        """Returns the first message, `EOF` when none will come, None when the call was refused."""
        task = asyncio.current_task()
        if task is None:  # never: `_keep` makes one
            raise RuntimeError("a call was taken outside a task")
        if len(self._waiting) >= MAXIMUM_WAITING:
            self._make_room()
        arrival = _Arrival(_peer(state), task)
        self._waiting[arrival] = None
        limit = loop.call_later(ARRIVAL_SECONDS, arrival.refuse, self._too_late)
        try:
            message = await cygrpc._receive_message(state, loop)  # noqa: SLF001  # the same
        except asyncio.CancelledError:
            if arrival.refusal is None:
                raise
            task.uncancel()
        finally:
            limit.cancel()
            self._waiting.pop(arrival, None)
        if arrival.refusal is None:
            return grpc.aio.EOF if message is None else message
        if self._refusals_under_way < _MAXIMUM_REFUSALS:
            self._refusals_under_way += 1
            try:
                await _refuse(state, arrival.refusal, loop)
            finally:
                self._refusals_under_way -= 1
        return None

    def _make_room(self) -> None:
        waiting = list(self._waiting)
        excess = fair_excess([each.peer for each in waiting], len(waiting) - _GIVING_WAY)
        settled = len(waiting) - _NEWEST
        giving_way = [place for place in excess if place < settled] or range(_GIVING_WAY)
        for place in giving_way:
            del self._waiting[waiting[place]]
            waiting[place].refuse(self._gave_way)
        self._on_gave_way(len(giving_way))
        if not self._untold:
            asyncio.get_running_loop().call_later(_TELLING_SECONDS, self._tell)
        self._untold += len(giving_way)

    def _tell(self) -> None:
        # A line for each would cost more than the call.
        log.warning("calls_without_request_gave_way", count=self._untold)
        self._untold = 0

    def _keep(self, tasks: set[asyncio.Task[None]], work: Any) -> None:
        # The event loop itself holds no reference to a task.
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)


def _peer(state: Any) -> str:
    return str(cygrpc._ServicerContext(state, None, None, None).peer())  # noqa: SLF001  # the same


async def _refuse(state: Any, refusal: Trailer, loop: asyncio.AbstractEventLoop) -> None:
    headers = cygrpc.SendInitialMetadataOperation((), 0)
    try:
        # A peer that does not read its stream must not keep the task for ever.
        async with asyncio.timeout(_STATUS_SECONDS):
            await cygrpc._send_error_status_from_server(  # noqa: SLF001  # the same
                state, refusal.code.value[0], refusal.message, refusal.metadata, headers, loop
            )
    except (TimeoutError, cygrpc.ExecuteBatchError):
        pass  # the caller is gone


async def _without_message(state: Any, handling: Any, loop: asyncio.AbstractEventLoop) -> None:
    """Handles a call that brought no message, unless its caller dropped it."""
    closing = cygrpc.ReceiveCloseOnServerOperation(0)
    closed = loop.create_task(cygrpc.execute_batch(state, (closing,), loop))
    await asyncio.wait({closed}, timeout=_DROPPED_SECONDS)
    if closed.done():
        handling.close()  # nobody is there to be answered
        return
    answering = loop.create_task(cygrpc._handle_exceptions(state, handling, loop))  # noqa: SLF001  # the same
    await asyncio.wait({closed})
    if closing.cancelled():
        answering.cancel()
    await asyncio.wait({answering})
