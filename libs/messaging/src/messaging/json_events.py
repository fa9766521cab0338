"""Events as JSON objects, which development publishers without protobuf send.

    {"event_id", "event_type" (the text form), "source", "timestamp" (Unix ms), "data": {…}}

Read, never written. What the GameEvent has no field for is kept in its metadata: the text of a
type this release does not know under `event_type`, with `data` as JSON text in the payload and
`payload_content_type` saying so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format

from gaming.events.events_pb2 import EVENT_TYPE_UNSPECIFIED, GameEvent, StateUpdate
from messaging.errors import PoisonEvent, PoisonReason
from messaging.event_types import number_of, payload_type_of

__all__ = ["JSON_CONTENT_TYPE", "event_from_json"]

JSON_CONTENT_TYPE = "application/json"


def event_from_json(text: str, attributes: Mapping[str, str]) -> GameEvent:
    """Returns the event in a JSON object; its id may be empty.

    `attributes` give the type or the source where the object does not.

    Raises:
        PoisonEvent: the text is no JSON, or not an event's shape.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise PoisonEvent(PoisonReason.NOT_HEX_BASE64_OR_JSON) from None
    try:
        if "\\u" in text or not text.isascii():
            # Half a character, as a key, makes the protobuf runtime fail with SystemError.
            _compact(fields).encode()
        return _event(fields, attributes)
    except (ValueError, TypeError, OverflowError, RecursionError, json_format.ParseError):
        # Also text that is no Unicode and numbers beyond 64 bits, which the message refuses, and
        # beyond any, which JSON's `1e999` is.
        raise PoisonEvent(PoisonReason.BAD_JSON_EVENT) from None


def _event(fields: Mapping[str, Any], attributes: Mapping[str, str]) -> GameEvent:
    type_text = _text(fields, "event_type") or attributes.get("event_type", "")
    number = number_of(type_text)
    data = fields.get("data")
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise TypeError("data")
    event = GameEvent(
        event_id=_text(fields, "event_id"),
        event_type=EVENT_TYPE_UNSPECIFIED if number is None else number,  # type: ignore[arg-type]  # from the table of types
        source=_text(fields, "source") or attributes.get("source", ""),
        timestamp=_milliseconds(fields.get("timestamp")),
    )
    if number is None:
        if type_text:
            event.metadata["event_type"] = type_text
        if data:
            event.payload = _compact(data).encode()
            event.metadata["payload_content_type"] = JSON_CONTENT_TYPE
        return event
    payload_type = payload_type_of(number)
    if payload_type is not None:
        if payload_type is StateUpdate:
            data = _with_text_values(data)
        message = json_format.ParseDict(data, payload_type(), ignore_unknown_fields=True)
        event.payload = message.SerializeToString(deterministic=True)
    return event


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(name)
    return value


def _milliseconds(value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("timestamp")
    return int(value)


def _with_text_values(data: dict[str, Any]) -> dict[str, Any]:
    """Returns the state update with numbers and structures in `state` as JSON text.

    The binary form has text values only; JSON publishers send what their state holds.
    """
    state = data.get("state")
    if not isinstance(state, dict):
        return data
    return {
        **data,
        "state": {k: v if isinstance(v, str) else _compact(v) for k, v in state.items()},
    }


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
