"""Puts together what works on whole worlds; it has database connections of its own."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from knowledge_base.adapters.database import Database
from knowledge_base.adapters.postgres_world_records import PostgresWorldRecords
from knowledge_base.adapters.postgres_worlds import PostgresWorlds
from knowledge_base.config import DatabaseSettings
from knowledge_base.ports import Embedder
from knowledge_base.ports_worlds import Forgetful
from knowledge_base.world_jobs import WorldJobs
from knowledge_base.world_records import WorldRecords
from knowledge_base.world_watch import WorldWatch
from servicekit.clock import Clock

__all__ = ["WholeWorlds", "open_whole_worlds"]

# One listens for changes, two export or import, one does jobs, and two are for what is quick.
_CONNECTIONS = 6
# A step of a job may copy hundreds of events with all their terms.
_STATEMENT_SECONDS = 60.0

Connect = Callable[[DatabaseSettings], AbstractAsyncContextManager[Database]]


@dataclass(frozen=True, slots=True)
class WholeWorlds:
    """What works on whole worlds.

    Attributes:
        forgetful: what keeps texts in memory; each is told when a world is erased.
    """

    jobs: WorldJobs
    records: WorldRecords
    watch: WorldWatch
    forgetful: list[Forgetful]

    @property
    def tasks(self) -> tuple[Callable[[], Coroutine[Any, Any, None]], ...]:
        """What runs as long as the service does."""
        return (self.jobs.run, self.watch.listen)

    async def close_watches(self, stopping: asyncio.Event) -> None:
        """Ends all watches once `stopping` is set, so that nobody waits for them."""
        await stopping.wait()
        self.watch.close()


@asynccontextmanager
async def open_whole_worlds(
    connect: Connect, settings: DatabaseSettings, embedder: Embedder, clock: Clock
) -> AsyncIterator[WholeWorlds]:
    """Opens what works on whole worlds, with connections that players' calls do not wait for."""
    own = replace(settings, pool_size=_CONNECTIONS, statement_timeout_seconds=_STATEMENT_SECONDS)
    forgetful: list[Forgetful] = []
    async with connect(own) as database:
        store = PostgresWorlds(database, owner_url=settings.migration_database_url)
        yield WholeWorlds(
            WorldJobs(
                store,
                clock,
                forgetful=forgetful,
                change_retention=timedelta(hours=settings.request_retention_hours),
                backup_retention=timedelta(days=settings.backup_retention_days),
            ),
            WorldRecords(PostgresWorldRecords(database), embedder, clock),
            WorldWatch(store, clock),
            forgetful,
        )
