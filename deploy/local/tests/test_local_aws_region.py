"""The simulated region without a server: time, events told in order, the ledger of costs."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetsim.cloud_state import Instance
from fleetsim.instance_types import Market
from fleetsim.scaling_group_state import GroupSettings
from localsuite.aws.region import Region
from localsuite.aws.testing import START, ZONES, ManualClock, RecordingHosts
from localsuite.aws.tiers import TIER_TAG

HOUR = 3600.0


def launch(region: Region, tier: str, market: Market = Market.ON_DEMAND) -> str:
    with region.at_now() as now:
        return region.cloud.launch(
            now,
            instance_type="g5.xlarge",
            zone="us-east-1a",
            market=market,
            tags={TIER_TAG: tier},
        ).instance_id


def test_hosts_are_told_in_the_order_of_events() -> None:
    clock, hosts = ManualClock(), RecordingHosts()
    region = Region(clock=clock, hosts=hosts)
    instance_id = launch(region, "gold", Market.SPOT)
    clock.now += HOUR
    with region.at_now() as now:
        region.cloud.interrupt(now, [instance_id])
    clock.now += HOUR
    region.advance()
    assert hosts.calls == [
        ("running", instance_id),
        ("notice", instance_id),
        ("terminated", instance_id),
    ]


def test_an_instance_terminated_while_pending_is_told_as_gone_only() -> None:
    clock, hosts = ManualClock(), RecordingHosts()
    region = Region(clock=clock, hosts=hosts)
    instance_id = launch(region, "gold")
    with region.at_now() as now:
        region.cloud.terminate(now, [instance_id])
    clock.now += HOUR
    region.advance()
    assert hosts.calls == [("terminated", instance_id)]


def test_a_listener_that_fails_does_not_stop_the_cloud() -> None:
    def fail(instance: Instance) -> None:
        raise RuntimeError(instance.instance_id)

    clock, hosts = ManualClock(), RecordingHosts(on_running=fail)
    region = Region(clock=clock, hosts=hosts)
    first, second = launch(region, "gold"), launch(region, "gold")
    clock.now += HOUR
    region.advance()
    assert {instance_id for _, instance_id in hosts.calls} == {first, second}


def test_a_listener_may_ask_the_region() -> None:
    clock, hosts = ManualClock(), RecordingHosts()
    region = Region(clock=clock, hosts=hosts)
    seen: list[float] = []

    def ask(_: Instance) -> None:
        with region.at_now() as now:
            seen.append(region.costs_document(now)["usd_per_hour"])

    hosts.on_running = ask
    launch(region, "gold")
    clock.now += HOUR
    region.advance()
    assert seen == [1.006]


def test_a_clock_that_steps_back_stops_time_instead_of_breaking_it() -> None:
    clock = ManualClock()
    region = Region(clock=clock)
    instance_id = launch(region, "gold")
    clock.now += HOUR
    region.advance()
    clock.now -= 2 * HOUR
    region.advance()
    assert region.cloud.instance(instance_id).running_time is not None
    assert region.cloud.now == START + HOUR


def test_a_refused_change_still_tells_what_happened_before_it() -> None:
    clock, hosts = ManualClock(), RecordingHosts()
    region = Region(clock=clock, hosts=hosts)
    instance_id = launch(region, "gold")
    clock.now += HOUR
    with pytest.raises(ValueError, match="refused"), region.at_now():
        raise ValueError("refused")
    assert hosts.calls == [("running", instance_id)]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["gold", "silver", ""]),
            st.sampled_from(list(Market)),
            st.sampled_from(["keep", "terminate", "interrupt"]),
            st.floats(min_value=0, max_value=5 * HOUR),
        ),
        max_size=6,
    )
)
def test_the_tiers_costs_add_up_to_the_clouds(
    history: list[tuple[str, Market, str, float]],
) -> None:
    clock = ManualClock()
    region = Region(clock=clock)
    for tier, market, fate, wait_seconds in history:
        instance_id = launch(region, tier, market)
        clock.now += wait_seconds
        with region.at_now() as now:
            if fate == "terminate":
                region.cloud.terminate(now, [instance_id])
            elif fate == "interrupt":
                region.cloud.interrupt(now, [instance_id])
    clock.now += HOUR
    with region.at_now() as now:
        costs = region.costs_document(now)
        assert costs["total_usd"] == pytest.approx(region.cloud.cost_usd(now), abs=1e-5)
    assert sum(tier["total_usd"] for tier in costs["tiers"].values()) == pytest.approx(
        costs["total_usd"], abs=1e-5
    )


def test_the_state_moves_by_itself_when_it_is_run() -> None:
    hosts, stop, told = RecordingHosts(), threading.Event(), threading.Event()
    hosts.on_running = lambda instance: told.set()
    region = Region(time_compression=10_000.0, hosts=hosts)
    runner = threading.Thread(target=region.run, args=(stop,))
    runner.start()
    try:
        with region.at_now() as now:
            region.groups.create(
                now,
                GroupSettings(
                    name="gold", instance_types=("g5.xlarge",), zones=ZONES, min_size=0, max_size=2
                ),
                desired_capacity=1,
            )
        assert told.wait(timeout=20)
    finally:
        stop.set()
        region.wake()
        runner.join(timeout=10)
    assert not runner.is_alive()
