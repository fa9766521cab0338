"""One replica put together: what it is made of, and the tasks that keep it going."""

from __future__ import annotations

import asyncio
import importlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import structlog

from autoscaler.adapters.demand_feed import WatchedDemand
from autoscaler.adapters.fleet_feed import WatchedFleet
from autoscaler.adapters.late_cloud import LateCloud
from autoscaler.adapters.postgres_stores import PostgresStores, open_postgres_stores
from autoscaler.adapters.router_drains import GrpcRouterDrains
from autoscaler.config import AutoscalerSettings
from autoscaler.control_loop import ControlLoop, LoopSettings
from autoscaler.decision_feed import DecisionFeed
from autoscaler.leadership import Leadership, Role
from autoscaler.metric_names import LoopInstruments, register_metrics
from autoscaler.picture import Picture
from autoscaler.ports import ScalingCloud
from autoscaler.servicer import AutoscalerServicer, ServicerSettings
from gaming.autoscaler.v1 import autoscaler_pb2, autoscaler_pb2_grpc
from servicekit.channels import open_channel
from servicekit.clock import Clock, SteadyClock
from servicekit.postgres import DatabaseAway
from servicekit.server import ServiceRegistration
from servicekit.telemetry import Telemetry

__all__ = ["Replica", "open_autoscaler"]

log = structlog.get_logger(__name__)

_MIGRATION_RETRY_SECONDS = 2.0
_RETENTION_PAUSE_SECONDS = 3600.0
_SECONDS_PER_DAY = 86_400.0

Task = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica ready to serve: its RPCs, and the tasks that run beside them."""

    registrations: tuple[ServiceRegistration, ...]
    tasks: tuple[Task, ...]
    loop: ControlLoop
    leadership: Leadership
    feed: DecisionFeed
    picture: Picture


@asynccontextmanager
async def open_autoscaler(
    settings: AutoscalerSettings,
    *,
    replica_id: str,
    clock: Clock,
    rng: random.Random,
    telemetry: Telemetry | None = None,
) -> AsyncIterator[Replica]:
    """Build a replica; nothing outside needs to be reachable yet. Gives the lead away at the end.

    Raises ValueError when settings contradict each other, SettingsError for an address that needs
    TLS and has none.
    """
    # Cooldowns, drain windows and ages are durations: setting the machine's time must not end them.
    clock = SteadyClock(clock)
    telemetry = telemetry or Telemetry("autoscaler")
    policies = settings.policies()
    tiers = settings.tiers()
    budget = settings.budget()
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            open_postgres_stores(
                settings.database_url,
                announces=settings.messaging.publishes,
                players_stale_seconds=settings.pace.players_stale_seconds,
            )
        )
        stores = database.stores
        cloud = await stack.enter_async_context(LateCloud(partial(_open_cloud, settings, clock)))
        collectors = [
            await stack.enter_async_context(open_channel(target, settings.channel))
            for target in settings.collectors
        ]
        routers = {
            target: await stack.enter_async_context(open_channel(target, settings.channel))
            for target in settings.routers
        }
        fleet = WatchedFleet(collectors[0], clock=clock, jitter=rng, further=collectors[1:])
        demand = WatchedDemand(
            routers,
            clock=clock,
            jitter=rng,
            window_seconds=settings.pace.demand_window_seconds,
            forget_seconds=settings.pace.demand_stale_seconds,
        )
        leadership = Leadership(stores.lease, replica_id, settings.lease, clock)
        stack.push_async_callback(leadership.release)
        feed = DecisionFeed(
            stores.journal,
            clock=clock,
            epoch=f"{rng.getrandbits(64):016x}",
            poll_seconds=settings.journal.poll_seconds,
        )
        stack.callback(feed.close)
        picture = Picture()
        loop = ControlLoop(
            LoopSettings(
                replica_id=replica_id,
                policies=policies,
                instance_types={tier: of.instance_type for tier, of in tiers.items()},
                budget=budget,
                prices=settings.prices.table(),
                journal=settings.journal_policy(),
                tick_seconds=settings.pace.tick_seconds,
                buffer_entries=settings.journal.buffer_entries,
                dry_run=settings.dry_run,
            ),
            stores=stores,
            leadership=leadership,
            cloud=cloud,
            routers=GrpcRouterDrains(routers),
            fleet=fleet,
            demand=demand,
            feed=feed,
            picture=picture,
            instruments=LoopInstruments(telemetry),
            clock=clock,
            rng=rng,
        )
        servicer = AutoscalerServicer(
            ServicerSettings(
                replica_id=replica_id,
                dry_run=settings.dry_run,
                policies=policies,
                budget=budget,
                shown_budget_usd_per_player_month=settings.prices.budget_usd_per_player_month or 0,
                price_source="configured prices (AUTOSCALER_PRICES, AUTOSCALER_SPOT_PRICES)",
            ),
            stores=stores,
            picture=picture,
            leadership=leadership,
            feed=feed,
            journal=loop.journal,
            fleet=fleet,
            demand=demand,
            clock=clock,
        )
        register_metrics(telemetry, picture, leadership, loop.journal)
        retention_seconds = settings.journal.retention_days * _SECONDS_PER_DAY
        yield Replica(
            registrations=(
                ServiceRegistration.of(
                    autoscaler_pb2_grpc.add_AutoscalerServiceServicer_to_server,
                    servicer,
                    autoscaler_pb2.DESCRIPTOR.services_by_name["AutoscalerService"],
                ),
            ),
            tasks=(
                cloud.open,
                fleet.run,
                demand.run,
                lambda: _lead(database, cloud, leadership, clock),
                loop.run,
                feed.run,
                lambda: _retain(database, leadership, retention_seconds, clock),
            ),
            loop=loop,
            leadership=leadership,
            feed=feed,
            picture=picture,
        )


@asynccontextmanager
async def _open_cloud(settings: AutoscalerSettings, clock: Clock) -> AsyncIterator[ScalingCloud]:
    # In a thread, so that calls are answered while the AWS SDK is loaded.
    await asyncio.to_thread(importlib.import_module, "autoscaler.adapters.aws_scaling_groups")
    from autoscaler.adapters.aws_scaling_groups import (  # noqa: PLC0415  # see above
        open_aws_scaling_groups,
    )

    async with open_aws_scaling_groups(
        {tier: of.group for tier, of in settings.tiers().items()},
        clock=clock,
        region=settings.cloud.region,
        endpoint_url=settings.cloud.endpoint_url,
        timeout_seconds=settings.cloud.timeout_seconds,
    ) as cloud:
        yield cloud


async def _lead(
    database: PostgresStores, cloud: LateCloud, leadership: Leadership, clock: Clock
) -> None:
    """Stand for the lead once the schema is up to date and the cloud can be asked.

    Who leads must act, and renew the lead in time; loading the AWS SDK leaves little time for that.
    """
    while True:
        try:
            await database.migrate()
            break
        except DatabaseAway:
            log.warning("schema_not_checked", retry_seconds=_MIGRATION_RETRY_SECONDS)
        await clock.sleep(_MIGRATION_RETRY_SECONDS)
    await cloud.open()
    await leadership.run()


async def _retain(
    database: PostgresStores, leadership: Leadership, retention_seconds: float, clock: Clock
) -> None:
    """Delete what is older than the retention, once an hour, on the leader."""
    while True:
        await clock.sleep(_RETENTION_PAUSE_SECONDS)
        if leadership.role is not Role.LEADER:
            continue
        try:
            gone = await database.stores.journal.delete_before(
                clock.now().timestamp() - retention_seconds
            )
        except DatabaseAway:
            continue
        if gone:
            log.info("journal_trimmed", decisions=gone)
