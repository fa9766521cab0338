"""What can go wrong on the event bus.

ServiceError
├── InvalidRequest
│   ├── PoisonEvent        a received message that can never be an event of ours
│   ├── InvalidEvent       an event that may not be published as it stands
│   └── EventTooLarge      an event beyond what the bus and the claim store take
├── FailedPrecondition
│   ├── BusRefused         AWS refuses: no such topic, no permission, a wrong request
│   └── ClaimMissing       the claim store does not hold what a message points to
├── Unavailable
│   └── BusUnavailable     AWS is away, slow or throttles; repeat later
└── ShuttingDown
    └── PublisherClosed    the publisher is closed or closing
"""

from __future__ import annotations

from enum import StrEnum

from servicekit.errors import FailedPrecondition, InvalidRequest, ShuttingDown, Unavailable

__all__ = [
    "BusRefused",
    "BusUnavailable",
    "ClaimMissing",
    "EventTooLarge",
    "InvalidEvent",
    "PoisonEvent",
    "PoisonReason",
    "PublisherClosed",
]


class PoisonReason(StrEnum):
    """Why a message can never be handled; the text stands beside it in the dead-letter queue."""

    NO_EVENT_ID = "no_event_id"
    """The event has no id, so it could not be told from its duplicates."""
    BAD_EVENT_ID = "bad_event_id"
    """The id is longer than any store of ids takes, or holds characters that cannot be stored."""
    EMPTY_BODY = "empty_body"
    NOT_HEX_BASE64_OR_JSON = "not_hex_base64_or_json"
    """The text is in none of the forms in which events travel."""
    NOT_A_GAME_EVENT = "not_a_game_event"
    """The bytes are no serialised GameEvent."""
    BAD_JSON_EVENT = "bad_json_event"
    """A JSON object without the shape of an event."""
    BAD_SNS_ENVELOPE = "bad_sns_envelope"
    """SNS's envelope without a message in it."""
    BAD_PAYLOAD = "bad_payload"
    """The envelope is an event, its payload is not what its type says; handlers find that."""
    BAD_CLAIM = "bad_claim"
    """The stored payload is gone, or is not the one the message points to."""


class PoisonEvent(InvalidRequest):
    """A message that can never be handled, whoever tries and however often.

    Attributes:
        poison_reason: what is wrong with it.
    """

    reason = "POISON_EVENT"

    def __init__(self, poison_reason: PoisonReason) -> None:
        super().__init__(
            f"the message is not an event: {poison_reason.value}",
            metadata={"poison_reason": poison_reason.value},
        )
        self.poison_reason = poison_reason


class InvalidEvent(InvalidRequest):
    """The event may not be published as it stands."""

    reason = "INVALID_EVENT"


class EventTooLarge(InvalidRequest):
    """The event is larger than the bus takes, and no claim store is there to hold it."""

    reason = "EVENT_TOO_LARGE"


class BusRefused(FailedPrecondition):
    """AWS refuses the request and would refuse it again."""

    reason = "BUS_REFUSED"


class ClaimMissing(FailedPrecondition):
    """The claim store does not hold the payload asked for."""

    reason = "CLAIM_MISSING"


class BusUnavailable(Unavailable):
    """AWS did not take the request now; repeating it later may work."""

    reason = "BUS_UNAVAILABLE"


class PublisherClosed(ShuttingDown):
    """The publisher takes no more events."""

    reason = "PUBLISHER_CLOSED"
