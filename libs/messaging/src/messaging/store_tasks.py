"""The tasks that keep a service's outbox and inbox going.

Needs the `postgres` extra (asyncpg).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random

import asyncpg

from messaging.outbox_relay import OutboxRelay
from messaging.outbox_settings import StoreSettings
from messaging.publisher import EventPublisher
from messaging.retention import StoreRetention
from messaging.service_bus import keep_running
from servicekit.clock import Clock
from servicekit.telemetry import Telemetry

__all__ = ["store_tasks"]


def store_tasks(
    pool: asyncpg.Pool,
    publisher: EventPublisher | None,
    *,
    schema: str,
    settings: StoreSettings,
    stopping: asyncio.Event,
    clock: Clock,
    rng: Random,
    telemetry: Telemetry,
) -> tuple[Callable[[], Awaitable[None]], ...]:
    """Returns the tasks to run beside the service: retention, and the relay with a publisher."""
    retention = StoreRetention(pool, schema=schema, settings=settings, clock=clock)
    tasks = [partial(keep_running, "retention", retention.run, stopping, clock)]
    if publisher is not None:
        relay = OutboxRelay(
            pool,
            publisher,
            schema=schema,
            settings=settings,
            clock=clock,
            rng=rng,
            telemetry=telemetry,
        )
        tasks.append(partial(keep_running, "relay", relay.run, stopping, clock))
    return tuple(tasks)
