"""An SQS queue and its dead-letter queue."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from messaging.adapters.aws_calls import (
    aws_call,
    entry_outcomes,
    message_attributes,
    numbered,
    open_client,
)
from messaging.errors import BusRefused
from messaging.ports import EntryOutcome, OutgoingMessage, ReceivedMessage
from messaging.settings import MessagingSettings

__all__ = ["SqsQueue", "open_sqs_queue"]

_RECEIVE_COUNT = "ApproximateReceiveCount"
# Deletions, renewals and dead letters beside the long polls.
_OTHER_CONNECTIONS = 6


class SqsQueue:
    """One queue; `dead_letter_queue_url` empty: messages cannot be sent to dead letters.

    Args:
        client: an SQS client whose read timeout is longer than a long poll.
        queue_url: the queue.
        dead_letter_queue_url: where messages go that can never be read.
        visibility_seconds: how long received messages are hidden; None: as the queue is set.
        timeout_seconds: limit of a call; a long poll may take its wait more.
    """

    def __init__(
        self,
        client: Any,
        queue_url: str,
        *,
        dead_letter_queue_url: str = "",
        visibility_seconds: int | None = None,
        timeout_seconds: float,
    ) -> None:
        self._client = client
        self._queue_url = queue_url
        self._dead_letter_queue_url = dead_letter_queue_url
        self._receive_options: dict[str, Any] = {
            "MessageAttributeNames": ["All"],
            "MessageSystemAttributeNames": [_RECEIVE_COUNT],
        }
        if visibility_seconds is not None:
            self._receive_options["VisibilityTimeout"] = visibility_seconds
        self._timeout_seconds = timeout_seconds

    async def receive(self, maximum: int, *, wait_seconds: float) -> list[ReceivedMessage]:
        """Returns 1 to `maximum` (at most 10) messages, or none after `wait_seconds`."""
        async with aws_call(self._timeout_seconds + wait_seconds):
            answer = await self._client.receive_message(
                QueueUrl=self._queue_url,
                MaxNumberOfMessages=maximum,
                WaitTimeSeconds=round(wait_seconds),
                **self._receive_options,
            )
            return [_received(message) for message in answer.get("Messages", ())]

    async def extend_visibility(
        self, receipts: Sequence[str], *, seconds: Sequence[int]
    ) -> list[EntryOutcome]:
        """Makes each of up to 10 messages visible so many seconds from now; 0 returns it at once.

        An entry whose delivery is over, because its visibility ended, is not retryable.
        """
        entries = numbered(
            [
                {"ReceiptHandle": receipt, "VisibilityTimeout": length}
                for receipt, length in zip(receipts, seconds, strict=True)
            ]
        )
        async with aws_call(self._timeout_seconds):
            answer = await self._client.change_message_visibility_batch(
                QueueUrl=self._queue_url, Entries=entries
            )
            return entry_outcomes(answer, len(entries))

    async def delete_batch(self, receipts: Sequence[str]) -> list[EntryOutcome]:
        """Deletes up to 10 messages for good."""
        entries = numbered([{"ReceiptHandle": receipt} for receipt in receipts])
        async with aws_call(self._timeout_seconds):
            answer = await self._client.delete_message_batch(
                QueueUrl=self._queue_url, Entries=entries
            )
            return entry_outcomes(answer, len(entries))

    async def send_batch(self, messages: Sequence[OutgoingMessage]) -> list[EntryOutcome]:
        """Puts up to 10 messages into this queue directly."""
        return await self._send(self._queue_url, messages)

    @property
    def has_dead_letters(self) -> bool:
        """Whether there is a queue for messages that can never be handled."""
        return bool(self._dead_letter_queue_url)

    async def send_to_dead_letters(self, messages: Sequence[OutgoingMessage]) -> list[EntryOutcome]:
        """Puts up to 10 messages into the dead-letter queue; it deletes nothing here.

        Raises:
            BusRefused: also when there is no dead-letter queue.
        """
        if not self._dead_letter_queue_url:
            raise BusRefused("no dead-letter queue is configured")
        return await self._send(self._dead_letter_queue_url, messages)

    async def _send(
        self, queue_url: str, messages: Sequence[OutgoingMessage]
    ) -> list[EntryOutcome]:
        entries = numbered(
            [
                {
                    "MessageBody": message.body,
                    "MessageAttributes": message_attributes(message.attributes),
                }
                for message in messages
            ]
        )
        async with aws_call(self._timeout_seconds):
            answer = await self._client.send_message_batch(QueueUrl=queue_url, Entries=entries)
            return entry_outcomes(answer, len(entries))


def _received(message: Mapping[str, Any]) -> ReceivedMessage:
    return ReceivedMessage(
        body=message["Body"],
        attributes={
            name: attribute["StringValue"]
            for name, attribute in message.get("MessageAttributes", {}).items()
            # Binary attributes are nobody's here.
            if "StringValue" in attribute
        },
        receipt=message["ReceiptHandle"],
        message_id=message["MessageId"],
        receive_count=int(message.get("Attributes", {}).get(_RECEIVE_COUNT, 1)),
    )


@asynccontextmanager
async def open_sqs_queue(
    settings: MessagingSettings, *, queue_url: str | None = None
) -> AsyncIterator[SqsQueue]:
    """Yields the queue of the settings, or the one at `queue_url`; nothing is called yet."""
    async with open_client(
        "sqs",
        settings,
        connections=settings.receive_calls_at_once + _OTHER_CONNECTIONS,
        read_timeout_seconds=settings.call_timeout_seconds + settings.receive_wait_seconds,
    ) as client:
        yield SqsQueue(
            client,
            queue_url or settings.queue_url,
            dead_letter_queue_url=settings.dead_letter_queue_url,
            visibility_seconds=settings.visibility_seconds,
            timeout_seconds=settings.call_timeout_seconds,
        )
