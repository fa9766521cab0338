"""Any sequence of commits, losses, repeats and deaths on an event's way: it takes effect once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gaming.events.events_pb2 import GameEvent
from messaging.errors import BusUnavailable
from messaging.inbox import first_time
from messaging.outbox import enqueue
from messaging.outbox_relay import OutboxRelay, TopicAway
from messaging.testing.stores import SCHEMA, event, open_stores, relay_on

PLACES = st.integers(0, 50)


@dataclass(frozen=True, slots=True)
class Tell:
    """A deed with its event, committed or rolled back."""

    commits: bool

    async def do(self, way: Way) -> None:
        made = event(way.number)
        way.number += 1
        async with way.pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            await enqueue(connection, made, schema=SCHEMA)
            if self.commits:
                await transaction.commit()
                way.committed.add(made.event_id)
            else:
                await transaction.rollback()


@dataclass(frozen=True, slots=True)
class Relay:
    """A batch: how many events the topic accepts before it refuses, or before the relay dies."""

    accepts: int
    dies: bool

    async def do(self, way: Way) -> None:
        way.accepts = self.accepts
        way.dying = None
        batch = asyncio.create_task(way.relay.relay_batch())
        if self.dies:
            way.dying = batch
        await asyncio.wait([batch])
        if not batch.cancelled() and isinstance(error := batch.exception(), Exception):
            assert isinstance(error, TopicAway)


@dataclass(frozen=True, slots=True)
class Deliver:
    """A message, any of those in the queue, handled; then it goes or stays for another time."""

    place: int
    commits: bool
    deleted: bool

    async def do(self, way: Way) -> None:
        if way.queue:
            await way.handle(self.place % len(way.queue), commits=self.commits, gone=self.deleted)


STEPS = st.lists(
    st.one_of(
        st.builds(Tell, commits=st.booleans()),
        st.builds(Relay, accepts=st.integers(0, 4), dies=st.booleans()),
        st.builds(Deliver, place=PLACES, commits=st.booleans(), deleted=st.booleans()),
    ),
    max_size=25,
)


@dataclass
class Way:
    """The whole way, its publisher included: the topic is a list that is the queue as well."""

    pool: asyncpg.Pool
    relay: OutboxRelay = field(init=False)
    number: int = 0
    committed: set[str] = field(default_factory=set)
    queue: list[GameEvent] = field(default_factory=list)
    accepts: int = 0
    dying: asyncio.Task[int] | None = None

    def __post_init__(self) -> None:
        self.relay = relay_on(self.pool, self, outbox_attempts="1000")

    async def publish(self, event: GameEvent) -> None:
        if self.accepts > 0:
            self.accepts -= 1
            self.queue.append(event)
        elif self.dying is not None:
            self.dying.cancel()
            await asyncio.Event().wait()
        else:
            raise BusUnavailable("not now")

    async def handle(self, place: int, *, commits: bool, gone: bool) -> None:
        event_id = self.queue[place].event_id
        async with self.pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            if await first_time(connection, "effects", event_id, schema=SCHEMA):
                await connection.execute("INSERT INTO game.effects VALUES ($1)", event_id)
            if not commits:
                await transaction.rollback()
                return
            await transaction.commit()
        if gone:
            del self.queue[place]

    async def settle(self) -> None:
        """Brings everything to its end, undisturbed."""
        self.dying = None
        self.accepts = 1_000
        await self.pool.execute("UPDATE game.outbox SET due_time = NULL")
        while await self.relay.relay_batch():
            pass
        while self.queue:
            await self.handle(0, commits=True, gone=True)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="module")
def pool(module_database: str, runner: asyncio.Runner) -> Iterator[asyncpg.Pool]:
    stack = AsyncExitStack()

    async def opened() -> asyncpg.Pool:
        made = await stack.enter_async_context(open_stores(module_database))
        await made.execute("CREATE TABLE game.effects (event_id text NOT NULL)")
        return made

    yield runner.run(opened())
    runner.run(stack.aclose())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_every_committed_event_takes_effect_once_and_no_other_does(
    pool: asyncpg.Pool, runner: asyncio.Runner, steps: list[Tell | Relay | Deliver]
) -> None:
    async def run() -> None:
        await pool.execute("TRUNCATE game.effects, game.outbox, game.outbox_parked, game.inbox")
        way = Way(pool)
        for step in steps:
            await step.do(way)
        await way.settle()
        rows = await pool.fetch("SELECT event_id FROM game.effects")
        assert Counter(row["event_id"] for row in rows) == Counter(way.committed)

    runner.run(run())
