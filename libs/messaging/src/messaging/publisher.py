"""Publishes events: ten a call, in limited memory, each answered for by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from random import Random
from types import TracebackType
from typing import Self

from gaming.events.events_pb2 import GameEvent
from messaging.batch_sender import BatchSender
from messaging.claim_check import CLAIM_THRESHOLD_BYTES, MAXIMUM_CLAIM_BYTES, stored_event
from messaging.codec import attributes_of, encode_event
from messaging.errors import BusUnavailable, EventTooLarge, PublisherClosed
from messaging.metric_names import PublisherInstruments
from messaging.ports import ClaimStore, OutgoingMessage, Topic
from messaging.settings import MessagingSettings
from servicekit.clock import Clock
from servicekit.errors import ServiceError
from servicekit.telemetry import Telemetry

__all__ = ["BATCH_BYTES", "EventPublisher"]

BATCH_BYTES = 256 * 1024
"""What SNS takes in one PublishBatch, all messages with their attributes together."""


class EventPublisher:
    """Publishes events to one topic; an async context manager that sends what it holds at its end.

        async with EventPublisher(topic, settings=settings, clock=clock) as publisher:
            await publisher.publish(event)

    At least once: an event whose publishing was cancelled, timed out or failed with BusUnavailable
    may have been published. Publish it again with the same id.
    """

    def __init__(
        self,
        topic: Topic,
        *,
        settings: MessagingSettings,
        clock: Clock,
        claims: ClaimStore | None = None,
        telemetry: Telemetry | None = None,
        random: Random | None = None,
    ) -> None:
        self._claims = claims
        self._timeout_seconds = settings.publish_timeout_seconds
        self._places = asyncio.Semaphore(settings.publish_pending_limit)
        self._instruments = PublisherInstruments(telemetry or Telemetry("messaging"))
        self._sender = BatchSender[OutgoingMessage](
            "publisher",
            topic.publish_batch,
            size_of=lambda message: message.size_bytes,
            batch_bytes=BATCH_BYTES,
            linger_seconds=settings.publish_linger_seconds,
            calls_at_once=settings.publish_calls_at_once,
            close_timeout_seconds=settings.close_timeout_seconds,
            clock=clock,
            random=random or Random(),  # noqa: S311  # jitter, no secret
        )

    async def __aenter__(self) -> Self:
        await self._sender.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._sender.__aexit__(kind, error, traceback)

    async def publish(
        self, event: GameEvent, *, attributes: Mapping[str, str] | None = None
    ) -> None:
        """Returns once the topic accepted the event; waits while the publisher is full.

        Args:
            event: what to publish; it is not changed.
            attributes: further message attributes for subscriptions to filter by, not empty, at
                most ten with those of the contract.

        Raises:
            InvalidEvent: without an id, a source or a type's text, or with too many attributes.
            EventTooLarge: above 200 KB without a claim store, or above 16 MiB.
            BusRefused: AWS does not accept it and would not accept it again.
            BusUnavailable: not accepted in time.
            PublisherClosed: the publisher closed before it could be sent.
        """
        try:
            all_attributes = attributes_of(event, attributes)
            async with asyncio.timeout(self._timeout_seconds), self._places:
                if self._sender.is_closed:
                    raise PublisherClosed("the publisher is closed")
                await self._sender.send(await self._message(event, all_attributes))
        except TimeoutError:
            self._instruments.failed(BusUnavailable.reason)
            raise BusUnavailable("the event bus did not accept the event in time") from None
        except ServiceError as error:
            self._instruments.failed(error.reason)
            raise
        self._instruments.published(event.event_type)

    async def _message(self, event: GameEvent, attributes: Mapping[str, str]) -> OutgoingMessage:
        message = OutgoingMessage(encode_event(event), attributes)
        if message.size_bytes <= CLAIM_THRESHOLD_BYTES:
            return message
        if self._claims is None:
            raise EventTooLarge("events above 200 KB need a claim store, and none is configured")
        stored = stored_event(event)
        pointer = OutgoingMessage(encode_event(stored.pointer), attributes)
        if len(stored.content) > MAXIMUM_CLAIM_BYTES or pointer.size_bytes > CLAIM_THRESHOLD_BYTES:
            raise EventTooLarge("an event has at most 16 MiB, and 100 KB of metadata")
        await self._claims.put(stored.key, stored.content)
        self._instruments.claimed()
        return pointer
