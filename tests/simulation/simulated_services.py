"""The suite's own components as processes of the simulation: built as their `__main__` does.

Everything inside is the product's code. What differs is what a machine would give: the clock, the
randomness, the network, and in-memory stores that pass the same contract tests as PostgreSQL.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from memory_of_worlds import PlainEmbedder
from simulated_cloud_front import CloudFront, ObservedGroups
from simulated_hosts import ModelServers, ReportTaker
from virtual_network import Lost, Process, VirtualChannel, run_at_once

from ai_router.adapters.collector_fleet import CollectorFleetSource
from ai_router.config import AiRouterSettings
from ai_router.demand_feed import DemandFeed
from ai_router.domain.answer_cache import AnswerCache
from ai_router.domain.fleet_directory import FleetDirectory
from ai_router.domain.generation import GenerationEnd, GenerationRequest, TextDelta
from ai_router.domain.routing import RoutingDesk
from ai_router.domain.tiers import Tier as RouterTier
from ai_router.router import Router
from ai_router.servicer import AiRouterServicer
from autoscaler.adapters.aws_scaling_groups import AwsScalingGroups
from autoscaler.adapters.demand_feed import WatchedDemand
from autoscaler.adapters.fleet_feed import WatchedFleet
from autoscaler.adapters.router_drains import GrpcRouterDrains
from autoscaler.control_loop import ControlLoop, LoopSettings
from autoscaler.decision_feed import DecisionFeed
from autoscaler.domain.tiers import TIERS
from autoscaler.leadership import Leadership
from autoscaler.metric_names import LoopInstruments
from autoscaler.picture import Picture
from autoscaler.ports import Stores
from gaming.gpu_metrics.v1 import gpu_metrics_pb2_grpc
from gpu_metrics.alert_desk import AlertDesk
from gpu_metrics.domain.alert_book import AlertBook
from gpu_metrics.domain.event_journals import EventJournals
from gpu_metrics.domain.fleet import FleetPolicy, FleetView
from gpu_metrics.event_store import EventStore
from gpu_metrics.feed import FleetFeed
from gpu_metrics.servicers import GpuMetricsServicer
from knowledge_base.domain.lore import RankingParameters
from knowledge_base.domain.memory import NewEvent, RecallParameters, RecallQuery
from knowledge_base.memory import WorldMemory
from servicekit.clock import SteadyClock
from servicekit.errors import ServiceError
from servicekit.postgres import DatabaseAway
from servicekit.streams import ResumableLog, StreamItem
from servicekit.telemetry import Telemetry
from servicekit.watching import watch

if TYPE_CHECKING:
    from simulated_suite import SimulatedSuite

__all__ = [
    "DATABASE",
    "AutoscalerReplica",
    "Collector",
    "Hub",
    "RouterTask",
    "Subscriber",
    "WorldKeeper",
]

DATABASE = "database"
ROUTER_SERVICE = "gaming.ai_router.v1.AiRouterService"
COLLECTOR_SERVICE = "gaming.gpu_metrics.v1.GpuMetricsService"
HUB_SERVICE = "simulation.Hub"

_DATABASE_TIMEOUT_SECONDS = 3.0
_TELEMETRY = Telemetry("simulation")


class RemoteStores:
    """All stores of a service, over the network: every method of `stores` may fail or run twice.

    What PostgreSQL does not answer in time is DatabaseAway, though it may have been done.
    """

    def __init__(
        self,
        process: Process,
        stores: object,
        away: Callable[[str], Exception],
        on_done: Callable[[str, tuple[Any, ...]], None],
    ) -> None:
        self._process = process
        self._stores = stores
        self._away = away
        self._on_done = on_done

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._stores, name)

        async def ask(*arguments: Any, **options: Any) -> Any:
            def serve(_: Process) -> Any:
                result = run_at_once(method(*arguments, **options))
                if result is not False:  # what a fence kept out was not done
                    self._on_done(name, arguments)
                return result

            try:
                return await self._process.network.call(
                    self._process,
                    DATABASE,
                    serve,
                    timeout=_DATABASE_TIMEOUT_SECONDS,
                    takes_late_requests=False,
                )
            except Lost as lost:
                raise self._away(str(lost)) from lost

        return ask


class AutoscalerReplica:
    """One autoscaler replica."""

    def __init__(self, suite: SimulatedSuite, process: Process) -> None:
        self.name = process.name
        settings = suite.autoscaler_settings
        clock = self.clock = SteadyClock(process.clock)
        rng = process.rng
        stores: Any = RemoteStores(
            process, suite.database_stores, DatabaseAway, suite.database_written
        )
        routers: Any = {
            name: VirtualChannel(suite.network, process, name) for name in suite.ROUTERS
        }
        collector: Any = VirtualChannel(suite.network, process, "collector")
        self.fleet = WatchedFleet(collector, clock=clock, jitter=rng, interval_seconds=5.0)
        self.demand = WatchedDemand(
            routers,
            clock=clock,
            jitter=rng,
            window_seconds=settings.pace.demand_window_seconds,
            forget_seconds=settings.pace.demand_stale_seconds,
        )
        self.leadership = Leadership(stores, self.name, settings.lease, clock)
        self.feed = DecisionFeed(
            stores,
            clock=clock,
            epoch=f"{rng.getrandbits(64):016x}",
            poll_seconds=settings.journal.poll_seconds,
        )
        front = CloudFront(suite.fleet, process)
        groups = AwsScalingGroups(
            front,
            front,
            {tier: tier.value for tier in TIERS},
            clock=clock,
            timeout_seconds=settings.cloud.timeout_seconds,
        )
        self.picture = Picture()
        self.loop = ControlLoop(
            LoopSettings(
                replica_id=self.name,
                policies=settings.policies(),
                instance_types={tier: of.instance_type for tier, of in settings.tiers().items()},
                budget=settings.budget(),
                prices=settings.prices.table(),
                journal=settings.journal_policy(),
                tick_seconds=settings.pace.tick_seconds,
                buffer_entries=settings.journal.buffer_entries,
                dry_run=False,
            ),
            stores=Stores(
                journal=stores, drains=stores, overrides=stores, players=stores, lease=stores
            ),
            leadership=self.leadership,
            cloud=ObservedGroups(groups, suite.fleet, self.name, suite.call_issued),
            routers=GrpcRouterDrains(routers),
            fleet=self.fleet,
            demand=self.demand,
            feed=self.feed,
            picture=self.picture,
            instruments=LoopInstruments(_TELEMETRY),
            clock=clock,
            rng=rng,
        )
        for work in (
            self.fleet.run(),
            self.demand.run(),
            self.leadership.run(),
            self.loop.run(),
            self.feed.run(),
        ):
            process.spawn(work)

    async def release(self) -> None:
        """Give the lead away, as a replica does that is told to stop."""
        await self.leadership.release()


class RouterTask:
    """One router task, and what its callers were told."""

    def __init__(self, suite: SimulatedSuite, process: Process) -> None:
        self.name = process.name
        self.process = process
        self._suite = suite
        settings: AiRouterSettings = suite.router_settings
        clock, rng = process.clock, process.rng
        profiles = settings.tiers.profiles()
        self.desk = CountingDesk(
            FleetDirectory(profiles, settings.directory_policy(), order_seed=rng.getrandbits(64)),
            profiles,
            settings.routing_policy(),
        )
        self.demand = DemandFeed(
            self.desk,
            clock,
            router_id=self.name,
            epoch=f"{rng.getrandbits(64):016x}",
            interval_seconds=settings.demand_interval_seconds,
        )
        policy = replace(settings.router_policy(), queue_check_seconds=0.5)
        cache = AnswerCache(settings.cache_bytes, settings.cache_ttl_seconds)
        self.router = Router(self.desk, cache, ModelServers(suite.fleet, process), clock, policy)
        servicer = AiRouterServicer(
            self.router, self.demand, clock, lambda: f"{rng.getrandbits(64):016x}"
        )
        process.services[ROUTER_SERVICE] = servicer
        channel: Any = VirtualChannel(suite.network, process, "collector")
        stub: Any = gpu_metrics_pb2_grpc.GpuMetricsServiceStub(channel)
        source = CollectorFleetSource(stub, clock, random=rng, minimum_interval_seconds=3.0)
        for work in (
            self.router.follow(source),
            self.router.check_queues(),
            self.demand.run(),
        ):
            process.spawn(work)
        self._open = 0

    async def serve(self, world: str, request: GenerationRequest, seconds: float | None) -> None:
        """Answer one call, as the servicer does."""
        outcome = ""
        tell = self._suite.request_told
        name = f"{self.name} {request.request_id}"
        self._open += 1
        try:
            async with aclosing(self.router.generate(request, seconds)) as events:
                async for event in events:
                    match event:
                        case TextDelta(text):
                            self._suite.text_read(world, text, self.name)
                        case GenerationEnd():
                            outcome = "an answer"
                            tell(name, outcome)
            if not outcome:
                tell(name, "nothing")
                raise AssertionError(f"{name} ended without an outcome")
        except ServiceError as error:
            tell(name, error.reason)
        except asyncio.CancelledError:
            self._suite.trace("cancelled", name)
            raise
        finally:
            self._open -= 1

    def unaccounted(self) -> int:
        """Return accepted requests less those that are known to be somewhere or over."""
        return self.desk.open_tickets() - sum(
            len(self.desk.queued(tier)) + self.desk.running(tier) for tier in RouterTier
        )

    def left_over(self) -> str:
        """Return what is left of requests, nothing when all is well; for the end of a run."""
        parts = []
        if self._open:
            parts.append(f"{self._open} calls open")
        for tier in RouterTier:
            if queued := len(self.desk.queued(tier)):
                parts.append(f"{queued} {tier.name} requests queued")
            if running := self.desk.running(tier):
                parts.append(f"{running} {tier.name} requests running")
            parts.extend(
                f"{status.running_requests} requests counted on {status.report.server_id}"
                for status in self.desk.directory.statuses(tier, self.process.clock.monotonic())
                if status.running_requests or status.running_tokens
            )
        if self.desk.open_tickets():
            parts.append(f"{self.desk.open_tickets()} tickets without an outcome")
        return ", ".join(parts)


class CountingDesk(RoutingDesk):
    """The product's desk; counts tickets from outside: accepted ones, and how each left."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._tickets: dict[int, Any] = {}

    def open_tickets(self) -> int:
        """Return how many accepted tickets have no outcome."""
        return len(self._tickets)

    def running(self, tier: RouterTier) -> int:
        """Return how many requests run on the tier's servers by the desk's books."""
        return self._running[tier][0]

    def admit(self, ticket: Any) -> None:
        """Accept a ticket."""
        self._tickets[id(ticket)] = ticket
        super().admit(ticket)

    def complete(self, placement: Any, now: float, **measured: Any) -> None:
        """A ticket was answered."""
        super().complete(placement, now, **measured)
        self._leave(placement.ticket)

    def abandon(self, placement: Any) -> None:
        """A ticket's caller went away while it ran."""
        super().abandon(placement)
        self._leave(placement.ticket)

    def withdraw(self, ticket: Any) -> None:
        """A ticket's caller went away while it waited."""
        super().withdraw(ticket)
        self._leave(ticket)

    def give_up(self, ticket: Any) -> None:
        """A ticket's servers failed."""
        super().give_up(ticket)
        self._leave(ticket)

    def _shed(self, ticket: Any, now: float, error: Any) -> Any:
        self._leave(ticket)
        return super()._shed(ticket, now, error)

    def _leave(self, ticket: Any) -> None:
        if self._tickets.pop(id(ticket), None) is None:
            raise AssertionError(f"{ticket.request_id} left a second time")


class Collector:
    """The metrics collector; agents' reports reach it as single messages."""

    def __init__(self, suite: SimulatedSuite, process: Process) -> None:
        feed = FleetFeed(
            FleetView(FleetPolicy(stale_after_seconds=12.0, expire_after_seconds=40.0)),
            clock=process.clock,
            telemetry=_TELEMETRY,
            epoch=f"{process.rng.getrandbits(48):012x}",
            maintenance_seconds=2.0,
        )
        events = EventStore(EventJournals(), clock=process.clock, telemetry=_TELEMETRY)
        alerts = AlertDesk(
            feed, AlertBook(), clock=process.clock, telemetry=_TELEMETRY, epoch="alerts"
        )
        process.services[COLLECTOR_SERVICE] = GpuMetricsServicer(
            feed, process.clock, events=events, alerts=alerts
        )
        process.services["reports"] = ReportTaker(feed, lambda: not suite.feed_is_frozen)
        process.spawn(feed.maintain())


class Hub:
    """Publishes numbered items on a resumable log, as every stream of the suite does."""

    HISTORY, QUEUE = 40, 16

    def __init__(self, suite: SimulatedSuite, process: Process) -> None:
        self.epoch = suite.next_hub_epoch()
        self.published = 0
        self._clock, self._rng = process.clock, process.rng
        self._log: ResumableLog[tuple[int, int]] = ResumableLog(
            clock=process.clock,
            epoch=f"run{self.epoch}",
            history=self.HISTORY,
            subscriber_queue=self.QUEUE,
            heartbeat_seconds=4.0,
        )
        process.services[HUB_SERVICE] = self
        process.spawn(self._publish())

    async def _publish(self) -> None:
        while True:
            for _ in range(self._rng.choice((1, 1, 1, 2, 20))):
                self.published += 1
                self._log.publish((self.epoch, self.published))
            await self._clock.sleep(self._rng.uniform(1.0, 8.0))

    async def Watch(self, token: str, context: Any) -> Any:  # noqa: N802  # as a servicer's
        """Stream what comes after the token."""
        del context
        async for step in self._log.subscribe(token):
            yield step


class Subscriber:
    """Follows the hub for ever, at times slowly."""

    def __init__(self, suite: SimulatedSuite, process: Process) -> None:
        self._suite = suite
        self._process = process
        process.spawn(self._follow())

    async def _follow(self) -> None:
        process, name = self._process, self._process.name

        def open_stream(token: str) -> Any:
            return process.network.stream(process, "hub", f"/{HUB_SERVICE}/Watch", token)

        # Another run of the subscriber remembers nothing of the last one's.
        self._suite.too_old_told(name)
        step: StreamItem[tuple[int, int]]
        async for step in watch(
            open_stream,
            token_of=lambda message: message.token,
            clock=process.clock,
            name=name,
            jitter=process.rng,
            on_reset=lambda: self._suite.too_old_told(name),
        ):
            if step.item is not None:
                self._suite.item_seen(name, *step.item)
            if process.rng.random() < 0.005 and not self._suite.is_calm:
                await process.clock.sleep(process.rng.uniform(1.0, 25.0))


class WorldKeeper:
    """The knowledge base's memory, and a storyteller who writes and recalls for each world."""

    def __init__(self, suite: SimulatedSuite, process: Process) -> None:
        self._suite, self._process = suite, process
        store: Any = RemoteStores(process, suite.world_store, _unavailable, lambda _n, _a: None)
        self._memory = WorldMemory(
            store,
            PlainEmbedder(),
            process.clock,
            RankingParameters(),
            RecallParameters(),
            request_retention=timedelta(hours=1),
            new_id=self._new_id,
        )
        for world in suite.worlds:
            process.spawn(self._tell(world))

    async def _tell(self, world: str) -> None:
        """Write what happens in a world and recall it, for ever; a lost answer is asked again."""
        clock, rng = self._process.clock, self._process.rng
        world_id = self._suite.worlds[world]
        for number in itertools.count(1):
            request_id = self._new_id()
            event = NewEvent.of(f"{world}: the lamp was lit {number} times")
            for _ in range(3):
                try:
                    await self._memory.record_events(request_id, world_id, [event])
                    query = RecallQuery("who lit the lamp?", limit=3)
                    memories = await self._memory.recall(world_id, query)
                except ServiceError:
                    await clock.sleep(1.0)
                    continue
                for memory in memories:
                    self._suite.text_read(world, memory.event.text, "memory")
                break
            await clock.sleep(rng.uniform(6.0, 15.0))

    def _new_id(self) -> uuid.UUID:
        return uuid.UUID(int=self._process.rng.getrandbits(128))


def _unavailable(message: str) -> Exception:
    del message
    return DatabaseAway("The database cannot be reached; try again in a moment.")
