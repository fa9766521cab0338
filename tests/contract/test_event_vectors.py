"""The event bus's wire format is what the game's existing services write and read."""

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor

from gaming.events import events_pb2
from messaging.codec import attributes_of, decode_event, encode_event, new_event
from messaging.errors import InvalidEvent, PoisonEvent

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


PUBLISHABLE = [vector for vector in VECTORS if vector["event"]["event_id"]]


def forms_of(vector: dict[str, Any]) -> dict[str, tuple[str, dict[str, str]]]:
    """The vector's event in each form that readers must accept: body and attributes."""
    text: str = vector["hex"]
    attributes = {"event_type": vector["event_type_attribute"]}
    envelope = {
        "Type": "Notification",
        "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": "arn:aws:sns:us-east-1:123456789012:game-events",
        "Message": text,
        "MessageAttributes": {k: {"Type": "String", "Value": v} for k, v in attributes.items()},
    }
    return {
        "raw": (text, attributes),
        "raw, upper case": (text.upper(), attributes),
        "raw, base64": (base64.b64encode(bytes.fromhex(text)).decode(), attributes),
        "enveloped": (json.dumps(envelope), {}),
        "enveloped, upper case": (json.dumps({**envelope, "Message": text.upper()}), {}),
    }


@pytest.mark.parametrize("form", forms_of(VECTORS[0]))
@pytest.mark.parametrize("vector", PUBLISHABLE, ids=lambda v: str(v["name"]))
def test_our_codec_reads_a_vector_in_every_form_and_writes_it_again(
    vector: dict[str, Any], form: str
) -> None:
    event = decode_event(*forms_of(vector)[form])
    assert event.SerializeToString(deterministic=True).hex() == vector["hex"]
    assert encode_event(event) == vector["hex"]
    assert {
        "event_id": event.event_id,
        "event_type": event.event_type,
        "source": event.source,
        "timestamp": event.timestamp,
        "metadata": dict(event.metadata),
    } == vector["event"]


@pytest.mark.parametrize(
    "vector", [v for v in VECTORS if v["event_type_attribute"]], ids=lambda v: str(v["name"])
)
def test_our_codec_builds_a_vector_and_names_its_attributes(vector: dict[str, Any]) -> None:
    fields = vector["event"]
    event = new_event(
        fields["event_type"],
        getattr(events_pb2, vector["payload_message"])(**vector["payload"]),
        source=fields["source"],
        event_id=fields["event_id"],
        timestamp_milliseconds=fields["timestamp"],
        metadata=fields["metadata"],
    )
    assert encode_event(event) == vector["hex"]
    world = {k: v for k, v in fields["metadata"].items() if k == "world_id"}
    assert attributes_of(event) == {
        "event_type": vector["event_type_attribute"],
        "source": fields["source"],
        "content_type": "application/x-protobuf",
        **world,
    }


@pytest.mark.parametrize(
    "vector", [v for v in VECTORS if v["payload_message"]], ids=lambda v: str(v["name"])
)
def test_the_json_form_of_a_vector_reads_as_the_vector(vector: dict[str, Any]) -> None:
    fields = vector["event"]
    body = json.dumps(
        {
            "event_id": fields["event_id"],
            "event_type": vector["event_type_attribute"],
            "source": fields["source"],
            "timestamp": fields["timestamp"],
            "data": vector["payload"],
        }
    )
    event = decode_event(body, {"content_type": "application/json"})
    event.metadata.update(fields["metadata"])  # which the JSON form does not carry
    assert encode_event(event) == vector["hex"]


def test_what_the_vectors_hold_without_an_id_is_poison_and_without_a_text_unpublishable() -> None:
    by_name = {vector["name"]: vector for vector in VECTORS}
    with pytest.raises(PoisonEvent):
        decode_event(by_name["empty"]["hex"], {})
    with pytest.raises(InvalidEvent):
        attributes_of(decode_event(by_name["unknown_event_type"]["hex"], {}))
