"""Whether a process is ready for work, asked from outside and with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp
import grpc

from gamekeeper.health import HEALTHY, service_health

__all__ = ["NotReadyError", "Probe", "grpc_health", "http_health"]

_DEADLINE_SECONDS = 2.0

Probe = Callable[[], Awaitable[None]]


class NotReadyError(Exception):
    """The process does not answer, or says that it cannot work; the text says which."""


def grpc_health(address: str) -> Probe:
    """Returns a probe that asks the gRPC health service at `address` for the whole server."""

    async def probe() -> None:
        # A channel of its own each time: a channel that failed would wait out its own backoff.
        async with grpc.aio.insecure_channel(
            address, options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            try:
                state = await service_health(channel, timeout_seconds=_DEADLINE_SECONDS)
            except grpc.aio.AioRpcError as error:
                raise NotReadyError(f"{address} answered {error.code().name}") from error
        if state != HEALTHY:
            raise NotReadyError(f"{address} says {state}")

    return probe


def http_health(url: str) -> Probe:
    """Returns a probe that expects a 2xx answer from `url`."""

    async def probe() -> None:
        try:
            async with (
                asyncio.timeout(_DEADLINE_SECONDS),
                aiohttp.ClientSession() as session,
                session.get(url) as response,
            ):
                if not response.ok:
                    raise NotReadyError(f"{url} answered {response.status}")
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise NotReadyError(f"{url} does not answer") from error

    return probe
