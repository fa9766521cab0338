"""Every form in which events travel is read; one is written."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaming.events import events_pb2
from gaming.events.events_pb2 import GameEvent
from messaging.codec import attributes_of, decode_event, encode_event, new_event
from messaging.errors import InvalidEvent, PoisonEvent, PoisonReason
from messaging.event_types import number_of, payload_type_of, text_of

EVENT = new_event(
    events_pb2.WEATHER_CHANGED,
    events_pb2.WeatherEvent(old_state="clear", new_state="storm", intensity=0.75),
    source="weather-manager",
    event_id="8f14e45f-ceea-467f-a9c1-0d1d3f2b7a10",
    timestamp_milliseconds=1762560000123,
    metadata={"world_id": "harbour"},
)
# Field 15, length-delimited, from a publisher newer than this reader.
UNKNOWN_FIELD = bytes.fromhex("7a026869")


def envelope(message: str, **attributes: str) -> str:
    return json.dumps(
        {
            "Type": "Notification",
            "MessageId": "b1f3",
            "TopicArn": "arn:aws:sns:us-east-1:123456789012:events",
            "Message": message,
            "MessageAttributes": {
                name: {"Type": "String", "Value": value} for name, value in attributes.items()
            },
        },
        indent=2,
    )


FORMS = {
    "lower-case hexadecimal": encode_event(EVENT),
    "upper-case hexadecimal": encode_event(EVENT).upper(),
    "hexadecimal with a line end": encode_event(EVENT) + "\n",
    "base64": base64.b64encode(EVENT.SerializeToString()).decode(),
    "base64 in lines": base64.encodebytes(EVENT.SerializeToString()).decode(),
    "base64 without padding": base64.b64encode(EVENT.SerializeToString()).decode().rstrip("="),
    "URL-safe base64": base64.urlsafe_b64encode(EVENT.SerializeToString()).decode(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("raw_delivery", [True, False], ids=["raw", "enveloped"])
def test_every_binary_form_reads_as_the_same_event(form: str, raw_delivery: bool) -> None:
    body = FORMS[form] if raw_delivery else envelope(FORMS[form], event_type="weather.changed")
    assert decode_event(body, {}) == EVENT


def test_an_event_is_written_as_lower_case_hexadecimal_of_its_serialisation() -> None:
    assert encode_event(EVENT) == EVENT.SerializeToString(deterministic=True).hex()


def json_event(**changes: Any) -> str:
    fields: dict[str, Any] = {
        "event_id": EVENT.event_id,
        "event_type": "weather.changed",
        "source": "weather-manager",
        "timestamp": 1762560000123,
        "data": {"old_state": "clear", "new_state": "storm", "intensity": 0.75},
    }
    return json.dumps({**fields, **changes})


@pytest.mark.parametrize("raw_delivery", [True, False], ids=["raw", "enveloped"])
def test_a_json_event_reads_as_the_binary_event_it_stands_for(raw_delivery: bool) -> None:
    body = json_event() if raw_delivery else envelope(json_event(), content_type="application/json")
    expected = GameEvent()
    expected.CopyFrom(EVENT)
    expected.metadata.clear()
    assert decode_event(body, {}) == expected


def test_a_json_event_may_hold_the_word_message() -> None:
    event = decode_event(json_event(data={"new_state": 'the "Message" from afar'}), {})
    payload = events_pb2.WeatherEvent.FromString(event.payload)
    assert payload.new_state == 'the "Message" from afar'


def test_a_json_state_update_takes_numbers_and_structures_as_text() -> None:
    data = {"state": {"season": "autumn", "players": 12, "gates": {"north": True}}}
    event = decode_event(json_event(event_type="world_state.updated", data=data), {})
    update = events_pb2.StateUpdate.FromString(event.payload)
    assert dict(update.state) == {
        "season": "autumn",
        "players": "12",
        "gates": '{"north":true}',
    }


def test_a_json_event_of_an_unknown_type_loses_nothing() -> None:
    event = decode_event(json_event(event_type="tide.turned", data={"height": 3}), {})
    assert event.event_type == events_pb2.EVENT_TYPE_UNSPECIFIED
    assert event.payload == b'{"height":3}'
    assert event.metadata["payload_content_type"] == "application/json"
    assert attributes_of(event)["event_type"] == "tide.turned"


def test_a_json_event_without_a_type_takes_it_from_the_attributes() -> None:
    body = json_event(event_type=None)
    assert decode_event(body, {"event_type": "weather.changed"}).event_type == 1


def test_an_unknown_event_type_is_kept() -> None:
    event = GameEvent(event_id="a", event_type=4711)  # type: ignore[arg-type]  # beyond the enum
    assert decode_event(encode_event(event), {}).event_type == 4711


def test_unknown_fields_are_written_again() -> None:
    newer = EVENT.SerializeToString(deterministic=True) + UNKNOWN_FIELD
    assert encode_event(decode_event(newer.hex(), {})) == newer.hex()


NOT_EVENTS = {
    "": PoisonReason.EMPTY_BODY,
    " \n": PoisonReason.EMPTY_BODY,
    "hello, there!": PoisonReason.NOT_HEX_BASE64_OR_JSON,
    "{": PoisonReason.NOT_HEX_BASE64_OR_JSON,
    "{" * 100_000: PoisonReason.NOT_HEX_BASE64_OR_JSON,
    '{"a":' * 100_000: PoisonReason.NOT_HEX_BASE64_OR_JSON,
    "ffff": PoisonReason.NOT_A_GAME_EVENT,
    "1001": PoisonReason.NO_EVENT_ID,
    "{}": PoisonReason.NO_EVENT_ID,
    "{} {}": PoisonReason.NOT_HEX_BASE64_OR_JSON,
    envelope(""): PoisonReason.BAD_SNS_ENVELOPE,
    envelope("hello, there!"): PoisonReason.NOT_HEX_BASE64_OR_JSON,
    '{"Message": 7}': PoisonReason.BAD_SNS_ENVELOPE,
    json_event(event_id=""): PoisonReason.NO_EVENT_ID,
    json_event(event_id="   "): PoisonReason.NO_EVENT_ID,
    json_event(event_id=None): PoisonReason.NO_EVENT_ID,
    json_event(event_id=7): PoisonReason.BAD_JSON_EVENT,
    json_event(event_id="a" * 129): PoisonReason.BAD_EVENT_ID,
    json_event(event_id="a\x00b"): PoisonReason.BAD_EVENT_ID,
    json_event(event_id="a\ud800"): PoisonReason.BAD_JSON_EVENT,
    json_event(timestamp="yesterday"): PoisonReason.BAD_JSON_EVENT,
    json_event(timestamp=True): PoisonReason.BAD_JSON_EVENT,
    json_event(timestamp=1e300): PoisonReason.BAD_JSON_EVENT,
    json_event(timestamp=float("nan")): PoisonReason.BAD_JSON_EVENT,
    json_event(timestamp=2**63): PoisonReason.BAD_JSON_EVENT,
    json_event(timestamp=float("inf")): PoisonReason.BAD_JSON_EVENT,
    json_event(data={"\ud800": 1}): PoisonReason.BAD_JSON_EVENT,
    json_event(data=[1]): PoisonReason.BAD_JSON_EVENT,
    json_event(data={"intensity": "strong"}): PoisonReason.BAD_JSON_EVENT,
    json_event(source={}): PoisonReason.BAD_JSON_EVENT,
}


@pytest.mark.parametrize(
    ("body", "reason"), NOT_EVENTS.items(), ids=[body[:40] for body in NOT_EVENTS]
)
def test_what_is_no_event_is_poison_with_its_reason(body: str, reason: PoisonReason) -> None:
    with pytest.raises(PoisonEvent) as refused:
        decode_event(body, {})
    assert refused.value.poison_reason is reason


@given(st.one_of(st.text(), st.binary().map(bytes.hex), st.text("{}[]\"':,0aMesg", max_size=60)))
def test_any_text_is_an_event_or_poison(body: str) -> None:
    try:
        event = decode_event(body, {})
    except PoisonEvent:
        return
    assert event.event_id


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["event_id", "event_type", "source", "timestamp", "data", "Message", "MessageAttributes"]
)


@given(st.dictionaries(KEYS, JSON_VALUES))
def test_any_json_object_is_an_event_or_poison(fields: dict[str, Any]) -> None:
    with contextlib.suppress(PoisonEvent):
        decode_event(json.dumps(fields), {"event_type": "world_state.updated"})


@given(
    st.builds(
        GameEvent,
        event_id=st.uuids().map(str),
        event_type=st.integers(-(2**31), 2**31 - 1),
        source=st.text(st.characters(exclude_categories=["Cs"])),
        timestamp=st.integers(-(2**63), 2**63 - 1),
        payload=st.binary(),
        metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=4),
    )
)
def test_an_event_survives_every_form(event: GameEvent) -> None:
    content = event.SerializeToString()
    for form in (encode_event(event), base64.b64encode(content).decode(), content.hex().upper()):
        assert decode_event(form, {}) == event
        assert decode_event(envelope(form), {}) == event


def test_an_event_is_published_with_the_attributes_of_the_contract_and_its_world() -> None:
    assert attributes_of(EVENT) == {
        "event_type": "weather.changed",
        "source": "weather-manager",
        "content_type": "application/x-protobuf",
        "world_id": "harbour",
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"event_id": ""},
        {"event_type": 0},
        {"event_type": 99},
        {"source": ""},
        {"source": "a\nb"},
        {"source": "a" * 257},
        {"metadata": {"world_id": "\x00"}},
    ],
    ids=str,
)
def test_an_event_that_readers_could_not_use_is_not_published(changes: dict[str, Any]) -> None:
    fields = {"event_id": "a", "event_type": 1, "source": "s", "timestamp": 1}
    with pytest.raises(InvalidEvent):
        attributes_of(GameEvent(**{**fields, **changes}))


def test_every_event_type_has_a_text_of_its_own() -> None:
    numbers = [number for _, number in events_pb2.EventType.items() if number]
    texts = [text_of(number) for number in numbers]
    assert None not in texts
    assert [number_of(text) for text in texts if text] == numbers


def test_unknown_types_have_no_text_number_or_payload() -> None:
    assert text_of(99) is None
    assert number_of("tide.turned") is None
    assert payload_type_of(99) is None
