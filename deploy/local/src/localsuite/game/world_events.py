"""The game's world tells its bus how it is: the hours, the weather, its state and its players.

The form is that of the game's existing services, one `source` for each of them.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from google.protobuf.message import Message

from fleetsim.players import PlayerCurve
from gaming.events import events_pb2 as pb
from gaming.events.events_pb2 import GameEvent
from localsuite.game.players import players_online
from messaging.codec import new_event
from messaging.publisher import EventPublisher
from servicekit.errors import ServiceError

__all__ = ["SUBSCRIBED_TYPES", "evening_events", "tell_players", "tell_world"]

log = structlog.get_logger(__name__)

_PLAYERS_SECONDS = 2.0

# What the storyteller's world takes from the bus.
SUBSCRIBED_TYPES = (
    pb.WEATHER_CHANGED,
    pb.TIME_DAY_ACTIVATED,
    pb.TIME_NIGHT_ACTIVATED,
    pb.WORLD_STATE_UPDATED,
)


@dataclass(frozen=True, slots=True)
class WorldEvent:
    """Something of the world at a share of the evening."""

    share: float
    source: str
    event_type: pb.EventType.ValueType
    payload: Message


def evening_events() -> tuple[WorldEvent, ...]:
    """Returns what happens to the world in an evening, in order."""

    def weather(share: float, old: str, new: str, intensity: float, celsius: float) -> WorldEvent:
        change = pb.WeatherEvent(
            old_state=old,
            new_state=new,
            intensity=intensity,
            temperature=celsius,
            wind_speed=10 + 60 * intensity,
            humidity=0.6,
            season="autumn",
            duration_minutes=40,
        )
        return WorldEvent(share, "weather-manager", pb.WEATHER_CHANGED, change)

    def hour(
        share: float, event_type: pb.EventType.ValueType, old: str, new: str, clock: str
    ) -> WorldEvent:
        hours, _, minutes = clock.partition(":")
        mark = pb.TimeEvent(
            old_state=old,
            new_state=new,
            hour=int(hours),
            minute=int(minutes),
            day=12,
            time_string=clock,
        )
        return WorldEvent(share, "time-manager", event_type, mark)

    flood = pb.StateUpdate(state={"the_lower_sill": "under water"}, update_type="delta")
    return (
        weather(0.14, "clear", "fog", 0.3, 9.0),
        hour(0.22, pb.TIME_CHANGED, "day", "dusk", "18:40"),
        hour(0.32, pb.TIME_NIGHT_ACTIVATED, "dusk", "night", "20:05"),
        weather(0.42, "fog", "storm", 0.8, 6.5),
        WorldEvent(0.52, "game-state-manager", pb.WORLD_STATE_UPDATED, flood),
        weather(0.62, "storm", "rain", 0.4, 7.0),
        hour(0.74, pb.TIME_DAY_ACTIVATED, "night", "day", "06:10"),
    )


async def tell_world(publisher: EventPublisher, *, started: float, duration_seconds: float) -> None:
    """Publishes the evening's events at their times; `started` is on the monotonic clock."""
    for event in evening_events():
        await asyncio.sleep(max(0.0, started + event.share * duration_seconds - time.monotonic()))
        await _publish(publisher, _message(event.source, event.event_type, event.payload))


async def tell_players(publisher: EventPublisher, curve: PlayerCurve, *, started: float) -> None:
    """Publishes how many play, and the season, every two seconds until cancelled."""
    while True:
        players = players_online(curve, time.monotonic() - started)
        state = pb.StateUpdate(state={"players_online": str(players)}, update_type="delta")
        await _publish(publisher, _message("game-state-manager", pb.WORLD_STATE_UPDATED, state))
        await asyncio.sleep(_PLAYERS_SECONDS)


def _message(
    source: str,
    event_type: pb.EventType.ValueType,
    payload: Message,
    *,
    new_id: Callable[[], uuid.UUID] = uuid.uuid4,
) -> GameEvent:
    return new_event(
        event_type,
        payload,
        source=source,
        event_id=str(new_id()),
        timestamp_milliseconds=time.time_ns() // 1_000_000,
        metadata={},
    )


async def _publish(publisher: EventPublisher, event: GameEvent) -> None:
    try:
        await publisher.publish(event)
    except ServiceError as error:
        # The world goes on, whoever hears of it.
        log.warning("event_not_published", source=event.source, reason=error.reason)
