# ruff: noqa: SLF001  # asyncpg's pool has no public way to lend without a timeout and a task
"""Lends a pool's connections at once where nothing is to be waited for.

asyncpg puts a timeout around taking a connection and a task around giving it back, so that neither
can be broken off half-way. Where a connection lies ready and leaves nothing to clean up neither of
them waits, and both together cost as much as a small statement.
"""

from typing import Any

__all__ = ["lend_ready", "take_back"]


async def lend_ready(pool: Any, limit_seconds: float) -> Any:
    """Returns a connection of the pool that lies open and free, None when there is none.

    Args:
        pool: an `asyncpg.Pool`.
        limit_seconds: how long giving it back may take where that is more than `take_back`.
    """
    if pool._closing or pool._queue.empty():
        return None
    holder = pool._queue.get_nowait()
    try:
        if _lies_ready(holder):
            holder._timeout = limit_seconds
            return await holder.acquire()
    except BaseException:
        pool._queue.put_nowait(holder)
        raise
    pool._queue.put_nowait(holder)
    return None


def take_back(lent: Any) -> bool:
    """Gives a connection back that left nothing in its session and needs no reset.

    False, and nothing is done, where the pool has more to do with it: it was lost, is worn out, or
    something is left open.
    """
    connection, holder = lent._con, lent._holder
    if connection is None or not _lies_ready(holder):
        return False
    protocol = connection._protocol
    if (
        protocol.is_in_transaction()
        or connection._top_xact is not None
        or connection._listeners
        or connection._log_listeners
        or protocol._is_cancelling()
        or protocol.queries_count >= holder._max_queries
    ):
        return False
    connection._pool_release_ctr += 1  # statements and cursors that were kept are of no use now
    holder._timeout = None
    holder._release()
    holder._setup_inactive_callback()
    return True


def _lies_ready(holder: Any) -> bool:
    connection = holder._con
    return (
        connection is not None
        and not connection.is_closed()
        and holder._generation == holder._pool._generation
        and holder._setup is None  # it may wait
    )
