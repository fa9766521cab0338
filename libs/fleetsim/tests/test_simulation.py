"""The whole fleet in virtual time."""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
import pytest

from fleetsim.arrivals import ArrivalProcess, TierMix
from fleetsim.cloud_state import CloudSettings
from fleetsim.errors import TimeWentBackwardsError
from fleetsim.players import EveningCurve, PlayerCurve, TraceCurve
from fleetsim.profiles import GOLD, SILVER
from fleetsim.routing import SHED, WAIT, LeastTokensRouter, PlayerRequest
from fleetsim.scaling import FixedFleet, FleetObservation, ScalingOrder, TargetConcurrency
from fleetsim.simulation import FleetSimulation
from fleetsim.simulation_result import SimulationResult
from fleetsim.simulation_settings import SimulationSettings, TierSettings
from fleetsim.virtual_time import VirtualTime
from fleetsim.zone_stock import PoolStock

GOLD_ONLY = TierMix(("gold",), (1.0,))


def steady(players: float, seconds: float = 600.0) -> TraceCurve:
    return TraceCurve(np.array([0.0, seconds]), np.array([players, players]))


def make(
    curve: PlayerCurve,
    *,
    seconds: float = 600.0,
    seed: int = 1,
    size: int = 2,
    scaler: object = None,
    tier: TierSettings | None = None,
    cloud: CloudSettings | None = None,
) -> FleetSimulation:
    tiers = {"gold": tier or TierSettings(GOLD, start_size=size)}
    return FleetSimulation(
        arrivals=ArrivalProcess(curve, mix=GOLD_ONLY),
        router=LeastTokensRouter(),
        scaler=scaler or FixedFleet({"gold": size}),  # type: ignore[arg-type]  # a test's policy
        seed=seed,
        settings=SimulationSettings(
            duration_seconds=seconds, tiers=tiers, cloud=cloud or CloudSettings()
        ),
    )


def test_every_request_ends_once_and_the_books_agree() -> None:
    result = make(steady(300)).run()
    totals = result.totals("gold")
    in_flight = totals.arrived - totals.finished - totals.shed - totals.failed
    assert 0 <= in_flight < 100
    assert totals.finished > 8000
    assert sum(p.tiers["gold"].finished for p in result.series) == totals.finished
    assert sum(p.tiers["gold"].arrived for p in result.series) == totals.arrived


def test_an_unhurried_fleet_meets_golds_targets() -> None:
    totals = make(steady(300)).run().totals("gold")
    assert totals.shed == totals.failed == 0
    assert totals.per_token_p95_seconds <= 0.016
    assert totals.first_token_p95_seconds <= 0.15


def test_the_same_seed_gives_the_same_hash_and_another_seed_another() -> None:
    first, again, other = (make(EveningCurve(200, 300), seed=s).run() for s in (5, 5, 6))
    assert first.run_hash() == again.run_hash()
    assert first.run_hash() != other.run_hash()


def test_a_change_of_policy_leaves_the_arrivals_as_they_were() -> None:
    small, large = (make(EveningCurve(200, 300), size=size).run() for size in (1, 4))
    assert small.arrived == large.arrived
    assert small.run_hash() != large.run_hash()


def test_too_few_servers_shed_instead_of_queueing_without_end() -> None:
    result = make(steady(2000, 200), size=1, seconds=200).run()
    totals = result.totals("gold")
    assert totals.shed > 0.5 * totals.arrived
    assert all(p.tiers["gold"].queued <= 100 for p in result.series)


def test_a_scaler_grows_with_the_evening_and_gives_back_afterwards() -> None:
    curve = EveningCurve(500, 1200)
    scaler = TargetConcurrency({"gold": 4}, hold_seconds=60)
    simulation = make(curve, seconds=1500, size=1, scaler=scaler)
    result = simulation.run()
    ready = [p.tiers["gold"].ready for p in result.series]
    assert max(ready) >= 4
    assert ready[-1] <= 1
    assert result.totals("gold").failed == 0, "draining loses no answers"
    cost = [p.cost_usd for p in result.series]
    assert cost == sorted(cost)
    always_at_peak = max(ready) * 1.006 * 1500 / 3600
    assert 0 < result.cost_usd < always_at_peak


def test_a_tier_can_start_from_nothing() -> None:
    tier = TierSettings(GOLD, start_size=0)
    scaler = TargetConcurrency({"gold": 12})
    result = make(steady(100, 900), seconds=900, tier=tier, scaler=scaler).run()
    ready = [p.tiers["gold"].ready for p in result.series]
    assert ready[0] == 0
    assert ready[4] >= 1, "baked hosts serve within a few minutes"
    assert result.series[-1].tiers["gold"].shed == 0


def test_a_killed_host_is_replaced_and_requests_before_their_first_token_move_on() -> None:
    simulation = make(steady(600), size=3)
    victim = simulation.groups

    def kill_one(run: FleetSimulation, now: float) -> None:
        member = run.groups.group("gold").instances[0].instance_id
        run.cloud.terminate(now, [member])

    simulation.at(200.0, kill_one)
    result = simulation.run()
    totals = result.totals("gold")
    assert 0 < totals.failed < 40, "only what was on that host with its first token out"
    assert totals.shed < 100
    assert result.series[-1].tiers["gold"].ready == 3
    assert len(victim.group("gold").instances) == 3


def test_a_zone_without_spot_takes_its_hosts_with_two_minutes_notice() -> None:
    tier = TierSettings(GOLD, start_size=4, on_demand_percentage_above_base=0)
    simulation = make(steady(400), tier=tier, size=4)

    def empty(run: FleetSimulation, now: float) -> None:
        run.cloud.set_spot_stock(now, "g5.xlarge", "us-east-1a", in_stock=False)

    simulation.at(120.0, empty)
    result = simulation.run()
    assert result.totals("gold").failed == 0, "two minutes are enough to finish what runs"
    zones = {i.zone for i in simulation.groups.group("gold").instances}
    assert zones == {"us-east-1b", "us-east-1c"}
    assert min(p.tiers["gold"].ready for p in result.series) < 4


def test_no_stock_anywhere_means_no_servers_and_a_failed_activity() -> None:
    stock = PoolStock(on_demand_limit=1)
    cloud = CloudSettings(zones=("us-east-1a",), default_stock=stock)
    simulation = make(steady(800), cloud=cloud, size=3)
    result = simulation.run()
    assert max(p.tiers["gold"].ready for p in result.series) == 1
    activity = simulation.groups.activities("gold")[0]
    assert "sufficient g5.xlarge capacity" in activity.status_message


def test_two_tiers_run_beside_each_other() -> None:
    simulation = FleetSimulation(
        arrivals=ArrivalProcess(steady(300), mix=TierMix(("gold", "silver"), (0.7, 0.3))),
        router=LeastTokensRouter(),
        scaler=FixedFleet({"gold": 2, "silver": 2}),
        seed=3,
        settings=SimulationSettings(
            duration_seconds=300.0,
            tiers={
                "gold": TierSettings(GOLD, start_size=2),
                "silver": TierSettings(SILVER, start_size=2),
            },
        ),
    )
    result = simulation.run()
    gold, silver = result.totals("gold"), result.totals("silver")
    assert gold.arrived > silver.arrived > 0
    assert gold.per_token_p50_seconds < silver.per_token_p50_seconds


class _Draining:
    """Shrinks to one server by name at a given time, and takes it back a little later."""

    def __init__(self) -> None:
        self.named = ""

    def decide(self, observation: FleetObservation) -> Mapping[str, ScalingOrder]:
        gold = observation.tiers["gold"]
        if observation.now == 60.0:
            self.named = gold.servers[0].server_id
            return {"gold": ScalingOrder(1, drain=(self.named,))}
        if observation.now == 75.0:
            return {"gold": ScalingOrder(2, resume=(self.named,))}
        return {}


def test_a_draining_server_can_be_named_and_taken_back() -> None:
    scaler = _Draining()
    tier = TierSettings(dataclasses.replace(GOLD, step_base_seconds=0.5), start_size=2)
    simulation = make(steady(60), tier=tier, scaler=scaler, seconds=300)
    result: SimulationResult = simulation.run()
    members = [i.instance_id for i in simulation.groups.group("gold").instances]
    assert scaler.named in members
    assert len(members) == 2
    assert result.totals("gold").failed == 0


def test_least_tokens_prefers_the_emptier_server_and_waits_when_all_are_full() -> None:
    router = LeastTokensRouter(requests_per_server=2, queue_limit=1)
    router.server_ready(0, "a", GOLD)
    router.server_ready(0, "b", GOLD)
    numbers = itertools.count()

    def ask(prompt: int) -> tuple[PlayerRequest, str]:
        request = PlayerRequest(
            next(numbers), prompt, 50, tier="gold", max_tokens=100, entered_time=0.0
        )
        request.server_id = router.route(0.0, request)
        return request, request.server_id

    big, first = ask(1000)
    _, second = ask(100)
    _, third = ask(100)
    assert first != second == third
    _, fourth = ask(10)
    assert fourth == first
    waiting, answer = ask(10)
    assert answer == WAIT
    assert ask(10)[1] == SHED
    assert router.queued("gold")[0] == 1
    router.finished(1.0, big)
    assert list(router.dispatch(1.0, "gold")) == [(waiting, first)]


def test_virtual_time_runs_events_in_order_and_never_back() -> None:
    time = VirtualTime()
    seen: list[str] = []
    time.at(2.0, seen.append, "late")
    time.at(1.0, seen.append, "first")
    time.at(1.0, seen.append, "second")
    time.run_until(1.5)
    assert seen == ["first", "second"]
    assert time.now == 1.5
    with pytest.raises(TimeWentBackwardsError):
        time.at(1.0, seen.append, "past")
    time.run_until(3.0)
    assert seen == ["first", "second", "late"]
