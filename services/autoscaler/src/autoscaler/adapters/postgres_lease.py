"""Who leads: one row in PostgreSQL, its expiry compared in the database's own time."""

from __future__ import annotations

import asyncpg

from autoscaler.adapters.postgres_errors import store_errors
from autoscaler.ports import LeaseView
from servicekit.postgres import Queries

__all__ = ["LEASE_NAME", "PostgresLease"]

LEASE_NAME = "control-loop"


class PostgresLease:
    """A lease that one replica holds at a time; clocks of replicas need not agree."""

    def __init__(self, pool: asyncpg.Pool, queries: Queries) -> None:
        self._pool = pool
        self._queries = queries

    async def acquire(self, holder: str, ttl_seconds: float) -> LeaseView:
        """Take or renew the lease if it is free, expired or one's own; return it as it is then."""
        with store_errors():
            await self._pool.execute(self._queries.acquire_lease, LEASE_NAME, holder, ttl_seconds)
            row = await self._pool.fetchrow(self._queries.get_lease, LEASE_NAME)
        if row is None:  # expired between the two statements; the next try takes it
            return LeaseView(holder="", epoch=0)
        return LeaseView(holder=row["holder"], epoch=row["epoch"])

    async def release(self, holder: str) -> None:
        """Let the next one lead at once; does nothing for others' leases."""
        with store_errors():
            await self._pool.execute(self._queries.release_lease, LEASE_NAME, holder)
