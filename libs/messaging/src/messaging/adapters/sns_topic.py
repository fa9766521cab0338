"""An SNS topic."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from messaging.adapters.aws_calls import (
    aws_call,
    entry_outcomes,
    message_attributes,
    numbered,
    open_client,
)
from messaging.ports import EntryOutcome, OutgoingMessage
from messaging.settings import MessagingSettings

__all__ = ["SnsTopic", "open_sns_topic"]


class SnsTopic:
    """Publishes to one topic, in batches."""

    def __init__(self, client: Any, topic_arn: str, *, timeout_seconds: float) -> None:
        self._client = client
        self._topic_arn = topic_arn
        self._timeout_seconds = timeout_seconds

    async def publish_batch(self, messages: Sequence[OutgoingMessage]) -> list[EntryOutcome]:
        """Publishes 1 to 10 messages, 256 KiB together, and returns an outcome for each.

        Raises:
            BusUnavailable: not now; whether some were published is not known.
            BusRefused: none was published and repeating is useless.
        """
        entries = numbered(
            [
                {
                    "Message": message.body,
                    "MessageAttributes": message_attributes(message.attributes),
                }
                for message in messages
            ]
        )
        async with aws_call(self._timeout_seconds):
            answer = await self._client.publish_batch(
                TopicArn=self._topic_arn, PublishBatchRequestEntries=entries
            )
        return entry_outcomes(answer, len(messages))


@asynccontextmanager
async def open_sns_topic(settings: MessagingSettings) -> AsyncIterator[SnsTopic]:
    """Yields the topic of the settings; nothing is called yet."""
    connections = settings.publish_calls_at_once
    async with open_client("sns", settings, connections=connections) as client:
        yield SnsTopic(client, settings.topic_arn, timeout_seconds=settings.call_timeout_seconds)
