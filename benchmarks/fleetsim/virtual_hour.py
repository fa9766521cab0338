"""How long an hour of 10,000 players takes in virtual time, against its 60 s limit.

    python benchmarks/fleetsim/virtual_hour.py [--players 10000] [--minutes 60] [--router desk]
                                               [--interpreted]

Every request is simulated on a fleet that Auto Scaling launches and a scaling policy sizes. It is
routed by the product's whole routing desk (tickets, predicted waits, learning, statistics), by the
product's choice of a server alone, or by the library's plain least-tokens policy. What runs per
request is compiled first (`compiled_simulation`), unless `--interpreted`. The same run times a bare
heap of callbacks, because the ratio of the two says more than seconds do on a machine that is
shared. A shorter run is scaled up to the hour.
"""

import argparse
import gc
import heapq
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable

import compiled_simulation
import numpy as np

from ai_router.domain.server_selection import ServerPool
from fleetsim.arrivals import ArrivalProcess, TierMix
from fleetsim.players import TraceCurve
from fleetsim.profiles import GOLD, SILVER, ModelServerProfile
from fleetsim.routing import SHED, WAIT, LeastTokensRouter, PlayerRequest, Router
from fleetsim.scaling import TargetConcurrency
from fleetsim.simulation import FleetSimulation
from fleetsim.simulation_result import SimulationResult
from fleetsim.simulation_settings import SimulationSettings, TierSettings

LIMIT_SECONDS = 60.0
BARE_EVENTS = 400_000
COMPILED_MARK = "GAMEKEEPER_SIMULATION_COMPILED"
# Requests per server that the fleet is sized for: nobody waits, and the targets are met.
CONCURRENCY = 9
REQUESTS_PER_SERVER = 32
CAPACITY_TOKENS = 24_000


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


class ProductChoice:
    """The product's choice of a server, with a plain bounded queue in front."""

    def __init__(self, *, expected_output_tokens: int = 80, queue_limit: int = 100) -> None:
        self._expected_output_tokens = expected_output_tokens
        self._queue_limit = queue_limit
        self._pools = {"gold": ServerPool(), "silver": ServerPool()}
        self._queues: dict[str, deque[PlayerRequest]] = {"gold": deque(), "silver": deque()}
        self._tier_of: dict[str, str] = {}

    def server_ready(self, now: float, server_id: str, profile: ModelServerProfile) -> None:
        """A server began to serve."""
        del now
        self._tier_of[server_id] = profile.tier
        self._pools[profile.tier].put(server_id, CAPACITY_TOKENS, REQUESTS_PER_SERVER)

    def server_draining(self, now: float, server_id: str) -> None:
        """A server is to get no more requests."""
        del now
        self._pools[self._tier_of[server_id]].set_eligible(server_id, False)

    def server_gone(self, now: float, server_id: str) -> None:
        """A server is no more."""
        del now
        self._pools[self._tier_of[server_id]].remove(server_id)

    def route(self, now: float, request: PlayerRequest) -> str:
        """Return the chosen server, WAIT or SHED."""
        del now
        queue = self._queues[request.tier]
        chosen = None if queue else self._place(request)
        if chosen is not None:
            return chosen
        if len(queue) >= self._queue_limit:
            return SHED
        queue.append(request)
        return WAIT

    def finished(self, now: float, request: PlayerRequest) -> None:
        """A request ended."""
        del now
        tokens = request.prompt_tokens + self._expected_output_tokens
        self._pools[request.tier].release(request.server_id, tokens)

    def dispatch(self, now: float, tier: str) -> Iterable[tuple[PlayerRequest, str]]:
        """Return waiting requests that now go to a server."""
        del now
        queue = self._queues[tier]
        if not queue:
            return ()
        placed = []
        while queue and (chosen := self._place(queue[0])) is not None:
            placed.append((queue.popleft(), chosen))
        return placed

    def queued(self, tier: str) -> tuple[int, int]:
        """Return how many requests of a tier wait, and their tokens."""
        queue = self._queues[tier]
        return len(queue), sum(r.prompt_tokens + self._expected_output_tokens for r in queue)

    def _place(self, request: PlayerRequest) -> str | None:
        pool = self._pools[request.tier]
        tokens = request.prompt_tokens + self._expected_output_tokens
        chosen = pool.choose(tokens)
        if chosen is None:
            return None
        pool.assign(chosen.server_id, tokens)
        return chosen.server_id


def simulate(router: Router, players: float, seconds: float) -> SimulationResult:
    """Run the fleet at a steady number of players."""
    start = max(1, round(players / 160))
    curve = TraceCurve(np.array([0.0, seconds]), np.array([players, players]))
    return FleetSimulation(
        arrivals=ArrivalProcess(curve, mix=TierMix(("gold", "silver"), (0.65, 0.35))),
        router=router,
        scaler=TargetConcurrency({"gold": CONCURRENCY, "silver": CONCURRENCY}),
        seed=1,
        settings=SimulationSettings(
            duration_seconds=seconds,
            tiers={
                "gold": TierSettings(GOLD, start_size=start, max_size=80),
                "silver": TierSettings(SILVER, start_size=start, max_size=80),
            },
        ),
    ).run()


def make_router(name: str) -> Router:
    """Return the router that `--router` names."""
    if name == "choice":
        return ProductChoice()
    if name == "least-tokens":
        return LeastTokensRouter(requests_per_server=REQUESTS_PER_SERVER)
    sys.path.append(str(compiled_simulation.POLICIES.parent))
    from product_policies import ProductRouter  # noqa: PLC0415 - found only by the line above

    return ProductRouter()


def main() -> None:
    """Print the figures, compiled unless asked otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--players", type=float, default=10_000)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--router", choices=("desk", "choice", "least-tokens"), default="desk")
    parser.add_argument("--interpreted", action="store_true", help="do not compile")
    arguments = parser.parse_args()
    if not arguments.interpreted and COMPILED_MARK not in os.environ:
        folder = compiled_simulation.build()
        environment = {**compiled_simulation.environment(folder), COMPILED_MARK: "1"}
        sys.exit(
            subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode
        )
    router = make_router(arguments.router)

    bare = bare_heap_events_per_second()
    # Requests form no cycles; looking for some among millions of objects takes time all the same.
    gc.disable()
    started = time.process_time()
    result = simulate(router, arguments.players, arguments.minutes * 60)
    seconds = time.process_time() - started
    bare = (bare + bare_heap_events_per_second()) / 2

    requests = sum(result.arrived.values())
    microseconds = seconds / requests * 1e6
    hour = microseconds * 1e-6 * 10_000 * 0.05 * 3600
    print(f"routed by                      {arguments.router:>12}")
    kind = "interpreted" if arguments.interpreted else "compiled"
    print(f"inner loop                     {kind:>12}")
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
