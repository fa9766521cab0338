"""The simulated cloud: life cycle, Spot, stock, billing, determinism."""

import math

import numpy as np
import pytest

from fleetsim.cloud import Cloud
from fleetsim.cloud_state import CloudEvent, CloudEventKind, CloudSettings, InstanceState
from fleetsim.errors import (
    InstanceNotFoundError,
    InsufficientCapacityError,
    TimeWentBackwardsError,
)
from fleetsim.instance_types import INSTANCE_TYPES, Market
from fleetsim.zone_stock import SCARCE_SPOT, PoolStock

HOUR = 3600.0


def make_cloud(seed: int = 1, compression: float = 1.0, **settings: object) -> Cloud:
    return Cloud(
        rng=np.random.default_rng(seed),
        settings=CloudSettings(**settings),  # type: ignore[arg-type]  # keyword passthrough
        time_compression=compression,
    )


def kinds(events: list[CloudEvent]) -> list[CloudEventKind]:
    return [event.kind for event in events]


def test_an_instance_is_pending_then_running_then_terminated() -> None:
    cloud = make_cloud()
    instance = cloud.launch(0.0, instance_type="g5.xlarge", zone="us-east-1a")
    assert instance.state is InstanceState.PENDING
    assert instance.instance_id.startswith("i-")
    assert len(instance.instance_id) == len("i-0123456789abcdef0")

    events = cloud.advance(600.0)
    assert kinds(events) == [CloudEventKind.INSTANCE_PENDING, CloudEventKind.INSTANCE_RUNNING]
    assert 1.0 < events[1].time < 200.0

    cloud.terminate(700.0, [instance.instance_id])
    stopping = cloud.instance(instance.instance_id)
    assert stopping.state is InstanceState.SHUTTING_DOWN
    assert stopping.state_reason is not None
    assert stopping.state_reason[0] == "Client.UserInitiatedShutdown"
    assert kinds(cloud.advance(1500.0)) == [
        CloudEventKind.INSTANCE_SHUTTING_DOWN,
        CloudEventKind.INSTANCE_TERMINATED,
    ]


def test_terminated_instances_stay_visible_for_an_hour_and_their_cost_for_ever() -> None:
    cloud = make_cloud()
    instance = cloud.launch(0.0, instance_type="g5.xlarge", zone="us-east-1a")
    cloud.terminate(HOUR, [instance.instance_id])
    cloud.advance(HOUR + 600)
    cost = cloud.cost_usd(HOUR + 600)
    assert cloud.instances(InstanceState.TERMINATED)
    cloud.advance(3 * HOUR)
    assert cloud.instances() == []
    assert cloud.cost_usd(3 * HOUR) == pytest.approx(cost)
    with pytest.raises(InstanceNotFoundError):
        cloud.instance(instance.instance_id)


def test_billing_counts_running_seconds_at_the_reference_price_with_a_minute_at_least() -> None:
    cloud = make_cloud()
    instance = cloud.launch(0.0, instance_type="g5.xlarge", zone="us-east-1a")
    assert cloud.cost_usd(0.0) == 0.0
    running = next(e for e in cloud.advance(300.0) if e.kind is CloudEventKind.INSTANCE_RUNNING)
    assert cloud.cost_usd(running.time + HOUR) == pytest.approx(1.006)
    assert cloud.cost_usd(running.time + 1.0) == pytest.approx(1.006 / 60)
    cloud.terminate(running.time + 2 * HOUR, [instance.instance_id])
    assert cloud.cost_usd(running.time + 9 * HOUR) == pytest.approx(2 * 1.006)


def test_compressed_time_passes_faster_but_costs_what_production_would() -> None:
    fast = make_cloud(compression=60.0)
    fast.launch(0.0, instance_type="g5.xlarge", zone="us-east-1a")
    running = next(e for e in fast.advance(60.0) if e.kind is CloudEventKind.INSTANCE_RUNNING)
    slow = make_cloud()
    slow.launch(0.0, instance_type="g5.xlarge", zone="us-east-1a")
    slow_running = next(e for e in slow.advance(600.0) if e.kind is CloudEventKind.INSTANCE_RUNNING)
    assert running.time == pytest.approx(slow_running.time / 60)
    assert fast.cost_usd(running.time + 60.0) == pytest.approx(1.006)


def test_a_noticed_spot_instance_is_reclaimed_after_two_minutes_and_free_in_its_first_hour() -> (
    None
):
    cloud = make_cloud()
    spot = cloud.launch(0.0, instance_type="g6.xlarge", zone="us-east-1b", market=Market.SPOT)
    on_demand = cloud.launch(0.0, instance_type="g6.xlarge", zone="us-east-1b")
    cloud.advance(500.0)
    cloud.interrupt(1000.0, [spot.instance_id, on_demand.instance_id])
    noticed = cloud.instance(spot.instance_id)
    assert noticed.termination_time == 1120.0
    assert noticed.state is InstanceState.RUNNING
    events = cloud.advance(1119.9)
    assert kinds(events) == [CloudEventKind.SPOT_INTERRUPTION_NOTICE]
    shutting_down = cloud.advance(1120.0)
    assert kinds(shutting_down) == [CloudEventKind.INSTANCE_SHUTTING_DOWN]
    gone = cloud.instance(spot.instance_id)
    assert gone.state_reason is not None
    assert gone.state_reason[0] == "Server.SpotInstanceTermination"
    assert cloud.instance_cost_usd(gone, 2000.0) == 0.0
    assert cloud.instance(on_demand.instance_id).is_alive


def test_a_rebalance_recommendation_comes_before_the_notice() -> None:
    cloud = make_cloud(rebalance_lead_seconds=300.0)
    spot = cloud.launch(0.0, instance_type="g6.xlarge", zone="us-east-1b", market=Market.SPOT)
    cloud.advance(500.0)
    cloud.interrupt(1000.0, [spot.instance_id], rebalance_first=True)
    assert kinds(cloud.advance(1000.0)) == [CloudEventKind.REBALANCE_RECOMMENDED]
    assert kinds(cloud.advance(1300.0)) == [CloudEventKind.SPOT_INTERRUPTION_NOTICE]


def test_a_zone_out_of_spot_interrupts_all_of_its_spot_instances_and_only_them() -> None:
    cloud = make_cloud()
    doomed = [
        cloud.launch(0.0, instance_type="g6.xlarge", zone="us-east-1b", market=Market.SPOT)
        for _ in range(5)
    ]
    other_zone = cloud.launch(0.0, instance_type="g6.xlarge", zone="us-east-1a", market=Market.SPOT)
    on_demand = cloud.launch(0.0, instance_type="g6.xlarge", zone="us-east-1b")
    cloud.advance(500.0)
    cloud.set_spot_stock(1000.0, "g6.xlarge", "us-east-1b", in_stock=False)
    cloud.advance(1300.0)
    assert not any(cloud.instance(i.instance_id).is_alive for i in doomed)
    assert cloud.instance(other_zone.instance_id).is_alive
    assert cloud.instance(on_demand.instance_id).is_alive
    with pytest.raises(InsufficientCapacityError) as refused:
        cloud.launch(1300.0, instance_type="g6.xlarge", zone="us-east-1b", market=Market.SPOT)
    assert refused.value.code == "InsufficientInstanceCapacity"
    cloud.set_spot_stock(1400.0, "g6.xlarge", "us-east-1b", in_stock=True)
    cloud.launch(1400.0, instance_type="g6.xlarge", zone="us-east-1b", market=Market.SPOT)


def test_scarce_stock_is_out_about_the_documented_share_of_the_time() -> None:
    stock = {("g6.xlarge", "us-east-1a"): SCARCE_SPOT}
    cloud = make_cloud(seed=3, stock=stock)
    horizon = 4000 * HOUR
    out_since, out_seconds = 0.0, 0.0
    for event in cloud.advance(horizon):
        if event.kind is CloudEventKind.SPOT_IN_STOCK:
            out_seconds += event.time - out_since
        elif event.kind is CloudEventKind.SPOT_OUT_OF_STOCK:
            out_since = event.time
    assert 0.80 < out_seconds / horizon < 0.90


def test_on_demand_can_run_out_too() -> None:
    cloud = make_cloud(default_stock=PoolStock(on_demand_limit=2))
    for _ in range(2):
        cloud.launch(0.0, instance_type="g5.xlarge", zone="us-east-1a")
    with pytest.raises(InsufficientCapacityError):
        cloud.launch(0.0, instance_type="g5.xlarge", zone="us-east-1a")
    cloud.launch(0.0, instance_type="g5.xlarge", zone="us-east-1b")
    cloud.set_pool_limits(1.0, "g5.xlarge", "us-east-1a", on_demand_limit=3)
    cloud.launch(1.0, instance_type="g5.xlarge", zone="us-east-1a")


def test_terminating_an_unknown_instance_changes_nothing() -> None:
    cloud = make_cloud()
    instance = cloud.launch(0.0, instance_type="g5.xlarge", zone="us-east-1a")
    with pytest.raises(InstanceNotFoundError):
        cloud.terminate(1.0, [instance.instance_id, "i-0000000000000dead"])
    assert cloud.instance(instance.instance_id).is_alive


def test_time_never_goes_backwards() -> None:
    cloud = make_cloud()
    cloud.advance(10.0)
    with pytest.raises(TimeWentBackwardsError):
        cloud.advance(9.0)


def test_the_same_seed_gives_the_same_history_whatever_the_steps() -> None:
    def history(steps: int) -> list[CloudEvent]:
        stock = {("g6.xlarge", "us-east-1a"): PoolStock(None, None, True, HOUR, HOUR)}
        cloud = make_cloud(seed=9, stock=stock)
        for _ in range(3):
            cloud.launch(0.0, instance_type="g6.xlarge", zone="us-east-1a", market=Market.SPOT)
        events: list[CloudEvent] = []
        for step in range(1, steps + 1):
            events += cloud.advance(20 * HOUR * step / steps)
        return events

    assert history(1) == history(777)
    assert len(history(1)) > 10


def test_tags_of_an_instance_can_be_replaced() -> None:
    cloud = make_cloud()
    instance = cloud.launch(0.0, instance_type="g5.xlarge", zone="us-east-1a", tags={"tier": "a"})
    cloud.set_tags(1.0, instance.instance_id, {"tier": "b", "owner": "ops"})
    cloud.advance(HOUR)
    assert cloud.instance(instance.instance_id).tags == {"tier": "b", "owner": "ops"}
    assert cloud.instance(instance.instance_id).state is InstanceState.RUNNING
    with pytest.raises(InstanceNotFoundError):
        cloud.set_tags(HOUR, "i-unknown", {})


def test_launch_latency_has_the_documented_median() -> None:
    cloud = make_cloud(seed=5)
    for _ in range(999):
        cloud.launch(0.0, instance_type="g5.xlarge", zone="us-east-1a")
    delays = sorted(
        e.time for e in cloud.advance(HOUR) if e.kind is CloudEventKind.INSTANCE_RUNNING
    )
    assert delays[499] == pytest.approx(20.0, rel=0.1)
    assert delays[949] == pytest.approx(20.0 * math.exp(0.5 * 1.645), rel=0.15)


def test_reference_prices_are_the_ones_the_cost_promise_uses() -> None:
    prices = {name: spec.on_demand_usd_per_hour for name, spec in INSTANCE_TYPES.items()}
    assert prices == {
        "g5.xlarge": 1.006,
        "g5.2xlarge": 1.212,
        "g6.xlarge": 0.805,
        "c5.4xlarge": 0.68,
    }
    assert 0.26 <= INSTANCE_TYPES["g6.xlarge"].spot_usd_per_hour <= 0.44
