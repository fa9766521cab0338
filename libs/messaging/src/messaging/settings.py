"""Settings of the event bus; without a topic and a queue a service runs without the bus."""

from __future__ import annotations

from dataclasses import dataclass

from servicekit.settings import setting

__all__ = ["MessagingSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagingSettings:
    """Where the bus is, and how much of it a process takes at once."""

    topic_arn: str = setting(
        "GAMEKEEPER_EVENTS_TOPIC_ARN",
        default="",
        help="SNS topic events are published to; empty: none are published",
    )
    queue_url: str = setting(
        "GAMEKEEPER_EVENTS_QUEUE_URL",
        default="",
        help="SQS queue events are read from; empty: none are read",
    )
    dead_letter_queue_url: str = setting(
        "GAMEKEEPER_EVENTS_DEAD_LETTER_QUEUE_URL",
        default="",
        help="SQS queue for messages that can never be read; empty: the queue's redrive policy",
    )
    claim_bucket: str = setting(
        "GAMEKEEPER_EVENTS_CLAIM_BUCKET",
        default="",
        help="S3 bucket for events above 200 KB; empty: such events are refused",
    )
    region: str = setting("AWS_REGION", default="us-east-1", help="AWS region of the event bus")
    endpoint_url: str | None = setting(
        "AWS_ENDPOINT_URL", default=None, help="another AWS endpoint, for a local AWS; empty: AWS"
    )
    call_timeout_seconds: float = setting(
        "GAMEKEEPER_EVENTS_CALL_TIMEOUT_SECONDS",
        default=10.0,
        minimum=0.1,
        maximum=60.0,
        help="limit of one AWS call with its retries; a long poll may take its wait more",
    )
    publish_linger_seconds: float = setting(
        "GAMEKEEPER_EVENTS_PUBLISH_LINGER_SECONDS",
        default=0.01,
        minimum=0.0,
        maximum=5.0,
        help="how long an event waits for others to share its call",
    )
    publish_pending_limit: int = setting(
        "GAMEKEEPER_EVENTS_PUBLISH_PENDING_LIMIT",
        default=500,
        minimum=1,
        maximum=100_000,
        help="events in the publisher at once; more wait",
    )
    publish_calls_at_once: int = setting(
        "GAMEKEEPER_EVENTS_PUBLISH_CALLS_AT_ONCE",
        default=4,
        minimum=1,
        maximum=64,
        help="publish calls in flight at once",
    )
    publish_timeout_seconds: float = setting(
        "GAMEKEEPER_EVENTS_PUBLISH_TIMEOUT_SECONDS",
        default=30.0,
        minimum=0.1,
        help="how long publishing one event may take, waiting and retries included",
    )
    close_timeout_seconds: float = setting(
        "GAMEKEEPER_EVENTS_CLOSE_TIMEOUT_SECONDS",
        default=5.0,
        minimum=0.0,
        help="how long a closing publisher sends what it holds",
    )
    handlers_at_once: int = setting(
        "GAMEKEEPER_EVENTS_HANDLERS_AT_ONCE",
        default=10,
        minimum=1,
        maximum=1000,
        help="events handled at once",
    )
    receive_calls_at_once: int = setting(
        "GAMEKEEPER_EVENTS_RECEIVE_CALLS_AT_ONCE",
        default=1,
        minimum=1,
        maximum=16,
        help="long polls at once",
    )
    receive_wait_seconds: float = setting(
        "GAMEKEEPER_EVENTS_RECEIVE_WAIT_SECONDS",
        default=20.0,
        minimum=0.0,
        maximum=20.0,
        help="length of a long poll",
    )
    visibility_seconds: int = setting(
        "GAMEKEEPER_EVENTS_VISIBILITY_SECONDS",
        default=30,
        minimum=1,
        maximum=43_200,
        help="how long a message in hand is hidden from others; renewed at a third of it",
    )
    handler_timeout_seconds: float = setting(
        "GAMEKEEPER_EVENTS_HANDLER_TIMEOUT_SECONDS",
        default=60.0,
        minimum=0.1,
        maximum=3600.0,
        help="limit of one handler; beyond it the event is delivered again",
    )
    retry_delay_seconds: float = setting(
        "GAMEKEEPER_EVENTS_RETRY_DELAY_SECONDS",
        default=1.0,
        minimum=0.0,
        maximum=900.0,
        help="first delay before a failed event is delivered again; doubles with every delivery",
    )
    maximum_retry_delay_seconds: float = setting(
        "GAMEKEEPER_EVENTS_MAXIMUM_RETRY_DELAY_SECONDS",
        default=300.0,
        minimum=0.0,
        maximum=43_200.0,
        help="longest delay before a failed event is delivered again",
    )
    stop_timeout_seconds: float = setting(
        "GAMEKEEPER_EVENTS_STOP_TIMEOUT_SECONDS",
        default=15.0,
        minimum=0.0,
        help="how long handlers at work may finish when the reader stops",
    )

    @property
    def publishes(self) -> bool:
        """Whether there is a topic."""
        return bool(self.topic_arn)

    @property
    def consumes(self) -> bool:
        """Whether there is a queue."""
        return bool(self.queue_url)
