"""GameEvents as they travel: written as lower-case hexadecimal text, read in every form in use.

The forms a body may have, by the bus's wire contract:

- the message itself (raw delivery), or SNS's JSON envelope around it;
- in it the serialised event as hexadecimal (either case) or base64 text, or, from development
  publishers, an event as a JSON object.

The body alone decides which one it is; attributes only help where the body says less. What this
release does not know of an event, type numbers and fields, stays in the decoded message and is
written again with it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError, Message

from gaming.events.events_pb2 import GameEvent
from messaging.errors import InvalidEvent, PoisonEvent, PoisonReason
from messaging.event_types import text_of
from messaging.json_events import event_from_json

__all__ = [
    "ATTRIBUTE_LIMIT",
    "CONTENT_TYPE",
    "attributes_of",
    "decode_event",
    "encode_event",
    "new_event",
    "unwrapped",
]

CONTENT_TYPE = "application/x-protobuf"
ATTRIBUTE_LIMIT = 10
"""With more, SNS loses the message without a word wherever raw delivery is on."""
_EVENT_ID_CHARACTERS = 128
_ATTRIBUTE_CHARACTERS = 256
_URL_SAFE_TO_STANDARD = str.maketrans("-_", "+/")


def new_event(
    event_type: int,
    payload_message: Message | None,
    *,
    source: str,
    event_id: str,
    timestamp_milliseconds: int,
    metadata: Mapping[str, str] | None = None,
) -> GameEvent:
    """Returns an event around `payload_message`; None where the type's payload is empty.

    Args:
        event_type: a number of `EventType`.
        payload_message: what happened, in the type's own message.
        source: name of the publishing service.
        event_id: UUID text; publishing the same fact again takes the same one.
        timestamp_milliseconds: when it happened, Unix time.
        metadata: free annotations; the key `world_id` names the world, where there is one.
    """
    return GameEvent(
        event_id=event_id,
        event_type=event_type,  # type: ignore[arg-type]  # any number may travel
        source=source,
        timestamp=timestamp_milliseconds,
        payload=b"" if payload_message is None else _serialised(payload_message),
        metadata=metadata,
    )


def encode_event(event: GameEvent) -> str:
    """Returns the event as the bus carries it; equal events give equal text."""
    return _serialised(event).hex()


def attributes_of(event: GameEvent, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the message attributes an event is published with, all of type `String`.

    They are what the bus's contract names, `world_id` where the metadata has one, so that
    subscriptions can filter by world, and `more`. The text of a type that this release knows is
    fixed; of another, it comes from `more` or, for an event read from JSON, its metadata.

    Raises:
        InvalidEvent: the event has no id, no source, or a type without a text; or the attributes
            are too many, empty or no printable text.
    """
    if not event.event_id.strip():
        raise InvalidEvent("an event needs an event_id")
    attributes = dict(more or {})
    known = text_of(event.event_type)
    if known is None and "event_type" not in attributes and "event_type" not in event.metadata:
        raise InvalidEvent(f"event type {event.event_type} has no attribute text")
    attributes["event_type"] = (
        known or attributes.get("event_type") or event.metadata.get("event_type", "")
    )
    attributes["source"] = event.source
    attributes["content_type"] = CONTENT_TYPE
    if world_id := event.metadata.get("world_id", ""):
        attributes["world_id"] = world_id
    if len(attributes) > ATTRIBUTE_LIMIT:
        raise InvalidEvent(f"an event has at most {ATTRIBUTE_LIMIT} attributes")
    for name, value in attributes.items():
        if not value or len(value) > _ATTRIBUTE_CHARACTERS or not value.isprintable():
            raise InvalidEvent(
                f"{name} must be printable text of 1 to {_ATTRIBUTE_CHARACTERS} characters"
            )
    return attributes


def decode_event(body: str, attributes: Mapping[str, str]) -> GameEvent:
    """Returns the event in a queue message, whatever accepted form it has.

    Args:
        body: the queue message's body.
        attributes: the queue message's attributes as text; empty without raw delivery.

    Raises:
        PoisonEvent: the message can never be read as an event, or the event has no usable id.
    """
    text, attributes = unwrapped(body, attributes)
    event = event_from_json(text, attributes) if text[:1] == "{" else _event_from_text(text)
    event_id = event.event_id
    if not event_id.strip():
        raise PoisonEvent(PoisonReason.NO_EVENT_ID)
    if len(event_id) > _EVENT_ID_CHARACTERS or not event_id.isprintable():
        raise PoisonEvent(PoisonReason.BAD_EVENT_ID)
    return event


def unwrapped(body: str, attributes: Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
    """Returns the published text, stripped, and its attributes, out of SNS's envelope if any.

    Raises:
        PoisonEvent: there is no text, or the envelope holds none.
    """
    text = body.strip()
    if not text:
        raise PoisonEvent(PoisonReason.EMPTY_BODY)
    # Parsing every body as JSON to find out would cost the common form dearly.
    if text[0] != "{" or '"Message"' not in text:
        return text, attributes
    envelope = _json_object(text)
    if "Message" not in envelope:
        return text, attributes
    message = envelope["Message"]
    if not isinstance(message, str) or not message.strip():
        raise PoisonEvent(PoisonReason.BAD_SNS_ENVELOPE)
    given = envelope.get("MessageAttributes")
    inner = {
        name: attribute["Value"]
        for name, attribute in (given.items() if isinstance(given, dict) else ())
        if isinstance(attribute, dict) and isinstance(attribute.get("Value"), str)
    }
    return message.strip(), inner


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise PoisonEvent(PoisonReason.NOT_HEX_BASE64_OR_JSON) from None
    # Text that starts with a brace and parses is an object.
    return dict(value)


def _event_from_text(text: str) -> GameEvent:
    """Returns the event in hexadecimal or base64 text.

    No serialised event is both: its first field is the id, so base64 starts with `C` and one of
    `g` to `v`, which hexadecimal does not have. Text that happens to be hexadecimal without
    holding an event is tried as base64 all the same.
    """
    poison = PoisonReason.NOT_HEX_BASE64_OR_JSON
    for decode in (_from_hexadecimal, _from_base64):
        content = decode(text)
        if not content:
            continue
        event = _parsed(content)
        if event is not None and event.event_id:
            return event
        if event is not None:
            poison = PoisonReason.NO_EVENT_ID
        elif poison is not PoisonReason.NO_EVENT_ID:
            poison = PoisonReason.NOT_A_GAME_EVENT
    raise PoisonEvent(poison)


def _from_hexadecimal(text: str) -> bytes | None:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return None


def _from_base64(text: str) -> bytes | None:
    standard = "".join(text.split()).translate(_URL_SAFE_TO_STANDARD).rstrip("=")
    try:
        return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except ValueError:
        return None


def _parsed(content: bytes) -> GameEvent | None:
    try:
        return GameEvent.FromString(content)
    except DecodeError:
        return None


def _serialised(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)
