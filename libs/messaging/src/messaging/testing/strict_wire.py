"""What the strict bus checks of a request by AWS's API references, and how it answers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from aiohttp import web

from messaging.ports import BATCH_ENTRIES, EntryOutcome, OutgoingMessage, ReceivedMessage

__all__ = [
    "ATTRIBUTE_LIMIT",
    "Refusal",
    "as_sqs",
    "checked",
    "json_answer",
    "json_outcomes",
    "query_attributes",
    "refused",
    "with_distinct_ids",
    "wrong_content",
    "wrong_for_a_queue",
    "xml_answer",
    "xml_outcomes",
]

ATTRIBUTE_LIMIT = 10
_BATCH_BYTES = 256 * 1024
_BATCH_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")
_FORBIDDEN_CHARACTERS = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Refusal(Exception):
    """An error answer of AWS."""

    def __init__(self, code: str, status: int = 400) -> None:
        super().__init__(code)
        self.code = code
        self.status = status


def checked(entries: Sequence[Mapping[str, Any]]) -> list[OutgoingMessage]:
    """Returns a batch's messages. Raises Refusal for what AWS refuses as a whole."""
    messages = [
        OutgoingMessage(
            entry["MessageBody"],
            {
                name: attribute.get("StringValue", "")
                for name, attribute in entry.get("MessageAttributes", {}).items()
            },
        )
        for entry in with_distinct_ids(entries)
    ]
    if sum(message.size_bytes for message in messages) > _BATCH_BYTES:
        raise Refusal("BatchRequestTooLong")
    return messages


def with_distinct_ids(entries: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Returns the entries of a batch. Raises Refusal for their number or their ids."""
    if not entries:
        raise Refusal("EmptyBatchRequest")
    if len(entries) > BATCH_ENTRIES:
        raise Refusal("TooManyEntriesInBatchRequest")
    ids = [entry["Id"] for entry in entries]
    if not all(_BATCH_ID.fullmatch(entry_id) for entry_id in ids):
        raise Refusal("InvalidBatchEntryId")
    if len(set(ids)) != len(ids):
        raise Refusal("BatchEntryIdsNotDistinct")
    return entries


def wrong_content(message: OutgoingMessage) -> str:
    """Returns the error code of an empty text or a character that AWS refuses, or nothing."""
    texts = [message.body, *message.attributes, *message.attributes.values()]
    if not all(texts):
        return "InvalidParameterValue"
    return "InvalidMessageContents" if any(map(_FORBIDDEN_CHARACTERS.search, texts)) else ""


def wrong_for_a_queue(message: OutgoingMessage) -> str:
    """Returns the error code of a message that SQS refuses, or nothing."""
    too_many = len(message.attributes) > ATTRIBUTE_LIMIT
    return "InvalidParameterValue" if too_many else wrong_content(message)


def query_attributes(fields: Mapping[str, Any], prefix: str) -> dict[str, dict[str, str]]:
    """Returns message attributes out of the query protocol's numbered fields."""
    attributes: dict[str, dict[str, str]] = {}
    number = 1
    while (entry := f"{prefix}MessageAttributes.entry.{number}.") + "Name" in fields:
        value = fields.get(f"{entry}Value.StringValue", "")
        attributes[fields[f"{entry}Name"]] = {"StringValue": value}
        number += 1
    return attributes


def as_sqs(message: ReceivedMessage) -> dict[str, Any]:
    """Returns a message as ReceiveMessage answers it."""
    return {
        "MessageId": message.message_id,
        "ReceiptHandle": message.receipt,
        "Body": message.body,
        "Attributes": {"ApproximateReceiveCount": str(message.receive_count)},
        "MessageAttributes": {
            name: {"DataType": "String", "StringValue": value}
            for name, value in message.attributes.items()
        },
    }


def json_outcomes(
    entries: Sequence[Mapping[str, Any]], outcomes: Sequence[EntryOutcome]
) -> dict[str, Any]:
    """Returns a batch call's answer."""
    answer: dict[str, Any] = {"Successful": [], "Failed": []}
    for entry, outcome in zip(entries, outcomes, strict=True):
        if outcome.accepted:
            body = entry.get("MessageBody", "")
            answer["Successful"].append(
                {"Id": entry["Id"], "MessageId": entry["Id"], "MD5OfMessageBody": str(len(body))}
            )
        else:
            fault = not outcome.retryable or outcome.error_code == "Throttled"
            answer["Failed"].append(
                {"Id": entry["Id"], "Code": outcome.error_code, "SenderFault": fault}
            )
    return answer


def xml_outcomes(entries: Sequence[Mapping[str, Any]], outcomes: Sequence[EntryOutcome]) -> str:
    """Returns a batch call's answer as XML."""
    answer = json_outcomes(entries, outcomes)
    parts = []
    for kind in ("Successful", "Failed"):
        members = "".join(
            "<member>"
            + "".join(f"<{name}>{_xml_text(value)}</{name}>" for name, value in member.items())
            + "</member>"
            for member in answer[kind]
        )
        parts.append(f"<{kind}>{members}</{kind}>")
    return "".join(parts)


def _xml_text(value: Any) -> str:
    return escape(str(value).lower() if isinstance(value, bool) else str(value))


def xml_answer(operation: str, content: str) -> web.Response:
    """Returns an answer of the query protocol."""
    return web.Response(
        text=f'<{operation}Response xmlns="http://sns.amazonaws.com/doc/2010-03-31/">'
        f"<{operation}Result>{content}</{operation}Result>"
        f"<ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></{operation}Response>",
        content_type="text/xml",
    )


def json_answer(content: Mapping[str, Any]) -> web.Response:
    """Returns an answer of the JSON protocol."""
    return web.Response(text=json.dumps(content), content_type="application/x-amz-json-1.0")


def refused(refusal: Refusal, *, in_json: bool) -> web.Response:
    """Returns an error answer of either protocol."""
    if in_json:
        return web.Response(
            status=refusal.status,
            text=json.dumps({"__type": f"com.amazonaws.sqs#{refusal.code}", "message": "refused"}),
            content_type="application/x-amz-json-1.0",
        )
    kind = "Sender" if refusal.status < 500 else "Receiver"
    return web.Response(
        status=refusal.status,
        text='<ErrorResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/"><Error>'
        f"<Type>{kind}</Type><Code>{refusal.code}</Code><Message>refused</Message></Error>"
        "<RequestId>r</RequestId></ErrorResponse>",
        content_type="text/xml",
    )
