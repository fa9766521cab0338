"""Writes one line per call: who called what, how it ended, how long it took."""

from __future__ import annotations

from typing import Any

import structlog

from servicekit.clock import Clock
from servicekit.interceptors.call import Call, Proceed

__all__ = ["AccessLogInterceptor"]

log = structlog.get_logger("servicekit.access")

_QUIET = frozenset({"OK", "CANCELLED"})
_LINES_PER_SECOND = 100.0
_BURST_LINES = 500.0


class AccessLogInterceptor:
    """Logs failures always, and all calls when `log_all` is set.

    A line costs more than the refusal it tells of, and whoever calls decides how many there are: of
    more failures than 100 a second (500 at once) the rest are counted, and the count is logged.
    """

    def __init__(self, clock: Clock, *, log_all: bool) -> None:
        self._clock = clock
        self._log_all = log_all
        self._room = _BURST_LINES
        self._room_at = clock.monotonic()
        self._left_out = 0

    async def intercept(self, call: Call, proceed: Proceed) -> Any:
        """Logs the call when it has ended."""
        try:
            return await proceed(call)
        finally:
            now = self._clock.monotonic()
            if self._log_all or (call.code not in _QUIET and self._has_room(now)):
                log.info(
                    "rpc",
                    method=call.path,
                    code=call.code,
                    reason=call.reason or None,
                    caller=call.caller.identity,
                    peer=call.context.peer(),
                    duration_seconds=round(now - call.started, 6),
                )

    def _has_room(self, now: float) -> bool:
        grown = self._room + (now - self._room_at) * _LINES_PER_SECOND
        self._room, self._room_at = min(_BURST_LINES, grown), now
        if self._room < 1:
            self._left_out += 1
            return False
        self._room -= 1
        if self._left_out:
            log.warning("rpc_lines_left_out", count=self._left_out)
            self._left_out = 0
        return True
