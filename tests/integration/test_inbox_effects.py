"""The inbox on a real PostgreSQL: an event takes effect once, whatever meets it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from messaging.inbox import first_time
from messaging.outbox_settings import StoreSettings
from messaging.retention import StoreRetention
from messaging.testing.stores import SCHEMA, open_stores, settings
from servicekit.clock import SystemClock

ID = "6f1c7a52-8f0e-4c1f-9c0a-0d4f5c1b2a3e"


@pytest.fixture
async def pool(module_database: str) -> AsyncIterator[asyncpg.Pool]:
    async with open_stores(module_database) as opened:
        await opened.execute(
            "CREATE TABLE IF NOT EXISTS game.effects (event_id text);"
            "TRUNCATE game.inbox, game.effects"
        )
        yield opened


async def act_once(pool: asyncpg.Pool, event_id: str, *, consumer: str = "notes") -> bool:
    async with pool.acquire() as connection, connection.transaction():
        if not await first_time(connection, consumer, event_id, schema=SCHEMA):
            return False
        await connection.execute("INSERT INTO game.effects VALUES ($1)", event_id)
        return True


async def effects(pool: asyncpg.Pool) -> int:
    return int(await pool.fetchval("SELECT count(*) FROM game.effects"))


async def test_a_repeat_has_no_effect(pool: asyncpg.Pool) -> None:
    assert await act_once(pool, ID)
    assert not await act_once(pool, ID)
    assert await effects(pool) == 1


async def test_duplicates_handled_at_the_same_moment_have_one_effect(pool: asyncpg.Pool) -> None:
    acted = await asyncio.gather(*(act_once(pool, ID) for _ in range(8)))
    assert sum(acted) == 1
    assert await effects(pool) == 1


async def test_an_effect_that_is_rolled_back_leaves_the_event_new(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as connection:
        failing = connection.transaction()
        await failing.start()
        assert await first_time(connection, "notes", ID, schema=SCHEMA)
        await failing.rollback()
    assert await act_once(pool, ID)


async def test_a_duplicate_waits_for_the_first_and_acts_when_that_one_fails(
    pool: asyncpg.Pool,
) -> None:
    async with pool.acquire() as connection:
        failing = connection.transaction()
        await failing.start()
        assert await first_time(connection, "notes", ID, schema=SCHEMA)
        other = asyncio.create_task(act_once(pool, ID))
        async with asyncio.timeout(20):
            while not await pool.fetchval(  # noqa: ASYNC110  # it waits in the server
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                " AND datname = current_database()"
            ):
                await asyncio.sleep(0.02)
        assert not other.done()
        await failing.rollback()
    assert await other


async def test_consumers_act_independently(pool: asyncpg.Pool) -> None:
    assert await act_once(pool, ID, consumer="notes")
    assert await act_once(pool, ID, consumer="weather")


async def test_any_id_that_a_decoded_event_may_have_is_told_apart(pool: asyncpg.Pool) -> None:
    ids = ["x" * 128, "字" * 128, "é", "e\u0301", "A", "a", "a "]
    assert [await act_once(pool, event_id) for event_id in ids] == [True] * len(ids)
    assert [await act_once(pool, event_id) for event_id in ids] == [False] * len(ids)


async def test_without_a_transaction_it_is_refused(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as connection:
        with pytest.raises(RuntimeError, match="transaction"):
            await first_time(connection, "notes", ID, schema=SCHEMA)


class TestRetention:
    async def test_it_forgets_what_is_older_than_a_queue_keeps_and_no_more(
        self, pool: asyncpg.Pool
    ) -> None:
        await pool.execute(
            "INSERT INTO game.inbox SELECT 'notes', d::text, now() - d * interval '1 day'"
            " FROM generate_series(0, 20) AS d"
        )
        retention = StoreRetention(pool, schema=SCHEMA, settings=settings(), clock=SystemClock())
        forgotten = await retention.forget_old()
        oldest = await pool.fetchval("SELECT max(event_id::integer) FROM game.inbox")
        assert (forgotten.inbox, oldest) == (6, 14)

    async def test_a_clean_up_deletes_in_bounded_steps(
        self, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("messaging.retention._STATEMENT_ROWS", 10)
        monkeypatch.setattr("messaging.retention._STATEMENTS_A_RUN", 3)
        await pool.execute(
            "INSERT INTO game.inbox SELECT 'notes', n::text, now() - interval '99 days'"
            " FROM generate_series(1, 45) AS n"
        )
        retention = StoreRetention(pool, schema=SCHEMA, settings=settings(), clock=SystemClock())
        assert [(await retention.forget_old()).inbox for _ in range(3)] == [30, 15, 0]

    async def test_replicas_may_clean_up_together(self, pool: asyncpg.Pool) -> None:
        await pool.execute(
            "INSERT INTO game.inbox SELECT 'notes', n::text, now() - interval '99 days'"
            " FROM generate_series(1, 2000) AS n"
        )
        retention = StoreRetention(pool, schema=SCHEMA, settings=settings(), clock=SystemClock())
        forgotten = await asyncio.gather(*(retention.forget_old() for _ in range(3)))
        assert sum(each.inbox for each in forgotten) == 2000

    def test_by_default_it_remembers_longer_than_a_queue_may_keep_a_message(self) -> None:
        queue_retention_days = 14  # the most SQS offers
        default: StoreSettings = settings()
        assert default.inbox_retention_days > queue_retention_days
