"""How long an hour of 10,000 players takes in virtual time, against its 60 s limit.

    python benchmarks/fleetsim/virtual_hour.py [--players 10000] [--minutes 60]

Every request is simulated, routed to the server with the fewest tokens, on a fleet that Auto
Scaling launches and a scaling policy sizes. The same run times a bare heap of callbacks, because
the ratio of the two says more than seconds do on a machine that is shared. A shorter run is scaled
up to the hour.
"""

import argparse
import heapq
import time

import numpy as np

from fleetsim.arrivals import ArrivalProcess, TierMix
from fleetsim.players import TraceCurve
from fleetsim.profiles import GOLD, SILVER
from fleetsim.routing import LeastTokensRouter
from fleetsim.scaling import TargetConcurrency
from fleetsim.simulation import FleetSimulation
from fleetsim.simulation_result import SimulationResult
from fleetsim.simulation_settings import SimulationSettings, TierSettings

LIMIT_SECONDS = 60.0
BARE_EVENTS = 400_000


def bare_heap_events_per_second() -> float:
    """Time a heap of callbacks that do nothing, 1,000 of them pending."""
    calls = 0

    def callback(_: object) -> None:
        nonlocal calls
        calls += 1

    heap: list[tuple[float, int]] = [(index * 0.001, index) for index in range(1000)]
    started = time.process_time()
    for number in range(BARE_EVENTS):
        now, _ = heapq.heappop(heap)
        callback(None)
        heapq.heappush(heap, (now + 1.0, number))
    return BARE_EVENTS / (time.process_time() - started)


def simulate(players: float, seconds: float) -> SimulationResult:
    """Run the fleet at a steady number of players."""
    start = max(1, round(players / 400))
    curve = TraceCurve(np.array([0.0, seconds]), np.array([players, players]))
    return FleetSimulation(
        arrivals=ArrivalProcess(curve, mix=TierMix(("gold", "silver"), (0.65, 0.35))),
        router=LeastTokensRouter(requests_per_server=32),
        scaler=TargetConcurrency({"gold": 14, "silver": 14}),
        seed=1,
        settings=SimulationSettings(
            duration_seconds=seconds,
            tiers={
                "gold": TierSettings(GOLD, start_size=start, max_size=80),
                "silver": TierSettings(SILVER, start_size=start, max_size=80),
            },
        ),
    ).run()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--players", type=float, default=10_000)
    parser.add_argument("--minutes", type=float, default=60)
    arguments = parser.parse_args()

    bare = bare_heap_events_per_second()
    started = time.process_time()
    result = simulate(arguments.players, arguments.minutes * 60)
    seconds = time.process_time() - started
    bare = (bare + bare_heap_events_per_second()) / 2

    requests = sum(result.arrived.values())
    microseconds = seconds / requests * 1e6
    hour = microseconds * 1e-6 * 10_000 * 0.05 * 3600
    print(f"requests simulated             {requests:>12,}")
    print(f"events run                     {result.events_run:>12,}")
    print(f"processor time                 {seconds:>12.1f} s")
    print(f"per request                    {microseconds:>12.1f} us")
    print(f"bare heap loop, same run       {bare:>12,.0f} events/s")
    print(f"one request, in bare events    {microseconds * 1e-6 * bare:>12.1f}")
    print(f"an hour of 10,000 players      {hour:>12.1f} s")
    print(f"share of the {LIMIT_SECONDS:.0f} s limit        {hour / LIMIT_SECONDS:>12.2f}")
    for tier in result.tiers:
        totals = result.totals(tier)
        print(
            f"{tier:<8} first token P95 {totals.first_token_p95_seconds * 1000:6.0f} ms, "
            f"per token P95 {totals.per_token_p95_seconds * 1000:5.1f} ms, "
            f"shed {totals.shed}, servers {result.series[-1].tiers[tier].ready}"
        )
    print(f"run hash {result.run_hash()[:16]}")


if __name__ == "__main__":
    main()
