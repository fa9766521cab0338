"""The event bus's wire format is what the game's existing services write and read."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor

from gaming.events import events_pb2

# The first file is the existing services' own and never changes; the second pins our additions.
VECTORS: list[dict[str, Any]] = [
    vector
    for name in ("event_vectors.json", "suite_event_vectors.json")
    for vector in json.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))
]
IDS = [vector["name"] for vector in VECTORS]


@pytest.mark.parametrize("vector", VECTORS, ids=IDS)
def test_a_vector_decodes_to_its_fields(vector: dict[str, Any]) -> None:
    event = events_pb2.GameEvent.FromString(bytes.fromhex(vector["hex"]))
    assert {
        "event_id": event.event_id,
        "event_type": event.event_type,
        "source": event.source,
        "timestamp": event.timestamp,
        "metadata": dict(event.metadata),
    } == vector["event"]


@pytest.mark.parametrize("vector", VECTORS, ids=IDS)
def test_a_vector_encodes_to_the_same_bytes(vector: dict[str, Any]) -> None:
    event = events_pb2.GameEvent.FromString(bytes.fromhex(vector["hex"]))
    assert event.SerializeToString(deterministic=True).hex() == vector["hex"]


@pytest.mark.parametrize("vector", VECTORS, ids=IDS)
def test_an_event_built_from_the_fields_encodes_to_the_vector(vector: dict[str, Any]) -> None:
    payload = b""
    if vector["payload_message"]:
        message = getattr(events_pb2, vector["payload_message"])(**vector["payload"])
        payload = message.SerializeToString(deterministic=True)
    event = events_pb2.GameEvent(**vector["event"], payload=payload)
    assert event.SerializeToString(deterministic=True).hex() == vector["hex"]


def as_on_the_wire(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


@pytest.mark.parametrize(
    "vector", [v for v in VECTORS if v["payload_message"]], ids=lambda v: str(v["name"])
)
def test_a_payload_decodes_to_its_fields(vector: dict[str, Any]) -> None:
    event = events_pb2.GameEvent.FromString(bytes.fromhex(vector["hex"]))
    payload = getattr(events_pb2, vector["payload_message"]).FromString(event.payload)
    for name, expected in vector["payload"].items():
        value = getattr(payload, name)
        single = payload.DESCRIPTOR.fields_by_name[name].type == FieldDescriptor.TYPE_FLOAT
        assert (dict(value) if isinstance(expected, dict) else value) == (
            as_on_the_wire(expected) if single else expected
        )


def test_an_unknown_event_type_is_kept() -> None:
    event = events_pb2.GameEvent.FromString(bytes.fromhex("1063"))
    assert event.event_type == 99
    assert event.SerializeToString().hex() == "1063"


def test_unknown_fields_survive_a_round_trip() -> None:
    # Field 15, length-delimited, from a publisher newer than this reader.
    newer = bytes.fromhex("0a0161") + bytes.fromhex("7a026869")
    assert events_pb2.GameEvent.FromString(newer).SerializeToString() == newer


def test_the_existing_types_keep_their_numbers() -> None:
    existing = {name: number for name, number in events_pb2.EventType.items() if number < 100}
    assert existing == {
        "EVENT_TYPE_UNSPECIFIED": 0,
        "WEATHER_CHANGED": 1,
        "WEATHER_SEVERE": 2,
        "TIME_CHANGED": 3,
        "TIME_DAY_ACTIVATED": 4,
        "TIME_NIGHT_ACTIVATED": 5,
        "TIME_UPDATED": 6,
        "WORLD_STATE_UPDATED": 7,
    }
