"""Admits only as many calls at once as the server can carry."""

from __future__ import annotations

from typing import Any

from servicekit.errors import Overloaded
from servicekit.interceptors.call import Call, Proceed
from servicekit.method_policies import DeadlineClass

__all__ = ["LimitInterceptor"]


class LimitInterceptor:
    """Counts calls and streams apart, so that subscriptions cannot shut out calls.

    gRPC's own limit answers without RetryInfo and counts health checks; this one does neither.
    """

    def __init__(self, *, maximum_calls: int, maximum_streams: int) -> None:
        self._maximum = {False: maximum_calls, True: maximum_streams}
        self._running = {False: 0, True: 0}

    async def intercept(self, call: Call, proceed: Proceed) -> Any:
        """Refuses the call when the server is full."""
        if call.declaration is None:
            return await proceed(call)
        is_stream = call.declaration.deadline_class is DeadlineClass.STREAM
        if self._running[is_stream] >= self._maximum[is_stream]:
            kind = "streams" if is_stream else "calls"
            raise Overloaded(
                f"The server has its maximum of {self._maximum[is_stream]} {kind}; try later.",
                metadata={"limit": str(self._maximum[is_stream])},
            )
        self._running[is_stream] += 1
        try:
            return await proceed(call)
        finally:
            self._running[is_stream] -= 1
