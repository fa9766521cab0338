"""A PostgreSQL with many worlds, filled once and kept in the cache directory.

It is filled through the service's own way of recording, as the owner, with secondary indexes and
foreign keys put back at the end. A kept one takes new migrations as any database does; a change of
old ones, of the corpus or of the sizes fills it anew.
"""

import asyncio
import hashlib
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import story_corpus
from story_corpus import Corpus, Session, WorldPlan

from knowledge_base.__main__ import connect
from knowledge_base.adapters.database import Database, decode_vector
from knowledge_base.adapters.postgres_memory import PostgresMemory
from knowledge_base.adapters.schema import migrate_schema
from knowledge_base.config import DatabaseSettings
from knowledge_base.ports import RequestKey
from knowledge_base.testing import SERVICE_ROLE, service_url
from localsuite.postgres import EmbeddedPostgres
from servicekit.postgres import MigrationMismatch, open_pool
from servicekit.settings import load_settings

__all__ = ["ScaleDatabase", "database_cpu_seconds", "open_as_service", "open_scale_database"]

_CACHE = Path(__file__).resolve().parents[2] / ".cache" / "knowledge_base_scale"
_NAME = "knowledge"
_FILLED = "filled"
_WRITERS = 3
_STATEMENT_SECONDS = 3_600.0
_BYTES_AT_ONCE = 1 << 22

# As a small database server would have them; the launcher's own are for a quiet desktop.
_SETTINGS = {
    "shared_buffers": "3GB",
    "maintenance_work_mem": "512MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "synchronous_commit": "off",
    "autovacuum": "off",
}

_SECONDARY_INDEXES = """
SELECT i.indexrelid::regclass::text AS name, pg_get_indexdef(i.indexrelid) AS definition
FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid
WHERE t.relnamespace = 'knowledge_base'::regnamespace AND t.relname LIKE 'story_event%'
    AND NOT i.indisunique AND i.indexrelid::regclass::text NOT LIKE '%coarse_embedding'
"""
_FOREIGN_KEYS = """
SELECT c.conrelid::regclass::text AS of_table, quote_ident(c.conname) AS name,
    pg_get_constraintdef(c.oid) AS definition
FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid
WHERE t.relnamespace = 'knowledge_base'::regnamespace AND t.relname LIKE 'story_event%'
    AND c.contype = 'f'
"""


@dataclass(frozen=True, slots=True)
class ScaleDatabase:
    """A running server whose database holds the worlds.

    `owner_url` may do everything; the service's role may do what the service may.
    """

    server: EmbeddedPostgres
    owner_url: str

    @property
    def service_url(self) -> str:
        """The address as the service uses it."""
        return service_url(self.owner_url)

    @property
    def bytes_on_disk(self) -> int:
        """The size of the database."""
        return int(self.server.execute(f"SELECT pg_database_size('{_NAME}')"))


@contextmanager
def open_scale_database(
    name: str, worlds: list[WorldPlan], corpus: Corpus
) -> Iterator[ScaleDatabase]:
    """Runs the server with all worlds in it; fills it when it is not, and says so."""
    directory = _CACHE / name
    key = _key(worlds)
    marker = _CACHE / f"{name}.{_FILLED}"
    if directory.exists() and (not marker.exists() or marker.read_text() != key):
        shutil.rmtree(directory)
    marker.unlink(missing_ok=True)
    directory.mkdir(parents=True, exist_ok=True)
    with EmbeddedPostgres(directory, durable=False, settings=_SETTINGS) as server:
        owner_url = server.url(_NAME)
        if server.create_database(_NAME):
            asyncio.run(_fill(owner_url, worlds, corpus))
        elif asyncio.run(_is_migrated(owner_url)):
            print(f"{name}: kept from an earlier run, read into memory", flush=True)
            _read_into_memory(server.location)
        else:
            server.execute(f"DROP DATABASE {_NAME} WITH (FORCE)")
            server.create_database(_NAME)
            asyncio.run(_fill(owner_url, worlds, corpus))
        yield ScaleDatabase(server, owner_url)
    marker.write_text(key)


@asynccontextmanager
async def open_as_service(url: str, *, pool_size: int = 8) -> AsyncIterator[Database]:
    """Opens the database as the service does."""
    settings = load_settings(
        DatabaseSettings,
        {"KNOWLEDGE_BASE_DATABASE_URL": url, "KNOWLEDGE_BASE_POOL_SIZE": str(pool_size)},
    )
    async with connect(settings) as database:
        yield database


def database_cpu_seconds(server: EmbeddedPostgres) -> float:
    """Returns the CPU seconds that the server's processes have used, those now running."""
    root = psutil.Process(server.pid)
    total = 0.0
    for process in [root, *root.children()]:
        with_times = process.cpu_times()
        total += with_times.user + with_times.system
    return total


def _key(worlds: list[WorldPlan]) -> str:
    digest = hashlib.sha256(Path(story_corpus.__file__).read_bytes())
    digest.update(repr(worlds).encode())
    return digest.hexdigest()


async def _is_migrated(owner_url: str) -> bool:
    """Applies new migrations to a kept database; False when old ones changed since."""
    try:
        await migrate_schema(owner_url, service_url(owner_url), SERVICE_ROLE)
    except MigrationMismatch:
        return False
    return True


def _read_into_memory(directory: Path) -> None:
    """Reads all files once: a server at work has in memory what fits, one just started has not."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(_BYTES_AT_ONCE):
                    pass


async def _fill(owner_url: str, worlds: list[WorldPlan], corpus: Corpus) -> None:
    started = time.perf_counter()
    await migrate_schema(owner_url, service_url(owner_url), SERVICE_ROLE)
    async with open_pool(
        owner_url,
        application_name="fill",
        maximum=_WRITERS,
        init=_vectors,
        command_timeout_seconds=_STATEMENT_SECONDS,
    ) as pool:
        indexes = await pool.fetch(_SECONDARY_INDEXES)
        keys = await pool.fetch(_FOREIGN_KEYS)
        for row in keys:
            await pool.execute(f"ALTER TABLE {row['of_table']} DROP CONSTRAINT {row['name']}")
        for row in indexes:
            await pool.execute(f"DROP INDEX {row['name']}")
        memory = PostgresMemory(Database(pool))
        for world in worlds:
            await memory.create_world(_request(), world.world_id, f"World {world.number}", "")
        await _record(memory, worlds, corpus)
        for row in indexes:
            await pool.execute(row["definition"])
        for row in keys:
            await pool.execute(
                f"ALTER TABLE {row['of_table']} ADD CONSTRAINT {row['name']} {row['definition']}"
            )
        await pool.execute("VACUUM ANALYZE")
    events = sum(world.events for world in worlds)
    seconds = time.perf_counter() - started
    print(f"filled with {events:,} events of {len(worlds):,} worlds in {seconds:.0f} s", flush=True)


async def _record(memory: PostgresMemory, worlds: list[WorldPlan], corpus: Corpus) -> None:
    """Records all sessions; those of one world by one writer, so that their order stays."""
    queues: list[asyncio.Queue[Session | None]] = [asyncio.Queue(8) for _ in range(_WRITERS)]

    async def write(queue: asyncio.Queue[Session | None]) -> None:
        while (session := await queue.get()) is not None:
            await memory.record_events(
                session.world.world_id,
                _request(),
                [(uuid.uuid4(), event) for event in session.events],
                corpus.model,
                session.vectors,
                codes=session.codes,
            )

    async with asyncio.TaskGroup() as group:
        for queue in queues:
            group.create_task(write(queue))
        recorded, shown = 0, time.perf_counter()
        for session in corpus.sessions(worlds):
            await queues[session.world.number % _WRITERS].put(session)
            recorded += len(session.events)
            if time.perf_counter() - shown > 30.0:
                shown = time.perf_counter()
                print(f"  {recorded:,} events recorded", flush=True)
        for queue in queues:
            await queue.put(None)


async def _vectors(connection: Any) -> None:
    await connection.set_type_codec(
        "vector", schema="public", encoder=bytes, decoder=decode_vector, format="binary"
    )


def _request() -> RequestKey:
    return RequestKey(uuid.uuid4(), b"\0" * 32, datetime.now(UTC))
