"""How fast the relay empties an outbox, against the limit of 10,000 events a second.

    .venv/bin/python benchmarks/messaging/outbox_relay.py [--events 20000] [--rounds 5]

The outbox is a table of a real PostgreSQL on this machine, the embedded one, with fsync. It
is filled, then timed until it is empty; least figures over the rounds:

- accepting topic: a topic in this process that takes each batch at once: what relay, publisher,
  codec and database cost. The limit of 10,000 events a second counts here.
- aioboto3: the SDK against the strict bus in a process of its own. What the SDK alone costs for the
  same batches is measured in the same round: nothing that publishes through it is faster, so the
  ratio to it says what the relay adds.

Wall time is shared with PostgreSQL and whatever else runs; the CPU time of this process is not.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aioboto3
import asyncpg
import structlog
import uvloop
from bus_process import BusProcess, an_event, bus_process

from localsuite.postgres import EmbeddedPostgres
from messaging.adapters.aws_calls import message_attributes
from messaging.adapters.sns_topic import open_sns_topic
from messaging.codec import attributes_of, encode_event
from messaging.outbox import enqueue
from messaging.outbox_relay import OutboxRelay
from messaging.outbox_settings import StoreSettings
from messaging.ports import ACCEPTED, EntryOutcome, OutgoingMessage, Topic
from messaging.publisher import EventPublisher
from messaging.settings import MessagingSettings
from messaging.store_schema import migrate_stores
from servicekit.clock import SystemClock
from servicekit.postgres import open_pool
from servicekit.settings import load_settings

LIMIT_EVENTS_PER_SECOND = 10_000
_SCHEMA = "benchmark"
_BATCH = 10


class AcceptingTopic:
    """Takes everything at once."""

    async def publish_batch(self, messages: Sequence[OutgoingMessage]) -> list[EntryOutcome]:
        """Accepts each."""
        return [ACCEPTED] * len(messages)


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds for one event."""

    wall: float
    cpu: float


async def _relayed(pool: asyncpg.Pool, topic: Topic, settings: MessagingSettings, n: int) -> Cost:
    async with pool.acquire() as connection, connection.transaction():
        await enqueue(connection, *(an_event(number) for number in range(n)), schema=_SCHEMA)
    async with EventPublisher(topic, settings=settings, clock=SystemClock()) as publisher:
        relay = OutboxRelay(
            pool,
            publisher,
            schema=_SCHEMA,
            settings=load_settings(StoreSettings, {}),
            clock=SystemClock(),
            rng=random.Random(7),  # noqa: S311  # spreads pauses, guards nothing
        )
        wall, cpu = time.perf_counter(), time.process_time()
        while relay.counts.published < n:
            await relay.relay_batch()
        cost = Cost((time.perf_counter() - wall) / n, (time.process_time() - cpu) / n)
    assert await pool.fetchval(f"SELECT count(*) FROM {_SCHEMA}.outbox") == 0  # noqa: S608  # ours
    return cost


async def _enqueued(pool: asyncpg.Pool, n: int) -> Cost:
    """One event a transaction, as services do it, then all gone again."""
    wall, cpu = time.perf_counter(), time.process_time()
    async with pool.acquire() as connection:
        for number in range(n):
            async with connection.transaction():
                await enqueue(connection, an_event(number), schema=_SCHEMA)
    cost = Cost((time.perf_counter() - wall) / n, (time.process_time() - cpu) / n)
    await pool.execute(f"TRUNCATE {_SCHEMA}.outbox")
    return cost


async def _sdk_alone(client: Any, bus: BusProcess, n: int) -> Cost:
    entries = [
        {
            "Id": str(number % _BATCH),
            "Message": encode_event(event),
            "MessageAttributes": message_attributes(attributes_of(event)),
        }
        for number, event in enumerate(an_event(number) for number in range(n))
    ]
    wall, cpu = time.perf_counter(), time.process_time()
    for start in range(0, n, _BATCH):
        await client.publish_batch(
            TopicArn=bus.topic_arn, PublishBatchRequestEntries=entries[start : start + _BATCH]
        )
    return Cost((time.perf_counter() - wall) / n, (time.process_time() - cpu) / n)


def _least(costs: Sequence[Cost]) -> Cost:
    return Cost(min(cost.wall for cost in costs), min(cost.cpu for cost in costs))


async def main(database_url: str, count: int, rounds: int) -> bool:
    """Prints events a second and the ratios; returns whether the limit is met."""
    async with AsyncExitStack() as stack:
        bus = stack.enter_context(bus_process())
        pool = await stack.enter_async_context(open_pool(database_url, application_name="bench"))
        async with pool.acquire() as connection:
            await migrate_stores(connection, schema=_SCHEMA)
        over_network = bus.settings()
        sns = await stack.enter_async_context(open_sns_topic(over_network))
        bare = await stack.enter_async_context(
            aioboto3.Session().client("sns", region_name="us-east-1", endpoint_url=bus.endpoint)
        )
        accepting, through_sdk, sdk_alone, enqueued = [], [], [], []
        for _ in range(rounds):
            accepting.append(await _relayed(pool, AcceptingTopic(), over_network, count))
            through_sdk.append(await _relayed(pool, sns, over_network, count // 4))
            sdk_alone.append(await _sdk_alone(bare, bus, count // 4))
            enqueued.append(await _enqueued(pool, 200))
    in_process, network, sdk, enqueue_cost = map(
        _least, (accepting, through_sdk, sdk_alone, enqueued)
    )
    rate = 1 / in_process.wall
    ratio = rate / LIMIT_EVENTS_PER_SECOND
    print(
        f"accepting topic : {rate:9,.0f} events/s by the clock, {ratio:.2f} x the limit of"
        f" {LIMIT_EVENTS_PER_SECOND:,}; {1 / in_process.cpu:,.0f} per core of this process"
    )
    print(
        f"aioboto3 alone  : {1 / sdk.wall:9,.0f} events/s by the clock;"
        f" {sdk.cpu * _BATCH * 1e6:.0f} µs CPU a batch of ten"
    )
    print(
        f"relay + aioboto3: {1 / network.wall:9,.0f} events/s by the clock;"
        f" {network.cpu * _BATCH * 1e6:.0f} µs CPU a batch of ten,"
        f" {network.cpu / sdk.cpu:.2f} x aioboto3 alone"
    )
    print(f"enqueue         : {enqueue_cost.wall * 1e3:.2f} ms a transaction of one event")
    return rate >= LIMIT_EVENTS_PER_SECOND


def _run(count: int, rounds: int) -> int:
    directory = Path(tempfile.mkdtemp(prefix="gamekeeper-postgres-"))
    server = EmbeddedPostgres(directory)
    try:
        with server:
            server.create_database("bench")
            met = uvloop.run(main(server.url("bench"), count, rounds))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(server.location, ignore_errors=True)
    print("limit met" if met else "LIMIT MISSED")
    return 0 if met else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Speed of the outbox relay.")
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    raise SystemExit(_run(arguments.events, arguments.rounds))
