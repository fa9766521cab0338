"""The world's evening on the bus, and how what was heard there is counted."""

import pytest

from gaming.events import events_pb2 as pb
from localsuite.aws.event_bus import QUEUES
from localsuite.game.world_events import SUBSCRIBED_TYPES, evening_events
from localsuite.observe.bus import BusPicture
from messaging.event_types import number_of, payload_type_of, text_of


def test_the_worlds_events_come_in_order_within_the_evening_with_their_types_payloads() -> None:
    events = evening_events()
    shares = [event.share for event in events]
    assert shares == sorted(shares)
    # The storyteller's first turn begins at 0.06, in a world without a past.
    assert 0.06 < shares[0] < shares[-1] < 1
    for event in events:
        assert type(event.payload) is payload_type_of(event.event_type)
    assert {event.event_type for event in events} >= set(SUBSCRIBED_TYPES)


@pytest.mark.parametrize("queue", QUEUES, ids=lambda queue: str(queue.name))
def test_a_queue_asks_for_types_that_there_are(queue: object) -> None:
    for text in queue.event_types:  # type: ignore[attr-defined]  # a BusQueue
        assert number_of(text) is not None


def test_one_queue_is_raw_and_one_is_not_as_the_games_own_are() -> None:
    assert {queue.raw for queue in QUEUES} == {True, False}


def test_events_are_counted_by_who_told_them() -> None:
    picture = BusPicture()
    for event_type in (pb.WEATHER_CHANGED, pb.WORLD_STATE_UPDATED, pb.WORLD_STATE_UPDATED, 98):
        picture.hear(pb.GameEvent(event_type=event_type))  # type: ignore[arg-type]  # also a stranger
    picture.hear(pb.GameEvent(event_type=pb.CAPACITY_CHANGED))
    assert picture.words == (
        "4 events from the game (other 1, weather.changed 1, world_state.updated 2), "
        "1 from the suite (capacity.changed 1), 0 dead letters"
    )
    picture.dead_letters = 3
    assert picture.short == "4 in, 1 out, 3 dead"
    assert text_of(pb.CAPACITY_CHANGED) == "capacity.changed"
