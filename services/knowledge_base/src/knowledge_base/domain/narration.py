"""Events of the game's bus told as story events.

Everything in them was written by other services, so every text is cut to a length, and control
characters are taken out: a publisher can neither break a memory nor fill it.
"""

import unicodedata
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from knowledge_base.domain.memory import NewEvent

__all__ = [
    "BusEvent",
    "Happening",
    "SevereWeather",
    "TimeMark",
    "WeatherChange",
    "WorldStateChange",
    "narrate",
]

_LONGEST_WORD = 80
_MOST_STATE_KEYS = 24

# How much it matters that something happened, beside the 0.5 of what players and storytellers
# record: a storm is remembered, the hours are not.
_SEVERE_IMPORTANCE = 0.8
_WEATHER_IMPORTANCE = 0.2
_INTENSITY_IMPORTANCE = 0.4
_DAY_IMPORTANCE = 0.2
_TIME_IMPORTANCE = 0.1
_STATE_IMPORTANCE = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class WeatherChange:
    """The weather went from one state to another; 0 and empty mean that it was not told."""

    old_state: str = ""
    new_state: str = ""
    intensity: float = 0.0
    temperature_celsius: float = 0.0
    wind_kilometres_per_hour: float = 0.0
    season: str = ""
    duration_minutes: int = 0


@dataclass(frozen=True, slots=True)
class SevereWeather:
    """The weather became dangerous; the bus tells no more about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeMark:
    """The game's clock passed a mark; `turns` says that day or night began with it."""

    old_state: str = ""
    new_state: str = ""
    hour: int = 0
    minute: int = 0
    day: int = 0
    time_text: str = ""
    turns: bool = False


@dataclass(frozen=True, slots=True)
class WorldStateChange:
    """Some of the world's state has new values."""

    values: Mapping[str, str]


Happening = WeatherChange | SevereWeather | TimeMark | WorldStateChange


@dataclass(frozen=True, slots=True, kw_only=True)
class BusEvent:
    """An event of the bus that a world may take.

    Attributes:
        event_id: names the event; duplicates have the same one.
        event_type: its number on the bus.
        source: the service that published it.
        occur_time: when it happened; None when that was not told.
        world_id: the only world it is meant for; None means every world.
        happening: what happened.
    """

    event_id: str
    event_type: int
    source: str
    occur_time: datetime | None
    world_id: uuid.UUID | None
    happening: Happening


def narrate(event: BusEvent, ignored_state_keys: Collection[str] = ()) -> NewEvent | None:
    """Returns the story event that tells it, None when it holds nothing to tell.

    World state below `ignored_state_keys` is for machines and is left out.
    """
    match event.happening:
        case WeatherChange() as change:
            text, kind = _weather(change), "weather"
            strength = min(1.0, max(0.0, change.intensity))
            importance = _WEATHER_IMPORTANCE + _INTENSITY_IMPORTANCE * strength
        case SevereWeather():
            text, kind, importance = "Severe weather set in.", "weather", _SEVERE_IMPORTANCE
        case TimeMark() as mark:
            text, kind = _time(mark), "time"
            importance = _DAY_IMPORTANCE if mark.turns else _TIME_IMPORTANCE
        case WorldStateChange(values):
            told = {key: value for key, value in values.items() if key not in ignored_state_keys}
            text, kind, importance = _state(told), "world_state", _STATE_IMPORTANCE
    if not text:
        return None
    return NewEvent.of(text, kind=kind, occur_time=event.occur_time, importance=importance)


def _weather(change: WeatherChange) -> str:
    old, new = _words(change.old_state), _words(change.new_state)
    if not new:
        return ""
    turned = f"The weather turned from {old} to {new}" if old and old != new else f"Weather: {new}"
    details = []
    if _is_number(change.intensity):
        details.append(f"intensity {min(1.0, max(0.0, change.intensity)):.0%}")
    if _is_number(change.temperature_celsius):
        details.append(f"{change.temperature_celsius:.0f} °C")
    if _is_number(change.wind_kilometres_per_hour):
        details.append(f"wind {change.wind_kilometres_per_hour:.0f} km/h")
    season = _words(change.season)
    if season:
        details.append(f"in {season}")
    if change.duration_minutes > 0:
        details.append(f"for about {change.duration_minutes} minutes")
    return f"{turned}, {', '.join(details)}." if details else f"{turned}."


def _time(mark: TimeMark) -> str:
    clock = _words(mark.time_text) or f"{mark.hour % 24:02d}:{mark.minute % 60:02d}"
    when = f"day {mark.day}, {clock}" if mark.day > 0 else clock
    old, new = _words(mark.old_state), _words(mark.new_state)
    if new and old and old != new:
        return f"{old.capitalize()} turned to {new} ({when})."
    if new:
        return f"It is {new} ({when})."
    return f"It is {when}."


def _state(values: Mapping[str, str]) -> str:
    told = [
        f"{key} is {value}"
        for key, value in ((_words(k), _words(v)) for k, v in sorted(values.items()))
        if key and value
    ]
    if not told:
        return ""
    left_out = len(told) - _MOST_STATE_KEYS
    more = f"; and {left_out} more" if left_out > 0 else ""
    return f"The world changed: {'; '.join(told[:_MOST_STATE_KEYS])}{more}."


def _words(text: str) -> str:
    """Returns the text on one line, without control characters, cut to a bearable length."""
    plain = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text)
    line = " ".join(plain.split()).replace("_", " ")
    return line if len(line) <= _LONGEST_WORD else line[: _LONGEST_WORD - 1].rstrip() + "…"


def _is_number(value: float) -> bool:
    # 0 cannot be told from a field that was not set; infinities and NaN tell nothing.
    return value != 0.0 and abs(value) < 1e6
