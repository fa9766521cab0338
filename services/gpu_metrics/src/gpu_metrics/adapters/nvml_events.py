"""XID errors as the driver reports them.

A thread waits in the driver, at most half a second at a time, and hands each error over at once.
"""

import ctypes
import threading
import time
from collections.abc import Callable, Mapping

import pynvml
import structlog

from gpu_metrics.adapters.nvml_library import CallMeter, NvmlFailed, NvmlLibrary

__all__ = ["XidWatcher"]

log = structlog.get_logger(__name__)

_WAIT_MILLISECONDS = 500
_BRIEF_WAIT_MILLISECONDS = 50
_RETRY_SECONDS = 1.0
_RELEASE_SECONDS = 1.0


class XidWatcher:
    """Calls `on_xid` with a GPU's UUID and a code, in its own thread, for every XID error.

    `watch` says which GPUs; until it is called, and while the driver is away, nothing is watched.
    A change of GPUs loses no error: the driver keeps those of before until they are handed over.
    """

    def __init__(self, on_xid: Callable[[str, int], None]) -> None:
        self.meter = CallMeter()
        # Set while the set may have to be given up soon.
        self.brief = False
        self._on_xid = on_xid
        self._changed = threading.Event()
        self._released = threading.Event()
        self._closed = threading.Event()
        self._library: NvmlLibrary | None = None
        self._uuids: Mapping[int, str] = {}
        self._set: _EventSet | None = None
        # When it is tried again, by time.monotonic(); None while nothing failed.
        self._retry_at: float | None = None
        self._last_failure = 0
        self._thread = threading.Thread(target=self._run, name="nvml-events", daemon=True)
        self._thread.start()

    def watch(self, library: NvmlLibrary, uuids: Mapping[int, str]) -> None:
        """Watch the GPUs with these handles from now on, instead of those before."""
        self._library, self._uuids = library, dict(uuids)
        self._changed.set()

    def release(self) -> None:
        """Watch nothing until `watch` is called; call it before the library ends.

        Returns once what the driver kept is handed over, or after a second if it does not answer.
        """
        self._library, self._uuids = None, {}
        self._released.clear()
        self._changed.set()
        self._released.wait(_RELEASE_SECONDS)

    def close(self) -> None:
        """Let the thread end, once the driver returns."""
        self._closed.set()
        self._changed.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            if self._set is None:
                pause = None if self._retry_at is None else self._retry_at - time.monotonic()
                self._changed.wait(None if pause is None else max(0.0, pause))
            due = self._retry_at is not None and time.monotonic() >= self._retry_at
            try:
                if self._changed.is_set() or due:
                    self._changed.clear()
                    self._retry_at = None
                    self._change_set()
                elif self._set is not None:
                    self._wait(self._set)
            except NvmlFailed as failed:
                if failed.code != self._last_failure:
                    log.warning("nvml_events_unavailable", code=failed.code)
                self._last_failure = failed.code
                # The driver may come back without anybody saying so.
                self._retry_at = time.monotonic() + _RETRY_SECONDS
        self._give_up(self._set)

    def _change_set(self) -> None:
        """Have the GPUs watched that are to be, and hand over what the set before still holds.

        The new set is there before the old one goes, so no error falls between them. One that
        happens while both are there is told by both, within a millisecond or so. The driver tells
        an error's device and code alone, no number and no time, so one that is told twice cannot be
        told from two: neither is dropped. To keep that time short the old set is emptied first.
        """
        library, uuids, before = self._library, self._uuids, self._set
        if before is not None:
            self._empty(before)
        fresh = None
        if library is not None and uuids and not self._closed.is_set():
            fresh = _EventSet(library, self.meter, uuids)
            if not fresh.watches:
                fresh.free()
                fresh = None
        self._set = fresh
        self._give_up(before)
        if library is None:
            self._released.set()

    def _give_up(self, event_set: "_EventSet | None") -> None:
        if event_set is not None:
            self._empty(event_set)
            event_set.free()

    def _empty(self, event_set: "_EventSet") -> None:
        while not self._closed.is_set() and event_set.next(0) == pynvml.NVML_SUCCESS:
            self._hand_over(event_set)

    def _wait(self, event_set: "_EventSet") -> None:
        code = event_set.next(_BRIEF_WAIT_MILLISECONDS if self.brief else _WAIT_MILLISECONDS)
        if code == pynvml.NVML_SUCCESS:
            self._hand_over(event_set)
        elif code == pynvml.NVML_ERROR_GPU_IS_LOST:
            # The set goes on for the GPUs that are left.
            self._changed.wait(_WAIT_MILLISECONDS / 1000)
        elif code != pynvml.NVML_ERROR_TIMEOUT:
            self._set = None
            event_set.free()
            raise NvmlFailed("nvmlEventSetWait_v2", code)

    def _hand_over(self, event_set: "_EventSet") -> None:
        if event_set.data.eventType == pynvml.nvmlEventTypeXidCriticalError:
            self._on_xid(event_set.uuid, int(event_set.data.eventData))


class _EventSet:
    """A set of the driver's and the GPUs registered with it; `watches` says whether any is.

    Raises `NvmlFailed` where the driver makes none.
    """

    def __init__(self, library: NvmlLibrary, meter: CallMeter, uuids: Mapping[int, str]) -> None:
        self.data = pynvml.c_nvmlEventData_t()
        self._library = library
        self._meter = meter
        self._uuids = uuids
        self._pointer = ctypes.c_void_p()
        library.call(meter, "nvmlEventSetCreate", ctypes.byref(self._pointer))
        registered = [self._register(handle) for handle in uuids]
        self.watches = any(registered)

    @property
    def uuid(self) -> str:
        """Return the GPU of the event that `next` took."""
        handle = ctypes.cast(self.data.device, ctypes.c_void_p).value or 0
        return self._uuids.get(handle, "")

    def next(self, milliseconds: int) -> int:
        """Take the next event into `data`, waiting at most so long; return the driver's code."""
        call = self._library.prepare(
            "nvmlEventSetWait_v2",
            self._pointer,
            ctypes.byref(self.data),
            ctypes.c_uint(milliseconds),
        )
        # Waiting for an event is not work of the driver, so its time is not counted.
        code = call()
        self._meter.calls += 1
        return code

    def free(self) -> None:
        """Give the set up with what it holds."""
        self._meter.run(self._library.prepare("nvmlEventSetFree", self._pointer))

    def _register(self, handle: int) -> bool:
        code = self._meter.run(
            self._library.prepare(
                "nvmlDeviceRegisterEvents",
                ctypes.c_void_p(handle),
                ctypes.c_ulonglong(pynvml.nvmlEventTypeXidCriticalError),
                self._pointer,
            )
        )
        return bool(code == pynvml.NVML_SUCCESS)
