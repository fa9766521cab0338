"""What tests of services use: a clock that stands still, servers on free ports, read failures."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.server import RpcServer, ServerSettings, ServiceRegistration
from servicekit.settings import load_settings

__all__ = [
    "FakeClock",
    "details_of",
    "failure_of",
    "reason_of",
    "serve_for_test",
    "servicer_with",
]


class FakeClock:
    """A clock that moves only when a test says so."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        """Returns the start plus what was advanced."""
        return self._start + timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        """Returns the seconds advanced."""
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        """Returns once the clock was advanced by `seconds`."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed + seconds, next(self._order), future))
        await future

    @property
    def sleeper_count(self) -> int:
        """How many tasks sleep on this clock."""
        return sum(not future.done() for _, _, future in self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Moves on by `seconds`, waking sleepers in order and letting each run before the next."""
        target = self._elapsed + seconds
        await self.settle()
        while self._sleepers and self._sleepers[0][0] <= target:
            due, _, future = heapq.heappop(self._sleepers)
            self._elapsed = max(self._elapsed, due)
            if not future.done():
                future.set_result(None)
                await self.settle()
        self._elapsed = target
        await self.settle()

    async def settle(self) -> None:
        """Lets all tasks run that can run without time or input."""
        for _ in range(20):
            await asyncio.sleep(0)


def servicer_with(base: type[Any], **methods: Callable[..., Any]) -> Any:
    """Returns a servicer of the generated class `base` that answers `methods` only.

    Each is a function of the request and the context, a coroutine function for one response or an
    async generator function for many.
    """
    functions = {name: staticmethod(function) for name, function in methods.items()}
    return type(f"Partial{base.__name__}", (base,), functions)()


@asynccontextmanager
async def serve_for_test(
    registrations: Sequence[ServiceRegistration], **environ: str
) -> AsyncIterator[tuple[RpcServer, grpc.aio.Channel]]:
    """Serves on a free loopback port and yields the server and a channel to it.

    Args:
        registrations: what to serve.
        environ: server settings as environment variables.
    """
    settings = load_settings(ServerSettings, environ)
    server = RpcServer(registrations, settings, clock=SystemClock())
    await server.start()
    await server.set_serving(True)
    try:
        async with open_channel(server.address) as channel:
            yield server, channel
    finally:
        await server.stop(0)


async def failure_of(call: Any) -> grpc.aio.AioRpcError:
    """Returns how `call`, unary or a stream read to its end, failed.

    Raises:
        AssertionError: it did not fail.
    """
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call succeeded")


def details_of(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """Returns the `ErrorInfo`, `BadRequest` and `RetryInfo` of a failed call by those names.

    Raises:
        AssertionError: the failure carries no status details, as every one of ours does.
    """
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # has the call's interface
    if status is None:
        raise AssertionError("the failure carries no details")
    found: dict[str, Any] = {}
    for detail in status.details:
        for kind in (
            error_details_pb2.ErrorInfo,
            error_details_pb2.BadRequest,
            error_details_pb2.RetryInfo,
        ):
            if detail.Is(kind.DESCRIPTOR):
                found[kind.__name__] = kind.FromString(detail.value)
    return found


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """Returns the reason in a failed call's `ErrorInfo`."""
    return str(details_of(error)["ErrorInfo"].reason)
