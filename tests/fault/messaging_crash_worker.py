"""The parts of an event's way as processes that kill themselves at a chosen step, or are killed.

A program: it is started with a JSON object of `WorkerSettings` as its argument, loads everything
once, and forks a process for each order that it reads from its input, one JSON object a line. Each
order is answered with a line.

    {"role": "relay"}                             → {"reached": ["before BEGIN;", …]}
    {"role": "relay", "die_at": "after publish"}  → {"died": true}
    {"role": "relay", "keep_on": true}            → {"pid": 4711}, working until it is killed
    {"reap": 4711}                                → {"signal": 9}

Moments are before and after each step, and a step is everything a role does outside its own memory:
each SQL statement, BEGIN and COMMIT among them, and each call of topic and queue.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import asyncpg
import structlog

from gaming.events import events_pb2
from gaming.events.events_pb2 import GameEvent
from messaging.adapters.sns_topic import SnsTopic, open_sns_topic
from messaging.adapters.sqs_queue import SqsQueue, open_sqs_queue
from messaging.codec import new_event
from messaging.consumer import EventConsumer
from messaging.inbox import first_time
from messaging.outbox import enqueue
from messaging.outbox_relay import OutboxRelay
from messaging.ports import EntryOutcome, OutgoingMessage, ReceivedMessage
from messaging.publisher import EventPublisher
from messaging.settings import MessagingSettings
from messaging.testing.stores import SCHEMA, settings
from servicekit.clock import SystemClock
from servicekit.settings import load_settings

NAMESPACE = uuid.UUID("7d0f7a7e-5c1c-4a52-9a41-1c5b7b9c3d11")
PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Where the database and the bus are."""

    database_url: str
    endpoint_url: str
    topic_arn: str
    queue_url: str
    visibility_seconds: int = 1

    def bus(self) -> MessagingSettings:
        """Returns the library's settings."""
        return load_settings(
            MessagingSettings,
            {
                "AWS_ENDPOINT_URL": self.endpoint_url,
                "GAMEKEEPER_EVENTS_TOPIC_ARN": self.topic_arn,
                "GAMEKEEPER_EVENTS_QUEUE_URL": self.queue_url,
                "GAMEKEEPER_EVENTS_VISIBILITY_SECONDS": str(self.visibility_seconds),
                "GAMEKEEPER_EVENTS_RECEIVE_WAIT_SECONDS": "1",
                "GAMEKEEPER_EVENTS_RECEIVE_CALLS_AT_ONCE": "1",
                "GAMEKEEPER_EVENTS_RETRY_DELAY_SECONDS": "0.1",
            },
        )


class Steps:
    """Notes the moments reached and ends the process at one of them, as `kill -9` does."""

    def __init__(self, die_at: str | None) -> None:
        self._die_at = die_at
        self.reached: list[str] = []

    @asynccontextmanager
    async def around(self, name: str) -> AsyncIterator[None]:
        self._reach(f"before {name}")
        yield
        self._reach(f"after {name}")

    def _reach(self, moment: str) -> None:
        if moment == self._die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if moment not in self.reached:
            self.reached.append(moment)


class SteppedTopic:
    """A topic whose calls are steps."""

    def __init__(self, topic: SnsTopic, steps: Steps) -> None:
        self._topic = topic
        self._steps = steps

    async def publish_batch(self, messages: Sequence[OutgoingMessage]) -> list[EntryOutcome]:
        async with self._steps.around("publish"):
            return await self._topic.publish_batch(messages)


class SteppedQueue:
    """A queue whose calls are steps."""

    def __init__(self, queue: SqsQueue, steps: Steps, deleted: asyncio.Event) -> None:
        self._queue = queue
        self._steps = steps
        self._deleted = deleted

    async def receive(self, maximum: int, *, wait_seconds: float) -> list[ReceivedMessage]:
        async with self._steps.around("receive"):
            return await self._queue.receive(maximum, wait_seconds=wait_seconds)

    async def delete_batch(self, receipts: Sequence[str]) -> list[EntryOutcome]:
        async with self._steps.around("delete from the queue"):
            outcomes = await self._queue.delete_batch(receipts)
        self._deleted.set()
        return outcomes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)


def stepped_connections(steps: Steps) -> type[asyncpg.Connection]:
    """Returns a class of connections whose statements are steps."""

    class SteppedConnection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg ships no types
        async def execute(self, query: str, *arguments: Any, **options: Any) -> Any:
            async with steps.around(_named(query)):
                return await super().execute(query, *arguments, **options)

        async def fetch(self, query: str, *arguments: Any, **options: Any) -> Any:
            async with steps.around(_named(query)):
                return await super().fetch(query, *arguments, **options)

        async def fetchval(self, query: str, *arguments: Any, **options: Any) -> Any:
            async with steps.around(_named(query)):
                return await super().fetchval(query, *arguments, **options)

    return SteppedConnection


def _named(query: str) -> str:
    lines = (line for line in query.splitlines() if not line.startswith("--"))
    return " ".join(" ".join(lines).split())[:40]


class Roles:
    """What a process does: once, or until it is killed."""

    def __init__(self, where: WorkerSettings, order: dict[str, Any], steps: Steps) -> None:
        self._where = where
        self._bus = where.bus()
        self._steps = steps
        self._keep_on = bool(order.get("keep_on"))
        self._numbers: list[int] = order.get("numbers", [])
        self._pause_seconds: float = order.get("pause_seconds", 0.0)
        self._stack = AsyncExitStack()

    async def run(self, role: str) -> None:
        roles = {"producer": self._produce, "relay": self._relay, "consumer": self._consume}
        async with self._stack:
            pool = await self._stack.enter_async_context(
                asyncpg.create_pool(
                    self._where.database_url,
                    min_size=0,
                    max_size=4,
                    command_timeout=10,
                    connection_class=stepped_connections(self._steps),
                )
            )
            await roles[role](pool)

    async def _produce(self, pool: asyncpg.Pool) -> None:
        """Does deeds and enqueues their events; a deed that was done stays as it is."""
        for number in self._numbers:
            made = event_of(number)
            async with pool.acquire() as connection, connection.transaction():
                if await connection.fetchval(
                    "INSERT INTO game.deeds VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING true",
                    number,
                    made.event_id,
                ):
                    await enqueue(connection, made, schema=SCHEMA)
            await asyncio.sleep(self._pause_seconds)

    async def _relay(self, pool: asyncpg.Pool) -> None:
        topic = await self._stack.enter_async_context(open_sns_topic(self._bus))
        publisher = await self._stack.enter_async_context(
            EventPublisher(
                SteppedTopic(topic, self._steps),
                settings=self._bus,
                clock=SystemClock(),
            )
        )
        relay = OutboxRelay(
            pool,
            publisher,
            schema=SCHEMA,
            settings=settings(),
            clock=SystemClock(),
            rng=random.Random(7),  # noqa: S311  # spreads pauses, guards nothing
        )
        if self._keep_on:
            await relay.run(asyncio.Event())
        await relay.relay_batch()

    async def _consume(self, pool: asyncpg.Pool) -> None:
        stopping, deleted = asyncio.Event(), asyncio.Event()
        queue = await self._stack.enter_async_context(open_sqs_queue(self._bus))

        async def take_effect(event: GameEvent) -> None:
            async with pool.acquire() as connection, connection.transaction():
                if await first_time(connection, "effects", event.event_id, schema=SCHEMA):
                    await connection.execute(
                        "INSERT INTO game.effects VALUES ($1)", int(event.metadata["number"])
                    )

        consumer = EventConsumer(
            SteppedQueue(queue, self._steps, deleted),
            take_effect,
            settings=self._bus,
            clock=SystemClock(),
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(consumer.run(stopping))
            if not self._keep_on:
                try:
                    async with asyncio.timeout(PATIENCE_SECONDS):
                        await deleted.wait()
                finally:
                    stopping.set()


def event_of(number: int) -> GameEvent:
    """Returns the event of deed `number`, the same whenever it is made."""
    return new_event(
        events_pb2.WORLD_STATE_UPDATED,
        events_pb2.StateUpdate(state={"deed": str(number)}),
        source="deeds",
        event_id=str(uuid.uuid5(NAMESPACE, str(number))),
        timestamp_milliseconds=1_767_225_600_000 + number,
        metadata={"number": str(number)},
    )


def _work(where: WorkerSettings, order: dict[str, Any], report_to: int | None) -> None:
    """Runs one order in this forked process, which ends with it."""
    steps = Steps(order.get("die_at"))
    try:
        asyncio.run(Roles(where, order, steps).run(order["role"]))
        if report_to is not None:
            os.write(report_to, json.dumps(steps.reached).encode())
    except BaseException:  # noqa: BLE001  # a fork must not go on as its parent
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def _forked(work: partial[None]) -> int:
    pid = os.fork()
    if pid == 0:
        work()
    return pid


def _obey(where: WorkerSettings, order: dict[str, Any], working: set[int]) -> dict[str, Any]:
    if "reap" in order:
        _, status = os.waitpid(order["reap"], 0)
        working.discard(order["reap"])
        return {"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None}
    if order.get("keep_on"):
        pid = _forked(partial(_work, where, order, None))
        working.add(pid)
        return {"pid": pid}
    reader, writer = os.pipe()
    pid = _forked(partial(_work, where, order, writer))
    os.close(writer)
    with os.fdopen(reader, "rb") as report:
        reached = report.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return {"died": True}
    return {"reached": json.loads(reached)} if status == 0 else {"failed": True}


def main() -> None:
    """Obeys the orders on standard input until it ends."""
    where = WorkerSettings(**json.loads(sys.argv[1]))
    # Standard output carries the answers.
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
    )
    working: set[int] = set()
    try:
        for line in sys.stdin:
            print(json.dumps(_obey(where, json.loads(line), working)), flush=True)
    finally:
        for pid in working:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
