"""Forgets what outbox and inbox need no longer remember.

Needs the `postgres` extra (asyncpg).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import asyncpg
import structlog

from messaging.outbox_settings import StoreSettings
from messaging.store_schema import inbox_queries, outbox_queries
from messaging.waiting import set_within
from servicekit.clock import Clock
from servicekit.postgres import DatabaseAway, database_errors

__all__ = ["Forgotten", "StoreRetention"]

log = structlog.get_logger(__name__)

_DAY_SECONDS = 86_400.0
_STATEMENT_ROWS = 5_000
_STATEMENTS_A_RUN = 200


@dataclass(frozen=True, slots=True)
class Forgotten:
    """How many rows one clean-up deleted."""

    inbox: int
    parked: int


class StoreRetention:
    """Deletes old inbox entries and parked events, in statements and runs of bounded size.

    A run deletes at most a million rows of each, five thousand a statement, so that no statement
    holds locks for long; what is left goes in the next runs. Replicas may run it side by side.
    """

    def __init__(
        self, pool: asyncpg.Pool, *, schema: str, settings: StoreSettings, clock: Clock
    ) -> None:
        self._pool = pool
        self._settings = settings
        self._clock = clock
        self._inbox = inbox_queries(schema).delete_old_entries
        self._parked = outbox_queries(schema).delete_old_parked

    async def run(self, stopping: asyncio.Event) -> None:
        """Cleans up now and after every interval, until `stopping` is set."""
        while not stopping.is_set():
            try:
                forgotten = await self.forget_old()
            except DatabaseAway:
                log.warning("events_not_forgotten", cause="database away")
            except asyncpg.PostgresError as error:
                # No schema yet, no grant: others than this loop put it right.
                log.warning("events_not_forgotten", cause=type(error).__name__)
            else:
                log.debug("events_forgotten", inbox=forgotten.inbox, parked=forgotten.parked)
            await set_within(stopping, self._settings.retention_interval_seconds, self._clock)

    async def forget_old(self) -> Forgotten:
        """Deletes what is older than the retention allows, one run's worth. Raises DatabaseAway."""
        settings = self._settings
        with database_errors():
            return Forgotten(
                inbox=await self._delete(self._inbox, settings.inbox_retention_days),
                parked=await self._delete(self._parked, settings.parked_retention_days),
            )

    async def _delete(self, statement: str, retention_days: float) -> int:
        deleted = 0
        for _ in range(_STATEMENTS_A_RUN):
            status = await self._pool.execute(
                statement, retention_days * _DAY_SECONDS, _STATEMENT_ROWS
            )
            count = int(status.rsplit(" ", 1)[-1])
            deleted += count
            if count < _STATEMENT_ROWS:
                break
        return deleted
