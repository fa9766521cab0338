"""A channel that gives every call a deadline and the trace, and follows changed certificates."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

__all__ = ["ManagedChannel"]

_LOOK_INTERVAL_SECONDS = 1.0


class ManagedChannel(grpc.aio.Channel):
    """Wraps grpc.aio channels; the calls it returns are gRPC's own.

    A gRPC channel keeps the certificate it was made with. When `version()` returns another value,
    later calls go over a new channel; the calls under way keep the old one, which goes with the
    last of them. Doing this around the channel rather than with gRPC's interceptors spares a task
    and a wrapper per call, and `call.cancel()` reaches the call itself.

    Args:
        connect: makes a channel with the certificates as they are now.
        version: a value that changes when the certificates do; read at most once a second.
        deadline_seconds: the longest a call of the method at this path may take.
    """

    def __init__(
        self,
        connect: Callable[[], grpc.aio.Channel],
        version: Callable[[], object],
        deadline_seconds: Callable[[str], float],
    ) -> None:
        self._connect = connect
        self._version_of = version
        self._deadline_seconds = deadline_seconds
        self._version = version()
        self._channel = connect()
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
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Returns the state of the connection for new calls."""
        return self.current().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Returns when the state is another than `last_observed_state`."""
        await self.current().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Returns when the channel is connected."""
        await self.current().channel_ready()

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

    def current(self) -> grpc.aio.Channel:
        """Returns the gRPC channel for the next call."""
        now = time.monotonic()
        if now >= self._next_look and not self._closed:
            self._next_look = now + _LOOK_INTERVAL_SECONDS
            version = self._version_of()
            if version != self._version:
                self._version = version
                # Not closed: closing would cancel the calls under way.
                self._channel = self._connect()
        return self._channel

    def longest(self, method: str) -> float:
        """Returns the deadline of a call that brings none."""
        return self._deadline_seconds(method)


class _Callable:
    """Calls one method over whichever channel is current."""

    __slots__ = (
        "_arguments",
        "_channel",
        "_inner",
        "_inner_channel",
        "_kind",
        "_method",
        "_options",
    )

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
        self._inner_channel: grpc.aio.Channel | None = None
        self._inner: Any = None

    def __call__(
        self, *request: Any, timeout: float | None = None, metadata: Any = None, **options: Any
    ) -> Any:
        channel = self._channel.current()
        if channel is not self._inner_channel:
            self._inner_channel = channel
            make = getattr(channel, self._kind)
            self._inner = make(self._method, *self._arguments, **self._options)
        if timeout is None:
            timeout = self._channel.longest(self._method)
        # A process that never loaded OpenTelemetry has no trace, and need not load it to learn so.
        if "opentelemetry.trace" in sys.modules:
            metadata = _with_trace(metadata)
        return self._inner(*request, timeout=timeout, metadata=metadata, **options)


def _with_trace(metadata: Any) -> Any:
    from opentelemetry import propagate, trace  # noqa: PLC0415  # only where it is loaded already

    if not trace.get_current_span().get_span_context().is_valid:
        return metadata
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return [*(metadata or ()), *carrier.items()]
