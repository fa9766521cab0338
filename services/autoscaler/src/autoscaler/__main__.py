"""Starts the autoscaler: `python -m autoscaler`. Settings come from the environment."""

from __future__ import annotations

if __name__ == "__main__":
    # Before all other imports, which it makes cheaper.
    from servicekit.process_start import begin

    begin()

import os
import socket
import sys
from contextlib import AsyncExitStack

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
        bus_tasks = await stack.enter_async_context(
            join_bus(
                settings,
                stopping=runtime.stopping,
                clock=runtime.clock,
                rng=runtime.random,
                telemetry=runtime.telemetry,
            )
        )
        await runtime.serve(replica.registrations, settings.server, *replica.tasks, *bus_tasks)


if __name__ == "__main__":
    sys.exit(run_service("autoscaler", AutoscalerSettings, main))
