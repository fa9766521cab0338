"""What a message that can never be handled looks like in the dead-letter queue, and back."""

from __future__ import annotations

from collections.abc import Mapping

from messaging.codec import ATTRIBUTE_LIMIT
from messaging.ports import OutgoingMessage, ReceivedMessage

__all__ = ["ATTRIBUTE_MESSAGE_ID", "ATTRIBUTE_REASON", "dead_letter", "redriven"]

ATTRIBUTE_REASON = "dead_letter_reason"
"""Why the message is here: a `PoisonReason`."""
ATTRIBUTE_MESSAGE_ID = "dead_letter_message_id"
"""The id the message had in its queue, to find it in the logs."""

_OURS = frozenset({ATTRIBUTE_REASON, ATTRIBUTE_MESSAGE_ID})


def dead_letter(message: ReceivedMessage, reason: str) -> OutgoingMessage:
    """Returns the message as it was, with its reason as an attribute.

    A queue takes ten attributes, none of them empty; where there are too many, the message's last
    ones give way.
    """
    attributes = {ATTRIBUTE_REASON: reason, ATTRIBUTE_MESSAGE_ID: message.message_id}
    for name, value in message.attributes.items():
        if len(attributes) == ATTRIBUTE_LIMIT:
            break
        if value and name not in _OURS:
            attributes[name] = value
    return OutgoingMessage(message.body, attributes)


def redriven(body: str, attributes: Mapping[str, str]) -> OutgoingMessage:
    """Returns a dead letter as the message it was, to be put into its queue again."""
    return OutgoingMessage(
        body, {name: value for name, value in attributes.items() if name not in _OURS}
    )
