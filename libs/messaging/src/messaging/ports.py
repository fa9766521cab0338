"""What the publisher and the consumer need from outside: a topic, a queue, a store for payloads.

Batches answer entry by entry, in the order of the request: one entry's failure says nothing about
its neighbours'. A call that fails as a whole raises BusUnavailable (repeat it) or BusRefused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

__all__ = [
    "ACCEPTED",
    "BATCH_ENTRIES",
    "ClaimStore",
    "EntryOutcome",
    "OutgoingMessage",
    "Queue",
    "ReceivedMessage",
    "Topic",
]

BATCH_ENTRIES = 10
"""Entries in one batch call of SNS or SQS, by their API references."""

_NO_ATTRIBUTES: Mapping[str, str] = MappingProxyType({})
# An attribute counts with its name, its data type and its value.
_ATTRIBUTE_TYPE_BYTES = len("String")


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A message as it is handed to a topic or a queue; all attributes are of type `String`."""

    body: str
    attributes: Mapping[str, str] = field(default_factory=lambda: _NO_ATTRIBUTES)
    size_bytes: int = field(init=False)
    """What counts against the size limits: body, attribute names, types and values in UTF-8."""

    def __post_init__(self) -> None:
        size = len(self.body) if self.body.isascii() else len(self.body.encode())
        for name, value in self.attributes.items():
            size += len(name.encode()) + _ATTRIBUTE_TYPE_BYTES + len(value.encode())
        object.__setattr__(self, "size_bytes", size)


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A message in hand: invisible to other readers until its visibility timeout ends."""

    body: str
    attributes: Mapping[str, str]
    receipt: str
    """Names this delivery of the message; deleting and extending take it."""
    message_id: str
    receive_count: int
    """1 at the first delivery; approximate, as SQS says."""


@dataclass(frozen=True, slots=True)
class EntryOutcome:
    """What became of one entry of a batch."""

    accepted: bool
    error_code: str = ""
    """The service's word for the failure; empty when accepted."""
    retryable: bool = False
    """Whether the same entry may be accepted later."""


ACCEPTED = EntryOutcome(accepted=True)


class Topic(Protocol):
    """Where events are published."""

    async def publish_batch(self, messages: Sequence[OutgoingMessage]) -> list[EntryOutcome]:
        """Publishes 1 to 10 messages, 256 KiB together, and returns an outcome for each.

        Raises:
            BusUnavailable: not now; whether some were published is not known.
            BusRefused: none was published and repeating is useless.
        """
        ...


class Queue(Protocol):
    """Where events are received. All methods raise BusUnavailable and BusRefused."""

    async def receive(self, maximum: int, *, wait_seconds: float) -> list[ReceivedMessage]:
        """Returns 1 to `maximum` (at most 10) messages, or none after `wait_seconds`."""
        ...

    async def extend_visibility(
        self, receipts: Sequence[str], *, seconds: Sequence[int]
    ) -> list[EntryOutcome]:
        """Makes each of up to 10 messages visible so many seconds from now; 0 returns it at once.

        An entry whose delivery is over, because its visibility ended, is not retryable.
        """
        ...

    async def delete_batch(self, receipts: Sequence[str]) -> list[EntryOutcome]:
        """Deletes up to 10 messages for good."""
        ...

    async def send_batch(self, messages: Sequence[OutgoingMessage]) -> list[EntryOutcome]:
        """Puts up to 10 messages into this queue directly."""
        ...

    @property
    def has_dead_letters(self) -> bool:
        """Whether there is a queue for messages that can never be handled."""
        ...

    async def send_to_dead_letters(self, messages: Sequence[OutgoingMessage]) -> list[EntryOutcome]:
        """Puts up to 10 messages into the dead-letter queue; it deletes nothing here.

        Raises:
            BusRefused: also when there is no dead-letter queue.
        """
        ...


class ClaimStore(Protocol):
    """Holds events too large for a message. Keys are chosen by the caller; a put overwrites."""

    async def put(self, key: str, content: bytes) -> None:
        """Stores `content`; it can be read when this returns. Raises BusUnavailable, BusRefused."""
        ...

    async def get(self, key: str, *, maximum_bytes: int) -> bytes:
        """Returns what was stored.

        Raises:
            ClaimMissing: nothing is stored there, or more than `maximum_bytes`.
            BusUnavailable: not now.
            BusRefused: reading is not permitted.
        """
        ...
