"""Settings of outbox, relay and inbox."""

from __future__ import annotations

from dataclasses import dataclass

from messaging.outbox_rules import RetryPolicy
from servicekit.settings import setting

__all__ = ["StoreSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """How events are relayed from the database, and how long it remembers them."""

    batch_events: int = setting(
        "GAMEKEEPER_EVENTS_OUTBOX_BATCH_EVENTS",
        default=1000,
        minimum=1,
        maximum=10_000,
        help="events a relay has in hand at once",
    )
    batch_bytes: int = setting(
        "GAMEKEEPER_EVENTS_OUTBOX_BATCH_BYTES",
        default=8 * 1024 * 1024,
        minimum=1,
        help="bytes of events a relay has in hand at once; one event may be larger",
    )
    poll_seconds: float = setting(
        "GAMEKEEPER_EVENTS_OUTBOX_POLL_SECONDS",
        default=0.2,
        minimum=0.01,
        maximum=60.0,
        help="pause between two looks for new events",
    )
    publish_timeout_seconds: float = setting(
        "GAMEKEEPER_EVENTS_OUTBOX_PUBLISH_TIMEOUT_SECONDS",
        default=30.0,
        minimum=0.1,
        maximum=300.0,
        help="how long one batch may take to publish; what is left is tried again",
    )
    maximum_backoff_seconds: float = setting(
        "GAMEKEEPER_EVENTS_OUTBOX_MAXIMUM_BACKOFF_SECONDS",
        default=2.0,
        minimum=0.05,
        maximum=60.0,
        help="longest pause while the topic or the database is away",
    )
    attempts: int = setting(
        "GAMEKEEPER_EVENTS_OUTBOX_ATTEMPTS",
        default=20,
        minimum=1,
        help="an event refused so often while others are accepted is parked",
    )
    parked_retention_days: float = setting(
        "GAMEKEEPER_EVENTS_OUTBOX_PARKED_RETENTION_DAYS",
        default=90.0,
        minimum=0.0,
        help="parked events are deleted after so long",
    )
    # An SQS message lives 14 days at most, in a dead-letter queue counted from its first sending.
    inbox_retention_days: float = setting(
        "GAMEKEEPER_EVENTS_INBOX_RETENTION_DAYS",
        default=15.0,
        minimum=0.0,
        help="a repeated event is recognised so long; longer than a queue keeps messages",
    )
    retention_interval_seconds: float = setting(
        "GAMEKEEPER_EVENTS_RETENTION_INTERVAL_SECONDS",
        default=600.0,
        minimum=0.1,
        help="pause between two clean-ups",
    )

    @property
    def retry_policy(self) -> RetryPolicy:
        """How long a row is tried that the topic refuses while it takes others."""
        return RetryPolicy(self.attempts, first_delay_seconds=1.0, maximum_delay_seconds=300.0)
