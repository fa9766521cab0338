"""One run: the whole suite in virtual time under one seed's faults, watched by the invariants."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from fault_plan import (
    FAULTS_END,
    REPLICAS,
    ROUTERS,
    SUBSCRIBERS,
    Fault,
    FaultKind,
    FaultPlan,
)
from invariants import Finding, Invariant
from memory_of_worlds import WorldEvents
from player_requests import PlayerRequests
from simulated_hosts import CLOUD, CloudCall, Fleet, SimulatedHost
from simulated_services import (
    DATABASE,
    AutoscalerReplica,
    Collector,
    Hub,
    RouterTask,
    Subscriber,
    WorldKeeper,
)
from virtual_loop import START, NodeClock
from virtual_network import Network, Process, WeatherReport

from ai_router.config import AiRouterSettings
from ai_router.domain.generation import GenerationRequest
from autoscaler.config import AutoscalerSettings
from autoscaler.domain.observation import Players
from autoscaler.domain.tiers import Tier
from autoscaler.leadership import Role
from autoscaler.testing.memory_stores import MemoryDatabase
from fleetsim.instance_types import Market
from servicekit.settings import load_settings

__all__ = ["RunReport", "SimulatedSuite"]

RUN_ENDS = FAULTS_END + 110.0
_PLAYERS_SECONDS = 10.0

AUTOSCALER = {
    "AUTOSCALER_DATABASE_URL": "postgresql://nobody@localhost/none",
    "AUTOSCALER_GOLD_MINIMUM": "2",
    "AUTOSCALER_GOLD_MAXIMUM": "7",
    "AUTOSCALER_GOLD_CAPACITY_TOKENS": "300",
    "AUTOSCALER_GOLD_TOKENS_PER_REQUEST": "150",
    "AUTOSCALER_GOLD_RESIDENCE_SECONDS": "2",
    "AUTOSCALER_GOLD_START_SECONDS": "20",
    "AUTOSCALER_SILVER_MAXIMUM": "5",
    "AUTOSCALER_SILVER_CAPACITY_TOKENS": "300",
    "AUTOSCALER_SILVER_TOKENS_PER_REQUEST": "150",
    "AUTOSCALER_SILVER_RESIDENCE_SECONDS": "3",
    "AUTOSCALER_SILVER_START_SECONDS": "20",
    "AUTOSCALER_BRONZE_MAXIMUM": "3",
    "AUTOSCALER_BRONZE_RESIDENCE_SECONDS": "5",
    "AUTOSCALER_BRONZE_START_SECONDS": "20",
    "AUTOSCALER_SMOOTHING_SECONDS": "10",
    "AUTOSCALER_FAST_SMOOTHING_SECONDS": "3",
    "AUTOSCALER_TREND_SECONDS": "30",
    "AUTOSCALER_LEARNING_SECONDS": "60",
    "AUTOSCALER_PANIC_WINDOW_SECONDS": "15",
    "AUTOSCALER_STABILIZATION_SECONDS": "30",
    "AUTOSCALER_SCALE_IN_INTERVAL_SECONDS": "15",
    "AUTOSCALER_SCALE_IN_STEP_RATIO": "0.5",
    "AUTOSCALER_IDLE_TO_ZERO_SECONDS": "45",
    "AUTOSCALER_DRAIN_DEADLINE_SECONDS": "30",
    "AUTOSCALER_INTERRUPTION_DRAIN_LEAD_SECONDS": "30",
    "AUTOSCALER_INTERRUPTION_MARGIN_SECONDS": "8",
    "AUTOSCALER_UNRESPONSIVE_GRACE_SECONDS": "20",
    "AUTOSCALER_PLAYERS_STALE_SECONDS": "60",
    "AUTOSCALER_JOURNAL_POLL_SECONDS": "4",
    "AUTOSCALER_BUDGET_USD_PER_PLAYER_MONTH": "60",
}
ROUTER = {
    "AI_ROUTER_GOLD_CAPACITY_TOKENS": "600",
    "AI_ROUTER_SILVER_CAPACITY_TOKENS": "600",
    "AI_ROUTER_BRONZE_CAPACITY_TOKENS": "600",
    "AI_ROUTER_QUEUE_LIMIT": "12",
    "AI_ROUTER_DEMAND_INTERVAL_SECONDS": "3",
    "AI_ROUTER_CACHE_TTL_SECONDS": "60",
}
_AUTOSCALER_SETTINGS = load_settings(AutoscalerSettings, AUTOSCALER)
_ROUTER_SETTINGS = load_settings(AiRouterSettings, ROUTER)


@dataclass(frozen=True, slots=True)
class RunReport:
    """What came of a run.

    `run_hash` covers everything that was traced; two runs of one seed have the same.
    """

    seed: int
    run_hash: str
    findings: tuple[Finding, ...]
    trace: tuple[str, ...]
    counts: dict[str, int]


class SimulatedSuite:
    """All processes of a run, the truth about them, and the invariants."""

    ROUTERS = ROUTERS
    ITEMS_IN_FLIGHT = 60
    worlds = {  # noqa: RUF012  # a constant
        "Aldermoor": uuid.UUID(int=1),
        "Brackwater": uuid.UUID(int=2),
    }

    def __init__(self, seed: int, plan: FaultPlan, invariants: Sequence[type[Invariant]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._rng = Random(f"{seed} suite")  # noqa: S311  # not a secret
        self._lines: list[str] = []
        self.findings: list[Finding] = []
        self.counts: dict[str, int] = {}
        self.plan = plan
        self.autoscaler_settings = _AUTOSCALER_SETTINGS
        self.router_settings = _ROUTER_SETTINGS
        self.policies = self.autoscaler_settings.policies()
        self.budget = self.autoscaler_settings.budget()
        self.tiers = [tier.value for tier in Tier]
        self.feed_is_frozen = False
        self._hub_epochs = 0
        self._budgets: list[tuple[float, float]] = []
        self._offsets = dict(plan.wall_offsets_seconds)
        self._invariants = [kind(self, self._found) for kind in invariants]
        self.network = Network(seed, on_error=self._process_failed)
        self.database_clock = self._clock(DATABASE)
        self.database = MemoryDatabase(now=lambda: self.database_clock.now().timestamp())
        self.database_stores: Any = self.database.stores().journal
        self.world_store = WorldEvents(list(self.worlds.values()))
        self.fleet = Fleet(
            seed,
            self.network,
            trace=self.trace,
            maximum={tier.value: self.policies[tier].maximum for tier in Tier},
            start={"gold": 3, "silver": 1, "bronze": 0},
            spot_tiers=frozenset({"gold"} if FaultKind.SPOT in plan.kinds else ()),
        )
        self.fleet.on_terminate = self._host_ended
        self.fleet.on_call = lambda call: self._tell("call_arrived", call)
        self._processes: dict[str, Process] = {}
        self._parts: dict[str, Any] = {}
        self._makers: dict[str, Callable[[SimulatedSuite, Process], Any]] = {
            DATABASE: lambda _suite, _process: None,
            CLOUD: lambda _suite, _process: None,
            "collector": Collector,
            "hub": Hub,
            "knowledge_base": WorldKeeper,
            **dict.fromkeys(ROUTERS, RouterTask),
            **dict.fromkeys(REPLICAS, AutoscalerReplica),
            **dict.fromkeys(SUBSCRIBERS, Subscriber),
        }
        self._requests = PlayerRequests(seed, self)

    async def run(self, *, stops_at_findings: bool = False) -> None:
        """Run to the end, or to the second in which something was found."""
        for name in self._makers:
            self._start(name)
        self.network.set_weather(WeatherReport())
        self._loop.call_at(20.0, self._requests.begin)
        self._loop.call_at(40.0, self.network.set_weather, self.plan.weather)
        self._loop.call_at(FAULTS_END, self.network.set_weather, WeatherReport())
        for fault in self.plan.faults:
            self._loop.call_at(fault.time, self._begin, fault)
        self._loop.call_at(0.5, self._report_players)
        self._loop.call_at(1.0, self._second)
        for _ in range(int(RUN_ENDS)):
            await asyncio.sleep(1.0)
            if stops_at_findings and self.findings:
                break
        if not self.findings or not stops_at_findings:
            self._tell("finished")
        for process in self._processes.values():
            process.kill()
        for host in self.fleet.hosts.values():
            host.die()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    @property
    def is_calm(self) -> bool:
        """Whether the faults are over."""
        return self._loop.time() >= FAULTS_END

    # -- processes -----------------------------------------------------------------------------

    def _start(self, name: str) -> None:
        rng = Random(f"{self._rng.random()} {name}")  # noqa: S311  # not a secret
        process = Process(name, self.network, self._clock(name), rng)
        self._processes[name] = process
        self.network.listen(process)
        self._parts[name] = self._makers[name](self, process)
        self.trace("started", name)

    def _clock(self, name: str) -> NodeClock:
        return NodeClock(
            wall_offset_seconds=self._offsets.get(name, 0.0),
            uptime_seconds=self._rng.uniform(0.0, 1e6),
            drift=self._rng.uniform(-1e-4, 1e-4),
        )

    def _stop(self, name: str, *, silently: bool) -> None:
        self._processes[name].kill(silently=silently)
        self._parts.pop(name, None)
        self.trace("ended", name)

    # -- faults --------------------------------------------------------------------------------

    def _begin(self, fault: Fault) -> None:
        self.trace("fault", fault.kind.value, fault.target, fault.other, f"{fault.seconds:.1f}")
        match fault.kind:
            case FaultKind.CRASH | FaultKind.STOP:
                if not self._processes[fault.target].alive:
                    return
                if fault.kind is FaultKind.STOP:
                    # It gives the lead away and ends without waiting for the answer.
                    replica: AutoscalerReplica = self._parts[fault.target]
                    self._processes[fault.target].spawn(replica.release(), vital=False)
                    self._loop.call_later(0.5, self._crash, fault)
                else:
                    self._crash(fault)
            case FaultKind.HOST | FaultKind.SPOT:
                hosts = [
                    h
                    for h in self.fleet.hosts.values()
                    if fault.kind is FaultKind.HOST or self._is_spot(h.instance_id)
                ]
                if hosts:
                    host = hosts[int(fault.amount * len(hosts))]
                    act = self.fleet.kill if fault.kind is FaultKind.HOST else self.fleet.interrupt
                    act(host)
            case FaultKind.FROZEN:
                self.network.freeze(fault.target, fault.seconds)
            case FaultKind.JUMP:
                offset = self._offsets.get(fault.target, 0.0) + fault.amount
                self._offsets[fault.target] = offset
                self._processes[fault.target].clock.wall_offset_seconds = offset
            case _:
                self._toggle(fault, on=True)
                self._loop.call_later(fault.seconds, self._toggle_off, fault)

    def _crash(self, fault: Fault) -> None:
        if self._processes[fault.target].alive:
            self._stop(fault.target, silently=fault.amount > 0)
            self._loop.call_later(fault.seconds, self._start, fault.target)

    def _toggle_off(self, fault: Fault) -> None:
        self._toggle(fault, on=False)
        self.trace("fault ends", fault.kind.value, fault.target)

    def _toggle(self, fault: Fault, *, on: bool) -> None:
        match fault.kind:
            case FaultKind.CUT:
                self.network.cut(fault.target, fault.other, cut=on)
                if not fault.amount:
                    self.network.cut(fault.other, fault.target, cut=on)
            case FaultKind.DATABASE | FaultKind.CLOUD:
                end = DATABASE if fault.kind is FaultKind.DATABASE else CLOUD
                for name in self._makers:
                    self.network.cut(name, end, cut=on)
                    self.network.cut(end, name, cut=on)
            case FaultKind.FREEZE:
                self.feed_is_frozen = on
            case FaultKind.STOCK:
                for zone in self.fleet.cloud.settings.zones:
                    self.fleet.cloud.set_pool_limits(
                        self._loop.time(),
                        self.fleet.profiles[fault.target].instance_type,
                        zone,
                        on_demand_limit=1 if on else None,
                    )
                self.fleet.follow()
            case _:
                raise AssertionError(fault.kind)

    def _is_spot(self, instance_id: str) -> bool:
        return self.fleet.cloud.instance(instance_id).market is Market.SPOT

    # -- players -------------------------------------------------------------------------------

    def _report_players(self) -> None:
        """The game tells how many players are online, by its own clock."""
        online = self._requests.players_at(self._loop.time())
        seconds = self._loop.time() + self._offsets.get("game", 0.0)
        players = Players(online=online, count_time=START.timestamp() + seconds)

        def write(_: Process) -> None:
            now = self._loop.time()
            if self.database.players is None or (
                self.database.players.count_time < players.count_time
            ):
                self.database.players = players
                self._budgets.append((now, self.budget.usd_per_hour(online) or 0.0))

        self.network.send(self._processes[CLOUD], DATABASE, write)
        self._loop.call_later(_PLAYERS_SECONDS, self._report_players)

    def ask(
        self,
        world: str,
        request: GenerationRequest,
        *,
        router: str,
        seconds: float | None,
        patience: float,
    ) -> None:
        """A player asks a router; after `patience` seconds the player is gone."""
        self.counts["asked"] = self.counts.get("asked", 0) + 1

        def arrive(process: Process) -> None:
            task: RouterTask | None = self._parts.get(router)
            if task is None:
                return
            self.counts["accepted"] = self.counts.get("accepted", 0) + 1
            number = self.counts["accepted"]
            named = replace(request, request_id=f"{request.request_id}.{number}")
            work = process.spawn(task.serve(world, named, seconds), vital=False)
            self._loop.call_later(patience, work.cancel)

        self.network.send(self._processes[CLOUD], router, arrive)

    # -- what components tell ------------------------------------------------------------------

    def trace(self, *words: object) -> None:
        """Write a line of the run's history."""
        self._lines.append(f"{self._loop.time():9.3f}  {' '.join(map(str, words))}")

    def call_issued(self, call: CloudCall) -> None:
        self._tell("call_issued", call)

    def text_read(self, world: str, text: str, source: str) -> None:
        self.counts["texts"] = self.counts.get("texts", 0) + 1
        self._tell("text_read", world, text, source)

    def item_seen(self, subscriber: str, epoch: int, number: int) -> None:
        self.counts["items"] = self.counts.get("items", 0) + 1
        self._tell("item_seen", subscriber, epoch, number)

    def too_old_told(self, subscriber: str) -> None:
        self.trace("too_old", subscriber)
        self._tell("too_old_told", subscriber)

    def request_told(self, request: str, outcome: str) -> None:
        self.counts[outcome] = self.counts.get(outcome, 0) + 1
        self.trace("outcome", request, outcome)
        self._tell("request_told", request, outcome)

    def database_written(self, method: str, arguments: tuple[Any, ...]) -> None:
        if method == "save_drain":
            self.trace("drain_written", arguments[0].instance_id)
            self._tell("drain_written", arguments[0].instance_id)
        elif method == "end_drain":
            self.trace("drain_ended", arguments[0])
            self._tell("drain_ended", arguments[0])
        elif method == "save" and arguments[0].outcome is not None:
            record = arguments[0]
            decision = record.decision
            self.trace(
                "decision", record.decided_by, record.lease_epoch, decision.tier.value,
                decision.previous_desired, "->", decision.desired, decision.rule.value,
                record.outcome.value,
            )  # fmt: skip

    def logged_error(self, event: str, details: str) -> None:
        self.trace("error", event, details)
        self._tell("component_failed", event, details)

    def _process_failed(self, name: str, error: BaseException) -> None:
        self.trace("failed", name, repr(error))
        self._tell("component_failed", name, repr(error))

    def _host_ended(self, host: SimulatedHost, why: str) -> None:
        self._tell("host_ended", host, why)

    def _second(self) -> None:
        self._tell("second_passed")
        self._loop.call_later(1.0, self._second)

    def _tell(self, what: str, *arguments: Any) -> None:
        for invariant in self._invariants:
            getattr(invariant, what)(*arguments)

    def _found(self, finding: Finding) -> None:
        self.findings.append(finding)
        self.trace("FINDING", finding.invariant, finding.message)

    # -- the truth, for the invariants ---------------------------------------------------------

    def roles(self) -> dict[str, Role]:
        """Return what each live replica believes it may do."""
        return {name: self._parts[name].leadership.role for name in REPLICAS if name in self._parts}

    def role_of(self, name: str) -> Role | None:
        """Return what a replica believes it may do, None when it is gone."""
        return self.roles().get(name)

    def live_routers(self) -> list[RouterTask]:
        """Return the router tasks that run."""
        return [self._parts[name] for name in ROUTERS if name in self._parts]

    def draining(self, tier: str) -> int:
        """Return how many members of a tier's group have a durable drain."""
        return sum(
            1
            for instance_id, drain in self.database.drains.items()
            if drain.tier.value == tier and self.fleet.counts(instance_id)
        )

    def staying(self, tier: str) -> int:
        """Return a group's size without those being drained."""
        return self.fleet.groups.group(tier).desired_capacity - self.draining(tier)

    def usd_per_hour(self, tier: str, staying: int | None = None) -> float:
        """Return what a tier's `staying` servers cost, by default those it was asked for.

        Members cost what their market does, servers not launched yet the On-Demand price.
        """
        prices = self.autoscaler_settings.prices.table()
        instance_type = self.fleet.profiles[tier].instance_type
        members = [
            prices.usd_per_hour(instance_type, is_spot=self._is_spot(host_id))
            for host_id in self.fleet.members(tier)
            if host_id not in self.database.drains
        ]
        size = self.staying(tier) if staying is None else staying
        missing = max(0, size - len(members))
        return sum(sorted(members)[:size]) + missing * prices.usd_per_hour(
            instance_type, is_spot=False
        )

    def highest_recent_budget(self, caller: str) -> float | None:
        """Return the most that the players known lately pay for; None when none are known."""
        replica: AutoscalerReplica | None = self._parts.get(caller)
        if replica is None or (players := replica.picture.players) is None:
            return None
        age = replica.clock.now().timestamp() - players.count_time
        if age > self.policies[Tier.GOLD].players_stale_seconds - 15.0:
            return None
        recent = [usd for time, usd in self._budgets if time >= self._loop.time() - 30.0]
        return max([self.budget.usd_per_hour(players.online) or 0.0, *recent])

    def decided(self, replica: str, tier: str) -> int | None:
        """Return the size that a replica decided last."""
        report = self._parts[replica].picture.reports.get(Tier(tier))
        return None if report is None else report.record.decision.desired

    def next_hub_epoch(self) -> int:
        """Return the number of the hub's next run."""
        self._hub_epochs += 1
        return self._hub_epochs

    def newest_item(self) -> tuple[int, int]:
        """Return the last item the hub published."""
        hub: Hub = self._parts["hub"]
        return hub.epoch, hub.published

    def report(self, seed: int) -> RunReport:
        """Return what came of the run."""
        digest = hashlib.sha256("\n".join(self._lines).encode())
        digest.update(repr(sorted(self.counts.items())).encode())
        return RunReport(
            seed, digest.hexdigest(), tuple(self.findings), tuple(self._lines), self.counts
        )
