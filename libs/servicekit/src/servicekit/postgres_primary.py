"""Which of several PostgreSQL servers is the one to write to.

An address may name several hosts, `postgresql://user@one:5432,two:5432/game`: a primary and its
standbys. After a failover the former primary may live on, cut off from the others, and still take
writes that nobody will ever see again. Each promotion begins a new timeline, so among servers that
call themselves primary the one on the newest timeline is it (PostgreSQL documentation,
"Timelines").

What the former primary acknowledges before anybody looks is lost without synchronous replication
(`synchronous_standby_names`), with which it acknowledges nothing alone.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg

__all__ = ["connect_to_primary", "hosts_of"]

# How long the others may take once one has said that it is primary.
_OTHERS_SECONDS = 0.5
# None from a standby. The name of a WAL file begins with its timeline, in hexadecimal.
_TIMELINE = """
SELECT CASE WHEN pg_is_in_recovery() THEN NULL
    ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END
"""


def hosts_of(url: str) -> list[str]:
    """Returns an address for each host that `url` names; itself when it names one."""
    parts = urlsplit(url)
    credentials, at, hosts = parts.netloc.rpartition("@")
    return [
        urlunsplit(parts._replace(netloc=f"{credentials}{at}{host}")) for host in hosts.split(",")
    ]


async def connect_to_primary(urls: list[str], **options: Any) -> tuple[asyncpg.Connection, int]:
    """Returns a connection to the primary on the newest timeline, and that timeline.

    `options` are asyncpg.connect's. All hosts are asked at once; one that answers nothing costs
    half a second.

    Raises OSError when none of them is a primary; the text names no host.
    """
    asking = [asyncio.create_task(_ask(url, options)) for url in urls]
    try:
        await _until_decided(asking)
    except BaseException:
        await _let_go(asking, keep=None)
        raise
    answers = [task.result() for task in asking if task.done() and not task.exception()]
    primaries = [answer for answer in answers if answer[1] is not None]
    chosen, timeline = max(primaries, key=lambda answer: answer[1] or 0, default=(None, None))
    await _let_go(asking, keep=chosen)
    if chosen is None or timeline is None:
        raise ConnectionRefusedError("none of the database's hosts is a primary")
    return chosen, timeline


async def _ask(url: str, options: dict[str, Any]) -> tuple[asyncpg.Connection, int | None]:
    connection = await asyncpg.connect(url, **options)
    try:
        timeline = await connection.fetchval(_TIMELINE)
    except BaseException:
        connection.terminate()
        raise
    return connection, None if timeline is None else int(timeline, 16)


async def _until_decided(asking: list[asyncio.Task[tuple[asyncpg.Connection, int | None]]]) -> None:
    waiting = set(asking)
    limit: float | None = None  # each task has a limit of its own, asyncpg's `timeout`
    while waiting:
        done, waiting = await asyncio.wait(
            waiting, timeout=limit, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            return
        if any(not task.exception() and task.result()[1] is not None for task in done):
            limit = _OTHERS_SECONDS


async def _let_go(
    asking: list[asyncio.Task[tuple[asyncpg.Connection, int | None]]],
    *,
    keep: asyncpg.Connection | None,
) -> None:
    for task in asking:
        task.cancel()
    for answer in await asyncio.gather(*asking, return_exceptions=True):
        if isinstance(answer, tuple) and answer[0] is not keep:
            answer[0].terminate()
