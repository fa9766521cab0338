"""How long a call waits for its handler to begin: found out by making one.

grpc.aio hands out one call at a time, each after the event loop's other work. While a server is too
slow, calls queue up inside gRPC, where no clock of ours sees them; a call of our own waits among
them like everybody's. gRPC's channelz statistics are no substitute: they count as started and not
finished also calls whose request never comes and, for ever, calls that gRPC's core ended itself.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from typing import Any

import grpc
import grpc.aio

__all__ = ["BeginningProbe"]

_NO_METHOD = "/gamekeeper.BeginningProbe/Begin"
"""A call of a method that no server has is answered where others begin, and goes no further: no
interceptor counts it, logs it or refuses it."""

_PATIENCE_SECONDS = 5.0


class BeginningProbe:
    """Calls the server it was made for, over a socket that nobody else is told of.

    That is plaintext also where everybody else comes with a certificate. On Linux it is a socket
    of the abstract namespace, elsewhere a port of the loopback interface; whoever finds it is a
    caller without identity and may, with TLS on, call health and nothing else.

    Args:
        server: not yet started; the probe adds an address of its own.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        if sys.platform == "linux":
            self._address = f"unix-abstract:gamekeeper-{secrets.token_hex(16)}"
            server.add_insecure_port(self._address)
        else:
            self._address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        self._channel: grpc.aio.Channel | None = None

    async def wait_seconds(self) -> float | None:
        """Makes a call and returns how long it waited, 5 s at most.

        None when it could not wait: gRPC's core was full, or there is no connection.
        """
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(
                self._address,
                options=[("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0)],
            )
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            begin: Any = self._channel.unary_unary(_NO_METHOD)
            await begin(b"", timeout=_PATIENCE_SECONDS)
        except grpc.aio.AioRpcError as error:
            waited = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.DEADLINE_EXCEEDED)
            return loop.time() - began if error.code() in waited else None
        return None

    async def close(self) -> None:
        """Closes the connection; calls under way end."""
        if self._channel is not None:
            await self._channel.close()
