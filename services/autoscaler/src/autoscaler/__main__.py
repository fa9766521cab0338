"""Starts the autoscaler: `python -m autoscaler`. Settings come from the environment."""

from __future__ import annotations

if __name__ == "__main__":
    # Before all other imports, which it makes cheaper.
    from servicekit.process_start import begin

    begin()

import asyncio
import os
import socket
import sys
from contextlib import AsyncExitStack
from functools import partial

from autoscaler.config import AutoscalerSettings
from autoscaler.event_bus import join_bus
from autoscaler.service import open_autoscaler
from servicekit.runtime import ServiceRuntime, run_service


async def main(settings: AutoscalerSettings, runtime: ServiceRuntime) -> None:
    """Run one replica until a signal comes."""
    async with AsyncExitStack() as stack:
        replica_id = settings.replica_id or f"{socket.gethostname()}-{os.getpid()}"
        replica = await stack.enter_async_context(
            open_autoscaler(
                settings,
                replica_id=replica_id,
                clock=runtime.clock,
                rng=runtime.random,
                telemetry=runtime.telemetry,
            )
        )
        await runtime.serve(
            replica.registrations,
            settings.server,
            *replica.tasks,
            partial(_run_bus, settings, runtime),
        )


async def _run_bus(settings: AutoscalerSettings, runtime: ServiceRuntime) -> None:
    """Joins the bus beside the server: opening it takes a while, and no caller waits for it."""
    async with join_bus(
        settings,
        stopping=runtime.stopping,
        clock=runtime.clock,
        rng=runtime.random,
        telemetry=runtime.telemetry,
    ) as tasks:
        # Each ends by itself, in order, once the service is stopping; none of them raises.
        await asyncio.gather(*(task() for task in tasks))


if __name__ == "__main__":
    sys.exit(run_service("autoscaler", AutoscalerSettings, main))
