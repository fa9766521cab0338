"""What a batch of ten costs in aioboto3, and what our publisher and consumer add to it.

    .venv/bin/python benchmarks/messaging/aws_cost.py [--events 2000] [--rounds 5]

Every rival moves the same events through the strict bus, which runs in a process of its own: the
figure is this process's CPU time per batch of ten events, the least over the rounds, taken in turn.
The SDK alone is the bound: whatever publishes through it cannot be faster than that on one core.

- bare SDK: an aioboto3 client as it comes; `publish_batch` with entries made beforehand,
  `receive_message` and `delete_message_batch` of what came, with nothing read.
- adapter: the same through `SnsTopic`, entries made and outcomes sorted; its client saves what the
  SDK spends on checking and on encoding twice.
- publisher, consumer: events in, events out: encoding, batching, bookkeeping, a handler that does
  nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aioboto3
import structlog
import uvloop
from bus_process import BusProcess, an_event, bus_process

from gaming.events.events_pb2 import GameEvent
from messaging.adapters.aws_calls import message_attributes, open_client
from messaging.adapters.sns_topic import SnsTopic
from messaging.adapters.sqs_queue import SqsQueue
from messaging.codec import attributes_of, encode_event
from messaging.consumer import EventConsumer
from messaging.ports import OutgoingMessage
from messaging.publisher import EventPublisher
from servicekit.clock import SystemClock

_BATCH = 10
_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Clients:
    """Clients of the SDK."""

    sns: Any
    sqs: Any


class Rivals:
    """Moves `count` events over the bus, each way in its own manner."""

    def __init__(self, bus: BusProcess, ours: Clients, bare: Clients, count: int) -> None:
        self._bus, self._ours, self._bare, self._count = bus, ours, bare, count
        self._settings = bus.settings()
        self._events = [an_event(number) for number in range(count)]
        self._messages = [
            OutgoingMessage(encode_event(event), attributes_of(event)) for event in self._events
        ]
        self._entries = [
            {
                "Id": str(number % _BATCH),
                "Message": message.body,
                "MessageAttributes": message_attributes(message.attributes),
            }
            for number, message in enumerate(self._messages)
        ]

    async def publish_bare(self) -> None:
        """Publishes with the SDK alone."""
        for start in range(0, self._count, _BATCH):
            await self._bare.sns.publish_batch(
                TopicArn=self._bus.topic_arn,
                PublishBatchRequestEntries=self._entries[start : start + _BATCH],
            )

    async def publish_by_adapter(self) -> None:
        """Publishes batches through our adapter."""
        topic = SnsTopic(self._ours.sns, self._bus.topic_arn, timeout_seconds=_TIMEOUT_SECONDS)
        for start in range(0, self._count, _BATCH):
            await topic.publish_batch(self._messages[start : start + _BATCH])

    async def publish_by_publisher(self) -> None:
        """Publishes events through our publisher."""
        topic = SnsTopic(self._ours.sns, self._bus.topic_arn, timeout_seconds=_TIMEOUT_SECONDS)
        async with EventPublisher(topic, settings=self._settings, clock=SystemClock()) as out:
            await asyncio.gather(*(out.publish(event) for event in self._events))

    async def consume_bare(self) -> None:
        """Receives and deletes with the SDK alone."""
        left = self._count
        while left:
            answer = await self._bare.sqs.receive_message(
                QueueUrl=self._bus.queue_url,
                MaxNumberOfMessages=_BATCH,
                WaitTimeSeconds=20,
                MessageAttributeNames=["All"],
                MessageSystemAttributeNames=["ApproximateReceiveCount"],
            )
            messages = answer["Messages"]
            left -= len(messages)
            await self._bare.sqs.delete_message_batch(
                QueueUrl=self._bus.queue_url,
                Entries=[
                    {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]}
                    for number, message in enumerate(messages)
                ],
            )

    async def consume_by_consumer(self) -> None:
        """Handles events with our consumer."""
        stopping, seen = asyncio.Event(), itertools.count(1)

        async def handle(event: GameEvent) -> None:
            if next(seen) == self._count:
                stopping.set()

        queue = SqsQueue(
            self._ours.sqs,
            self._bus.queue_url,
            visibility_seconds=self._settings.visibility_seconds,
            timeout_seconds=_TIMEOUT_SECONDS,
        )
        consumer = EventConsumer(queue, handle, settings=self._settings, clock=SystemClock())
        await consumer.run(stopping)


def _bare_client(service: str, bus: BusProcess) -> Any:
    return aioboto3.Session().client(service, region_name="us-east-1", endpoint_url=bus.endpoint)


async def _measured(run: Callable[[], Awaitable[None]], batches: int) -> tuple[float, float]:
    """Returns CPU and wall seconds for a batch."""
    cpu, wall = time.process_time(), time.perf_counter()
    await run()
    return (time.process_time() - cpu) / batches, (time.perf_counter() - wall) / batches


async def main(count: int, rounds: int) -> None:
    """Prints CPU per batch for each rival, the ratio to the bare SDK, and events a second."""
    with bus_process() as bus:
        settings = bus.settings()
        async with (
            open_client("sns", settings, connections=4) as sns,
            open_client("sqs", settings, connections=8, read_timeout_seconds=30) as sqs,
            _bare_client("sns", bus) as bare_sns,
            _bare_client("sqs", bus) as bare_sqs,
        ):
            rivals = Rivals(bus, Clients(sns, sqs), Clients(bare_sns, bare_sqs), count)
            # Each round publishes three times and reads that: twice bare, for the same amount.
            steps: list[tuple[str, Callable[[], Awaitable[None]]]] = [
                ("publish: bare SDK", rivals.publish_bare),
                ("consume: bare SDK", rivals.consume_bare),
                ("publish: adapter", rivals.publish_by_adapter),
                ("consume: consumer", rivals.consume_by_consumer),
                ("publish: publisher", rivals.publish_by_publisher),
                ("consume: bare SDK", rivals.consume_bare),
            ]
            best: dict[str, tuple[float, float]] = {}
            for _ in range(rounds):
                for name, run in steps:
                    measured = await _measured(run, count // _BATCH)
                    best[name] = min(best.get(name, measured), measured)
    for name in sorted(best, reverse=True):
        cpu, wall = best[name]
        floor = best[f"{name.partition(':')[0]}: bare SDK"][0]
        print(
            f"{name:20}: {cpu * 1e6:7.0f} µs CPU a batch of ten, {cpu / floor:4.2f} x bare SDK; "
            f"{_BATCH / cpu:7,.0f} events/s per core, {_BATCH / wall:7,.0f} by the clock here"
        )
    for ours, under in (
        ("publish: publisher", "publish: adapter"),
        ("consume: consumer", "consume: bare SDK"),
    ):
        added = best[ours][0] - best[under][0]
        print(
            f"{ours.partition(': ')[2]} on top of {under.partition(': ')[2]}: "
            f"{added / _BATCH * 1e6:4.0f} µs an event, {added / best[ours][0]:4.0%} of the whole"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Cost of aioboto3 and of what we add to it.")
    parser.add_argument("--events", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    uvloop.run(main(arguments.events - arguments.events % _BATCH, arguments.rounds))
