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


async def take_back(lent: Any) -> bool:
    """Gives a connection back that left nothing in its session and needs no reset.

    False, and nothing is done, where it was lost or a transaction is left open.
    """
    connection = lent._con
    if connection is None or connection.is_closed() or connection.is_in_transaction():
        return False
    connection._on_release()
    await lent._holder.release(lent._holder._timeout)
    return True


def _lies_ready(holder: Any) -> bool:
    connection = holder._con
    return (
        connection is not None
        and not connection.is_closed()
        and holder._generation == holder._pool._generation
        and holder._setup is None  # it may wait
    )
