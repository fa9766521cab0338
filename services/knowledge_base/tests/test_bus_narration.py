"""Events of the bus read well as story events, whatever their publishers wrote."""

import math
import uuid
from datetime import UTC, datetime

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from gaming.events import events_pb2 as pb
from knowledge_base.adapters.bus_events import bus_event, recorded_message
from knowledge_base.domain.memory import NewEvent, StoryEvent
from knowledge_base.domain.narration import narrate
from messaging.codec import new_event
from messaging.errors import PoisonEvent, PoisonReason

WORLD_ID = "3f2b8c1e-8f5e-4d0a-9a57-0f2f3f4b5c6d"
NOON = 1_762_560_000_123


def told(event_type: int, payload: Message | None) -> NewEvent | None:
    message = new_event(
        event_type,
        payload,
        source="weather-manager",
        event_id="e1",
        timestamp_milliseconds=NOON,
        metadata={},
    )
    event = bus_event(message)
    assert event is not None
    return narrate(event, ignored_state_keys=("players_online",))


def test_a_change_of_weather_is_told_with_what_is_known_of_it() -> None:
    weather = pb.WeatherEvent(
        old_state="clear",
        new_state="heavy_storm",
        intensity=0.75,
        temperature=11.5,
        wind_speed=42,
        season="autumn",
        duration_minutes=35,
    )
    event = told(pb.WEATHER_CHANGED, weather)
    assert event is not None
    assert event.text == (
        "The weather turned from clear to heavy storm, intensity 75%, 12 °C, wind 42 km/h, "
        "in autumn, for about 35 minutes."
    )
    assert event.kind == "weather"
    assert event.importance == pytest.approx(0.5)
    assert event.occur_time == datetime.fromtimestamp(NOON / 1000, UTC)


@pytest.mark.parametrize(
    ("event_type", "payload", "text"),
    [
        (pb.WEATHER_CHANGED, pb.WeatherEvent(new_state="fog"), "Weather: fog."),
        (pb.WEATHER_SEVERE, None, "Severe weather set in."),
        (
            pb.TIME_NIGHT_ACTIVATED,
            pb.TimeEvent(old_state="day", new_state="night", day=3, time_string="20:05"),
            "Day turned to night (day 3, 20:05).",
        ),
        (pb.TIME_CHANGED, pb.TimeEvent(new_state="dawn", hour=5, minute=7), "It is dawn (05:07)."),
        (pb.TIME_UPDATED, pb.TimeEvent(day=2, hour=14), "It is day 2, 14:00."),
        (
            pb.WORLD_STATE_UPDATED,
            pb.StateUpdate(state={"season": "winter", "bridge": "burnt", "players_online": "812"}),
            "The world changed: bridge is burnt; season is winter.",
        ),
    ],
)
def test_an_event_is_told(event_type: int, payload: Message | None, text: str) -> None:
    event = told(event_type, payload)
    assert event is not None
    assert event.text == text


@pytest.mark.parametrize(
    ("event_type", "payload"),
    [
        (pb.WEATHER_CHANGED, pb.WeatherEvent(old_state="clear")),
        (pb.WORLD_STATE_UPDATED, pb.StateUpdate(state={"players_online": "812"})),
        (pb.WORLD_STATE_UPDATED, pb.StateUpdate()),
    ],
)
def test_an_event_with_nothing_to_tell_becomes_no_memory(
    event_type: int, payload: Message | None
) -> None:
    assert told(event_type, payload) is None


anything = st.text(max_size=500)
any_float = st.floats(width=32)
any_int = st.integers(-(2**31), 2**31 - 1)


@given(
    payload=st.one_of(
        st.builds(
            pb.WeatherEvent,
            old_state=anything,
            new_state=anything,
            intensity=any_float,
            temperature=any_float,
            wind_speed=any_float,
            season=anything,
            duration_minutes=any_int,
        ),
        st.builds(
            pb.TimeEvent,
            old_state=anything,
            new_state=anything,
            hour=any_int,
            minute=any_int,
            day=any_int,
            time_string=anything,
        ),
        st.builds(pb.StateUpdate, state=st.dictionaries(anything, anything, max_size=60)),
    )
)
def test_whatever_a_publisher_writes_makes_a_memory_that_can_be_kept(
    payload: pb.WeatherEvent | pb.TimeEvent | pb.StateUpdate,
) -> None:
    types = {
        pb.WeatherEvent: pb.WEATHER_CHANGED,
        pb.TimeEvent: pb.TIME_CHANGED,
        pb.StateUpdate: pb.WORLD_STATE_UPDATED,
    }
    event = told(types[type(payload)], payload)
    if event is None:
        return
    # What the contract allows a caller's own story event to be.
    assert 1 <= len(event.text) <= 8000
    assert event.text.isprintable()
    assert not math.isnan(event.importance)
    assert 0 <= event.importance <= 1


def test_an_event_of_another_type_is_for_no_world() -> None:
    for event_type in (pb.STORY_EVENT_RECORDED, pb.CAPACITY_CHANGED, pb.GPU_ALERT, 4711):
        message = pb.GameEvent(event_id="e1", event_type=event_type)  # type: ignore[arg-type]  # also a number of the future
        assert bus_event(message) is None


def test_an_event_for_a_world_that_is_none_is_for_no_world() -> None:
    message = pb.GameEvent(event_id="e1", event_type=pb.WEATHER_SEVERE)
    message.metadata["world_id"] = "the one with the bell"
    assert bus_event(message) is None


def test_an_event_names_the_world_it_is_meant_for() -> None:
    message = pb.GameEvent(event_id="e1", event_type=pb.WEATHER_SEVERE)
    message.metadata["world_id"] = WORLD_ID.upper()
    event = bus_event(message)
    assert event is not None
    assert str(event.world_id) == WORLD_ID


def test_a_payload_that_is_not_the_types_message_is_refused() -> None:
    message = pb.GameEvent(event_id="e1", event_type=pb.WEATHER_CHANGED, payload=b"\x0a\xff")
    with pytest.raises(PoisonEvent) as refused:
        bus_event(message)
    assert refused.value.poison_reason is PoisonReason.BAD_PAYLOAD


@pytest.mark.parametrize("timestamp", [0, -5, 2**62])
def test_a_moment_that_is_none_is_left_to_the_time_of_recording(timestamp: int) -> None:
    message = pb.GameEvent(event_id="e1", event_type=pb.WEATHER_SEVERE, timestamp=timestamp)
    event = bus_event(message)
    assert event is not None
    assert event.occur_time is None


def test_what_the_bus_is_told_of_a_memory_holds_no_text() -> None:
    moment = datetime(2026, 3, 1, tzinfo=UTC)
    event = StoryEvent(
        7, uuid.UUID(int=5), "Mira lied to her brother.", "dialogue", ("Mira",), moment, moment, 0.9
    )
    message = recorded_message(uuid.UUID(WORLD_ID), event, cause_event_id="e1")
    assert message.event_id == str(event.event_id)
    assert message.metadata == {"world_id": WORLD_ID}
    payload = pb.StoryEventRecordedEvent.FromString(message.payload)
    assert (payload.sequence, payload.kind, payload.cause_event_id) == (7, "dialogue", "e1")
    assert b"Mira" not in message.SerializeToString()
