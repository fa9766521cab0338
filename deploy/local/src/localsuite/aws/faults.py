"""Errors on demand: the next calls of an operation fail as AWS would fail them, or are held."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from localsuite.aws.errors import ApiError
from localsuite.aws.wire import CallTarget

__all__ = ["FaultInjector"]

_TEXTS = {
    "Throttling": "Rate exceeded",
    "ThrottlingException": "Rate exceeded",
    "RequestLimitExceeded": "Request limit exceeded.",
    "ServiceUnavailable": "Service is unable to handle request.",
    "InternalFailure": "An internal error has occurred.",
    "AccessDenied": "User is not authorized to perform this operation.",
}
_LONGEST_DELAY_SECONDS = 60.0


@dataclass(slots=True)
class _Fault:
    operation: str
    error_code: str | None
    message: str
    status: int | None
    delay_seconds: float
    hold: bool
    remaining: int


@dataclass(frozen=True, slots=True)
class Injected:
    """What happens to one call: it waits, then it fails unless `error` is None.

    A call with a `release` waits for that instead, a minute at most.
    """

    delay_seconds: float
    error: ApiError | None
    release: threading.Event | None = None

    def wait(self) -> None:
        """Returns when the call may go on."""
        if self.release is None:
            time.sleep(self.delay_seconds)
        else:
            self.release.wait(_LONGEST_DELAY_SECONDS)


class FaultInjector:
    """Keeps faults that wait for their operation to be called. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[_Fault] = []
        self._held: list[tuple[str, threading.Event]] = []

    def add(self, document: Mapping[str, Any]) -> None:
        """Plans a fault.

        `operation` is an operation's name, `service:Operation`, or `*`; `error_code` is what it
        fails with (absent: it only waits `delay_seconds`); `count` is how many calls, default 1.
        With `hold` the calls wait until `clear`, as requests do that are still on their way.
        Raises ValueError for a document that says otherwise.
        """
        operation = document.get("operation")
        error_code = document.get("error_code")
        delay_seconds = document.get("delay_seconds", 0.0)
        hold = document.get("hold", False)
        count = document.get("count", 1)
        if not isinstance(operation, str) or not operation:
            raise ValueError("operation: the name of an operation, 'service:Operation', or '*'")
        if not isinstance(count, int) or count < 1:
            raise ValueError("count: a whole number of at least 1")
        if not isinstance(delay_seconds, int | float) or not (
            0 <= delay_seconds <= _LONGEST_DELAY_SECONDS
        ):
            raise ValueError(f"delay_seconds: 0 to {_LONGEST_DELAY_SECONDS:.0f}")
        if hold not in (True, False):
            raise ValueError("hold: true or false")
        if error_code is None and delay_seconds == 0 and not hold:
            raise ValueError("error_code: an AWS error code, for instance Throttling")
        message = document.get("message") or _TEXTS.get(str(error_code), "Injected by a test.")
        with self._lock:
            self._faults.append(
                _Fault(
                    operation=operation,
                    error_code=error_code,
                    message=message,
                    status=document.get("status"),
                    delay_seconds=delay_seconds,
                    hold=bool(hold),
                    remaining=count,
                )
            )

    def take(self, target: CallTarget) -> Injected | None:
        """The fault this call runs into, if one waits for it; it is used up by one."""
        names = ("*", target.operation, f"{target.service}:{target.operation}")
        with self._lock:
            fault = next((f for f in self._faults if f.operation in names), None)
            if fault is None:
                return None
            fault.remaining -= 1
            if fault.remaining == 0:
                self._faults.remove(fault)
            release = threading.Event() if fault.hold else None
            if release is not None:
                self._held.append((target.operation, release))
        error = None
        if fault.error_code is not None:
            error = ApiError(fault.error_code, fault.message, fault.status)
        return Injected(fault.delay_seconds, error, release)

    def held(self) -> list[str]:
        """The operations of the calls held now, oldest first."""
        with self._lock:
            return [operation for operation, _ in self._held]

    def waiting(self) -> list[dict[str, Any]]:
        """The faults not used up yet."""
        with self._lock:
            return [
                {
                    "operation": fault.operation,
                    "error_code": fault.error_code,
                    "delay_seconds": fault.delay_seconds,
                    "hold": fault.hold,
                    "remaining": fault.remaining,
                }
                for fault in self._faults
            ]

    def clear(self) -> None:
        """Forgets all faults and lets the calls that are held go on."""
        with self._lock:
            self._faults.clear()
            for _, release in self._held:
                release.set()
            self._held.clear()
