"""Admits only as many calls at once as the server can carry."""

from __future__ import annotations

from typing import Any

from servicekit.errors import Overloaded
from servicekit.interceptors.call import Call, Proceed

__all__ = ["LimitInterceptor"]


class LimitInterceptor:
    """Counts calls, streams, and watches of health and reflection apart.

    So subscriptions cannot shut out calls, and watches of health, which are open to everybody,
    shut out neither. gRPC's own limit answers without RetryInfo and counts health checks; this one
    does neither.
    """

    def __init__(self, *, maximum_calls: int, maximum_streams: int) -> None:
        self._maximum = {"calls": maximum_calls, "streams": maximum_streams}
        self._maximum["health and reflection streams"] = maximum_streams
        self._running = dict.fromkeys(self._maximum, 0)

    async def intercept(self, call: Call, proceed: Proceed) -> Any:
        """Refuses the call when the server is full."""
        if call.declaration is not None:
            kind = "streams" if call.long_lived else "calls"
        elif call.long_lived:
            kind = "health and reflection streams"
        else:
            return await proceed(call)
        if self._running[kind] >= self._maximum[kind]:
            raise Overloaded(
                f"The server has its maximum of {self._maximum[kind]} {kind}; try later.",
                metadata={"limit": str(self._maximum[kind])},
            )
        self._running[kind] += 1
        try:
            return await proceed(call)
        finally:
            self._running[kind] -= 1
