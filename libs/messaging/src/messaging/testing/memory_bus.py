"""A topic, queues and a claim store in memory, with the semantics of SNS, SQS and S3.

Standard queues only: at least once, in no promised order, hidden for the visibility timeout while
in hand, into the dead-letter queue after too many deliveries.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from messaging.errors import BusRefused, BusUnavailable, ClaimMissing
from messaging.ports import (
    ACCEPTED,
    BATCH_ENTRIES,
    EntryOutcome,
    OutgoingMessage,
    ReceivedMessage,
)
from messaging.waiting import set_within
from servicekit.clock import Clock

__all__ = ["MemoryClaimStore", "MemoryQueue", "MemoryTopic"]

_MESSAGE_LIMIT_BYTES = 256 * 1024
_RAW_ATTRIBUTE_LIMIT = 10
_STALE_RECEIPT = EntryOutcome(accepted=False, error_code="ReceiptHandleIsInvalid")


@dataclass(slots=True)
class _Stored:
    body: str
    attributes: Mapping[str, str]
    message_id: str
    visible_at: float
    receive_count: int = 0
    receipt: str = ""


class MemoryQueue:
    """One queue; `clock` moves its visibility timeouts and ends its long polls.

    Args:
        clock: the time.
        visibility_seconds: how long a received message is hidden.
        dead_letters: where messages go that can never be read, and those received
            `maximum_receives` times; None: they stay.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        visibility_seconds: float = 30.0,
        dead_letters: MemoryQueue | None = None,
        maximum_receives: int | None = None,
    ) -> None:
        self._clock = clock
        self._visibility_seconds = visibility_seconds
        self._dead_letters = dead_letters
        self._maximum_receives = maximum_receives
        self._messages: dict[str, _Stored] = {}
        self._numbers = itertools.count(1)
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """How many messages it holds, visible or in hand."""
        return len(self._messages)

    @property
    def visible(self) -> list[ReceivedMessage]:
        """The messages a reader would get now, oldest first, without receiving them."""
        now = self._clock.monotonic()
        return [
            ReceivedMessage(m.body, m.attributes, "", m.message_id, m.receive_count)
            for m in self._messages.values()
            if m.visible_at <= now
        ]

    def add(self, message: OutgoingMessage) -> None:
        """Puts a message into the queue, whatever its size."""
        number = f"message-{next(self._numbers)}"
        self._messages[number] = _Stored(
            message.body, dict(message.attributes), number, self._clock.monotonic()
        )
        self._changed.set()

    async def receive(self, maximum: int, *, wait_seconds: float) -> list[ReceivedMessage]:
        """Returns visible messages and hides them; waits for the first one."""
        _check_batch_size(maximum)
        give_up = self._clock.monotonic() + wait_seconds
        while True:
            received = self._take(maximum)
            left = give_up - self._clock.monotonic()
            if received or left <= 0:
                return received
            self._changed.clear()
            await set_within(self._changed, self._until_next(left), self._clock)

    def _take(self, maximum: int) -> list[ReceivedMessage]:
        now = self._clock.monotonic()
        taken: list[ReceivedMessage] = []
        for message in list(self._messages.values()):
            if len(taken) == maximum:
                break
            if message.visible_at > now:
                continue
            if self._is_spent(message):
                del self._messages[message.message_id]
                if self._dead_letters is not None:
                    self._dead_letters.add(OutgoingMessage(message.body, message.attributes))
                continue
            message.receive_count += 1
            message.receipt = f"{message.message_id}/{message.receive_count}"
            message.visible_at = now + self._visibility_seconds
            taken.append(
                ReceivedMessage(
                    message.body,
                    message.attributes,
                    message.receipt,
                    message.message_id,
                    message.receive_count,
                )
            )
        return taken

    def _is_spent(self, message: _Stored) -> bool:
        return self._maximum_receives is not None and (
            message.receive_count >= self._maximum_receives
        )

    def _until_next(self, at_most: float) -> float:
        now = self._clock.monotonic()
        hidden = [m.visible_at - now for m in self._messages.values() if m.visible_at > now]
        return min([at_most, *hidden])

    async def extend_visibility(
        self, receipts: Sequence[str], *, seconds: Sequence[int]
    ) -> list[EntryOutcome]:
        """Changes how long messages in hand stay hidden."""
        _check_batch_size(len(receipts))
        now = self._clock.monotonic()
        outcomes = []
        for receipt, length in zip(receipts, seconds, strict=True):
            message = self._in_hand(receipt)
            if message is None or message.visible_at <= now:
                outcomes.append(_STALE_RECEIPT)
                continue
            message.visible_at = now + length
            outcomes.append(ACCEPTED)
        self._changed.set()
        return outcomes

    async def delete_batch(self, receipts: Sequence[str]) -> list[EntryOutcome]:
        """Deletes messages by the receipt of their latest delivery; others' deletes do nothing."""
        _check_batch_size(len(receipts))
        for receipt in receipts:
            message = self._in_hand(receipt)
            if message is not None:
                del self._messages[message.message_id]
        return [ACCEPTED] * len(receipts)

    def _in_hand(self, receipt: str) -> _Stored | None:
        message = self._messages.get(receipt.partition("/")[0])
        return message if message is not None and message.receipt == receipt else None

    async def send_batch(self, messages: Sequence[OutgoingMessage]) -> list[EntryOutcome]:
        """Puts messages into this queue."""
        _check_batch_size(len(messages))
        if sum(message.size_bytes for message in messages) > _MESSAGE_LIMIT_BYTES:
            raise BusRefused("the batch is larger than 256 KiB")
        outcomes = []
        for message in messages:
            if len(message.attributes) > _RAW_ATTRIBUTE_LIMIT:
                outcomes.append(EntryOutcome(accepted=False, error_code="InvalidParameterValue"))
                continue
            self.add(message)
            outcomes.append(ACCEPTED)
        return outcomes

    @property
    def has_dead_letters(self) -> bool:
        """Whether there is a dead-letter queue."""
        return self._dead_letters is not None

    async def send_to_dead_letters(self, messages: Sequence[OutgoingMessage]) -> list[EntryOutcome]:
        """Puts messages into the dead-letter queue."""
        if self._dead_letters is None:
            raise BusRefused("no dead-letter queue is configured")
        return await self._dead_letters.send_batch(messages)


@dataclass(frozen=True, slots=True)
class _Subscription:
    queue: MemoryQueue
    raw: bool
    wanted: Callable[[Mapping[str, str]], bool]


class MemoryTopic:
    """Fans messages out to its subscribed queues.

    Attributes:
        published: every message accepted, in order.
        fail_next: outcomes for coming entries, used up in order; a BusUnavailable or BusRefused
            in it fails a whole call.
    """

    def __init__(self) -> None:
        self._subscriptions: list[_Subscription] = []
        self.published: list[OutgoingMessage] = []
        self.calls: list[int] = []
        self.fail_next: list[EntryOutcome | BusUnavailable | BusRefused] = []

    def subscribe(
        self,
        queue: MemoryQueue,
        *,
        raw: bool = True,
        wanted: Callable[[Mapping[str, str]], bool] = lambda attributes: True,
    ) -> None:
        """Sends `queue` what is published from now on and `wanted` by its attributes."""
        self._subscriptions.append(_Subscription(queue, raw, wanted))

    async def publish_batch(self, messages: Sequence[OutgoingMessage]) -> list[EntryOutcome]:
        """Publishes messages to all subscriptions."""
        _check_batch_size(len(messages))
        if sum(message.size_bytes for message in messages) > _MESSAGE_LIMIT_BYTES:
            raise BusRefused("the batch is larger than 256 KiB")
        # A real topic answers later; giving way lets callers meet that.
        await asyncio.sleep(0)
        self.calls.append(len(messages))
        if self.fail_next and isinstance(self.fail_next[0], BusUnavailable | BusRefused):
            failure = self.fail_next.pop(0)
            assert isinstance(failure, Exception)  # noqa: S101  # narrows the type for mypy
            raise failure
        outcomes = []
        for message in messages:
            planned = self.fail_next.pop(0) if self.fail_next else ACCEPTED
            outcome = planned if isinstance(planned, EntryOutcome) else ACCEPTED
            if outcome.accepted:
                self._fan_out(message)
            outcomes.append(outcome)
        return outcomes

    def _fan_out(self, message: OutgoingMessage) -> None:
        self.published.append(message)
        for subscription in self._subscriptions:
            if not subscription.wanted(message.attributes):
                continue
            if subscription.raw:
                # As SNS does: such a message is lost without a word.
                if len(message.attributes) <= _RAW_ATTRIBUTE_LIMIT:
                    subscription.queue.add(message)
                continue
            subscription.queue.add(OutgoingMessage(_envelope(message)))


def _envelope(message: OutgoingMessage) -> str:
    return json.dumps(
        {
            "Type": "Notification",
            "Message": message.body,
            "MessageAttributes": {
                name: {"Type": "String", "Value": value}
                for name, value in message.attributes.items()
            },
        }
    )


class MemoryClaimStore:
    """Large payloads in a dictionary."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}

    async def put(self, key: str, content: bytes) -> None:
        """Stores `content`."""
        self.contents[key] = content

    async def get(self, key: str, *, maximum_bytes: int) -> bytes:
        """Returns what was stored. Raises ClaimMissing."""
        content = self.contents.get(key)
        if content is None or len(content) > maximum_bytes:
            raise ClaimMissing("the stored payload is gone or too large")
        return content


def _check_batch_size(entries: int) -> None:
    if not 1 <= entries <= BATCH_ENTRIES:
        raise BusRefused(f"a batch has 1 to {BATCH_ENTRIES} entries")
