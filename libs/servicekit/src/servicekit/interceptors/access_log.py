"""Writes one line per call: who called what, how it ended, how long it took."""

from __future__ import annotations

from typing import Any

import structlog

from servicekit.clock import Clock
from servicekit.interceptors.call import Call, Proceed

__all__ = ["AccessLogInterceptor"]

log = structlog.get_logger("servicekit.access")

_QUIET = frozenset({"OK", "CANCELLED"})


class AccessLogInterceptor:
    """Logs failures always, and all calls when `log_all` is set."""

    def __init__(self, clock: Clock, *, log_all: bool) -> None:
        self._clock = clock
        self._log_all = log_all

    async def intercept(self, call: Call, proceed: Proceed) -> Any:
        """Logs the call when it has ended."""
        try:
            return await proceed(call)
        finally:
            if self._log_all or call.code not in _QUIET:
                log.info(
                    "rpc",
                    method=call.path,
                    code=call.code,
                    reason=call.reason or None,
                    caller=call.caller.identity,
                    peer=call.context.peer(),
                    duration_seconds=round(self._clock.monotonic() - call.started, 6),
                )
