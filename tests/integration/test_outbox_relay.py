"""The outbox on a real PostgreSQL: what is committed leaves, and nothing holds it up for ever."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import asyncpg
import pytest

from gaming.events.events_pb2 import GameEvent
from localsuite.postgres import EmbeddedPostgres
from messaging.errors import BusRefused, BusUnavailable, EventTooLarge
from messaging.inbox import first_time
from messaging.outbox import enqueue, requeue_parked
from messaging.outbox_relay import OutboxRelay, TopicAway
from messaging.retention import StoreRetention
from messaging.store_metric_names import OUTBOX_OLDEST_WAIT, OUTBOX_PARKED
from messaging.store_schema import grant_stores, migrate_stores
from messaging.testing.stores import (
    SCHEMA,
    RecordingPublisher,
    event,
    fill,
    open_stores,
    relay_on,
    settings,
)
from servicekit.clock import SystemClock
from servicekit.errors import ServiceError
from servicekit.postgres import open_pool
from servicekit.telemetry import Telemetry

AWAY = BusUnavailable("not now")


@pytest.fixture
async def pool(module_database: str) -> AsyncIterator[asyncpg.Pool]:
    async with open_stores(module_database) as opened:
        await opened.execute("TRUNCATE game.outbox, game.outbox_parked, game.inbox")
        yield opened


async def waiting(pool: asyncpg.Pool) -> int:
    return int(await pool.fetchval("SELECT count(*) FROM game.outbox"))


async def parked_reasons(pool: asyncpg.Pool) -> dict[str, str]:
    rows = await pool.fetch("SELECT event_id, reason FROM game.outbox_parked")
    return {row["event_id"]: row["reason"] for row in rows}


@asynccontextmanager
async def running(*relays: OutboxRelay) -> AsyncIterator[asyncio.Event]:
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for relay in relays:
            group.create_task(relay.run(stopping))
        try:
            yield stopping
        finally:
            stopping.set()


class TestEnqueue:
    async def test_events_of_a_committed_transaction_leave_in_order_and_whole(
        self, pool: asyncpg.Pool
    ) -> None:
        events = [event(number, payload_bytes=number) for number in range(50)]
        await fill(pool, *events)
        topic = RecordingPublisher()
        assert await relay_on(pool, topic).relay_batch() == 50
        assert topic.accepted == events
        assert await waiting(pool) == 0

    async def test_events_of_a_rolled_back_transaction_never_leave(
        self, pool: asyncpg.Pool
    ) -> None:
        async with pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            await enqueue(connection, event(), schema=SCHEMA)
            await transaction.rollback()
        topic = RecordingPublisher()
        assert await relay_on(pool, topic).relay_batch() == 0
        assert topic.accepted == []

    async def test_without_a_transaction_it_is_refused(self, pool: asyncpg.Pool) -> None:
        async with pool.acquire() as connection:
            with pytest.raises(RuntimeError, match="transaction"):
                await enqueue(connection, event(), schema=SCHEMA)
        assert await waiting(pool) == 0

    async def test_a_transaction_that_commits_late_is_not_passed_over(
        self, pool: asyncpg.Pool
    ) -> None:
        early, late = event(1), event(2)
        topic = RecordingPublisher()
        relay = relay_on(pool, topic)
        async with pool.acquire() as slow, slow.transaction():
            await enqueue(slow, late, schema=SCHEMA)
            await fill(pool, early)  # a higher position, committed first
            await relay.relay_batch()
            assert topic.accepted == [early]
        await relay.relay_batch()
        assert topic.accepted == [early, late]


class TestRefusals:
    async def test_an_event_that_never_fits_is_parked_with_its_reason_and_holds_nobody_up(
        self, pool: asyncpg.Pool
    ) -> None:
        giant, small = event(0, payload_bytes=300_000), event(1)

        def refuse_giants(offered: GameEvent) -> ServiceError | None:
            return EventTooLarge("too large") if len(offered.payload) > 200_000 else None

        topic = RecordingPublisher(refuse_giants)
        relay = relay_on(pool, topic)
        await fill(pool, giant, small)
        await relay.relay_batch()
        assert topic.accepted == [small]
        assert await parked_reasons(pool) == {giant.event_id: "EVENT_TOO_LARGE: too large"}
        assert await waiting(pool) == 0
        assert (relay.counts.published, relay.counts.parked) == (1, 1)

    async def test_parked_events_go_back_in_line_when_an_operator_says_so(
        self, pool: asyncpg.Pool
    ) -> None:
        giant = event(0)
        topic = RecordingPublisher(lambda _: EventTooLarge("too large"))
        relay = relay_on(pool, topic)
        await fill(pool, giant)
        await relay.relay_batch()
        topic.refusal = None
        async with pool.acquire() as connection:
            assert await requeue_parked(connection, schema=SCHEMA) == 1
        await relay.relay_batch()
        assert topic.accepted == [giant]
        assert await parked_reasons(pool) == {}

    async def test_a_row_that_is_no_event_is_parked(self, pool: asyncpg.Pool) -> None:
        await pool.execute("INSERT INTO game.outbox (event) VALUES ('\\xff')")
        await fill(pool, event())
        topic = RecordingPublisher()
        await relay_on(pool, topic).relay_batch()
        assert len(topic.accepted) == 1
        assert list((await parked_reasons(pool)).values()) == [
            "INVALID_EVENT: The row holds no event."
        ]

    async def test_an_event_refused_among_accepted_ones_lets_them_pass_and_is_parked_in_the_end(
        self, pool: asyncpg.Pool
    ) -> None:
        stubborn = event(0)
        topic = RecordingPublisher(lambda e: AWAY if e.event_id == stubborn.event_id else None)
        relay = relay_on(pool, topic, outbox_attempts="3")
        await fill(pool, stubborn)
        for number in range(1, 4):
            await fill(pool, event(number))
            await relay.relay_batch()
            await pool.execute("UPDATE game.outbox SET due_time = now()")  # its pause is over
        assert [int(e.metadata["number"]) for e in topic.accepted] == [1, 2, 3]
        assert await parked_reasons(pool) == {stubborn.event_id: "BUS_UNAVAILABLE: not now"}

    async def test_a_deferred_event_waits_its_pause_and_then_leaves(
        self, pool: asyncpg.Pool
    ) -> None:
        first = event(0)
        topic = RecordingPublisher(lambda e: AWAY if e.event_id == first.event_id else None)
        relay = relay_on(pool, topic)
        await fill(pool, first, event(1))
        await relay.relay_batch()
        topic.refusal = None
        assert await relay.relay_batch() == 0
        await pool.execute("UPDATE game.outbox SET due_time = due_time - interval '1 second'")
        assert await relay.relay_batch() == 1
        assert topic.times[first.event_id] == 1

    async def test_a_fault_on_one_event_does_not_stop_the_others(self, pool: asyncpg.Pool) -> None:
        class Faulty(RecordingPublisher):
            async def publish(self, event: GameEvent) -> None:
                if event.metadata["number"] == "0":
                    raise ZeroDivisionError
                await super().publish(event)

        topic = Faulty()
        await fill(pool, event(0), event(1))
        await relay_on(pool, topic).relay_batch()
        assert len(topic.accepted) == 1
        assert await waiting(pool) == 1

    @pytest.mark.parametrize("refusal", [AWAY, BusRefused("no such topic")])
    async def test_a_topic_that_takes_nothing_costs_no_event_its_place(
        self, pool: asyncpg.Pool, refusal: ServiceError
    ) -> None:
        events = [event(number) for number in range(5)]
        await fill(pool, *events)
        topic = RecordingPublisher(lambda _: refusal)
        relay = relay_on(pool, topic, outbox_attempts="2")
        for _ in range(4):
            with pytest.raises(TopicAway):
                await relay.relay_batch()
        assert await waiting(pool) == 5
        topic.refusal = None
        await relay.relay_batch()
        assert topic.accepted == events


class TestBounds:
    async def test_no_more_rows_are_in_hand_than_allowed(self, pool: asyncpg.Pool) -> None:
        await fill(pool, *(event(number) for number in range(25)))
        topic = RecordingPublisher()
        relay = relay_on(pool, topic, outbox_batch_events="10")
        assert [await relay.relay_batch() for _ in range(4)] == [10, 10, 5, 0]
        assert topic.most_waiting <= 10

    async def test_no_more_bytes_are_in_hand_than_allowed_but_one_event_always(
        self, pool: asyncpg.Pool
    ) -> None:
        await fill(pool, *(event(number, payload_bytes=10_000) for number in range(6)))
        topic = RecordingPublisher()
        relay = relay_on(pool, topic, outbox_batch_bytes="25000")
        await relay.relay_batch()
        assert len(topic.accepted) == 3  # the third is the one that reaches the bound
        tiny = relay_on(pool, topic, outbox_batch_bytes="1")
        await tiny.relay_batch()
        assert len(topic.accepted) == 4

    async def test_a_topic_that_never_answers_is_given_up_and_what_it_took_counts(
        self, pool: asyncpg.Pool
    ) -> None:
        class Hanging(RecordingPublisher):
            async def publish(self, event: GameEvent) -> None:
                if event.metadata["number"] == "0":
                    await asyncio.Event().wait()
                await super().publish(event)

        topic = Hanging()
        await fill(pool, event(0), event(1))
        await relay_on(pool, topic, outbox_publish_timeout_seconds="0.5").relay_batch()
        assert [e.metadata["number"] for e in topic.accepted] == ["1"]
        assert await waiting(pool) == 1


class TestSideBySide:
    async def test_relays_share_the_rows_and_publish_each_once(self, pool: asyncpg.Pool) -> None:
        await fill(pool, *(event(number) for number in range(600)))
        topic = RecordingPublisher()
        relays = [relay_on(pool, topic, outbox_batch_events="20") for _ in range(3)]
        async with running(*relays):
            await topic.until(lambda: len(topic.accepted) >= 600)
        assert len(topic.times) == 600
        assert max(topic.times.values()) == 1
        assert await waiting(pool) == 0

    async def test_a_relay_that_hangs_does_not_hold_up_another_one(
        self, pool: asyncpg.Pool
    ) -> None:
        await fill(pool, event(0))
        hanging = RecordingPublisher()
        hanging.held.clear()
        other = RecordingPublisher()
        async with running(relay_on(pool, hanging)):
            await hanging.until(lambda: hanging.waiting == 1)
            await fill(pool, event(1))
            await relay_on(pool, other).relay_batch()
            hanging.held.set()
        assert [e.metadata["number"] for e in other.accepted] == ["1"]

    async def test_a_relay_cancelled_in_the_middle_leaves_its_rows_to_others(
        self, pool: asyncpg.Pool
    ) -> None:
        first = event(0)
        await fill(pool, first)
        hanging = RecordingPublisher()
        hanging.held.clear()
        cancelled = asyncio.create_task(relay_on(pool, hanging).relay_batch())
        await hanging.until(lambda: hanging.waiting == 1)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        topic = RecordingPublisher()
        await relay_on(pool, topic).relay_batch()
        assert topic.accepted == [first]

    async def test_rows_of_a_frozen_relay_become_free_again(self, pool: asyncpg.Pool) -> None:
        # What a frozen process holds: a transaction with locked rows and nobody to end it.
        await fill(pool, event(0))
        relay = relay_on(pool, RecordingPublisher())
        async with pool.acquire() as frozen:
            await frozen.execute("BEGIN")
            await frozen.fetch(relay._queries.bound_transaction, "100")
            assert len(await frozen.fetch(relay._queries.take_events, 10, 1000)) == 1
            topic = RecordingPublisher()
            other = relay_on(pool, topic)
            async with running(other):
                await topic.until(lambda: len(topic.accepted) == 1)


class TestRunning:
    async def test_it_wakes_for_events_that_come_later_and_stops_when_told(
        self, pool: asyncpg.Pool
    ) -> None:
        topic = RecordingPublisher()
        async with running(relay_on(pool, topic)):
            await fill(pool, event(0))
            await topic.until(lambda: len(topic.accepted) == 1)
            await fill(pool, event(1))
            await topic.until(lambda: len(topic.accepted) == 2)

    async def test_it_starts_before_its_tables_exist(self, postgres_database: str) -> None:
        topic = RecordingPublisher()
        bare = await asyncpg.create_pool(postgres_database, min_size=0)
        relay = relay_on(bare, topic, outbox_maximum_backoff_seconds="0.1")
        try:
            async with running(relay), open_stores(postgres_database) as pool:
                await fill(pool, event(0))
                await topic.until(lambda: len(topic.accepted) == 1)
        finally:
            await bare.close()


class TestRestrictedRole:
    async def test_a_role_that_owns_nothing_enqueues_relays_receives_and_forgets(
        self, pool: asyncpg.Pool, postgres_server: EmbeddedPostgres, module_database: str
    ) -> None:
        role = f"game_service_{uuid.uuid4().hex[:8]}"
        async with pool.acquire() as owner:
            await owner.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'for tests'")
            await owner.execute(f"GRANT USAGE ON SCHEMA game TO {role}")
            await grant_stores(owner, schema=SCHEMA, role=role)
        database = module_database.rsplit("/", 1)[-1]
        url = postgres_server.url(database, user=role, password="for tests")
        try:
            async with open_pool(url, application_name="test") as restricted:
                giant = event(0)
                topic = RecordingPublisher(
                    lambda e: EventTooLarge("too large") if e.event_id == giant.event_id else AWAY
                )
                relay = relay_on(restricted, topic)
                await fill(restricted, giant, event(1))
                with pytest.raises(TopicAway):
                    await relay.relay_batch()
                topic.refusal = None
                await relay.relay_batch()
                async with restricted.acquire() as connection, connection.transaction():
                    assert await requeue_parked(connection, schema=SCHEMA) == 1
                    assert await first_time(connection, "notes", "an id", schema=SCHEMA)
                await relay.relay_batch()
                assert len(topic.accepted) == 2
                retention = StoreRetention(
                    restricted, schema=SCHEMA, settings=settings(), clock=SystemClock()
                )
                assert (await retention.forget_old()).inbox == 0
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await restricted.execute("UPDATE game.inbox SET consumer = 'other'")
        finally:
            await pool.execute(f"DROP OWNED BY {role}")
            await pool.execute(f"DROP ROLE {role}")

    async def test_migrations_and_grants_may_be_repeated(self, pool: asyncpg.Pool) -> None:
        async with pool.acquire() as owner:
            assert await migrate_stores(owner, schema=SCHEMA) == []
            for _ in range(2):
                await grant_stores(owner, schema=SCHEMA, role="postgres")


class Gauges(Telemetry):
    """Keeps the gauges where a test can read them."""

    def __init__(self) -> None:
        super().__init__("test")
        self.reads: dict[str, Callable[[], Iterable[tuple[float, dict[str, str]]]]] = {}

    def gauge(
        self,
        name: str,
        read: Callable[[], Iterable[tuple[float, dict[str, str]]]],
        *,
        unit: str,
        description: str,
    ) -> None:
        self.reads[name] = read

    def value(self, name: str) -> float:
        ((value, _),) = self.reads[name]()
        return value


async def test_the_backlogs_age_and_parked_events_are_seen_also_while_the_topic_is_away(
    pool: asyncpg.Pool,
) -> None:
    gauges = Gauges()
    asked = RecordingPublisher(lambda _: EventTooLarge("too large"))
    await fill(pool, event(0))
    await relay_on(pool, asked).relay_batch()
    await fill(pool, event(1))
    await pool.execute("UPDATE game.outbox SET enqueue_time = now() - interval '1 hour'")
    away = RecordingPublisher(lambda _: AWAY)
    away.held.clear()
    async with running(relay_on(pool, away, telemetry=gauges)):
        await away.until(lambda: away.waiting == 1)
        assert 3600 <= gauges.value(OUTBOX_OLDEST_WAIT) < 3700
        assert gauges.value(OUTBOX_PARKED) == 1
        away.held.set()


class TestRetention:
    async def test_parked_events_are_forgotten_after_their_time(self, pool: asyncpg.Pool) -> None:
        await pool.executemany(
            "INSERT INTO game.outbox_parked"
            " (position, event_id, event, enqueue_time, attempts, reason, park_time)"
            " VALUES ($1, $2, '', now(), 1, 'r', now() - $3::float8 * interval '1 day')",
            [(1, "old", 91.0), (2, "young", 89.0)],
        )
        retention = StoreRetention(pool, schema=SCHEMA, settings=settings(), clock=SystemClock())
        assert (await retention.forget_old()).parked == 1
        assert list(await parked_reasons(pool)) == ["young"]
