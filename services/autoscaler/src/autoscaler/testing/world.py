"""Replicas of the control loop on in-memory outside systems and a clock that stands still."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from autoscaler.config import LeaseSettings
from autoscaler.control_loop import ControlLoop, LoopSettings
from autoscaler.decision_feed import DecisionFeed
from autoscaler.domain.decision import DecisionRecord
from autoscaler.domain.demand_window import DemandView
from autoscaler.domain.fleet_view import FleetHost, FleetServer, FleetTier, FleetView
from autoscaler.domain.journal_rules import JournalPolicy
from autoscaler.domain.policy import BudgetPolicy
from autoscaler.domain.prices import PriceTable
from autoscaler.domain.tiers import TIERS, Tier
from autoscaler.leadership import Leadership
from autoscaler.metric_names import LoopInstruments
from autoscaler.picture import Picture
from autoscaler.testing.builders import build_demand, build_policy
from autoscaler.testing.memory_ports import (
    MemoryCloud,
    MemoryRouters,
    StaticDemand,
    StaticFleet,
)
from autoscaler.testing.memory_stores import MemoryDatabase
from servicekit.telemetry import Telemetry
from servicekit.testing import FakeClock

__all__ = ["MemoryReplica", "MemoryWorld"]

_PRICES = PriceTable(
    on_demand_usd_per_hour={"g5.xlarge": 1.006},
    spot_usd_per_hour={},
    spot_price_ratio=0.43,
    fallback_usd_per_hour=1.0,
)


@dataclass(slots=True)
class MemoryReplica:
    """One autoscaler replica."""

    loop: ControlLoop
    leadership: Leadership
    feed: DecisionFeed
    picture: Picture


class MemoryWorld:
    """A cloud, routers, a fleet feed and a database that any number of replicas share.

    Every instance of a group is a ready server unless it is in `not_ready`.
    """

    def __init__(self, **sizes: int) -> None:
        self.clock = FakeClock()
        self.database = MemoryDatabase(now=self.now)
        self.cloud = MemoryCloud(self.now, {tier: sizes.get(tier.value, 0) for tier in TIERS})
        self.routers = MemoryRouters()
        self.fleet = StaticFleet(FleetView())
        self.demand = StaticDemand(DemandView(tiers={}, age_seconds=None, router_ages_seconds={}))
        self.not_ready: set[str] = set()
        self.running_requests: dict[str, int] = {}
        self.interruptions: dict[str, float] = {}
        self._tokens: dict[Tier, int] = {}
        self.ask()

    def now(self) -> float:
        """Return the time as Unix seconds."""
        return self.clock.now().timestamp()

    def ask(self, **tokens: int) -> None:
        """Set the demand of tiers in tokens in flight; tiers not named keep theirs."""
        self._tokens |= {Tier(name): amount for name, amount in tokens.items()}
        self.demand.current = DemandView(
            tiers={tier: build_demand(self._tokens.get(tier, 0)) for tier in TIERS},
            age_seconds=0.5,
            router_ages_seconds={"router": 0.5},
        )

    def replica(self, name: str = "a", **changes: object) -> MemoryReplica:
        """Return a replica; `changes` are loop settings, or policy values under `policy`."""
        policy_changes = changes.pop("policy", {})
        assert isinstance(policy_changes, dict)  # noqa: S101 - a test's own mistake
        settings = LoopSettings(
            replica_id=name,
            policies={tier: build_policy(tier=tier, **policy_changes) for tier in TIERS},
            instance_types=dict.fromkeys(TIERS, "g5.xlarge"),
            budget=BudgetPolicy(usd_per_player_month=None, floor_servers={}),
            prices=_PRICES,
            journal=JournalPolicy(),
            tick_seconds=5.0,
            buffer_entries=100,
            dry_run=False,
        )
        settings = replace(settings, **changes)  # type: ignore[arg-type]  # a test's own values
        stores = self.database.stores()
        leadership = Leadership(
            stores.lease, name, LeaseSettings(ttl_seconds=15.0, renew_seconds=4.0), self.clock
        )
        feed = DecisionFeed(stores.journal, clock=self.clock, epoch=name, poll_seconds=1.0)
        picture = Picture()
        loop = ControlLoop(
            settings,
            stores=stores,
            leadership=leadership,
            cloud=self.cloud,
            routers=self.routers,
            fleet=self.fleet,
            demand=self.demand,
            feed=feed,
            picture=picture,
            instruments=LoopInstruments(Telemetry("test")),
            clock=self.clock,
            rng=random.Random(7),  # noqa: S311 - ids in tests
        )
        return MemoryReplica(loop, leadership, feed, picture)

    async def tick(self, *replicas: MemoryReplica) -> None:
        """Let each replica renew and do one round on the fleet as it is."""
        self.refresh()
        for replica in replicas:
            await replica.leadership.renew()
            await replica.loop.tick()

    async def pass_time(self, seconds: float, *replicas: MemoryReplica, step: float = 5.0) -> None:
        """Let time pass, with a round every `step` seconds."""
        passed = 0.0
        while passed < seconds:
            await self.clock.advance(step)
            passed += step
            await self.tick(*replicas)

    def refresh(self) -> None:
        """Make the fleet feed show what the cloud has."""
        hosts: dict[str, FleetHost] = {}
        tiers: dict[Tier, FleetTier] = {}
        for tier in TIERS:
            ids = [i for i in self.cloud.instance_ids(tier) if i not in self.not_ready]
            for instance_id in ids:
                hosts[instance_id] = FleetHost(
                    host_id=instance_id,
                    is_fresh=True,
                    is_spot=False,
                    interruption_time=self.interruptions.get(instance_id),
                    servers=(
                        FleetServer(
                            server_id=f"server-{instance_id}",
                            tier=tier,
                            is_ready=True,
                            running_requests=self.running_requests.get(instance_id, 0),
                            waiting_requests=0,
                        ),
                    ),
                )
            tiers[tier] = FleetTier(
                running_requests=None,
                waiting_requests=None,
                fresh_servers=len(ids),
                ready_servers=len(ids),
                first_token=None,
                inter_token=None,
            )
        self.fleet.current = FleetView(hosts=hosts, tiers=tiers, age_seconds=0.5)

    def decisions(self, tier: Tier) -> list[DecisionRecord]:
        """Return what the journal holds of a tier, oldest first."""
        found = [r for r in self.database.decisions.values() if r.decision.tier is tier]
        return sorted(found, key=lambda r: r.decision_id)
