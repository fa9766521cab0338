"""The relay while PostgreSQL is killed or frozen: it recovers alone and loses nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import asyncpg
import psutil
import pytest

from gaming.events.events_pb2 import GameEvent
from localsuite.postgres import EmbeddedPostgres
from messaging.errors import BusUnavailable
from messaging.outbox_relay import OutboxRelay
from messaging.testing.stores import RecordingPublisher, event, fill, open_stores, relay_on
from servicekit.postgres import DatabaseAway, database_errors

RECOVERY_SECONDS = 5.0


@pytest.fixture
async def pool(postgres_database: str) -> AsyncIterator[asyncpg.Pool]:
    async with open_stores(postgres_database) as opened:
        yield opened


@asynccontextmanager
async def running(relay: OutboxRelay) -> AsyncIterator[None]:
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(relay.run(stopping))
        try:
            yield
        finally:
            stopping.set()


@contextmanager
def frozen(server: EmbeddedPostgres) -> Iterator[None]:
    """Stops every process of the server; its sockets stay open and nothing answers."""
    postmaster = psutil.Process(server.pid)
    postmaster.suspend()  # first, so that it starts no more of them
    processes = [postmaster, *postmaster.children(recursive=True)]
    try:
        for process in processes[1:]:
            process.suspend()
        yield
    finally:
        for process in reversed(processes):
            process.resume()


async def committed(pool: asyncpg.Pool, number: int) -> GameEvent:
    """Enqueues an event, again and again until the database has taken it."""
    made = event(number)
    async with asyncio.timeout(60):
        while True:
            try:
                with database_errors():
                    await fill(pool, made)
            except DatabaseAway:
                await asyncio.sleep(0.05)  # real: another process is on its way back
            else:
                return made


async def test_a_killed_database_loses_nothing_and_the_relay_goes_on_when_it_is_back(
    pool: asyncpg.Pool, postgres_server: EmbeddedPostgres
) -> None:
    topic = RecordingPublisher()
    async with running(relay_on(pool, topic, outbox_batch_events="7")):
        events = [await committed(pool, number) for number in range(20)]
        await topic.until(lambda: len(topic.times) == 20)
        topic.held.clear()  # the server dies with rows in hand
        events += [await committed(pool, number) for number in range(20, 40)]
        await topic.until(lambda: topic.waiting > 0)
        postgres_server.kill()
        topic.held.set()
        postgres_server.start()
        back = time.monotonic()
        events.append(await committed(pool, 40))
        await topic.until(lambda: events[-1].event_id in topic.times)
        recovery_seconds = time.monotonic() - back
        await topic.until(lambda: len(topic.times) == 41)
    assert set(topic.times) == {made.event_id for made in events}
    assert max(topic.times.values()) <= 2
    assert await pool.fetchval("SELECT count(*) FROM game.outbox_parked") == 0
    assert recovery_seconds < RECOVERY_SECONDS


@pytest.mark.parametrize(
    ("frozen_seconds", "statement_seconds"),
    # Longer than a statement may take: every statement under way has failed by then.
    [(2.5, 1.0), pytest.param(30.0, 5.0, marks=pytest.mark.endurance)],
)
async def test_a_frozen_database_delays_events_and_nothing_else(
    postgres_database: str,
    postgres_server: EmbeddedPostgres,
    frozen_seconds: float,
    statement_seconds: float,
) -> None:
    topic = RecordingPublisher()
    async with (
        open_stores(postgres_database, command_timeout_seconds=statement_seconds) as pool,
        running(relay_on(pool, topic)),
    ):
        await committed(pool, 0)
        await topic.until(lambda: len(topic.times) == 1)
        topic.held.clear()
        await committed(pool, 1)
        await topic.until(lambda: topic.waiting > 0)
        with frozen(postgres_server):
            topic.held.set()  # accepted, and nobody to write it down
            await asyncio.sleep(frozen_seconds)  # real: so long nothing answers
        thawed = time.monotonic()
        last = await committed(pool, 2)
        await topic.until(lambda: last.event_id in topic.times)
        recovery_seconds = time.monotonic() - thawed
        await topic.until(lambda: len(topic.times) == 3)
    assert recovery_seconds < RECOVERY_SECONDS


async def test_a_topic_that_comes_back_gets_everything_in_order(pool: asyncpg.Pool) -> None:
    topic = RecordingPublisher(lambda _: BusUnavailable("not now"))
    events = [await committed(pool, number) for number in range(30)]
    relay = relay_on(pool, topic, outbox_attempts="2", outbox_maximum_backoff_seconds="0.1")
    async with running(relay):
        refused = asyncio.Event()

        def refuse(_: GameEvent) -> BusUnavailable:
            if relay._failures_in_a_row > 5:
                refused.set()
            return BusUnavailable("not now")

        topic.refusal = refuse
        async with asyncio.timeout(30):
            await refused.wait()
        topic.refusal = None
        await topic.until(lambda: len(topic.accepted) == 30)
    assert topic.accepted == events
