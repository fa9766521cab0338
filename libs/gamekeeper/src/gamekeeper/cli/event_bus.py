"""The work of `gamekeeper events`; it loads the AWS SDK, so commands import it when they run."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format

from gaming.events.events_pb2 import GameEvent
from messaging.adapters.aws_calls import aws_call, open_client
from messaging.adapters.sqs_queue import SqsQueue
from messaging.codec import decode_event, new_event
from messaging.dead_letters import ATTRIBUTE_REASON, redriven
from messaging.errors import PoisonEvent
from messaging.event_types import number_of, payload_type_of, text_of
from messaging.ports import BATCH_ENTRIES, ReceivedMessage
from messaging.service_bus import open_publisher
from messaging.settings import MessagingSettings
from servicekit.clock import SystemClock

__all__ = [
    "RECEIVED_TOO_OFTEN",
    "DeadLetter",
    "EventLine",
    "Redriven",
    "UnknownQueue",
    "event_json",
    "event_line",
    "event_of",
    "known_types",
    "list_dead_letters",
    "publish",
    "redrive",
    "tail",
]

RECEIVED_TOO_OFTEN = "received_too_often"
"""What this command line calls the reason of letters that the queue itself put aside."""

# A tail that was killed leaves a queue; what it collected is gone after the least time SQS allows.
_TAIL_RETENTION_SECONDS = 60
_POLL_SECONDS = 2.0
# While letters are looked through none of them may come up a second time.
_LOOK_SECONDS = 120


class UnknownQueue(Exception):
    """No queue was named, or it has no dead letters; the message tells the user what to do."""


# --- events as people write and read them -----------------------------------------------------


def event_of(
    event_type: str,
    data: Mapping[str, Any],
    *,
    source: str,
    event_id: str = "",
    metadata: Mapping[str, str],
) -> GameEvent:
    """Returns the event that is happening now, with the payload's fields from JSON.

    Raises ValueError, with words for the user, for an unknown type and for fields it does not have.
    """
    (number,) = known_types([event_type])
    payload_type = payload_type_of(number)
    if payload_type is None:
        if data:
            raise ValueError(f"{event_type} has no payload; leave the JSON out")
        message = None
    else:
        try:
            message = json_format.ParseDict(dict(data), payload_type())
        except json_format.ParseError as error:
            fields = ", ".join(field.name for field in payload_type.DESCRIPTOR.fields)
            raise ValueError(
                f"this is no payload of {event_type}, whose fields are {fields}: {error}"
            ) from None
    return new_event(
        number,
        message,
        source=source,
        event_id=event_id or str(uuid.uuid4()),
        timestamp_milliseconds=time.time_ns() // 1_000_000,
        metadata=metadata,
    )


def known_types(texts: Sequence[str]) -> list[int]:
    """Returns the numbers of event types; raises ValueError naming one that is unknown."""
    numbers = []
    for text in texts:
        number = number_of(text)
        if number is None:
            raise ValueError(f"{text!r} is no event type; see `gamekeeper events types`")
        numbers.append(number)
    return numbers


def event_json(event: GameEvent) -> dict[str, Any]:
    """Returns the event as a JSON document in the words of the bus's own JSON form.

    A payload that is not its type's message, or of an unknown type, stands in hexadecimal under
    `payload_hex`.
    """
    document: dict[str, Any] = {
        "event_id": event.event_id,
        "event_type": text_of(event.event_type) or event.event_type,
        "source": event.source,
        "timestamp": event.timestamp,
        "metadata": dict(event.metadata),
    }
    data = _payload(event)
    if data is None:
        return {**document, "payload_hex": event.payload.hex()}
    return {**document, "data": data}


def _payload(event: GameEvent) -> dict[str, Any] | None:
    payload_type = payload_type_of(event.event_type)
    if payload_type is None:
        return None if event.payload else {}
    try:
        message = payload_type.FromString(event.payload)
    except ValueError:  # the base of protobuf's DecodeError
        return None
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


@dataclass(frozen=True, slots=True)
class EventLine:
    """An event in a line for people."""

    time: str
    event_type: str
    source: str
    details: str


def event_line(event: GameEvent) -> EventLine:
    """Returns what a line of `tail` shows of an event."""
    document = event_json(event)
    try:
        moment = datetime.fromtimestamp(event.timestamp / 1000, UTC).astimezone()
        shown = moment.strftime("%H:%M:%S.%f")[:-3]
    except (OverflowError, OSError, ValueError):
        shown = str(event.timestamp)
    details = json.dumps(document.get("data", document.get("payload_hex")), ensure_ascii=False)
    return EventLine(shown, str(document["event_type"]), event.source, details)


# --- publish and tail -------------------------------------------------------------------------


async def publish(settings: MessagingSettings, event: GameEvent) -> None:
    """Publishes one event. Raises ServiceErrors."""
    async with open_publisher(settings, clock=SystemClock()) as publisher:
        await publisher.publish(event)


async def tail(
    settings: MessagingSettings,
    types: Sequence[int],
    show: Callable[[GameEvent], None],
    *,
    count: int,
    seconds: float,
    on_ready: Callable[[str], None],
) -> None:
    """Shows events until so many came, or so long has passed, or it is cancelled.

    The queue made for it is removed in any case. Raises ServiceErrors.
    """
    timeout = settings.call_timeout_seconds
    async with (
        open_client("sqs", settings, connections=4) as sqs,
        open_client("sns", settings, connections=2) as sns,
    ):
        name = f"gamekeeper-tail-{uuid.uuid4().hex[:12]}"
        queue_url = subscription = ""
        try:
            async with aws_call(timeout):
                created = await sqs.create_queue(
                    QueueName=name,
                    Attributes={"MessageRetentionPeriod": str(_TAIL_RETENTION_SECONDS)},
                )
                queue_url = created["QueueUrl"]
                queue_arn = await _attribute(sqs, queue_url, "QueueArn")
                await sqs.set_queue_attributes(
                    QueueUrl=queue_url,
                    Attributes={"Policy": _topic_may_send(settings.topic_arn, queue_arn)},
                )
                subscribed = await sns.subscribe(
                    TopicArn=settings.topic_arn,
                    Protocol="sqs",
                    Endpoint=queue_arn,
                    Attributes={"RawMessageDelivery": "true", **_filter(types)},
                    ReturnSubscriptionArn=True,
                )
                subscription = subscribed["SubscriptionArn"]
            on_ready(name)
            queue = SqsQueue(sqs, queue_url, timeout_seconds=timeout)
            try:
                async with asyncio.timeout(seconds or None):
                    await _show_events(queue, show, count)
            except TimeoutError:
                return
        finally:
            # Also when it is told to stop in the middle: a second Ctrl-C is the only way around.
            async with aws_call(timeout):
                if subscription:
                    await sns.unsubscribe(SubscriptionArn=subscription)
                if queue_url:
                    await sqs.delete_queue(QueueUrl=queue_url)


async def _show_events(queue: SqsQueue, show: Callable[[GameEvent], None], count: int) -> None:
    shown = 0
    while True:
        received = await queue.receive(BATCH_ENTRIES, wait_seconds=_POLL_SECONDS)
        for message in received:
            try:
                show(decode_event(message.body, message.attributes))
            except PoisonEvent:
                continue  # no event: those who must read it count it
            shown += 1
            if shown == count:
                return
        if received:
            await queue.delete_batch([message.receipt for message in received])


def _filter(types: Sequence[int]) -> dict[str, str]:
    if not types:
        return {}
    return {"FilterPolicy": json.dumps({"event_type": [text_of(number) for number in types]})}


def _topic_may_send(topic_arn: str, queue_arn: str) -> str:
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": "sns.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": queue_arn,
        "Condition": {"ArnEquals": {"aws:SourceArn": topic_arn}},
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


# --- dead letters -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that could not be handled; what cannot be read of it is empty."""

    message_id: str
    reason: str
    event_id: str
    event_type: str
    source: str
    body: str

    @classmethod
    def of(cls, message: ReceivedMessage) -> DeadLetter:
        """Returns what is known of a message of a dead-letter queue."""
        reason = _reason(message)
        try:
            event = decode_event(message.body, message.attributes)
        except PoisonEvent:
            return cls(message.message_id, reason, "", "", "", message.body)
        known = str(text_of(event.event_type) or event.event_type)
        return cls(message.message_id, reason, event.event_id, known, event.source, message.body)

    def as_json(self) -> dict[str, str]:
        """Returns the letter for `-o json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Redriven:
    """What became of dead letters: put back, left with another reason, failed and left."""

    sent: int
    left: int
    failed: int

    def as_json(self) -> dict[str, int]:
        """Returns the counts for `-o json`."""
        return asdict(self)


async def list_dead_letters(
    settings: MessagingSettings, queue: str, *, reason: str, limit: int
) -> list[DeadLetter]:
    """Returns up to `limit` dead letters; they are visible to others again when it returns.

    Raises UnknownQueue when the queue has no dead letters' queue, and ServiceErrors.
    """
    async with open_client("sqs", settings, connections=4) as sqs:
        _, dead_url = await _queue_urls(sqs, settings, queue)
        dead = _looking_at(sqs, dead_url, settings)
        found: list[DeadLetter] = []
        held: list[ReceivedMessage] = []
        try:
            while len(found) < limit:
                received = await dead.receive(BATCH_ENTRIES, wait_seconds=0)
                if not received:
                    break
                held += received
                letters = map(DeadLetter.of, received)
                found += [each for each in letters if reason in {"", each.reason}]
        finally:
            await _show_again(dead, held)
        return found[:limit]


async def redrive(settings: MessagingSettings, queue: str, *, reason: str, limit: int) -> Redriven:
    """Puts dead letters back into their queue; each is deleted only after it was sent.

    With `limit` 0 it handles as many as there are at its beginning: one that comes back at once,
    because nothing was put right, is not sent in a circle. Raises as `list_dead_letters` does.
    """
    async with open_client("sqs", settings, connections=4) as sqs:
        queue_url, dead_url = await _queue_urls(sqs, settings, queue)
        source = SqsQueue(sqs, queue_url, timeout_seconds=settings.call_timeout_seconds)
        dead = _looking_at(sqs, dead_url, settings)
        async with aws_call(settings.call_timeout_seconds):
            present = int(await _attribute(sqs, dead_url, "ApproximateNumberOfMessages"))
        seen = sent = failed = 0
        left: list[ReceivedMessage] = []
        try:
            while seen < present and (not limit or sent + failed < limit):
                places = min(BATCH_ENTRIES, present - seen)
                received = await dead.receive(places, wait_seconds=0)
                if not received:
                    break
                seen += len(received)
                wanted = [each for each in received if reason in {"", _reason(each)}]
                if limit:
                    wanted = wanted[: limit - sent - failed]
                left += [each for each in received if each not in wanted]
                accepted = await _send_back(source, wanted)
                left += [each for each in wanted if each not in accepted]
                failed += len(wanted) - len(accepted)
                sent += len(accepted)
                if accepted:
                    await dead.delete_batch([each.receipt for each in accepted])
        finally:
            await _show_again(dead, left)
        return Redriven(sent, len(left) - failed + max(0, present - seen), failed)


async def _send_back(queue: SqsQueue, messages: Sequence[ReceivedMessage]) -> list[ReceivedMessage]:
    """Sends messages and returns those that were accepted."""
    if not messages:
        return []
    outcomes = await queue.send_batch([redriven(each.body, each.attributes) for each in messages])
    return [each for each, outcome in zip(messages, outcomes, strict=True) if outcome.accepted]


async def _show_again(queue: SqsQueue, messages: Sequence[ReceivedMessage]) -> None:
    for start in range(0, len(messages), BATCH_ENTRIES):
        receipts = [each.receipt for each in messages[start : start + BATCH_ENTRIES]]
        await queue.extend_visibility(receipts, seconds=[0] * len(receipts))


def _looking_at(sqs: Any, queue_url: str, settings: MessagingSettings) -> SqsQueue:
    return SqsQueue(
        sqs,
        queue_url,
        visibility_seconds=_LOOK_SECONDS,
        timeout_seconds=settings.call_timeout_seconds,
    )


def _reason(message: ReceivedMessage) -> str:
    return message.attributes.get(ATTRIBUTE_REASON) or RECEIVED_TOO_OFTEN


async def _queue_urls(sqs: Any, settings: MessagingSettings, queue: str) -> tuple[str, str]:
    """Returns the addresses of a queue and of its dead letters' queue."""
    async with aws_call(settings.call_timeout_seconds):
        if not queue and not settings.queue_url:
            raise UnknownQueue(
                "name the queue whose dead letters are meant, or set GAMEKEEPER_EVENTS_QUEUE_URL"
            )
        queue_url = queue or settings.queue_url
        if "://" not in queue_url:
            queue_url = (await sqs.get_queue_url(QueueName=queue_url))["QueueUrl"]
        if settings.dead_letter_queue_url and queue in {"", settings.queue_url}:
            return queue_url, settings.dead_letter_queue_url
        policy = json.loads(await _attribute(sqs, queue_url, "RedrivePolicy") or "{}")
        target = str(policy.get("deadLetterTargetArn", ""))
        if not target:
            raise UnknownQueue(
                f"the queue {queue_url.rpartition('/')[2]} has no dead-letter queue in its "
                "redrive policy; set GAMEKEEPER_EVENTS_QUEUE_URL and "
                "GAMEKEEPER_EVENTS_DEAD_LETTER_QUEUE_URL"
            )
        # An ARN ends in account and name: arn:aws:sqs:region:account:name.
        _, _, rest = target.rpartition("sqs:")
        _, account, name = rest.split(":")
        dead = await sqs.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=account)
        return queue_url, dead["QueueUrl"]


async def _attribute(sqs: Any, queue_url: str, name: str) -> str:
    answer = await sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=[name])
    return str(answer.get("Attributes", {}).get(name, ""))
