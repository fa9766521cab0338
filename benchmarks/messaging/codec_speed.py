"""How many events a core encodes and decodes a second, against plain JSON and bare protobuf.

    .venv/bin/python benchmarks/messaging/codec_speed.py [--events 5000] [--rounds 9]

The same weather events go through each rival in turn, so that the machine's mood meets all alike;
a figure is the best of the rounds. Bare protobuf is the floor: bytes to bytes, nothing checked.
JSON is what development publishers send, written and read with the standard library.
"""

from __future__ import annotations

import argparse
import json
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from gaming.events import events_pb2
from gaming.events.events_pb2 import GameEvent
from messaging.codec import decode_event, encode_event, new_event


def _events(count: int) -> list[GameEvent]:
    return [
        new_event(
            events_pb2.WEATHER_CHANGED,
            events_pb2.WeatherEvent(
                old_state="clear",
                new_state="storm",
                intensity=0.75,
                temperature=11.5,
                wind_speed=42.0,
                humidity=0.5,
                season="autumn",
                duration_minutes=35,
            ),
            source="weather-manager",
            event_id=str(uuid.UUID(int=number)),
            timestamp_milliseconds=1_762_560_000_000 + number,
            metadata={"world_id": "harbour"},
        )
        for number in range(count)
    ]


def _as_json(number: int) -> dict[str, Any]:
    return {
        "event_id": str(uuid.UUID(int=number)),
        "event_type": "weather.changed",
        "source": "weather-manager",
        "timestamp": 1_762_560_000_000 + number,
        "data": {
            "old_state": "clear",
            "new_state": "storm",
            "intensity": 0.75,
            "temperature": 11.5,
            "wind_speed": 42.0,
            "humidity": 0.5,
            "season": "autumn",
            "duration_minutes": 35,
        },
    }


def _enveloped(text: str) -> str:
    """Returns the text as SNS delivers it to a queue without raw delivery."""
    return json.dumps(
        {
            "Type": "Notification",
            "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
            "TopicArn": "arn:aws:sns:us-east-1:123456789012:game-events",
            "Message": text,
            "Timestamp": "2026-01-01T00:00:00.000Z",
            "MessageAttributes": {"event_type": {"Type": "String", "Value": "weather.changed"}},
        }
    )


def _seconds(call: Callable[[Any], Any], items: Sequence[Any]) -> float:
    started = time.process_time()
    for item in items:
        call(item)
    return (time.process_time() - started) / len(items)


def main(count: int, rounds: int) -> None:
    """Prints events a second for each rival, and the ratios to the floor and to JSON."""
    events = _events(count)
    contents = [event.SerializeToString(deterministic=True) for event in events]
    texts = [encode_event(event) for event in events]
    documents = [_as_json(number) for number in range(count)]
    json_texts = [json.dumps(document) for document in documents]
    rivals: dict[str, dict[str, tuple[Callable[[Any], Any], Sequence[Any]]]] = {
        "encode": {
            "bare SerializeToString": (GameEvent.SerializeToString, events),
            "plain json.dumps": (json.dumps, documents),
            "encode_event": (encode_event, events),
        },
        "decode": {
            "bare FromString": (GameEvent.FromString, contents),
            "plain json.loads": (json.loads, json_texts),
            "decode_event, raw delivery": (lambda text: decode_event(text, {}), texts),
            "decode_event, enveloped": (
                lambda text: decode_event(text, {}),
                [_enveloped(text) for text in texts],
            ),
            "decode_event, JSON form": (lambda text: decode_event(text, {}), json_texts),
        },
    }
    for direction, entries in rivals.items():
        best: dict[str, float] = {}
        for _ in range(rounds):
            for name, (call, items) in entries.items():
                seconds = _seconds(call, items)
                best[name] = min(best.get(name, seconds), seconds)
        floor, plain_json = list(best.values())[:2]
        for name, seconds in best.items():
            print(
                f"{direction:6} {name:27}: {1 / seconds:9,.0f} events/s "
                f"({seconds * 1e6:5.2f} µs), {seconds / floor:5.2f} x bare protobuf, "
                f"{seconds / plain_json:5.2f} x plain JSON"
            )
    print(f"size   {len(texts[0])} bytes on the bus, {len(json_texts[0])} as JSON")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Speed of the event codec.")
    parser.add_argument("--events", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    main(arguments.events, arguments.rounds)
