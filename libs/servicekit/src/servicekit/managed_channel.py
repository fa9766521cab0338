"""A channel that gives every call a deadline and the trace, and opens connections as needed."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary

import grpc
import grpc.aio

from servicekit.transport_limits import STREAMS_PER_CONNECTION

__all__ = ["ManagedChannel"]

_LOOK_INTERVAL_SECONDS = 1.0
_SPARE_SECONDS = 30.0
"""How long a further connection that no call uses is kept for the next peak."""


class ManagedChannel(grpc.aio.Channel):
    """Wraps grpc.aio channels; the calls it returns are gRPC's own.

    A server takes `STREAMS_PER_CONNECTION` calls at once on one connection, and a gRPC channel lets
    further ones wait in silence. So calls go to the first connection with room, a further one is
    opened when none has any, up to `maximum_connections`, and goes again once it was idle for a
    while. Only beyond that do calls wait for others to end.

    A gRPC channel keeps the certificate it was made with. When `version()` returns another value,
    later calls go over new connections; the calls under way keep the old ones, which go with the
    last of them. Doing this around the channel rather than with gRPC's interceptors spares a task
    and a wrapper per call, and `call.cancel()` reaches the call itself.

    Args:
        connect: makes a channel with the certificates as they are now.
        version: a value that changes when the certificates do; read at most once a second.
        deadline_seconds: the longest a call of the method at this path may take.
        maximum_connections: how many connections may be open at once for new calls.
    """

    def __init__(
        self,
        connect: Callable[[], grpc.aio.Channel],
        version: Callable[[], object],
        deadline_seconds: Callable[[str], float],
        maximum_connections: int = 1,
    ) -> None:
        self._connect = connect
        self._version_of = version
        self._deadline_seconds = deadline_seconds
        self._maximum_connections = maximum_connections
        self._version = version()
        self._connections = [_Connection(connect())]
        self._former: list[_Connection] = []
        self._next_look = time.monotonic() + _LOOK_INTERVAL_SECONDS
        self._closed = False

    async def __aenter__(self) -> Self:
        """Returns itself."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Closes the channel; calls under way are cancelled."""
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Refuses new calls, and ends those under way after `grace` seconds."""
        self._closed = True
        async with asyncio.TaskGroup() as group:
            for connection in (*self._connections, *self._former):
                group.create_task(connection.channel.close(grace))

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Returns the state of the connection for new calls."""
        return self._first().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Returns when the state is another than `last_observed_state`."""
        await self._first().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Returns when the channel is connected."""
        await self._first().channel_ready()

    def unary_unary(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Returns what calls `method`."""
        return _Callable(self, "unary_unary", method, arguments, options)

    def unary_stream(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Returns what calls `method`."""
        return _Callable(self, "unary_stream", method, arguments, options)

    def stream_unary(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Returns what calls `method`."""
        return _Callable(self, "stream_unary", method, arguments, options)

    def stream_stream(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Returns what calls `method`."""
        return _Callable(self, "stream_stream", method, arguments, options)

    def connection(self) -> _Connection:
        """Returns the connection for the next call."""
        self._look()
        for connection in self._connections:
            if connection.calls < STREAMS_PER_CONNECTION:
                return connection
        if len(self._connections) < self._maximum_connections and not self._closed:
            self._connections.append(_Connection(self._connect()))
            return self._connections[-1]
        return min(self._connections, key=lambda connection: connection.calls)

    def longest(self, method: str) -> float:
        """Returns the deadline of a call that brings none."""
        return self._deadline_seconds(method)

    def _first(self) -> grpc.aio.Channel:
        self._look()
        return self._connections[0].channel

    def _look(self) -> None:
        now = time.monotonic()
        if now < self._next_look or self._closed:
            return
        self._next_look = now + _LOOK_INTERVAL_SECONDS
        version = self._version_of()
        if version != self._version:
            self._version = version
            # Not closed: closing would cancel the calls under way.
            self._former += self._connections
            self._connections = [_Connection(self._connect())]
        # A gRPC channel that is let go closes its connection.
        self._former = [each for each in self._former if each.calls]
        self._connections[1:] = [
            each for each in self._connections[1:] if not each.spare(now, _SPARE_SECONDS)
        ]


class _Connection:
    """One gRPC channel, and how many calls are under way on it."""

    __slots__ = ("__weakref__", "calls", "channel", "idle_since")

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.calls = 0
        self.idle_since = time.monotonic()

    def begin(self, call: Any) -> None:
        """Counts `call` until it is done."""
        self.calls += 1
        # Not call.add_done_callback: that ties the call to itself, and only the garbage collector
        # would free it, and with it the connection.
        call._cython_call.add_done_callback(self._end)  # noqa: SLF001  # see above

    def spare(self, now: float, seconds: float) -> bool:
        """Returns whether no call used it for that long."""
        return self.calls == 0 and now - self.idle_since >= seconds

    def _end(self) -> None:
        self.calls -= 1
        self.idle_since = time.monotonic()


class _Callable:
    """Calls one method over whichever connection has room."""

    __slots__ = ("_arguments", "_channel", "_inner", "_kind", "_method", "_options")

    def __init__(
        self,
        channel: ManagedChannel,
        kind: str,
        method: str,
        arguments: tuple[Any, ...],
        options: dict[str, Any],
    ) -> None:
        self._channel = channel
        self._kind = kind
        self._method = method
        self._arguments = arguments
        self._options = options
        self._inner: WeakKeyDictionary[_Connection, Any] = WeakKeyDictionary()

    def __call__(
        self, *request: Any, timeout: float | None = None, metadata: Any = None, **options: Any
    ) -> Any:
        connection = self._channel.connection()
        inner = self._inner.get(connection)
        if inner is None:
            make = getattr(connection.channel, self._kind)
            inner = self._inner[connection] = make(self._method, *self._arguments, **self._options)
        if timeout is None:
            timeout = self._channel.longest(self._method)
        # A process that never loaded OpenTelemetry has no trace, and need not load it to learn so.
        if "opentelemetry.trace" in sys.modules:
            metadata = _with_trace(metadata)
        call = inner(*request, timeout=timeout, metadata=metadata, **options)
        connection.begin(call)
        return call


def _with_trace(metadata: Any) -> Any:
    from opentelemetry import propagate, trace  # noqa: PLC0415  # only where it is loaded already

    if not trace.get_current_span().get_span_context().is_valid:
        return metadata
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return [*(metadata or ()), *carrier.items()]
