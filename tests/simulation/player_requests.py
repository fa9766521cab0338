"""What the players of a run ask: phases of calm and rush, two worlds, impatient callers."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING

from fault_plan import FAULTS_END

from ai_router.domain.generation import ChatMessage, ChatRole, GenerationRequest
from ai_router.domain.tiers import Priority, Tier

if TYPE_CHECKING:
    from simulated_suite import SimulatedSuite

__all__ = ["PlayerRequests"]

_BEGIN, _END = 20.0, FAULTS_END + 50.0
_TIERS = ((Tier.GOLD, 0.72), (Tier.SILVER, 0.22), (Tier.BRONZE, 0.06))


class PlayerRequests:
    """Requests of one run, drawn when they are made; each is a few callbacks."""

    def __init__(self, seed: int, suite: SimulatedSuite) -> None:
        self._rng = Random(f"{seed} players")  # noqa: S311  # not a secret
        self._suite = suite
        self._loop = asyncio.get_running_loop()
        self._number = 0
        # (until, requests a second, players online)
        self._phases: list[tuple[float, float, int]] = []
        until = 0.0
        while until < _END:
            until += self._rng.uniform(25.0, 90.0)
            rate = self._rng.choice((0.1, 0.3, 0.6, 1.2, 2.0))
            self._phases.append((until, rate, int(rate * self._rng.uniform(60, 180)) + 10))

    def players_at(self, time: float) -> int:
        """Return how many players are online."""
        return self._phase(time)[2]

    def begin(self) -> None:
        """Begin to ask."""
        self._loop.call_later(0.1, self._ask)

    def _phase(self, time: float) -> tuple[float, float, int]:
        return next((p for p in self._phases if time < p[0]), self._phases[-1])

    def _ask(self) -> None:
        now = self._loop.time()
        if now >= _END:
            return
        self._loop.call_later(self._rng.expovariate(self._phase(now)[1]), self._ask)
        rng = self._rng
        self._number += 1
        world = rng.choice(list(self._suite.worlds))
        tier = rng.choices([t for t, _ in _TIERS], [share for _, share in _TIERS])[0]
        long = rng.random() < 0.06
        repeated = rng.random() < 0.3
        question = f"Tell of the {rng.randint(1, 4) if repeated else self._number}. lamp. "
        request = GenerationRequest(
            request_id=f"r{self._number}",
            messages=(
                ChatMessage(ChatRole.SYSTEM, f"You live in {world}. " * rng.randint(1, 1)),
                ChatMessage(ChatRole.USER, question * (4 if repeated else rng.randint(1, 12))),
            ),
            tier=tier,
            latency_budget_seconds=rng.choice((None, 10.0, 30.0)) if not long else None,
            priority=rng.choice(list(Priority)),
            max_output_tokens=3000 if long else 120,
            temperature=0.0 if repeated else 0.8,
            affinity_key=world if rng.random() < 0.2 else "",
            forbid_fallback=rng.random() < 0.2,
        )
        self._suite.ask(
            world,
            request,
            router=rng.choice(self._suite.ROUTERS),
            seconds=None if long else rng.choice((None, 5.0, 20.0)),
            patience=rng.uniform(0.05, 5.0) if rng.random() < 0.08 else 120.0,
        )
