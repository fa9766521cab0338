"""Between the bus's messages and the domain: what worlds take, and what they recorded."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from google.protobuf.message import DecodeError

from gaming.events import events_pb2 as pb
from knowledge_base.domain.memory import StoryEvent
from knowledge_base.domain.narration import (
    BusEvent,
    Happening,
    SevereWeather,
    TimeMark,
    WeatherChange,
    WorldStateChange,
)
from messaging.codec import new_event
from messaging.errors import PoisonEvent, PoisonReason

__all__ = ["SOURCE", "bus_event", "recorded_message"]

SOURCE = "knowledge_base"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_WORLD_ID = "world_id"


def bus_event(message: pb.GameEvent) -> BusEvent | None:
    """Returns the event as worlds take it, None for a type that no world can take.

    An event for a world whose id is no UUID is for no world, so also None.

    Raises:
        PoisonEvent: the payload is not of the type's message.
    """
    read = _READERS.get(message.event_type)
    if read is None:
        return None
    world_id = None
    if message.metadata.get(_WORLD_ID):
        try:
            world_id = uuid.UUID(message.metadata[_WORLD_ID])
        except ValueError:
            return None
    try:
        happening = read(message.payload)
    except DecodeError:
        raise PoisonEvent(PoisonReason.BAD_PAYLOAD) from None
    return BusEvent(
        event_id=message.event_id,
        event_type=message.event_type,
        # No subscription names a source with U+0000, and PostgreSQL takes none as a parameter.
        source=message.source.replace("\0", ""),
        occur_time=_moment(message.timestamp),
        world_id=world_id,
        happening=happening,
    )


def recorded_message(
    world_id: uuid.UUID, event: StoryEvent, cause_event_id: str = ""
) -> pb.GameEvent:
    """Returns what the bus is told of a story event; its id is the story event's own."""
    return new_event(
        pb.STORY_EVENT_RECORDED,
        pb.StoryEventRecordedEvent(
            world_id=str(world_id),
            story_event_id=str(event.event_id),
            kind=event.kind,
            sequence=event.sequence,
            occur_timestamp=_milliseconds(event.occur_time),
            importance=event.importance,
            cause_event_id=cause_event_id,
        ),
        source=SOURCE,
        event_id=str(event.event_id),
        timestamp_milliseconds=_milliseconds(event.record_time),
        metadata={_WORLD_ID: str(world_id)},
    )


def _weather(payload: bytes) -> Happening:
    event = pb.WeatherEvent.FromString(payload)
    return WeatherChange(
        old_state=event.old_state,
        new_state=event.new_state,
        intensity=event.intensity,
        temperature_celsius=event.temperature,
        wind_kilometres_per_hour=event.wind_speed,
        season=event.season,
        duration_minutes=event.duration_minutes,
    )


def _severe(payload: bytes) -> Happening:
    return SevereWeather()


def _time(*, turns: bool) -> Callable[[bytes], Happening]:
    def read(payload: bytes) -> Happening:
        event = pb.TimeEvent.FromString(payload)
        return TimeMark(
            old_state=event.old_state,
            new_state=event.new_state,
            hour=event.hour,
            minute=event.minute,
            day=event.day,
            time_text=event.time_string,
            turns=turns,
        )

    return read


def _state(payload: bytes) -> Happening:
    return WorldStateChange(dict(pb.StateUpdate.FromString(payload).state))


_READERS: dict[int, Callable[[bytes], Happening]] = {
    pb.WEATHER_CHANGED: _weather,
    pb.WEATHER_SEVERE: _severe,
    pb.TIME_CHANGED: _time(turns=False),
    pb.TIME_DAY_ACTIVATED: _time(turns=True),
    pb.TIME_NIGHT_ACTIVATED: _time(turns=True),
    pb.TIME_UPDATED: _time(turns=False),
    pb.WORLD_STATE_UPDATED: _state,
}


def _moment(milliseconds: int) -> datetime | None:
    if milliseconds <= 0:
        return None
    try:
        return _EPOCH + milliseconds * _MILLISECOND
    except OverflowError:
        return None


def _milliseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MILLISECOND
