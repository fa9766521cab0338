"""How the outside is joined into a snapshot: ages, phases, sums, prices, budget."""

import itertools
from dataclasses import replace
from typing import Any

import pytest

from autoscaler.domain.budget import affordable_servers, usd_per_player_month
from autoscaler.domain.demand_window import DemandInterval, DemandView, DemandWindow, TierCounts
from autoscaler.domain.fleet_view import (
    FleetHost,
    FleetServer,
    FleetTier,
    FleetView,
    GroupInstance,
    ScalingGroup,
)
from autoscaler.domain.latency import Histogram, quantile_seconds
from autoscaler.domain.observation import PhaseMemory, Players, build_snapshot
from autoscaler.domain.policy import BudgetPolicy
from autoscaler.domain.prices import PriceTable
from autoscaler.domain.snapshot import InstancePhase
from autoscaler.domain.tiers import Tier
from autoscaler.testing.builders import START, build_policy

PRICES = PriceTable(
    on_demand_usd_per_hour={"g5.xlarge": 1.0, "g6.xlarge": 0.8},
    spot_usd_per_hour={"g6.xlarge": 0.35},
    spot_price_ratio=0.4,
    fallback_usd_per_hour=1.0,
)


def member(number: int, **changes: Any) -> GroupInstance:
    values: dict[str, Any] = {
        "instance_id": f"i-{number}",
        "instance_type": "g5.xlarge",
        "is_spot": False,
        "launch_time": START - 60,
        "is_leaving": False,
        "is_in_service": True,
    }
    return GroupInstance(**(values | changes))


def group(*instances: GroupInstance, **changes: Any) -> ScalingGroup:
    values: dict[str, Any] = {
        "name": "gold",
        "desired": len(instances),
        "minimum": 0,
        "maximum": 10,
        "instances": instances,
        "read_time": START,
    }
    return ScalingGroup(**(values | changes))


def host(number: int, *, ready: bool = True, fresh: bool = True, **changes: Any) -> FleetHost:
    values: dict[str, Any] = {
        "host_id": f"i-{number}",
        "is_fresh": fresh,
        "is_spot": False,
        "interruption_time": None,
        "servers": (
            FleetServer(
                server_id=f"gold-{number}",
                tier=Tier.GOLD,
                is_ready=ready,
                running_requests=3,
                waiting_requests=2,
            ),
        ),
    }
    return FleetHost(**(values | changes))


def look(
    members: Any,
    hosts: Any,
    *,
    memory: Any = None,
    fleet_age: Any = 1.0,
    now: Any = START,
    **changes: Any,
) -> Any:
    values: dict[str, Any] = {
        "policy": build_policy(),
        "group": group(*members),
        "fleet": FleetView(hosts={h.host_id: h for h in hosts}, tiers={}, age_seconds=fleet_age),
        "demand": DemandView(tiers={}, age_seconds=None, router_ages_seconds={}),
        "players": None,
        "draining_ids": frozenset(),
        "memory": memory or PhaseMemory({}),
        "override": None,
        "database_reachable": True,
        "prices": PRICES,
        "price_per_server": 1.0,
        "now": now,
    }
    return build_snapshot(**(values | changes))


def phases(snapshot: Any) -> Any:
    return {i.instance_id: i.phase for i in snapshot.instances}


def test_an_instance_serves_when_the_feed_says_so() -> None:
    snapshot, _ = look([member(1), member(2), member(3)], [host(1), host(2, ready=False)])
    assert phases(snapshot) == {
        "i-1": InstancePhase.READY,
        "i-2": InstancePhase.PENDING,
        "i-3": InstancePhase.PENDING,
    }
    assert snapshot.instances[0].load_requests == 5
    assert snapshot.instances[0].server_ids == ("gold-1",)


def test_a_server_that_was_ready_and_is_gone_is_unresponsive_since_then() -> None:
    _, memory = look([member(1)], [host(1)])
    snapshot, memory = look([member(1)], [], memory=memory, now=START + 10)
    snapshot, memory = look([member(1)], [], memory=memory, now=START + 25)
    assert phases(snapshot) == {"i-1": InstancePhase.UNRESPONSIVE}
    assert snapshot.instances[0].phase_age_seconds == 15


def test_a_stale_feed_changes_no_phase() -> None:
    _, memory = look([member(1)], [host(1)])
    snapshot, _ = look([member(1)], [], memory=memory, fleet_age=60.0, now=START + 60)
    assert phases(snapshot) == {"i-1": InstancePhase.READY}


def test_a_stale_host_counts_as_unresponsive_also_for_a_new_replica() -> None:
    snapshot, _ = look([member(1)], [host(1, fresh=False)])
    assert phases(snapshot) == {"i-1": InstancePhase.UNRESPONSIVE}


def test_terminating_members_are_not_there() -> None:
    snapshot, _ = look([member(1), member(2, is_leaving=True)], [host(1), host(2)])
    assert [i.instance_id for i in snapshot.instances] == ["i-1"]


def test_instances_cost_what_they_were_bought_for() -> None:
    members = [
        member(1),
        member(2, is_spot=True),
        member(3, instance_type="g6.xlarge", is_spot=True),
        member(4, instance_type="p9.huge"),
    ]
    snapshot, _ = look(members, [])
    assert [i.usd_per_hour for i in snapshot.instances] == [1.0, 0.4, 0.35, 1.0]
    assert PRICES.of_group(group(*members, member(5, is_leaving=True))) == pytest.approx(2.75)


def test_the_tier_promise_chooses_the_latency() -> None:
    inter, first = Histogram((0.01,), (5, 0)), Histogram((0.2,), (7, 0))
    tier = FleetTier(
        running_requests=1,
        waiting_requests=None,
        fresh_servers=1,
        ready_servers=1,
        first_token=first,
        inter_token=inter,
    )
    fleet = FleetView(hosts={}, tiers={Tier.GOLD: tier}, age_seconds=1.0)
    snapshot, _ = look([], [], fleet=fleet)
    assert snapshot.fleet is not None
    assert snapshot.fleet.latency == inter
    assert snapshot.fleet.requests == 1


def test_players_and_group_carry_their_age() -> None:
    snapshot, _ = look([], [], players=Players(online=9, count_time=START - 30), now=START + 5)
    assert snapshot.players_age_seconds == 35
    assert snapshot.group_age_seconds == 5
    assert snapshot.stale_inputs(build_policy()) == ("demand stream never seen (limit 15 s)",)


def interval(received: float, seconds: float = 1.0, **counts: Any) -> DemandInterval:
    return DemandInterval(
        duration_seconds=seconds,
        received_time=received,
        tiers={Tier.GOLD: TierCounts(**counts)},
    )


def test_demand_is_summed_over_routers_and_as_old_as_the_oldest() -> None:
    window = DemandWindow(("a", "b"), window_seconds=10, forget_seconds=15)
    window.add("a", interval(100, arrived_requests=4, arrived_tokens=400, running_requests=2))
    assert window.view(100).age_seconds is None  # b has never spoken
    window.add("b", interval(97, arrived_requests=2, arrived_tokens=100, queued_requests=7))
    view = window.view(101)
    gold = view.tiers[Tier.GOLD]
    assert view.age_seconds == 4
    assert (gold.arrivals_per_second, gold.arrived_tokens_per_second) == (6.0, 500.0)
    assert (gold.running_requests, gold.queued_requests) == (2, 7)


def test_rates_are_over_the_window_and_gauges_are_the_latest() -> None:
    window = DemandWindow(("a",), window_seconds=10, forget_seconds=15)
    for second in range(30):
        window.add("a", interval(second, arrived_requests=second % 2, running_requests=second))
    gold = window.view(29).tiers[Tier.GOLD]
    assert gold.arrivals_per_second == pytest.approx(0.5, abs=0.05)
    assert gold.running_requests == 29


def test_a_silent_router_stops_counting_and_makes_the_view_old() -> None:
    window = DemandWindow(("a", "b"), window_seconds=10, forget_seconds=15)
    window.add("a", interval(100, running_requests=5))
    window.add("b", interval(120, running_requests=1))
    view = window.view(120)
    assert view.tiers[Tier.GOLD].running_requests == 1
    assert view.age_seconds == 20
    assert view.router_ages_seconds == {"a": 20, "b": 0}


def test_a_quantile_lies_within_its_bucket() -> None:
    histogram = Histogram((0.01, 0.02, 0.04), (50, 40, 10, 0))
    assert quantile_seconds(histogram, 0.5) == pytest.approx(0.01)
    assert quantile_seconds(histogram, 0.95) == pytest.approx(0.03)
    assert quantile_seconds(Histogram((0.01,), (0, 5)), 0.95) == 0.01
    assert quantile_seconds(Histogram((0.01,), (0, 0)), 0.95) is None


BUDGET = BudgetPolicy(
    usd_per_player_month=8.0, floor_servers={Tier.GOLD: 3, Tier.SILVER: 2, Tier.BRONZE: 1}
)


@pytest.mark.parametrize(
    ("players", "others", "servers"),
    [(1_000, 4.0, 6), (1_000, 10.0, 3), (10, 0.0, 3), (10_000, 20.0, 89), (0, 0.0, 3)],
)
def test_players_pay_for_servers_above_the_floor(players: Any, others: Any, servers: Any) -> None:
    allowed = affordable_servers(
        Tier.GOLD,
        players_online=players,
        usd_per_hour_by_tier={Tier.GOLD: 99.0, Tier.SILVER: others},
        usd_per_hour_per_server=1.0,
        budget=BUDGET,
    )
    assert allowed == servers


def test_without_players_or_a_budget_there_is_no_ceiling() -> None:
    arguments: dict[str, Any] = {"usd_per_hour_by_tier": {}, "usd_per_hour_per_server": 1.0}
    assert affordable_servers(Tier.GOLD, players_online=None, budget=BUDGET, **arguments) is None
    free = replace(BUDGET, usd_per_player_month=None)
    assert affordable_servers(Tier.GOLD, players_online=5, budget=free, **arguments) is None


def test_cost_per_player_is_told_when_there_are_players() -> None:
    assert usd_per_player_month(10.0, 1_000, BUDGET) == pytest.approx(7.3)
    assert usd_per_player_month(10.0, 0, BUDGET) is None
    assert usd_per_player_month(10.0, None, BUDGET) is None


def test_phases_are_remembered_only_of_instances_that_exist() -> None:
    memory = PhaseMemory({})
    for count in itertools.islice(itertools.count(), 5):
        memory = memory.seen({f"i-{count}": InstancePhase.READY}, START + count)
    assert list(memory.phases) == ["i-4"]
