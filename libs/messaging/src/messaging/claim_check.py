"""Events too large for a message travel through a store; the message holds what finds them.

The pointer is an event like any other, without its payload and with three annotations in its
metadata, so readers that know nothing of this still see its id, type and source. The stored
content is the whole event, serialised, under the name of its SHA-256 digest: storing it twice
changes nothing, a reader can tell that it got what was meant, and a pointer cannot name anything
else in the bucket.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from gaming.events.events_pb2 import GameEvent
from messaging.errors import ClaimMissing, PoisonEvent, PoisonReason
from messaging.ports import ClaimStore

__all__ = [
    "CLAIM_THRESHOLD_BYTES",
    "MAXIMUM_CLAIM_BYTES",
    "StoredEvent",
    "is_claim",
    "redeemed",
    "stored_event",
]

CLAIM_THRESHOLD_BYTES = 200 * 1024
"""Messages above this travel by claim check; SNS and SQS refuse them above 256 KiB.

It counts the message as sent, in which hexadecimal text takes two bytes for one of the event.
"""
MAXIMUM_CLAIM_BYTES = 16 * 1024 * 1024
"""The largest event that is stored, and read back: what one message may cost in memory."""

_DIGEST_KEY = "claim_sha256"
_SIZE_KEY = "claim_bytes"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """What to store where, and the event to publish in its place."""

    key: str
    content: bytes
    pointer: GameEvent


def stored_event(event: GameEvent) -> StoredEvent:
    """Returns how `event` travels by claim check."""
    content = event.SerializeToString(deterministic=True)
    digest = hashlib.sha256(content).hexdigest()
    pointer = GameEvent(
        event_id=event.event_id,
        event_type=event.event_type,
        source=event.source,
        timestamp=event.timestamp,
        metadata={**event.metadata, _DIGEST_KEY: digest, _SIZE_KEY: str(len(content))},
    )
    return StoredEvent(_key(digest), content, pointer)


def is_claim(event: GameEvent) -> bool:
    """Returns whether the event only points to a stored one."""
    return _DIGEST_KEY in event.metadata


async def redeemed(pointer: GameEvent, claims: ClaimStore) -> GameEvent:
    """Returns the stored event that `pointer` points to.

    Raises:
        PoisonEvent: what is stored is gone or is not that event.
        BusUnavailable, BusRefused: the store cannot be read.
    """
    digest = pointer.metadata[_DIGEST_KEY]
    if not _DIGEST.fullmatch(digest):
        raise PoisonEvent(PoisonReason.BAD_CLAIM)
    try:
        content = await claims.get(_key(digest), maximum_bytes=MAXIMUM_CLAIM_BYTES)
    except ClaimMissing:
        raise PoisonEvent(PoisonReason.BAD_CLAIM) from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise PoisonEvent(PoisonReason.BAD_CLAIM)
    try:
        event = GameEvent.FromString(content)
    except DecodeError:
        raise PoisonEvent(PoisonReason.BAD_CLAIM) from None
    # Readers tell duplicates by the id; two ids for one event would make it take effect twice.
    if event.event_id != pointer.event_id:
        raise PoisonEvent(PoisonReason.BAD_CLAIM)
    return event


def _key(digest: str) -> str:
    return f"events/{digest}"
