"""Statements that leave nothing in their session, against a real PostgreSQL."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from servicekit.postgres import DatabaseAway, open_pool


async def test_the_connection_is_lent_again_whatever_became_of_the_statement(
    postgres_database: str,
) -> None:
    async with open_pool(postgres_database, application_name="test", maximum=1) as pool:
        for _ in range(2):
            assert [tuple(row) for row in await pool.fetch_leaving_nothing("SELECT 1, 2")] == [
                (1, 2)
            ]
            with pytest.raises(asyncpg.DivisionByZeroError):
                await pool.fetch_leaving_nothing("SELECT $1 / 0", 1)
            running = asyncio.create_task(pool.fetch_leaving_nothing("SELECT pg_sleep(60)"))
            await asyncio.sleep(0)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            with pytest.raises(asyncpg.PostgresError):
                await pool.fetch_leaving_nothing("SELECT pg_terminate_backend(pg_backend_pid())")


async def test_a_transaction_left_open_ends(postgres_database: str) -> None:
    async with open_pool(postgres_database, application_name="test", maximum=1) as pool:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        for _ in range(2):
            await pool.fetch_leaving_nothing("BEGIN")
            async with pool.acquire() as connection:
                assert not connection.is_in_transaction()


async def test_one_that_was_worn_out_is_replaced(
    postgres_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_pool(postgres_database, application_name="test", maximum=1) as pool:
        ask = "SELECT pg_backend_pid()"
        (first,) = await pool.fetch_leaving_nothing(ask)
        assert await pool.fetch_leaving_nothing(ask) == [first]
        await pool.expire_connections()
        (second,) = await pool.fetch_leaving_nothing(ask)
        assert second != first
        monkeypatch.setattr(pool._holders[0], "_max_queries", 1)
        assert await pool.fetch_leaving_nothing(ask) == [second]
        assert await pool.fetch_leaving_nothing(ask) != [second]


async def test_nobody_asks_a_database_that_is_known_to_be_away(postgres_database: str) -> None:
    async with open_pool(postgres_database, application_name="test", maximum=1) as pool:
        await pool.fetch_leaving_nothing("SELECT 1")
        now = asyncio.get_running_loop().time()
        while not pool.breaker.failed(now):
            pass
        with pytest.raises(DatabaseAway):
            await pool.fetch_leaving_nothing("SELECT 1")
        pool.breaker.succeeded()
        pool.breaker.failed(now)
        await pool.fetch_leaving_nothing("SELECT 1")
        assert not pool.breaker.failed(now)  # the answer ended the row of failures
        assert not pool.breaker.failed(now)


async def test_one_waits_for_a_connection_and_not_for_ever(postgres_database: str) -> None:
    async with open_pool(postgres_database, application_name="test", maximum=1) as pool:
        async with pool.acquire() as held:
            with pytest.raises(TimeoutError):
                await pool.fetch_leaving_nothing("SELECT 1", wait_seconds=0.05)
            waiting = asyncio.create_task(pool.fetch_leaving_nothing("SELECT 1", wait_seconds=30))
            await held.fetchval("SELECT 1")
        assert len(await waiting) == 1
