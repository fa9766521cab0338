"""Each invariant notices the defect it is there for: with one part broken, it fails, and it alone.

The broken part is a real one of the product or of the simulated outside world, changed for the
length of a test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import invariants as rules
import pytest
from fault_plan import FAULTS_END, Fault, FaultKind, FaultPlan
from memory_of_worlds import WorldEvents
from seeded_run import simulate
from virtual_network import WeatherReport

from ai_router import router as router_module
from ai_router.domain.routing import RoutingDesk
from autoscaler import control_loop
from autoscaler.domain.decide import decide
from autoscaler.domain.drains import DrainVerdict
from autoscaler.drain_control import DrainControl
from autoscaler.leadership import Leadership, Role
from servicekit.streams import ResumableLog

QUIET = FaultPlan(kinds=(), weather=WeatherReport(), faults=())
Patch = pytest.MonkeyPatch


def with_faults(*faults: Fault) -> FaultPlan:
    return FaultPlan(
        kinds=tuple(f.kind for f in faults), weather=WeatherReport(), faults=tuple(faults)
    )


DATABASE_COMES_AND_GOES = with_faults(
    *(
        Fault(time=time, kind=FaultKind.DATABASE, target="database", seconds=12.0)
        for time in range(50, 230, 20)
    )
)


def failed(seeds: Sequence[int], plan: FaultPlan = QUIET) -> set[str]:
    """Run seeds until something is found and return the names of what failed."""
    for seed in seeds:
        report = simulate(seed, plan=plan, stops_at_findings=True)
        if report.findings:
            return {finding.invariant for finding in report.findings}
    return set()


@pytest.mark.endurance
def test_nothing_fails_while_nothing_is_broken() -> None:
    assert failed([1, 2]) == set()


def test_a_plan_below_the_minimum_is_noticed(monkeypatch: Patch) -> None:

    def careless(snapshot: Any, state: Any, policy: Any, now: float, **how: Any) -> Any:
        return decide(snapshot, state, replace(policy, minimum=0), now, **how)

    monkeypatch.setattr(control_loop, "decide", careless)
    assert failed([3, 4, 6]) == {rules.NeverBelowFloor.name}


def test_a_termination_before_the_drain_window_is_noticed(monkeypatch: Patch) -> None:
    monkeypatch.setattr(
        "autoscaler.drain_control.judge_drain",
        lambda *_, **__: (DrainVerdict.TERMINATE, "in a hurry"),
    )
    assert failed(range(1, 12)) == {rules.KeepsDrainWindow.name}


def test_a_follower_that_acts_is_noticed(monkeypatch: Patch) -> None:
    monkeypatch.setattr(Leadership, "role", property(lambda _: Role.LEADER))
    monkeypatch.setattr(Leadership, "act_seconds", property(lambda _: 10.0))
    assert rules.OneWriter.name in failed([1])


@pytest.mark.endurance
def test_a_leader_cut_off_that_takes_away_is_noticed(monkeypatch: Patch) -> None:
    progress = DrainControl.progress

    async def eager(self: DrainControl, *arguments: Any, **how: Any) -> None:
        await progress(self, *arguments, **{**how, "take_away_seconds": lambda: 10.0})

    monkeypatch.setattr(DrainControl, "progress", eager)
    found = failed(range(1, 12), DATABASE_COMES_AND_GOES)
    assert found == {rules.OneWriter.name}


@pytest.mark.endurance
def test_a_budget_that_is_not_asked_is_noticed(monkeypatch: Patch) -> None:
    monkeypatch.setattr(control_loop, "affordable_servers", lambda *_, **__: None)
    assert failed([3]) == {rules.BudgetKept.name}


def test_a_forgotten_waiting_request_is_noticed(monkeypatch: Patch) -> None:
    resolve = router_module.Router._resolve
    rng = Random(1)  # noqa: S311  # not a secret

    def forgetful(self: Any, ticket: Any, placement: Any, error: Any) -> None:
        if placement is None or rng.random() < 0.5:
            resolve(self, ticket, placement, error)

    monkeypatch.setattr(router_module.Router, "_resolve", forgetful)
    assert failed(range(1, 12)) == {rules.EachRequestOnce.name}


def test_a_request_counted_twice_is_noticed(monkeypatch: Patch) -> None:
    release = RoutingDesk._release

    def twice(self: Any, placement: Any) -> None:
        release(self, placement)
        release(self, placement)

    monkeypatch.setattr(RoutingDesk, "_release", twice)
    assert rules.EachRequestOnce.name in failed([1])


def test_answers_cached_across_worlds_are_noticed(monkeypatch: Patch) -> None:
    def without_the_context(model: str, request: Any) -> bytes:
        return f"{model} {request.messages[-1].content}".encode()

    monkeypatch.setattr(router_module, "answer_key", without_the_context)
    assert failed([1]) == {rules.WorldsApart.name}


def test_memories_shared_by_worlds_are_noticed(monkeypatch: Patch) -> None:
    world_of = WorldEvents._world

    def any_world(self: WorldEvents, world_id: Any) -> Any:
        del world_id
        return world_of(self, next(iter(self._worlds)))

    monkeypatch.setattr(WorldEvents, "_world", any_world)
    assert failed([1]) == {rules.WorldsApart.name}


def test_a_stream_that_skips_an_item_is_noticed(monkeypatch: Patch) -> None:
    publish = ResumableLog.publish
    numbers = iter(range(10**9))

    def skips(self: Any, item: Any) -> str:
        return self.latest_token if next(numbers) % 50 == 49 else publish(self, item)

    monkeypatch.setattr(ResumableLog, "publish", skips)
    assert failed([1]) == {rules.StreamsWhole.name}


def test_an_error_inside_a_component_is_noticed(monkeypatch: Patch) -> None:
    async def broken(self: Any) -> None:
        del self
        raise KeyError("a defect")

    monkeypatch.setattr(control_loop.ControlLoop, "_share", broken)
    assert failed([1]) == {rules.NoInnerErrors.name}


@pytest.mark.endurance
def test_a_lead_that_nobody_takes_over_is_noticed(monkeypatch: Patch) -> None:
    renew = Leadership.renew

    async def gives_up(self: Leadership) -> None:
        if asyncio.get_running_loop().time() < FAULTS_END:
            await renew(self)
        else:
            await self.release()

    monkeypatch.setattr(Leadership, "renew", gives_up)
    assert failed([1]) == {rules.Converges.name}


def test_every_invariant_is_among_those_that_were_broken() -> None:
    assert {rule.name for rule in rules.ALL_INVARIANTS} == {
        rules.NeverBelowFloor.name,
        rules.KeepsDrainWindow.name,
        rules.OneWriter.name,
        rules.BudgetKept.name,
        rules.EachRequestOnce.name,
        rules.WorldsApart.name,
        rules.StreamsWhole.name,
        rules.NoInnerErrors.name,
        rules.Converges.name,
    }
