"""The fleet as flows, compared with the same fleet request by request."""

import numpy as np
import pytest

from fleetsim.arrivals import ArrivalProcess, TierMix
from fleetsim.fluid import FluidSimulation, most_requests_per_second
from fleetsim.players import DayCurve, EveningCurve, TraceCurve
from fleetsim.profiles import GOLD, SILVER
from fleetsim.routing import LeastTokensRouter
from fleetsim.scaling import FixedFleet, TargetConcurrency
from fleetsim.simulation import FleetSimulation
from fleetsim.simulation_settings import SimulationSettings, TierSettings

GOLD_ONLY = TierMix(("gold",), (1.0,))


def settings(seconds: float, size: int) -> SimulationSettings:
    tiers = {"gold": TierSettings(GOLD, start_size=size)}
    return SimulationSettings(duration_seconds=seconds, tiers=tiers)


@pytest.mark.parametrize("players", [300, 500])
def test_flows_agree_with_single_requests_on_a_steady_fleet(players: int) -> None:
    curve = TraceCurve(np.array([0.0, 400.0]), np.array([players, players], dtype=float))
    arrivals = ArrivalProcess(curve, mix=GOLD_ONLY)
    scaler = FixedFleet({"gold": 2})
    flow = FluidSimulation(arrivals=arrivals, scaler=scaler, seed=1, settings=settings(400, 2))
    exact = FleetSimulation(
        arrivals=arrivals,
        router=LeastTokensRouter(),
        scaler=scaler,
        seed=1,
        settings=settings(400, 2),
    )
    flows = flow.run().tiers["gold"]
    totals = exact.run().totals("gold")
    assert flows.served_per_second[-1] * 400 == pytest.approx(totals.finished, rel=0.03)
    assert flows.seconds_per_token[-1] == pytest.approx(totals.per_token_p50_seconds, rel=0.15)


def test_overload_is_served_up_to_the_stated_throughput_and_the_rest_shed() -> None:
    curve = TraceCurve(np.array([0.0, 900.0]), np.array([5000.0, 5000.0]))
    run = FluidSimulation(
        arrivals=ArrivalProcess(curve, mix=GOLD_ONLY),
        scaler=FixedFleet({"gold": 2}),
        seed=1,
        settings=settings(400, 2),
    ).run()
    gold = run.tiers["gold"]
    assert gold.queued[-1] == 100
    offered, served, shed = (
        column[-1]
        for column in (gold.arrivals_per_second, gold.served_per_second, gold.shed_per_second)
    )
    assert offered == pytest.approx(served + shed, rel=0.01)
    most = most_requests_per_second(GOLD, uncached_tokens=140, context_tokens=380, output=79)
    assert served == pytest.approx(2 * most, rel=0.1)


def test_a_new_server_counts_after_its_start_up_time() -> None:
    run = FluidSimulation(
        arrivals=ArrivalProcess(EveningCurve(1000, 3600), mix=GOLD_ONLY),
        scaler=FixedFleet({"gold": 5}),
        seed=1,
        settings=settings(600, 1),
    ).run()
    gold = run.tiers["gold"]
    start = GOLD.cold_start.median_seconds + 20
    assert gold.ready[run.times < start].max() == 1
    assert gold.ready[run.times > start + 30].min() == 5
    assert gold.desired[1] == 5


def test_a_month_is_quick_follows_the_days_and_has_a_stable_hash() -> None:
    day = DayCurve(2000, duration_seconds=30 * 86_400.0)
    tiers = {
        "gold": TierSettings(GOLD, start_size=1),
        "silver": TierSettings(SILVER, start_size=1),
    }
    setup = SimulationSettings(
        duration_seconds=30 * 86_400.0, control_interval_seconds=900.0, tiers=tiers
    )

    def run(dispersion: float, seed: int) -> str:
        arrivals = ArrivalProcess(
            day, mix=TierMix(("gold", "silver"), (0.7, 0.3)), index_of_dispersion=dispersion
        )
        scaler = TargetConcurrency({"gold": 12, "silver": 12})
        result = FluidSimulation(arrivals=arrivals, scaler=scaler, seed=seed, settings=setup).run()
        ready = result.tiers["gold"].ready
        day_of_steps = ready[96:192]
        assert day_of_steps.max() >= 2 * day_of_steps.min()
        assert result.cost_usd[-1] > 500
        return result.run_hash()

    assert run(7.3, 1) == run(7.3, 1)
    assert run(7.3, 1) != run(7.3, 2)
