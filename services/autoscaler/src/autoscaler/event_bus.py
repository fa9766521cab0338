"""The autoscaler on the game's event bus: players counted come in, changes of capacity go out."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from autoscaler.adapters.bus_events import player_share
from autoscaler.adapters.postgres_journal import SCHEMA
from autoscaler.adapters.postgres_stores import open_postgres_stores
from autoscaler.config import AutoscalerSettings, PlayerEventSettings
from autoscaler.ports import PlayerStore
from gaming.events.events_pb2 import GameEvent
from messaging.consumer import Handler
from messaging.service_bus import (
    keep_running,
    open_consumer,
    open_publisher,
    say_what_is_joined,
)
from messaging.store_tasks import store_tasks
from servicekit.clock import Clock
from servicekit.telemetry import Telemetry

__all__ = ["join_bus", "player_listener"]

# Enough for the relay, the clean-up and a few events at once; the control loop has its own.
_BUS_CONNECTIONS = 4


def player_listener(players: PlayerStore, settings: PlayerEventSettings, clock: Clock) -> Handler:
    """Return what takes the players that an event counts; it raises DatabaseAway, PoisonEvent.

    Counts are absolute and the newest of each service stands, so events may come twice, late or in
    any order.
    """

    async def take(message: GameEvent) -> None:
        share = player_share(
            message,
            state_key=settings.state_key,
            sources=settings.sources,
            now=clock.now().timestamp(),
        )
        if share is not None:
            await players.report_share(share)

    return take


@asynccontextmanager
async def join_bus(
    settings: AutoscalerSettings,
    *,
    stopping: asyncio.Event,
    clock: Clock,
    rng: random.Random,
    telemetry: Telemetry,
) -> AsyncIterator[tuple[Callable[[], Awaitable[None]], ...]]:
    """Join the bus as far as the settings name it; yield the tasks that keep it up.

    The bus has database connections of its own, so that no flood of events keeps the control loop
    from its journal.
    """
    messaging = settings.messaging
    say_what_is_joined(messaging)
    if not (messaging.publishes or messaging.consumes):
        yield ()
        return
    async with AsyncExitStack() as stack:
        publisher = None
        if messaging.publishes:
            publisher = await stack.enter_async_context(
                open_publisher(messaging, clock=clock, telemetry=telemetry, random=rng)
            )
        database = await stack.enter_async_context(
            open_postgres_stores(
                settings.database_url,
                application_name="autoscaler-events",
                maximum_connections=_BUS_CONNECTIONS,
            )
        )
        tasks = store_tasks(
            database.pool,
            publisher,
            schema=SCHEMA,
            settings=settings.bus_store,
            stopping=stopping,
            clock=clock,
            rng=rng,
            telemetry=telemetry,
        )
        if messaging.consumes:
            take = player_listener(database.stores.players, settings.player_events, clock)
            consumer = await stack.enter_async_context(
                open_consumer(messaging, take, clock=clock, telemetry=telemetry, random=rng)
            )
            tasks += (partial(keep_running, "consumer", consumer.run, stopping, clock),)
        yield tasks
