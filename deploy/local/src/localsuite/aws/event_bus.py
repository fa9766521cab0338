"""The game's event bus in the account: one topic, a queue for each reader, and their dead letters.

Made through the real AWS API, so the same calls would make it in AWS.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from localsuite.aws.account import boto_client

__all__ = [
    "DEAD_LETTERS_SUFFIX",
    "OBSERVER_QUEUE",
    "QUEUES",
    "BusQueue",
    "queue_url",
    "seed_event_bus",
    "topic_arn",
]

# moto's one account.
_ACCOUNT = "123456789012"
_TOPIC = "game-events"
DEAD_LETTERS_SUFFIX = "-dead-letters"
_RECEIVES_BEFORE_DEAD_LETTER = 5

OBSERVER_QUEUE = "suite-observer-events"


@dataclass(frozen=True, slots=True)
class BusQueue:
    """A reader's queue: which event types it gets (none named: all), and in which form."""

    name: str
    event_types: tuple[str, ...] = ()
    raw: bool = True


# One queue in each of the two forms in which the game's services have theirs.
QUEUES = (
    BusQueue(
        "knowledge-base-events",
        (
            "weather.changed",
            "weather.severe",
            "time.changed",
            "time.day_activated",
            "time.night_activated",
            "time.updated",
            "world_state.updated",
        ),
    ),
    BusQueue("autoscaler-events", ("world_state.updated",), raw=False),
    BusQueue(OBSERVER_QUEUE),
)


def topic_arn(region_name: str) -> str:
    """Returns the topic's name for publishers."""
    return f"arn:aws:sns:{region_name}:{_ACCOUNT}:{_TOPIC}"


def queue_url(endpoint: str, name: str) -> str:
    """Returns a queue's address for its reader."""
    return f"{endpoint}/{_ACCOUNT}/{name}"


def seed_event_bus(
    endpoint: str, queues: Sequence[BusQueue] = QUEUES, *, region_name: str = "us-east-1"
) -> None:
    """Makes the topic, the queues with their dead letters, and the subscriptions exist."""
    sns = boto_client("sns", endpoint, region_name=region_name)
    sqs = boto_client("sqs", endpoint, region_name=region_name)
    topic = sns.create_topic(Name=_TOPIC)["TopicArn"]
    for queue in queues:
        dead = _make_queue(sqs, queue.name + DEAD_LETTERS_SUFFIX, {})
        policy = {"deadLetterTargetArn": dead, "maxReceiveCount": _RECEIVES_BEFORE_DEAD_LETTER}
        arn = _make_queue(sqs, queue.name, {"RedrivePolicy": json.dumps(policy)})
        attributes = {"RawMessageDelivery": "true" if queue.raw else "false"}
        if queue.event_types:
            attributes["FilterPolicy"] = json.dumps({"event_type": list(queue.event_types)})
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn, Attributes=attributes)


def _make_queue(sqs: Any, name: str, attributes: dict[str, str]) -> str:
    url = sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
    found = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
    return str(found["Attributes"]["QueueArn"])
