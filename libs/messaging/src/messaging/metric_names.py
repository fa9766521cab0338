"""Every metric of the event bus, in one place."""

from __future__ import annotations

from messaging.event_types import text_of
from servicekit.telemetry import Telemetry

__all__ = [
    "CLAIMS_STORED",
    "EVENTS_FAILED",
    "EVENTS_HANDLED",
    "EVENTS_POISON",
    "EVENTS_PUBLISHED",
    "EVENTS_RETURNED",
    "HANDLER_DURATION",
    "PUBLISH_FAILURES",
    "QUEUE_FAILURES",
    "ConsumerInstruments",
    "PublisherInstruments",
]

EVENTS_PUBLISHED = "gamekeeper.messaging.events_published"
PUBLISH_FAILURES = "gamekeeper.messaging.publish_failures"
CLAIMS_STORED = "gamekeeper.messaging.claims_stored"

EVENTS_HANDLED = "gamekeeper.messaging.events_handled"
EVENTS_FAILED = "gamekeeper.messaging.events_failed"
EVENTS_POISON = "gamekeeper.messaging.events_poison"
EVENTS_RETURNED = "gamekeeper.messaging.events_returned"
QUEUE_FAILURES = "gamekeeper.messaging.queue_failures"
HANDLER_DURATION = "gamekeeper.messaging.handler.duration"


class PublisherInstruments:
    """What the publisher counts."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._published = telemetry.counter(
            EVENTS_PUBLISHED, unit="{event}", description="events the topic accepted, by type"
        )
        self._failures = telemetry.counter(
            PUBLISH_FAILURES, unit="{event}", description="events not published, by reason"
        )
        self._claims = telemetry.counter(
            CLAIMS_STORED, unit="{event}", description="events too large for a message"
        )

    def published(self, event_type: int) -> None:
        """Counts an event the topic accepted."""
        self._published.add(1, {"event_type": _label(event_type)})

    def failed(self, reason: str) -> None:
        """Counts an event that was not published."""
        self._failures.add(1, {"reason": reason})

    def claimed(self) -> None:
        """Counts an event that went into the claim store."""
        self._claims.add(1)


class ConsumerInstruments:
    """What the consumer counts."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._handled = telemetry.counter(
            EVENTS_HANDLED, unit="{event}", description="events handled, by type"
        )
        self._failed = telemetry.counter(
            EVENTS_FAILED, unit="{event}", description="deliveries to be repeated, by reason"
        )
        self._poison = telemetry.counter(
            EVENTS_POISON, unit="{message}", description="messages that are no events, by reason"
        )
        self._returned = telemetry.counter(
            EVENTS_RETURNED, unit="{message}", description="messages given back when stopping"
        )
        self._queue_failures = telemetry.counter(
            QUEUE_FAILURES, unit="{call}", description="failed queue calls, by operation"
        )
        self._duration = telemetry.histogram(
            HANDLER_DURATION, unit="s", description="time in the handler"
        )

    def handled(self, event_type: int, seconds: float) -> None:
        """Counts an event whose handler has committed."""
        self._handled.add(1, {"event_type": _label(event_type)})
        self._duration.record(seconds)

    def failed(self, reason: str) -> None:
        """Counts a delivery that ended without a commit."""
        self._failed.add(1, {"reason": reason})

    def poison(self, reason: str) -> None:
        """Counts a message that can never be handled."""
        self._poison.add(1, {"reason": reason})

    def returned(self, messages: int) -> None:
        """Counts messages given back to the queue unhandled."""
        self._returned.add(messages)

    def queue_failed(self, operation: str) -> None:
        """Counts a queue call that failed, or an entry of one."""
        self._queue_failures.add(1, {"operation": operation})


def _label(event_type: int) -> str:
    """Returns the type's text; strangers share one, or they would make series without end."""
    return text_of(event_type) or "other"
