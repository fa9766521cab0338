"""Pool, migrations and error mapping against a real PostgreSQL."""

from __future__ import annotations

import asyncio
import sys
import uuid
from pathlib import Path

import asyncpg
import pytest

from localsuite.postgres import EmbeddedPostgres
from servicekit import postgres
from servicekit.errors import StatusCode
from servicekit.postgres import (
    DatabaseAway,
    MigrationMismatch,
    database_errors,
    migrate,
    open_pool,
)

FIRST = "CREATE TABLE tiers (name text PRIMARY KEY);\nINSERT INTO tiers VALUES ('gold');"
SECOND = "ALTER TABLE tiers ADD COLUMN size integer NOT NULL DEFAULT 0;"


class Package:
    """A package with a folder of migrations that a test may change."""

    def __init__(self, directory: Path) -> None:
        self.name = f"migrated_{uuid.uuid4().hex[:8]}"
        self.migrations = directory / self.name / "migrations"
        self.migrations.mkdir(parents=True)
        (directory / self.name / "__init__.py").touch()

    def write(self, filename: str, sql: str) -> None:
        (self.migrations / filename).write_text(sql)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    made = Package(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, made.name, raising=False)
    made.write("0001_tiers.sql", FIRST)
    made.write("0002_size.sql", SECOND)
    made.write("notes.txt", "not a migration")
    return made


async def migrated(
    url: str, package: Package, *, history: str = "schema_migrations", **substitutions: str
) -> list[str]:
    connection = await asyncpg.connect(url)
    try:
        return await migrate(
            connection,
            package.name,
            schema="game",
            substitutions=substitutions or None,
            history=history,
        )
    finally:
        await connection.close()


class TestMigrations:
    async def test_they_are_applied_in_order_and_once(
        self, postgres_database: str, package: Package
    ) -> None:
        assert await migrated(postgres_database, package) == ["0001_tiers", "0002_size"]
        assert await migrated(postgres_database, package) == []
        package.write("0003_more.sql", "INSERT INTO tiers VALUES ('silver', 2);")
        assert await migrated(postgres_database, package) == ["0003_more"]
        connection = await asyncpg.connect(postgres_database)
        rows = await connection.fetch("SELECT name, size FROM game.tiers ORDER BY name")
        await connection.close()
        assert [tuple(row) for row in rows] == [("gold", 0), ("silver", 2)]

    async def test_replicas_that_start_together_apply_each_once(
        self, postgres_database: str, package: Package
    ) -> None:
        package.write("0003_slow.sql", "SELECT pg_sleep(0.3);")
        results = await asyncio.gather(*(migrated(postgres_database, package) for _ in range(5)))
        assert sorted(results, key=len) == [[]] * 4 + [["0001_tiers", "0002_size", "0003_slow"]]

    async def test_waiting_for_another_migrator_outlasts_the_pools_statement_timeout(
        self, postgres_database: str, package: Package
    ) -> None:
        package.write("0003_slow.sql", "SELECT pg_sleep(1.2);")
        async with (
            open_pool(
                postgres_database, application_name="test", command_timeout_seconds=0.5
            ) as pool,
            pool.acquire() as one,
            pool.acquire() as other,
        ):
            results = await asyncio.gather(
                migrate(one, package.name, schema="game"),
                migrate(other, package.name, schema="game"),
            )
        assert sorted(map(len, results)) == [0, 3]

    async def test_a_changed_file_is_refused(
        self, postgres_database: str, package: Package
    ) -> None:
        await migrated(postgres_database, package)
        package.write("0001_tiers.sql", FIRST + "\n-- harmless?")
        with pytest.raises(MigrationMismatch, match="0001_tiers was changed"):
            await migrated(postgres_database, package)

    async def test_a_migration_missing_among_the_applied_ones_is_refused(
        self, postgres_database: str, package: Package
    ) -> None:
        await migrated(postgres_database, package)
        package.write("0005_later.sql", "SELECT 1;")
        await migrated(postgres_database, package)
        (package.migrations / "0002_size.sql").unlink()
        with pytest.raises(MigrationMismatch, match="0002 was applied"):
            await migrated(postgres_database, package)

    async def test_a_database_of_a_newer_version_is_left_as_it_is(
        self, postgres_database: str, package: Package
    ) -> None:
        package.write("0005_later.sql", "SELECT 1;")
        await migrated(postgres_database, package)
        (package.migrations / "0005_later.sql").unlink()
        assert await migrated(postgres_database, package) == []

    async def test_a_migration_slipped_in_before_applied_ones_is_refused(
        self, postgres_database: str, package: Package
    ) -> None:
        package.write("0005_later.sql", "SELECT 1;")
        await migrated(postgres_database, package)
        package.write("0004_slipped_in.sql", "SELECT 1;")
        with pytest.raises(MigrationMismatch, match="0004_slipped_in stands before 0005"):
            await migrated(postgres_database, package)

    async def test_a_librarys_migrations_count_for_themselves_in_a_services_schema(
        self, postgres_database: str, package: Package
    ) -> None:
        await migrated(postgres_database, package)
        package.write("0001_tiers.sql", "CREATE TABLE of_a_library ();")
        package.write("0002_size.sql", "CREATE TABLE of_a_library_too ();")
        applied = await migrated(postgres_database, package, history="library_migrations")
        assert applied == ["0001_tiers", "0002_size"]
        assert await migrated(postgres_database, package, history="library_migrations") == []

    async def test_two_files_with_one_number_are_refused(
        self, postgres_database: str, package: Package
    ) -> None:
        package.write("0002_other.sql", "SELECT 1;")
        with pytest.raises(ValueError, match="share a number"):
            await migrated(postgres_database, package)

    async def test_a_failure_leaves_whole_migrations_and_frees_the_lock(
        self, postgres_database: str, package: Package
    ) -> None:
        package.write("0003_half.sql", "CREATE TABLE half (); SELECT 1 / 0;")
        with pytest.raises(asyncpg.DivisionByZeroError):
            await migrated(postgres_database, package)
        package.write("0003_half.sql", "CREATE TABLE half ();")
        assert await migrated(postgres_database, package) == ["0003_half"]

    async def test_a_lost_connection_midway_leaves_whole_migrations(
        self, postgres_database: str, package: Package
    ) -> None:
        package.write("0003_cut.sql", "CREATE TABLE half (); SELECT pg_sleep(30);")
        migrating = asyncio.create_task(migrated(postgres_database, package))
        observer = await asyncpg.connect(postgres_database)
        try:
            async with asyncio.timeout(10):
                while not await observer.fetchval(  # noqa: ASYNC110  # it happens in the server
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE query LIKE '%pg_sleep(30)%' AND pid <> pg_backend_pid()"
                ):
                    await asyncio.sleep(0.02)
            with pytest.raises(DatabaseAway), database_errors():
                await migrating
            applied = await observer.fetch("SELECT name FROM game.schema_migrations ORDER BY 1")
            assert [row["name"] for row in applied] == ["0001_tiers", "0002_size"]
            assert await observer.fetchval("SELECT to_regclass('game.half')") is None
        finally:
            await observer.close()
        package.write("0003_cut.sql", "CREATE TABLE half ();")
        assert await migrated(postgres_database, package) == ["0003_cut"]

    async def test_names_are_put_in_and_only_names(
        self, postgres_database: str, package: Package
    ) -> None:
        package.write("0003_named.sql", "CREATE TABLE {{table}} ();")
        with pytest.raises(ValueError, match="not a plain lower-case SQL identifier"):
            await migrated(postgres_database, package, table="x; DROP TABLE tiers")
        assert "0003_named" in await migrated(postgres_database, package, table="mine")


class TestPool:
    async def test_it_names_itself_and_bounds_statements_on_the_server(
        self, postgres_database: str
    ) -> None:
        async with open_pool(
            postgres_database, application_name="tester", command_timeout_seconds=2.5
        ) as pool:
            assert await pool.fetchval("SHOW application_name") == "tester"
            assert await pool.fetchval("SHOW statement_timeout") == "2500ms"

    async def test_only_a_session_in_which_something_may_be_left_is_reset(
        self, postgres_database: str
    ) -> None:
        async with open_pool(postgres_database, application_name="test", maximum=1) as pool:
            usual = await pool.fetchval("SHOW work_mem")
            async with pool.acquire(leaves_nothing=True) as connection:
                await connection.execute("SET work_mem = '1234kB'")
            async with pool.acquire() as connection:
                assert await connection.fetchval("SHOW work_mem") == "1234kB"
            assert await pool.fetchval("SHOW work_mem") == usual

    async def test_a_transaction_left_open_ends_without_a_reset_too(
        self, postgres_database: str
    ) -> None:
        async with open_pool(postgres_database, application_name="test", maximum=1) as pool:
            failed = []
            asyncio.get_running_loop().set_exception_handler(
                lambda _, context: failed.append(context["message"])
            )
            async with pool.acquire(leaves_nothing=True) as connection:
                await connection.execute("BEGIN; CREATE TABLE left_open ()")
            assert await pool.fetchval("SELECT to_regclass('left_open')") is None
            assert "active transaction" in failed[0]

    async def test_one_that_lies_ready_is_lent_and_taken_back_without_waiting(
        self, postgres_database: str
    ) -> None:
        async with open_pool(postgres_database, application_name="test", maximum=1) as pool:
            acquired = pool.acquire(leaves_nothing=True)
            with pytest.raises(StopIteration) as lent:  # it ends before it waits for anything
                acquired.__aenter__().send(None)
            with pytest.raises(StopIteration):
                acquired.__aexit__(None, None, None).send(None)
            with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
                await lent.value.value.fetchval("SELECT 1")
            assert await pool.fetchval("SELECT 1") == 1

    async def test_one_that_was_lost_while_it_lay_ready_is_replaced(
        self, postgres_database: str
    ) -> None:
        async with open_pool(postgres_database, application_name="test", maximum=1) as pool:
            async with pool.acquire(leaves_nothing=True) as connection:
                lost = connection._con
            lost.terminate()
            async with pool.acquire(leaves_nothing=True) as connection:
                assert connection._con is not lost
                assert await connection.fetchval("SELECT 1") == 1

    async def test_one_that_is_lost_while_it_is_lent_is_not_lent_again(
        self, postgres_database: str
    ) -> None:
        async with open_pool(postgres_database, application_name="test", maximum=1) as pool:
            async with pool.acquire(leaves_nothing=True) as connection:
                connection.terminate()
            for _ in range(2):
                async with pool.acquire(leaves_nothing=True) as connection:
                    assert await connection.fetchval("SELECT 1") == 1

    async def test_nobody_waits_for_a_free_connection_for_ever(
        self, postgres_database: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with (
            open_pool(postgres_database, application_name="test", maximum=1) as pool,
            pool.acquire(),
        ):
            # Only now: opening the first connection may take longer on a busy machine.
            monkeypatch.setattr(postgres, "_ACQUIRE_SECONDS", 0.1)
            with pytest.raises(DatabaseAway), database_errors():
                await pool.fetchval("SELECT 1")

    async def test_closing_lets_a_running_statement_finish(self, postgres_database: str) -> None:
        observer = await asyncpg.connect(postgres_database)
        try:
            async with open_pool(postgres_database, application_name="test") as pool:
                running = asyncio.create_task(pool.fetchval("SELECT 7 FROM pg_sleep(0.3)"))
                async with asyncio.timeout(30):
                    while not await observer.fetchval(  # noqa: ASYNC110  # it happens in the server
                        "SELECT count(*) FROM pg_stat_activity"
                        " WHERE query LIKE 'SELECT 7 FROM%' AND state = 'active'"
                    ):
                        await asyncio.sleep(0.01)
            assert await running == 7
        finally:
            await observer.close()

    async def test_closing_does_not_wait_for_ever(
        self, postgres_database: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(postgres, "_CLOSE_SECONDS", 0.2)
        async with asyncio.timeout(5):
            async with open_pool(postgres_database, application_name="test") as pool:
                held = (await pool.acquire())._con
        assert held.is_closed()

    async def test_it_starts_without_a_database(self) -> None:
        url = "postgresql://nobody@127.0.0.1:9/nothing"
        async with open_pool(url, application_name="test") as pool:
            with pytest.raises(DatabaseAway), database_errors():
                await pool.fetchval("SELECT 1")


class TestErrors:
    async def test_a_killed_server_is_unavailable_and_its_return_is_noticed(
        self, postgres_database: str, postgres_server: EmbeddedPostgres
    ) -> None:
        async with open_pool(postgres_database, application_name="test") as pool:
            assert await pool.fetchval("SELECT 1") == 1
            async with pool.acquire() as held:
                running = asyncio.create_task(held.fetchval("SELECT pg_sleep(30)"))
                await asyncio.sleep(0.1)  # real: the statement is to be under way
                postgres_server.kill()
                try:
                    with pytest.raises(DatabaseAway) as caught, database_errors():
                        await running
                    with pytest.raises(DatabaseAway), database_errors():
                        await held.fetchval("SELECT 1")  # a connection known to be lost
                    with pytest.raises(DatabaseAway), database_errors():
                        await pool.fetchval("SELECT 1")
                finally:
                    postgres_server.start()
            async with asyncio.timeout(20):
                while await answer(pool) != 1:  # noqa: ASYNC110  # it happens in the server
                    await asyncio.sleep(0.05)
        assert caught.value.code is StatusCode.UNAVAILABLE
        assert caught.value.reason == "DATABASE_UNAVAILABLE"
        assert caught.value.retry_after_seconds == 1.0
        assert "127.0.0.1" not in caught.value.message

    async def test_a_frozen_server_keeps_nobody_waiting_and_its_return_is_noticed(
        self, postgres_server: EmbeddedPostgres, postgres_database: str
    ) -> None:
        async with open_pool(
            postgres_database, application_name="test", command_timeout_seconds=4.0, maximum=1
        ) as pool:
            assert await answer(pool) == 1
            postgres_server.freeze()
            try:
                # The statement's four seconds, and one to see that it cannot be cancelled either,
                # on a machine that may be busy; nothing else would ever end the wait.
                async with asyncio.timeout(20):
                    with pytest.raises(DatabaseAway), database_errors():
                        async with pool.acquire() as connection, connection.transaction():
                            await connection.fetchval("SELECT 1")
            finally:
                postgres_server.thaw()
            async with asyncio.timeout(20):
                assert await answer(pool) == 1

    async def test_a_frozen_server_costs_a_few_callers_their_time_and_not_the_others(
        self, postgres_server: EmbeddedPostgres, postgres_database: str
    ) -> None:
        async with open_pool(
            postgres_database, application_name="test", command_timeout_seconds=1.0, maximum=3
        ) as pool:
            await asyncio.gather(*(answer(pool) for _ in range(3)))
            # Nobody tries while this test looks.
            pool.breaker.pause_seconds = pool.breaker.patience_seconds = 1000.0
            postgres_server.freeze()
            try:
                async with asyncio.timeout(60):
                    while not pool.breaker.is_open:
                        assert await answer(pool) != 1
                # Each of these would take a second or more if it asked.
                async with asyncio.timeout(20):
                    assert {await answer(pool) for _ in range(100)} == {None}
            finally:
                postgres_server.thaw()

    async def test_a_server_that_was_given_up_is_tried_until_it_is_back(
        self, postgres_server: EmbeddedPostgres, postgres_database: str
    ) -> None:
        async with open_pool(postgres_database, application_name="test") as pool:
            assert await answer(pool) == 1
            postgres_server.kill()
            try:
                async with asyncio.timeout(60):
                    while not pool.breaker.is_open:
                        assert await answer(pool) != 1
            finally:
                postgres_server.start()
            async with asyncio.timeout(20):
                while await answer(pool) != 1:  # noqa: ASYNC110  # it happens in the server
                    await asyncio.sleep(0.05)
            assert not pool.breaker.is_open
            assert {await answer(pool) for _ in range(10)} == {1}

    async def test_statements_that_fail_or_are_given_up_by_themselves_prove_no_absence(
        self, postgres_database: str
    ) -> None:
        async with open_pool(
            postgres_database, application_name="test", command_timeout_seconds=0.2
        ) as pool:
            for _ in range(4):
                with pytest.raises(asyncpg.DivisionByZeroError):
                    await pool.fetchval("SELECT 1 / 0")
                with pytest.raises(DatabaseAway), database_errors():
                    await pool.fetchval("SELECT pg_sleep(5)")
            assert not pool.breaker.is_open

    async def test_a_statement_that_takes_too_long_is_unavailable(
        self, postgres_database: str
    ) -> None:
        async with open_pool(
            postgres_database, application_name="test", command_timeout_seconds=0.2
        ) as pool:
            with pytest.raises(DatabaseAway), database_errors():
                await pool.fetchval("SELECT pg_sleep(5)")

    @pytest.mark.parametrize(
        ("statement", "arguments"),
        [
            ("SELECT nothing", ()),
            ("SELECT $1::integer", ("text",)),
            ("SELECT $1::integer", ()),
            ("SELECT 1 / 0", ()),
        ],
    )
    async def test_our_own_mistakes_are_not_taken_for_an_absent_database(
        self, postgres_database: str, statement: str, arguments: tuple[object, ...]
    ) -> None:
        async with open_pool(postgres_database, application_name="test") as pool:
            with (
                pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)),
                database_errors(),
            ):
                await pool.fetchval(statement, *arguments)


async def answer(pool: asyncpg.Pool) -> object:
    try:
        with database_errors():
            return await pool.fetchval("SELECT 1")
    except DatabaseAway:
        return None


def test_a_driver_confused_by_a_killed_server_is_an_absent_database() -> None:
    with pytest.raises(DatabaseAway), database_errors():
        raise asyncpg.InternalClientError("got result for unknown protocol state 0")
