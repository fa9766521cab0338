"""Which event types there are: number on the wire, text in the `event_type` attribute, payload.

Numbers below 100 belong to the game's existing services and never change; this suite's own start
at 100. A number or text that stands in no row is no error anywhere: readers keep it.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import Message

from gaming.events import events_pb2

__all__ = ["number_of", "payload_type_of", "text_of"]


@dataclass(frozen=True, slots=True)
class _Row:
    number: int
    text: str
    payload_type: type[Message] | None


_ROWS = (
    _Row(events_pb2.WEATHER_CHANGED, "weather.changed", events_pb2.WeatherEvent),
    _Row(events_pb2.WEATHER_SEVERE, "weather.severe", None),
    _Row(events_pb2.TIME_CHANGED, "time.changed", events_pb2.TimeEvent),
    _Row(events_pb2.TIME_DAY_ACTIVATED, "time.day_activated", events_pb2.TimeEvent),
    _Row(events_pb2.TIME_NIGHT_ACTIVATED, "time.night_activated", events_pb2.TimeEvent),
    _Row(events_pb2.TIME_UPDATED, "time.updated", events_pb2.TimeEvent),
    _Row(events_pb2.WORLD_STATE_UPDATED, "world_state.updated", events_pb2.StateUpdate),
    _Row(events_pb2.CAPACITY_CHANGED, "capacity.changed", events_pb2.CapacityChangedEvent),
    _Row(events_pb2.GPU_ALERT, "gpu.alert", events_pb2.GpuAlertEvent),
    _Row(
        events_pb2.STORY_EVENT_RECORDED,
        "story.event_recorded",
        events_pb2.StoryEventRecordedEvent,
    ),
)
_BY_NUMBER = {row.number: row for row in _ROWS}
_BY_TEXT = {row.text: row for row in _ROWS}


def text_of(number: int) -> str | None:
    """Returns the attribute text of an event type; None for one this release does not know."""
    row = _BY_NUMBER.get(number)
    return row.text if row is not None else None


def number_of(text: str) -> int | None:
    """Returns the event type's number on the wire; None for a text this release does not know."""
    row = _BY_TEXT.get(text)
    return row.number if row is not None else None


def payload_type_of(number: int) -> type[Message] | None:
    """Returns the message class in an event's payload; None where it is empty or not known."""
    row = _BY_NUMBER.get(number)
    return row.payload_type if row is not None else None
