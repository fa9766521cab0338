"""PostgreSQL for the services that keep state: pool, migrations, named SQL, errors.

Needs the `postgres` extra (asyncpg).
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any

import asyncpg
import structlog
from asyncpg.pool import PoolAcquireContext

from servicekit.circuit_breaker import CircuitBreaker
from servicekit.errors import Unavailable
from servicekit.postgres_lending import lend_ready, take_back
from servicekit.postgres_primary import connect_to_primary, hosts_of
from servicekit.postgres_queries import Queries, check_identifiers, load_queries, substitute

__all__ = [
    "DatabaseAway",
    "Migration",
    "MigrationMismatch",
    "Queries",
    "database_errors",
    "load_queries",
    "migrate",
    "open_pool",
]

log = structlog.get_logger(__name__)

_MIGRATION_FILE = re.compile(r"^(?P<number>\d{4})_(?P<name>[a-z0-9_]+)\.sql$")
_CLOSED_WORDS = ("closed", "closing", "released back to the pool")
_RETRY_AFTER_SECONDS = 1.0
_CONNECT_SECONDS = 5.0
_ACQUIRE_SECONDS = 5.0
_CLOSE_SECONDS = 5.0
_CANCEL_SECONDS = 1.0
_LOCK_SECONDS = 60.0
_LOCK_POLL_SECONDS = 0.1
_MIGRATION_SECONDS = 900.0

# SQLSTATE classes 08 connection, 53 insufficient resources, 57P operator intervention (shutdown,
# crash, starting up), and 57014, a statement that was ended for its length, 25006, a former primary
# that became read-only; PostgreSQL documentation, appendix A.
_AWAY_CLASSES = ("08", "53", "57P", "57014", "25006")


class DatabaseAway(Unavailable):
    """The database cannot be reached or does not answer in time."""

    reason = "DATABASE_UNAVAILABLE"


class MigrationMismatch(Exception):
    """A migration that was applied no longer reads as it did, or one is missing."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One migration file."""

    number: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """Hash of the file's text, in hexadecimal."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg ships no types
    """A connection that is given up when a statement cannot be cancelled soon.

    asyncpg waits for a cancellation as long as for the statement, and everything that is done with
    the connection waits with it. A server that is frozen answers neither.
    """

    unanswered: Callable[[], None]
    """Told when a cancellation was not answered; set by the pool."""

    _leaves_nothing = False

    def lent_for(self, *, leaves_nothing: bool) -> None:
        """Notes whether what it is lent for leaves nothing behind in the session."""
        self._leaves_nothing = leaves_nothing

    def get_reset_query(self) -> str:
        """Returns what is run when it is given back; when that is empty, nothing is sent."""
        return "" if self._leaves_nothing else str(super().get_reset_query())

    async def _cancel(self, waiter: Any, cancel_waiter: Any = None) -> None:
        try:
            async with asyncio.timeout(_CANCEL_SECONDS) as limit:
                await super()._cancel(waiter, cancel_waiter)
        except TimeoutError:
            pass
        if limit.expired():  # asyncpg may have taken the limit's cancellation for its own
            self.terminate()
            self.unanswered()


class _Acquire(PoolAcquireContext):  # type: ignore[misc]  # as above
    """Lends a connection unless the database is known to be away; tells the pool how it went."""

    def __init__(self, pool: Any, timeout: float, *, leaves_nothing: bool) -> None:
        super().__init__(pool, timeout)
        self._leaves_nothing = leaves_nothing

    async def __aenter__(self) -> Any:
        pool: _BoundedPool = self.pool
        if not pool.breaker.admits(asyncio.get_running_loop().time()):
            raise _away()
        try:
            lent = await lend_ready(pool, self.timeout) or await super().__aenter__()
        except Exception as error:
            if _is_away(error):
                pool.database_failed()
            raise
        self.connection = lent
        lent.lent_for(leaves_nothing=self._leaves_nothing)
        return lent

    async def __aexit__(self, *failure: object) -> None:
        error = failure[1]
        if error is None or (isinstance(error, asyncpg.PostgresError) and not _is_away(error)):
            self.pool.database_answered()
            if error is None and self._leaves_nothing and take_back(self.connection):
                return
        elif self.pool.breaker.is_open:
            self.pool.database_failed()
        # Otherwise it proves neither: a statement may take too long by itself.
        await super().__aexit__(*failure)


class _BoundedPool(asyncpg.Pool):  # type: ignore[misc]  # as above
    """A pool in which nobody waits for a free connection for ever, nor one after the other.

    A database that does not answer costs each caller seconds, as many as its deadline has. So after
    a few of them the others are refused at once, but for one at a time that tries.
    """

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, connect=self._open, **options)
        self.breaker = CircuitBreaker()
        self._hosts = hosts_of(url)
        self._timeline = 0

    def acquire(self, *, timeout: float | None = None, leaves_nothing: bool = False) -> Any:
        return _Acquire(
            self, _ACQUIRE_SECONDS if timeout is None else timeout, leaves_nothing=leaves_nothing
        )

    async def fetch_leaving_nothing(
        self, query: str, *arguments: Any, wait_seconds: float = _ACQUIRE_SECONDS
    ) -> list[Any]:
        """Returns the rows of one statement that leaves nothing behind in its session.

        As with `acquire` with `leaves_nothing=True`, at half the cost where a connection lies
        ready. `wait_seconds` is how long one is waited for.
        """
        lent = None if self.breaker.is_open else await lend_ready(self, wait_seconds)
        if lent is None:
            async with self.acquire(timeout=wait_seconds, leaves_nothing=True) as connection:
                rows: list[Any] = await connection.fetch(query, *arguments)
                return rows
        connection = lent._con  # noqa: SLF001  # its proxy guards against use by others; none has it
        connection.lent_for(leaves_nothing=True)
        try:
            rows = await connection.fetch(query, *arguments)
        except BaseException as error:
            acquired = _Acquire(self, wait_seconds, leaves_nothing=True)
            acquired.connection = lent
            await acquired.__aexit__(type(error), error, error.__traceback__)
            raise
        self.database_answered()
        if not take_back(lent):
            await self.release(lent)
        return rows

    def database_failed(self) -> None:
        """Counts a connection that could not be had, or that answers nothing."""
        if self.breaker.failed(asyncio.get_running_loop().time()):
            log.warning("database_away")

    def database_answered(self) -> None:
        """Counts a connection that did what it was wanted for."""
        if self.breaker.succeeded():
            log.info("database_back")

    async def _open(self, *_: Any, **options: Any) -> Any:
        if len(self._hosts) == 1:
            connection = await asyncpg.connect(self._hosts[0], **options)
        else:
            connection, timeline = await connect_to_primary(self._hosts, **options)
            if self._timeline < timeline:
                if self._timeline:
                    # Another server was promoted: connections to the one before are used no more.
                    log.warning("database_failed_over", timeline=timeline)
                    await self.expire_connections()
                self._timeline = timeline
        connection.unanswered = self.database_failed
        return connection


_UNREACHABLE = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)


@asynccontextmanager
async def open_pool(
    url: str,
    *,
    application_name: str,
    minimum: int = 1,
    maximum: int = 8,
    command_timeout_seconds: float = 10.0,
    setup: Callable[[Any], Awaitable[None]] | None = None,
    init: Callable[[Any], Awaitable[None]] | None = None,
) -> AsyncIterator[asyncpg.Pool]:
    """Opens a connection pool and closes it at the end, forcibly after five seconds.

    The pool opens connections when they are needed, so it starts although the database is away, and
    recovers by itself. Waiting for a connection ends with TimeoutError after five seconds. After
    three failures in a row to get a connection or an answer, `acquire` raises DatabaseAway at once,
    but for one call at a time, until one of those succeeds.

    A connection that is given back is reset, which is a round trip of its own. `acquire` with
    `leaves_nothing=True` saves it, for statements that leave nothing behind in the session: no
    settings beyond their transaction, no advisory locks, no open cursors, no LISTEN. A transaction
    left open is rolled back either way.

    Args:
        url: `postgresql://user:password@host:port/database`; of several hosts, separated by commas,
            the primary on the newest timeline is used, whichever that is at the time.
        application_name: shown in pg_stat_activity.
        minimum: connections opened at once when `minimum` > 0 and the database answers.
        maximum: most connections.
        command_timeout_seconds: longest statement, enforced on both sides.
        setup: run whenever a connection is taken from the pool.
        init: run once for a new connection, for example to register types.
    """
    pool = _BoundedPool(
        url,
        min_size=0,
        max_size=maximum,
        max_queries=50_000,
        loop=None,
        connection_class=_Connection,
        record_class=asyncpg.Record,
        timeout=_CONNECT_SECONDS,
        command_timeout=command_timeout_seconds,
        max_inactive_connection_lifetime=300.0,
        setup=setup,
        init=init,
        server_settings={
            "application_name": application_name,
            "statement_timeout": str(round(command_timeout_seconds * 1000)),
        },
    )
    await pool
    try:
        if minimum:
            try:
                async with pool.acquire():
                    pass
            except _UNREACHABLE:
                log.warning("database_away_at_start", application=application_name)
        yield pool
    finally:
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await pool.close()
        except _UNREACHABLE:
            pool.terminate()


@contextmanager
def database_errors() -> Iterator[None]:
    """Turns failures to reach the database into DatabaseAway; other errors pass.

    Mistakes in our own SQL or arguments pass too: they are faults, and no repeat helps.

    Raises:
        DatabaseAway: the connection failed or was lost, the server shuts down or starts up, has no
            resources left, or did not answer in time.
    """
    try:
        yield
    except Exception as error:
        if _is_away(error):
            raise _away() from error
        raise


def _is_away(error: Exception) -> bool:
    if isinstance(error, asyncpg.PostgresError):
        return bool(error.sqlstate and error.sqlstate.startswith(_AWAY_CLASSES))
    if isinstance(error, asyncpg.InterfaceError):
        # asyncpg has one class for a lost connection and for misuse; only their texts differ.
        return not isinstance(error, ValueError) and any(w in str(error) for w in _CLOSED_WORDS)
    # asyncpg resets a connection before it has noticed that the server died in the middle of a
    # statement, and then complains about its own state instead of the lost connection.
    return isinstance(error, asyncpg.InternalClientError | OSError | TimeoutError)


def _away() -> DatabaseAway:
    return DatabaseAway(
        "The database cannot be reached; try again in a moment.",
        retry_after_seconds=_RETRY_AFTER_SECONDS,
    )


async def migrate(
    connection: asyncpg.Connection,
    package: str,
    *,
    schema: str,
    substitutions: Mapping[str, str] | None = None,
    history: str = "schema_migrations",
) -> list[str]:
    """Applies a package's `migrations/NNNN_name.sql` files that are not applied yet, in order.

    Each runs in a transaction of its own together with its entry in the table `<schema>.<history>`,
    so a crash leaves whole migrations only. An advisory lock lets one migrator work at a time;
    another one waits for it for a minute.

    Args:
        connection: as the owner of the schema.
        package: holds the folder `migrations`.
        schema: where the service's tables live; made when it is missing.
        substitutions: replaces `{{name}}` in the files; values must be plain identifiers.
        history: the table of applied migrations. A library whose tables live in a service's schema
            has one of its own, so that both count their migrations from 1.

    Returns:
        the names of the migrations applied now.

    A database of a newer version is left as it is: the version before goes on working beside it.

    Raises:
        MigrationMismatch: when an applied migration was changed, one among those of this version
            is missing, or a new one stands before an applied one.
        TimeoutError: when another migrator holds the lock for longer than a minute.
        ValueError: when a substitution is not an identifier, or two files share a number.
    """
    substitutions = dict(substitutions or {})
    check_identifiers((schema, history, *substitutions.values()))
    migrations = _migrations(package)
    lock = int.from_bytes(hashlib.sha256(schema.encode()).digest()[:8], "big", signed=True)
    await _take_lock(connection, lock)
    try:
        await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        await connection.execute(
            f"CREATE TABLE IF NOT EXISTS {schema}.{history} ("
            "number integer PRIMARY KEY, name text NOT NULL, sha256 text NOT NULL,"
            " apply_time timestamptz NOT NULL DEFAULT now())"
        )
        rows = await connection.fetch(
            f"SELECT number, sha256 FROM {schema}.{history} ORDER BY number"  # noqa: S608  # both are checked above
        )
        applied = {row["number"]: row["sha256"] for row in rows}
        _check_applied(applied, migrations)
        done = []
        for migration in migrations:
            if migration.number in applied:
                continue
            sql = substitute(migration.sql, substitutions)
            async with connection.transaction():
                await connection.execute(
                    f"SET LOCAL search_path TO {schema}, public; SET LOCAL statement_timeout TO 0"
                )
                await connection.execute(sql, timeout=_MIGRATION_SECONDS)
                await connection.execute(
                    f"INSERT INTO {schema}.{history} (number, name, sha256)"  # noqa: S608  # as above
                    " VALUES ($1, $2, $3)",
                    migration.number,
                    migration.name,
                    migration.sha256,
                )
            log.info("migration_applied", schema=schema, migration=migration.name)
            done.append(migration.name)
        return done
    finally:
        if not connection.is_closed():  # a lost connection has lost its locks
            await connection.execute("SELECT pg_advisory_unlock($1)", lock)


async def _take_lock(connection: asyncpg.Connection, lock: int) -> None:
    # Tried rather than waited for: a wait inside the server runs into statement_timeout.
    async with asyncio.timeout(_LOCK_SECONDS):
        while not await connection.fetchval(  # noqa: ASYNC110  # what is waited for is in the server
            "SELECT pg_try_advisory_lock($1)", lock
        ):
            await asyncio.sleep(_LOCK_POLL_SECONDS)


def _migrations(package: str) -> list[Migration]:
    found = []
    for entry in resources.files(package).joinpath("migrations").iterdir():
        match = _MIGRATION_FILE.match(entry.name)
        if match:
            found.append(
                Migration(int(match["number"]), entry.name[:-4], entry.read_text(encoding="utf-8"))
            )
    found.sort(key=lambda migration: migration.number)
    for former, later in itertools.pairwise(found):
        if former.number == later.number:
            raise ValueError(f"{former.name} and {later.name} share a number")
    return found


def _check_applied(applied: Mapping[int, str], migrations: list[Migration]) -> None:
    known = {migration.number: migration for migration in migrations}
    newest_known = max(known, default=0)
    for number, sha256 in applied.items():
        if number > newest_known:
            # A newer version's: this one is being rolled out over, or back to, and works on.
            log.warning("schema_is_newer", migration=number, newest_known=newest_known)
            continue
        if number not in known:
            raise MigrationMismatch(
                f"migration {number:04d} was applied to this database but is not in this version; "
                "use another version of the service"
            )
        if known[number].sha256 != sha256:
            raise MigrationMismatch(
                f"migration {known[number].name} was changed after it was applied; add a new one"
            )
    newest = max(applied, default=0)
    for number, migration in known.items():
        if number < newest and number not in applied:
            raise MigrationMismatch(
                f"migration {migration.name} stands before {newest:04d}, which is applied; "
                "give it a higher number"
            )
