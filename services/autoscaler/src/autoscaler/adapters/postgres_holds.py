"""Operators' holds and the players online, in PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import asyncpg

from autoscaler.adapters.postgres_errors import store_errors
from autoscaler.adapters.postgres_journal import to_datetime
from autoscaler.domain.observation import Players
from autoscaler.domain.overrides import Override, OverrideKind
from autoscaler.domain.player_counts import PlayerShare, players_in_force
from autoscaler.domain.tiers import Tier
from autoscaler.ports import RequestIdReused
from servicekit.postgres import Queries

__all__ = ["PostgresOverrides", "PostgresPlayers"]


class PostgresOverrides:
    """Keeps at most one hold a tier, and who set and ended each."""

    def __init__(self, pool: asyncpg.Pool, queries: Queries) -> None:
        self._pool = pool
        self._queries = queries

    async def overrides(self, now: float) -> dict[Tier, Override]:
        """Return the holds in force."""
        with store_errors():
            rows = await self._pool.fetch(self._queries.list_overrides, to_datetime(now))
        return {Tier(row["tier"]): _override(row) for row in rows}

    async def set_override(
        self, tier: Tier, override: Override, request_id: str, now: float
    ) -> Override:
        """Set a hold and return it as set; a repeated request returns the first answer."""
        request = {
            "method": "set",
            "tier": tier.value,
            "kind": override.kind.value,
            "desired": override.desired,
            "minimum": override.minimum,
            "maximum": override.maximum,
            "expire_time": override.expire_time,
            "reason": override.reason,
        }
        with store_errors():
            async with self._pool.acquire() as connection, connection.transaction():
                answered = await self._answered(connection, request_id, request)
                if answered is not None:
                    return _override(answered)
                await self._lock_and_end(connection, tier, now, override.set_by)
                override_id = await connection.fetchval(
                    self._queries.insert_override,
                    tier.value,
                    override.kind.value,
                    override.desired,
                    override.minimum,
                    override.maximum,
                    to_datetime(override.expire_time),
                    override.reason,
                    override.set_by,
                    to_datetime(now),
                )
                await self._remember(connection, request_id, request, override_id)
        return override

    async def clear_override(
        self, tier: Tier, request_id: str, cleared_by: str, now: float
    ) -> Override | None:
        """End the hold in force and return it; a repeated request returns the first answer."""
        request = {"method": "clear", "tier": tier.value}
        with store_errors():
            async with self._pool.acquire() as connection, connection.transaction():
                answered = await self._answered(connection, request_id, request)
                if answered is not None:
                    return None if answered["kind"] is None else _override(answered)
                ended = await self._lock_and_end(connection, tier, now, cleared_by)
                if ended is not None and not _override(ended).in_force(now):
                    ended = None
                override_id = None if ended is None else ended["override_id"]
                await self._remember(connection, request_id, request, override_id)
        return None if ended is None else _override(ended)

    async def _answered(
        self, connection: Any, request_id: str, request: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        await connection.execute(self._queries.lock_request, request_id)
        row: Mapping[str, Any] | None = await connection.fetchrow(
            self._queries.get_answered_request, UUID(request_id)
        )
        if row is not None and json.loads(row["request"]) != request:
            raise RequestIdReused("The request id was used for another request; make a new one.")
        return row

    async def _lock_and_end(
        self, connection: Any, tier: Tier, now: float, ended_by: str
    ) -> Mapping[str, Any] | None:
        await connection.execute(self._queries.lock_overrides, tier.value)
        row: Mapping[str, Any] | None = await connection.fetchrow(
            self._queries.end_override, tier.value, to_datetime(now), ended_by
        )
        return row

    async def _remember(
        self,
        connection: Any,
        request_id: str,
        request: Mapping[str, Any],
        override_id: int | None,
    ) -> None:
        await connection.execute(
            self._queries.insert_answered_request,
            UUID(request_id),
            json.dumps(request),
            override_id,
        )


class PostgresPlayers:
    """Keeps the newest count of players, as reported and as counted in shares."""

    def __init__(self, pool: asyncpg.Pool, queries: Queries, *, stale_seconds: float) -> None:
        self._pool = pool
        self._queries = queries
        self._stale_seconds = stale_seconds

    async def report_players(self, players: Players, reported_by: str) -> Players:
        """Keep a count unless a newer one is there; return the one in force."""
        with store_errors():
            await self._pool.execute(
                self._queries.report_players,
                players.online,
                to_datetime(players.count_time),
                reported_by,
            )
        return await self.players() or players

    async def report_share(self, share: PlayerShare) -> None:
        """Keep what one service counted unless a newer count of it is there."""
        with store_errors():
            await self._pool.execute(
                self._queries.report_share,
                share.source,
                share.world_id,
                share.online,
                to_datetime(share.count_time),
            )

    async def players(self) -> Players | None:
        """Return the count in force."""
        with store_errors():
            rows = await self._pool.fetch(self._queries.get_players)
        reported, shares = None, []
        for row in rows:
            count_time = row["count_time"].timestamp()
            if row["source"] is None:
                reported = Players(online=row["online"], count_time=count_time)
            else:
                shares.append(
                    PlayerShare(
                        source=row["source"],
                        world_id=row["world_id"],
                        online=row["online"],
                        count_time=count_time,
                    )
                )
        if not rows:
            return None
        now = rows[0]["now"].timestamp()
        return players_in_force(reported, shares, now=now, stale_seconds=self._stale_seconds)


def _override(row: Mapping[str, Any]) -> Override:
    return Override(
        kind=OverrideKind(row["kind"]),
        desired=row["desired"],
        minimum=row["minimum"],
        maximum=row["maximum"],
        expire_time=row["expire_time"].timestamp(),
        reason=row["reason"],
        set_by=row["set_by"],
    )
