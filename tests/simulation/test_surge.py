"""From one server to ten in under five minutes and back in under fifteen, in virtual time."""

import numpy as np
import pytest
from product_policies import ProductRouter, ProductScaler

from fleetsim.arrivals import ArrivalProcess, TierMix
from fleetsim.players import TraceCurve
from fleetsim.profiles import PROFILES
from fleetsim.simulation import FleetSimulation
from fleetsim.simulation_result import SimulationResult
from fleetsim.simulation_settings import SimulationSettings, TierSettings

SURGE_AT, SURGE_ENDS_AT, END = 120.0, 540.0, 1680.0
QUIET_PLAYERS, SURGE_PLAYERS = 40.0, 2200.0


@pytest.fixture(scope="module")
def surge() -> SimulationResult:
    curve = TraceCurve(
        np.array([0.0, SURGE_AT, SURGE_AT + 1, SURGE_ENDS_AT, SURGE_ENDS_AT + 1, END]),
        np.array([QUIET_PLAYERS, QUIET_PLAYERS, *[SURGE_PLAYERS] * 2, *[QUIET_PLAYERS] * 2]),
    )
    router = ProductRouter()
    return FleetSimulation(
        arrivals=ArrivalProcess(curve, mix=TierMix(("gold",), (1.0,))),
        router=router,
        scaler=ProductScaler(router),
        seed=7,
        settings=SimulationSettings(
            duration_seconds=END,
            control_interval_seconds=5.0,
            sample_interval_seconds=5.0,
            tiers={"gold": TierSettings(PROFILES["gold"], min_size=1, start_size=1)},
        ),
    ).run()


def first_time(result: SimulationResult, after: float, condition: str, servers: int) -> float:
    for point in result.series:
        ready = point.tiers["gold"].ready
        if point.time > after and (ready >= servers if condition == "up" else ready <= servers):
            return point.time
    return float("inf")


@pytest.mark.timeout(300)
def test_ten_servers_are_ready_within_five_minutes(surge: SimulationResult) -> None:
    assert first_time(surge, SURGE_AT, "up", 10) - SURGE_AT < 300


@pytest.mark.timeout(300)
def test_one_server_is_left_within_fifteen_minutes(surge: SimulationResult) -> None:
    assert first_time(surge, SURGE_ENDS_AT, "down", 1) - SURGE_ENDS_AT < 900


@pytest.mark.timeout(300)
def test_callers_are_served_on_target_once_the_servers_are_there(surge: SimulationResult) -> None:
    settled = [p.tiers["gold"] for p in surge.series if 420 <= p.time <= SURGE_ENDS_AT]
    assert settled
    assert all(point.shed == 0 and point.queued == 0 for point in settled)
    assert max(point.per_token_p95_seconds for point in settled) <= 0.016
