import asyncio
from collections.abc import AsyncIterator

import pytest

from gpu_metrics.domain.fleet import FleetPolicy, FleetView
from gpu_metrics.domain.fleet_filter import EVERYTHING, FleetFilter
from gpu_metrics.domain.readings import Tier
from gpu_metrics.feed import FleetFeed, FleetUpdate
from servicekit.errors import ResumeTokenTooOld
from servicekit.telemetry import Telemetry
from servicekit.testing import FakeClock

from .builders import make_report, make_server

ALL = EVERYTHING


def make_feed(clock: FakeClock, policy: FleetPolicy | None = None, epoch: str = "run") -> FleetFeed:
    return FleetFeed(
        FleetView(policy or FleetPolicy()),
        clock=clock,
        telemetry=Telemetry("test"),
        epoch=epoch,
        heartbeat_seconds=5.0,
    )


class Subscriber:
    """Collects the updates of one subscription in a task of its own."""

    def __init__(self, stream: AsyncIterator[FleetUpdate]) -> None:
        self.updates: list[FleetUpdate] = []
        self._task = asyncio.ensure_future(self._collect(stream))

    async def _collect(self, stream: AsyncIterator[FleetUpdate]) -> None:
        async for update in stream:
            self.updates.append(update)

    @property
    def kinds(self) -> list[str]:
        return [
            "snapshot" if update.snapshot else "delta" if update.changes else "heartbeat"
            for update in self.updates
        ]

    async def stop(self) -> None:
        self._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._task


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def test_a_subscription_starts_with_all_there_is(clock: FakeClock) -> None:
    feed = make_feed(clock)
    feed.apply(make_report("i-1", 1))
    subscriber = Subscriber(feed.watch(ALL, "", 1.0))
    await clock.settle()
    assert subscriber.kinds == ["snapshot"]
    snapshot = subscriber.updates[0].snapshot
    assert snapshot is not None
    assert [state.host.host_id for state in snapshot.hosts] == ["i-1"]
    assert [aggregate.tier for aggregate in snapshot.aggregates] == [Tier.GOLD]
    await subscriber.stop()


async def test_changes_within_an_interval_arrive_as_one_update(clock: FakeClock) -> None:
    feed = make_feed(clock)
    subscriber = Subscriber(feed.watch(ALL, "", 1.0))
    await clock.settle()
    for sequence in range(1, 50):
        feed.apply(make_report("i-1", sequence))
        feed.apply(make_report("i-2", sequence))
        await clock.advance(0.01)
    await clock.advance(0.6)
    assert subscriber.kinds == ["snapshot", "delta"]
    changes = subscriber.updates[1].changes
    assert changes is not None
    assert [(s.host.host_id, s.report.sequence) for s in changes.changed] == [
        ("i-1", 49),
        ("i-2", 49),
    ]
    await subscriber.stop()


async def test_after_a_quiet_interval_a_change_is_told_at_once(clock: FakeClock) -> None:
    feed = make_feed(clock)
    subscriber = Subscriber(feed.watch(ALL, "", 1.0))
    await clock.advance(3.0)
    feed.apply(make_report("i-1", 1))
    await clock.settle()
    assert subscriber.kinds == ["snapshot", "delta"]
    await subscriber.stop()


async def test_while_nothing_changes_heartbeats_say_that_the_stream_lives(
    clock: FakeClock,
) -> None:
    feed = make_feed(clock)
    subscriber = Subscriber(feed.watch(ALL, "", 1.0))
    await clock.advance(12.5)
    assert subscriber.kinds == ["snapshot", "heartbeat", "heartbeat"]
    await subscriber.stop()


async def test_a_silent_host_is_told_as_stale_and_then_as_removed(clock: FakeClock) -> None:
    feed = make_feed(clock, FleetPolicy(stale_after_seconds=2.0, expire_after_seconds=4.0))
    maintenance = asyncio.ensure_future(feed.maintain())
    feed.apply(make_report("i-1", 1))
    subscriber = Subscriber(feed.watch(ALL, "", 0.1))
    await clock.advance(4.6)
    stale, removed = [update.changes for update in subscriber.updates if update.changes]
    assert [state.freshness.name for state in stale.changed] == ["STALE"]
    assert removed.removed_host_ids == ("i-1",)
    await subscriber.stop()
    maintenance.cancel()


async def test_a_subscription_resumes_after_its_last_token(clock: FakeClock) -> None:
    feed = make_feed(clock)
    feed.apply(make_report("i-1", 1))
    feed.apply(make_report("i-2", 1))
    first = Subscriber(feed.watch(ALL, "", 1.0))
    await clock.settle()
    token = first.updates[-1].token
    await first.stop()
    feed.apply(make_report("i-2", 2))
    feed.apply(make_report("i-3", 1))
    second = Subscriber(feed.watch(ALL, token, 1.0))
    await clock.settle()
    assert second.kinds == ["delta"]
    changes = second.updates[0].changes
    assert changes is not None
    assert [state.host.host_id for state in changes.changed] == ["i-2", "i-3"]
    await second.stop()


async def test_a_token_of_another_run_of_the_collector_is_too_old(clock: FakeClock) -> None:
    before = Subscriber(make_feed(clock, epoch="before").watch(ALL, "", 1.0))
    await clock.settle()
    with pytest.raises(ResumeTokenTooOld):
        await anext(make_feed(clock).watch(ALL, before.updates[0].token, 1.0))
    await before.stop()


async def test_a_subscriber_that_does_not_read_costs_nothing_and_catches_up(
    clock: FakeClock,
) -> None:
    feed = make_feed(clock)
    stream = feed.watch(ALL, "", 1.0)
    await anext(stream)
    for sequence in range(1, 1001):
        feed.apply(make_report("i-1", sequence))
    reading = asyncio.ensure_future(anext(stream))
    await clock.advance(1.0)
    changes = (await reading).changes
    assert changes is not None
    assert [state.report.sequence for state in changes.changed] == [1000]


async def test_a_subscriber_to_one_tier_hears_of_it_alone(clock: FakeClock) -> None:
    feed = make_feed(clock)
    subscriber = Subscriber(feed.watch(FleetFilter(tiers=frozenset({Tier.SILVER})), "", 0.5))
    await clock.settle()
    feed.apply(make_report("i-1", 1, make_server("g", Tier.GOLD)))
    await clock.advance(1.0)
    assert subscriber.kinds == ["snapshot"]
    feed.apply(make_report("i-2", 1, make_server("s", Tier.SILVER)))
    await clock.advance(1.0)
    assert subscriber.kinds == ["snapshot", "delta"]
    assert [aggregate.tier for aggregate in subscriber.updates[1].aggregates] == [Tier.SILVER]
    await subscriber.stop()
