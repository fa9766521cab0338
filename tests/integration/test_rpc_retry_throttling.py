"""A service that cannot answer is not buried under its clients' repeated tries."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio

from autoscaler.testing.partial_service import GOLD, autoscaler_stub, autoscaler_with
from servicekit.errors import Unavailable
from servicekit.testing import failure_of, serve_for_test

CALLS_AT_ONCE = 50


class Backend:
    """Counts the tries that reach a service that is away."""

    def __init__(self) -> None:
        self.tries = 0

    async def get_tier(self, request: Any, context: Any) -> Any:
        self.tries += 1
        raise Unavailable("The database is away.")


async def fail(stub: Any, count: int) -> None:
    for _ in range(count // CALLS_AT_ONCE):
        errors = await asyncio.gather(
            *(failure_of(stub.GetTier(GOLD, timeout=30)) for _ in range(CALLS_AT_ONCE))
        )
        assert {error.code() for error in errors} == {grpc.StatusCode.UNAVAILABLE}


async def test_a_dead_backend_does_not_get_four_times_the_traffic() -> None:
    """At first each call is tried four times; the throttle then lets go of repeats altogether."""
    backend = Backend()
    async with serve_for_test([autoscaler_with(GetTier=backend.get_tier)]) as (_, channel):
        stub = autoscaler_stub(channel)
        await fail(stub, CALLS_AT_ONCE)
        assert backend.tries > 2 * CALLS_AT_ONCE  # a short trouble is worth repeats
        await fail(stub, 550)
        before = backend.tries
        await fail(stub, 200)
        assert backend.tries - before == 200
        assert backend.tries < 2 * 800
