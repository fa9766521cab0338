"""The cloud's virtual machines as a pure state that steps through time.

Nothing here reads a clock. Every call carries `now` (seconds; Unix time when the cloud runs in
real time, any origin in virtual time) and time only moves forward. Randomness comes from the
injected generator, so the same calls with the same seed give the same instances, ids and delays.

What is modelled, and where the numbers come from:

- Lifecycle `pending → running → shutting-down → terminated` with EC2's state names and state
  reason codes (EC2 API reference, "Instance lifecycle").
- Launch latency: EC2's own part only, from RunInstances to `running`; the host's boot is part of
  the model server's cold start. Log-normal with a median of 20 s and a P95 of about 45 s, an
  assumption that together with boot, weights and warm-up gives the 1-2 minutes measured for baked
  images.
- Spot: two-minute notice, then `shutting-down` with `Server.SpotInstanceTermination` (EC2 user
  guide, "Spot Instance interruption notices"); a rebalance recommendation may come earlier;
  capacity is all or nothing per zone (see `zone_stock`).
- Insufficient capacity is raised when a pool has no stock, with EC2's error code and text.
- Billing: per second from `running` to `shutting-down`, at least 60 s, and nothing when EC2
  interrupts a Spot instance in its first hour (EC2 user guide, "Billing for interrupted Spot
  Instances").

`time_compression` divides everything that takes minutes in production (launch, notice, shutdown,
stock changes). Cost is reported in production terms: a second that passes costs
`time_compression` seconds, so a compressed evening costs what the real evening would.
"""

import heapq
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from fleetsim.cloud_state import CloudEvent, CloudEventKind, CloudSettings, Instance, InstanceState
from fleetsim.errors import (
    InstanceNotFoundError,
    InsufficientCapacityError,
    TimeWentBackwardsError,
)
from fleetsim.instance_types import INSTANCE_TYPES, Market
from fleetsim.zone_stock import PoolStock

__all__ = [
    "Cloud",
    "CloudEvent",
    "CloudEventKind",
    "CloudSettings",
    "Instance",
    "InstanceState",
]


@dataclass(slots=True)
class _Pool:
    stock: PoolStock
    spot_in_stock: bool
    generation: int = 0


_FIRST_HOUR_SECONDS = 3600.0
_MINIMUM_BILLED_SECONDS = 60.0
_USER_SHUTDOWN = (
    "Client.UserInitiatedShutdown",
    "Client.UserInitiatedShutdown: User initiated shutdown",
)
_SPOT_SHUTDOWN = (
    "Server.SpotInstanceTermination",
    "Server.SpotInstanceTermination: Spot instance termination",
)


class Cloud:
    """The EC2 part of one region: launches, terminates, interrupts and bills instances.

    Events that became due are returned by `advance`, oldest first, each exactly once; also those
    that a mutating call caused at once. With Auto Scaling groups on top, call
    `ScalingGroups.advance` only: it advances the cloud and passes its events on.
    """

    def __init__(
        self,
        *,
        rng: np.random.Generator,
        start_time: float = 0.0,
        settings: CloudSettings | None = None,
        time_compression: float = 1.0,
    ) -> None:
        if not time_compression > 0:
            raise ValueError("time_compression must be positive")
        self.settings = settings or CloudSettings()
        self.time_compression = time_compression
        self._rng, self._stock_rng = rng.spawn(2)
        self._now = start_time
        self._sequence = itertools.count()
        self._heap: list[tuple[float, int, str, str | tuple[str, str], int]] = []
        self._instances: dict[str, Instance] = {}
        self._pools: dict[tuple[str, str], _Pool] = {}
        self._outbox: list[CloudEvent] = []
        self._forgotten_cost_usd = 0.0
        self._addresses = itertools.count()
        for pool_key in self.settings.stock:
            self._pool(pool_key)

    @property
    def now(self) -> float:
        """The time this state stands at."""
        return self._now

    def advance(self, now: float) -> list[CloudEvent]:
        """Move time to `now` and return what happened since the last call, oldest first."""
        self._catch_up(now)
        events, self._outbox = self._outbox, []
        return events

    def next_event_time(self) -> float | None:
        """When something will next happen by itself; None when nothing is due.

        Undelivered events count as due now.
        """
        if self._outbox:
            return self._now
        return self._heap[0][0] if self._heap else None

    def launch(
        self,
        now: float,
        *,
        instance_type: str,
        zone: str,
        market: Market = Market.ON_DEMAND,
        tags: Mapping[str, str] | None = None,
    ) -> Instance:
        """Start one instance; it is `pending` and runs after the launch latency.

        Raises InsufficientCapacityError when the pool has no stock, KeyError for an instance type
        this library has no price for, ValueError for a zone outside the region.
        """
        self._catch_up(now)
        spec = INSTANCE_TYPES[instance_type]
        if zone not in self.settings.zones:
            raise ValueError(f"{zone!r} is not a zone of this region")
        if not self.has_stock(instance_type, zone, market):
            raise InsufficientCapacityError(
                "InsufficientInstanceCapacity",
                "There is no Spot capacity available that matches your request."
                if market is Market.SPOT
                else f"We currently do not have sufficient {instance_type} capacity in the "
                f"Availability Zone you requested ({zone}).",
            )
        number = next(self._addresses)
        zone_index = self.settings.zones.index(zone)
        instance = Instance(
            instance_id=f"i-{int(self._rng.integers(1 << 60)):017x}",
            instance_type=instance_type,
            zone=zone,
            market=market,
            private_ip_address=f"10.{zone_index}.{number // 250 % 250}.{number % 250 + 4}",
            usd_per_hour=spec.usd_per_hour(market),
            launch_time=now,
            tags=MappingProxyType(dict(tags or {})),
        )
        self._put(now, CloudEventKind.INSTANCE_PENDING, instance)
        delay = self._log_normal(self.settings.launch_median_seconds, self.settings.launch_sigma)
        self._schedule(now + delay, "run", instance.instance_id)
        return instance

    def terminate(
        self,
        now: float,
        instance_ids: Iterable[str],
        *,
        reason: tuple[str, str] = _USER_SHUTDOWN,
    ) -> list[Instance]:
        """Shut instances down; ones already on their way stay as they are, as in EC2.

        Raises InstanceNotFoundError, changing nothing, when any id is unknown.
        """
        self._catch_up(now)
        instances = [self.instance(instance_id) for instance_id in instance_ids]
        return [self._shut_down(now, instance, reason) for instance in instances]

    def interrupt(
        self, now: float, instance_ids: Iterable[str], *, rebalance_first: bool = False
    ) -> None:
        """Give Spot instances their interruption notice, or first a rebalance recommendation.

        On-Demand instances and ones that are no longer alive are left alone.
        """
        self._catch_up(now)
        for instance in [self.instance(instance_id) for instance_id in instance_ids]:
            if rebalance_first:
                self._recommend_rebalance(now, instance)
                lead = self.settings.rebalance_lead_seconds / self.time_compression
                self._schedule(now + lead, "notice", instance.instance_id)
            else:
                self._give_notice(now, instance)

    def set_tags(self, now: float, instance_id: str, tags: Mapping[str, str]) -> Instance:
        """Replace an instance's tags. Raises InstanceNotFoundError."""
        self._catch_up(now)
        instance = replace(self.instance(instance_id), tags=MappingProxyType(dict(tags)))
        self._instances[instance_id] = instance
        return instance

    def set_spot_stock(self, now: float, instance_type: str, zone: str, *, in_stock: bool) -> None:
        """Empty or refill a zone's Spot pool; emptying it interrupts every Spot instance there.

        A pool that changes by itself goes on doing so from here.
        """
        self._catch_up(now)
        self._change_stock(now, (instance_type, zone), in_stock=in_stock)

    def set_pool_limits(
        self,
        now: float,
        instance_type: str,
        zone: str,
        *,
        on_demand_limit: int | None = None,
        spot_limit: int | None = None,
    ) -> None:
        """Cap how many instances of a type may exist in a zone; existing ones stay."""
        self._catch_up(now)
        pool = self._pool((instance_type, zone))
        pool.stock = replace(pool.stock, on_demand_limit=on_demand_limit, spot_limit=spot_limit)

    def has_stock(self, instance_type: str, zone: str, market: Market) -> bool:
        """Whether a launch would succeed right now."""
        pool = self._pool((instance_type, zone))
        if market is Market.SPOT and not pool.spot_in_stock:
            return False
        limit = pool.stock.spot_limit if market is Market.SPOT else pool.stock.on_demand_limit
        if limit is None:
            return True
        in_use = sum(
            1
            for i in self._instances.values()
            if i.is_alive and (i.instance_type, i.zone, i.market) == (instance_type, zone, market)
        )
        return in_use < limit

    def instance(self, instance_id: str) -> Instance:
        """Return one instance as it is now. Raises InstanceNotFoundError."""
        try:
            return self._instances[instance_id]
        except KeyError:
            raise InstanceNotFoundError(instance_id) from None

    def instances(self, *states: InstanceState) -> list[Instance]:
        """Return the instances in any of `states` (all visible ones without), oldest first."""
        return [i for i in self._instances.values() if not states or i.state in states]

    def cost_usd(self, now: float) -> float:
        """Return what all instances have cost until `now`, in production terms."""
        return self._forgotten_cost_usd + sum(
            self.instance_cost_usd(i, now) for i in self._instances.values()
        )

    def instance_cost_usd(self, instance: Instance, now: float) -> float:
        """Return what one instance has cost until `now`, in production terms."""
        if instance.running_time is None:
            return 0.0
        end = now if instance.shutting_down_time is None else instance.shutting_down_time
        seconds = (end - instance.running_time) * self.time_compression
        interrupted = instance.state_reason == _SPOT_SHUTDOWN
        if interrupted and seconds < _FIRST_HOUR_SECONDS:
            return 0.0
        return max(seconds, _MINIMUM_BILLED_SECONDS) / 3600.0 * instance.usd_per_hour

    # -- internals ---------------------------------------------------------------------------

    def _catch_up(self, now: float) -> None:
        if now < self._now:
            raise TimeWentBackwardsError(now, self._now)
        while self._heap and self._heap[0][0] <= now:
            time, _, action, subject, generation = heapq.heappop(self._heap)
            self._now = time
            self._apply(time, action, subject, generation)
        self._now = now

    def _schedule(
        self,
        time: float,
        action: str,
        subject: str | tuple[str, str],
        generation: int = 0,
    ) -> None:
        heapq.heappush(self._heap, (time, next(self._sequence), action, subject, generation))

    def _apply(
        self, time: float, action: str, subject: str | tuple[str, str], generation: int
    ) -> None:
        if isinstance(subject, tuple):
            self._apply_to_pool(time, action, subject, generation)
        elif subject in self._instances:
            self._apply_to_instance(time, action, self._instances[subject])

    def _apply_to_pool(
        self, time: float, action: str, key: tuple[str, str], generation: int
    ) -> None:
        if generation != self._pools[key].generation:
            return
        if action == "rebalance":
            for instance in self._spot_instances(key):
                self._recommend_rebalance(time, instance)
        else:
            self._change_stock(time, key, in_stock=action == "refill")

    def _apply_to_instance(self, time: float, action: str, instance: Instance) -> None:
        if action == "run" and instance.state is InstanceState.PENDING:
            instance = replace(instance, state=InstanceState.RUNNING, running_time=time)
            self._put(time, CloudEventKind.INSTANCE_RUNNING, instance)
        elif action == "notice":
            self._give_notice(time, instance)
        elif action == "reclaim" and instance.is_alive:
            self._shut_down(time, instance, _SPOT_SHUTDOWN)
        elif action == "terminated":
            instance = replace(instance, state=InstanceState.TERMINATED, terminated_time=time)
            self._put(time, CloudEventKind.INSTANCE_TERMINATED, instance)
            visible = self.settings.terminated_visible_seconds / self.time_compression
            self._schedule(time + visible, "forget", instance.instance_id)
        elif action == "forget":
            self._forgotten_cost_usd += self.instance_cost_usd(instance, time)
            del self._instances[instance.instance_id]

    def _put(self, time: float, kind: CloudEventKind, instance: Instance) -> None:
        self._instances[instance.instance_id] = instance
        self._outbox.append(CloudEvent(time, kind, instance, instance.instance_type, instance.zone))

    def _shut_down(self, time: float, instance: Instance, reason: tuple[str, str]) -> Instance:
        if not instance.is_alive:
            return instance
        instance = replace(
            instance,
            state=InstanceState.SHUTTING_DOWN,
            shutting_down_time=time,
            state_reason=reason,
        )
        self._put(time, CloudEventKind.INSTANCE_SHUTTING_DOWN, instance)
        settings = self.settings
        delay = self._log_normal(settings.shutdown_median_seconds, settings.shutdown_sigma)
        self._schedule(time + delay, "terminated", instance.instance_id)
        return instance

    def _recommend_rebalance(self, time: float, instance: Instance) -> None:
        if (
            instance.is_alive
            and instance.market is Market.SPOT
            and instance.rebalance_time is None
            and instance.interruption_notice_time is None
        ):
            instance = replace(instance, rebalance_time=time)
            self._put(time, CloudEventKind.REBALANCE_RECOMMENDED, instance)

    def _give_notice(self, time: float, instance: Instance) -> None:
        if (
            not instance.is_alive
            or instance.market is not Market.SPOT
            or instance.interruption_notice_time is not None
        ):
            return
        reclaim_time = time + self.settings.spot_notice_seconds / self.time_compression
        instance = replace(instance, interruption_notice_time=time, termination_time=reclaim_time)
        self._put(time, CloudEventKind.SPOT_INTERRUPTION_NOTICE, instance)
        self._schedule(reclaim_time, "reclaim", instance.instance_id)

    def _spot_instances(self, pool_key: tuple[str, str]) -> list[Instance]:
        return [
            i
            for i in self._instances.values()
            if i.is_alive and i.market is Market.SPOT and (i.instance_type, i.zone) == pool_key
        ]

    def _pool(self, key: tuple[str, str]) -> _Pool:
        pool = self._pools.get(key)
        if pool is None:
            stock = self.settings.stock.get(key, self.settings.default_stock)
            pool = self._pools[key] = _Pool(stock, stock.spot_in_stock_at_start)
            self._plan_stock_change(self._now, key, pool)
        return pool

    def _change_stock(self, time: float, key: tuple[str, str], *, in_stock: bool) -> None:
        pool = self._pool(key)
        if pool.spot_in_stock == in_stock:
            return
        pool.spot_in_stock = in_stock
        kind = CloudEventKind.SPOT_IN_STOCK if in_stock else CloudEventKind.SPOT_OUT_OF_STOCK
        self._outbox.append(CloudEvent(time, kind, None, key[0], key[1]))
        if not in_stock:
            spread = self.settings.interruption_spread_seconds / self.time_compression
            for instance in self._spot_instances(key):
                delay = float(self._stock_rng.random()) * spread
                self._schedule(time + delay, "notice", instance.instance_id)
        self._plan_stock_change(time, key, pool)

    def _plan_stock_change(self, time: float, key: tuple[str, str], pool: _Pool) -> None:
        pool.generation += 1
        seconds = pool.stock.draw_sojourn_seconds(self._stock_rng, in_stock=pool.spot_in_stock)
        if seconds == float("inf"):
            return
        change_time = time + seconds / self.time_compression
        action = "empty" if pool.spot_in_stock else "refill"
        self._schedule(change_time, action, key, pool.generation)
        lead = self.settings.rebalance_lead_seconds / self.time_compression
        if pool.spot_in_stock and self._stock_rng.random() < self.settings.rebalance_probability:
            self._schedule(max(time, change_time - lead), "rebalance", key, pool.generation)

    def _log_normal(self, median_seconds: float, sigma: float) -> float:
        draw = float(self._rng.lognormal(0.0, sigma))
        return median_seconds * draw / self.time_compression
