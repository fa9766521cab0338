"""Resumable streams: nothing lost, nothing twice, nothing unbounded, gaps said aloud."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servicekit.errors import ResumeTokenTooOld, ShuttingDown, SlowSubscriber
from servicekit.streams import ResumableLog, StreamItem
from servicekit.testing import FakeClock


def make_log(clock: FakeClock | None = None, **options: Any) -> ResumableLog[int]:
    return ResumableLog(clock=clock or FakeClock(), epoch="run1", **options)


def next_of(subscription: AsyncIterator[StreamItem[int]]) -> asyncio.Task[StreamItem[int]]:
    async def wait() -> StreamItem[int]:
        return await anext(subscription)

    return asyncio.create_task(wait())


async def test_a_subscriber_gets_what_is_published_from_its_subscription_on() -> None:
    resumable_log = make_log()
    resumable_log.publish(1)
    subscription = resumable_log.subscribe()
    token = resumable_log.publish(2)
    step = await anext(subscription)
    assert (step.item, step.token) == (2, token)
    assert resumable_log.latest_token == token


async def test_a_waiting_subscriber_is_woken() -> None:
    clock = FakeClock()
    resumable_log = make_log(clock)
    waiting = next_of(resumable_log.subscribe())
    await clock.settle()
    assert not waiting.done()
    resumable_log.publish(7)
    assert (await waiting).item == 7


async def test_resuming_continues_after_the_token() -> None:
    resumable_log = make_log()
    tokens = [resumable_log.publish(number) for number in range(5)]
    subscription = resumable_log.subscribe(tokens[1])
    assert [(await anext(subscription)).item for _ in range(3)] == [2, 3, 4]


@pytest.mark.parametrize(
    "token", ["run1.0", "run0.3", "run1.9", "run1.-1", "run1.", "run1", ".3", "nonsense", "run1.٣"]
)
async def test_a_token_too_old_of_another_run_or_made_up_is_refused(token: str) -> None:
    resumable_log = make_log(history=2, subscriber_queue=1)
    for number in range(4):
        resumable_log.publish(number)
    with pytest.raises(ResumeTokenTooOld):
        resumable_log.subscribe(token)


async def test_the_oldest_token_of_the_history_still_works() -> None:
    resumable_log = make_log(history=2, subscriber_queue=1)
    tokens = [resumable_log.publish(number) for number in range(4)]
    subscription = resumable_log.subscribe(tokens[1])
    assert [(await anext(subscription)).item for _ in range(2)] == [2, 3]


async def test_a_slow_subscriber_is_dropped_with_a_token_that_works() -> None:
    resumable_log = make_log(history=100, subscriber_queue=3)
    subscription = resumable_log.subscribe()
    resumable_log.publish(0)
    assert (await anext(subscription)).item == 0
    for number in range(1, 5):
        resumable_log.publish(number)
    with pytest.raises(SlowSubscriber) as caught:
        await anext(subscription)
    resumed = resumable_log.subscribe(caught.value.metadata["resume_token"])
    assert [(await anext(resumed)).item for _ in range(4)] == [1, 2, 3, 4]


async def test_a_subscriber_within_its_queue_is_kept() -> None:
    resumable_log = make_log(subscriber_queue=3)
    subscription = resumable_log.subscribe()
    for number in range(3):
        resumable_log.publish(number)
    assert [(await anext(subscription)).item for _ in range(3)] == [0, 1, 2]


async def test_catching_up_over_the_history_is_not_slowness() -> None:
    resumable_log = make_log(history=50, subscriber_queue=3)
    first = resumable_log.publish(0)
    for number in range(1, 40):
        resumable_log.publish(number)
    subscription = resumable_log.subscribe(first)
    assert [(await anext(subscription)).item for _ in range(39)] == list(range(1, 40))


async def test_silence_is_filled_with_heartbeats_that_can_be_resumed_from() -> None:
    clock = FakeClock()
    resumable_log = make_log(clock, heartbeat_seconds=5)
    subscription = resumable_log.subscribe()
    for _ in range(3):
        waiting = next_of(subscription)
        await clock.advance(4.9)
        assert not waiting.done()
        await clock.advance(0.2)
        beat = waiting.result()
        assert (beat.item, beat.token) == (None, "run1.0")
    resumable_log.publish(1)
    assert (await anext(subscription)).item == 1


async def test_an_item_puts_the_heartbeat_off() -> None:
    clock = FakeClock()
    resumable_log = make_log(clock, heartbeat_seconds=5)
    subscription = resumable_log.subscribe()
    waiting = next_of(subscription)
    await clock.advance(4)
    resumable_log.publish(1)
    await waiting
    waiting = next_of(subscription)
    await clock.advance(4)
    assert not waiting.done()
    await clock.advance(1.5)
    assert waiting.result().item is None


async def test_many_subscribers_share_one_ticker() -> None:
    clock = FakeClock()
    resumable_log = make_log(clock, heartbeat_seconds=5)
    waiting = [next_of(resumable_log.subscribe()) for _ in range(50)]
    await clock.settle()
    assert clock.sleeper_count == 1
    await clock.advance(6)
    assert all(task.result().item is None for task in waiting)


async def test_closing_delivers_what_is_there_then_ends_every_subscription() -> None:
    clock = FakeClock()
    resumable_log = make_log(clock)
    behind, idle = resumable_log.subscribe(), resumable_log.subscribe()
    resumable_log.publish(1)
    await anext(idle)
    waiting = next_of(idle)
    await clock.settle()
    resumable_log.close()
    assert (await anext(behind)).item == 1
    with pytest.raises(ShuttingDown):
        await anext(behind)
    with pytest.raises(ShuttingDown):
        await waiting
    with pytest.raises(ShuttingDown):
        await anext(resumable_log.subscribe())


async def test_abandoned_and_cancelled_subscriptions_leave_nothing_behind() -> None:
    clock = FakeClock()
    resumable_log = make_log(clock)
    subscription = resumable_log.subscribe()
    waiting = next_of(subscription)
    await clock.settle()
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    assert resumable_log.subscriber_count == 1
    del subscription, waiting
    await clock.settle()  # the loop lets go of the cancelled task
    gc.collect()
    assert resumable_log.subscriber_count == 0
    assert resumable_log._waiting == {}
    await clock.advance(10)
    assert clock.sleeper_count == 0


async def test_memory_is_bounded_whatever_subscribers_do() -> None:
    resumable_log = make_log(history=10, subscriber_queue=5)
    subscriptions = [resumable_log.subscribe() for _ in range(20)]
    for number in range(10_000):
        resumable_log.publish(number)
    assert len(resumable_log._items) == 10
    assert len(subscriptions) == resumable_log.subscriber_count


@pytest.mark.parametrize("epoch", ["", "a.b"])
def test_an_epoch_that_would_confuse_tokens_is_refused(epoch: str) -> None:
    with pytest.raises(ValueError, match="epoch"):
        ResumableLog(clock=FakeClock(), epoch=epoch)


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.just(("publish", 0)),
            st.tuples(st.sampled_from(["read", "drop", "reconnect"]), st.integers(0, 2)),
        ),
        max_size=80,
    ),
    st.integers(1, 12),
    st.integers(1, 12),
)
def test_no_interleaving_loses_or_repeats_an_item(
    actions: list[tuple[str, int]], history: int, subscriber_queue: int
) -> None:
    """Each reader sees ascending runs without holes; a hole comes only with an explicit error."""

    async def run() -> None:
        resumable_log = make_log(history=history, subscriber_queue=subscriber_queue)
        published = 0
        readers = [_Reader(resumable_log) for _ in range(3)]
        for action, index in actions:
            if action == "publish":
                resumable_log.publish(published)
                published += 1
            elif action == "read":
                await readers[index].read(published)
            elif action == "drop":
                readers[index].disconnect()
            else:
                readers[index].connect(published)

    asyncio.run(run())


class _Reader:
    def __init__(self, resumable_log: ResumableLog[int]) -> None:
        self.log = resumable_log
        self.subscription = resumable_log.subscribe()
        self.token = resumable_log.latest_token
        self.expected = 0
        self.connected = True

    def disconnect(self) -> None:
        self.connected = False

    def connect(self, published: int) -> None:
        try:
            self.subscription = self.log.subscribe(self.token)
        except ResumeTokenTooOld:
            assert published - self.expected > self.log._history
            self.subscription = self.log.subscribe()
            self.token, self.expected = self.log.latest_token, published
        self.connected = True

    async def read(self, published: int) -> None:
        if not self.connected or self.expected == published:
            return
        behind = published - self.expected
        try:
            step = await anext(self.subscription)
        except SlowSubscriber as error:
            assert error.metadata["resume_token"] == self.token  # noqa: PT017  # may or may not come
            assert behind > min(self.log._subscriber_queue, self.log._history)
            self.connected = False
            return
        assert step.item == self.expected
        self.expected += 1
        self.token = step.token
