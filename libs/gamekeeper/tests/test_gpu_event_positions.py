"""A subscriber to GPU events takes each once, and says where it stands when it goes elsewhere."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from gamekeeper.gpu_events import GpuEventPositions, _Subscription
from gaming.gpu_metrics.v1 import events_pb2


def told(sequence: int, *, lost: int = 0, event: bool = True) -> events_pb2.WatchGpuEventsResponse:
    message = events_pb2.WatchGpuEventsResponse(
        position=events_pb2.JournalPosition(host_id="i-1", journal_id="j", sequence=sequence),
        lost_events=lost,
    )
    if event:
        message.event.sequence = sequence
    return message


HEARTBEAT = events_pb2.WatchGpuEventsResponse()


class Collector:
    """Answers every subscription with the same messages and keeps what it was asked."""

    def __init__(self, *messages: events_pb2.WatchGpuEventsResponse) -> None:
        self.messages = messages
        self.requests: list[events_pb2.WatchGpuEventsRequest] = []

    def WatchGpuEvents(  # noqa: N802  # the method's name in the protocol
        self, request: events_pb2.WatchGpuEventsRequest
    ) -> Any:
        self.requests.append(request)
        return Call(self.messages)


class Call:
    def __init__(self, messages: tuple[events_pb2.WatchGpuEventsResponse, ...]) -> None:
        self._messages = messages

    async def __aiter__(self) -> AsyncIterator[events_pb2.WatchGpuEventsResponse]:
        for message in self._messages:
            yield message

    def cancel(self) -> None:
        pass


async def read(subscription: _Subscription) -> list[tuple[int, int, bool]]:
    """Sequence, lost events, and whether there was an event, of what one stream had to say."""
    notices = []
    async with aclosing(subscription.open()) as messages:
        async for message in messages:
            notice = subscription.take(message)
            if notice is not None:
                notices.append((notice.sequence, notice.lost_events, notice.event is not None))
    return notices


def subscription(*collectors: Collector, only_new: bool = False) -> _Subscription:
    stubs: Any = collectors
    return _Subscription(stubs, GpuEventPositions(), "", only_new=only_new)


async def test_what_another_collector_repeats_is_dropped() -> None:
    first, second = Collector(told(1), told(2), HEARTBEAT), Collector(told(1), told(2), told(3))
    following = subscription(first, second)
    assert await read(following) == [(1, 0, True), (2, 0, True)]
    assert await read(following) == [(3, 0, True)]


async def test_every_subscription_names_where_the_subscriber_stands() -> None:
    first, second = Collector(told(1), told(2)), Collector()
    following = subscription(first, second)
    await read(following)
    await read(following)
    (request,) = second.requests
    assert [each.sequence for each in request.positions] == [2]


async def test_who_wants_only_what_is_new_says_so_once_and_goes_on_from_where_that_began() -> None:
    first = Collector(told(7, event=False), HEARTBEAT, told(8))
    second = Collector(told(9))
    following = subscription(first, second, only_new=True)
    assert await read(following) == [(8, 0, True)]
    assert await read(following) == [(9, 0, True)]
    assert [each.requests[0].only_new for each in (first, second)] == [True, False]


async def test_events_that_nobody_has_any_more_are_told() -> None:
    following = subscription(Collector(told(5, lost=4), told(9, lost=4, event=False)))
    assert await read(following) == [(5, 4, True), (9, 4, False)]


def test_positions_are_stored_as_text_and_only_go_forward() -> None:
    positions = GpuEventPositions()
    assert positions.take("i-1", "j", 3)
    assert not positions.take("i-1", "j", 3)
    assert not positions.take("i-1", "j", 2)
    assert positions.take("i-1", "k", 1)
    again = GpuEventPositions.load(positions.dump())
    assert again.dump() == positions.dump()
    assert not again.take("i-1", "j", 3)
    assert GpuEventPositions.load("").dump() == "[]"


@pytest.mark.parametrize("text", ["nothing", "3", '[["i-1"]]', '{"i-1": 3}', '[["i-1", "j", []]]'])
def test_a_text_that_holds_no_positions_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="holds no positions"):
        GpuEventPositions.load(text)


def test_a_request_names_no_more_journals_than_it_may_the_last_ones_first() -> None:
    positions = GpuEventPositions()
    for number in range(5000):
        positions.take(f"i-{number}", "j", 1)
    named = [each.host_id for each in positions.messages()]
    assert (len(named), named[0], named[-1]) == (4096, "i-4999", "i-904")
