"""XID errors as the driver reports them.

A thread waits in the driver, at most half a second at a time, and hands each error over at once.
"""

import ctypes
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pynvml
import structlog

from gpu_metrics.adapters.nvml_library import CallMeter, NvmlFailed, NvmlLibrary

__all__ = ["XidWatcher"]

log = structlog.get_logger(__name__)

_WAIT_MILLISECONDS = 500
_RETRY_SECONDS = 1.0


class XidWatcher:
    """Calls `on_xid` with a GPU's UUID and a code, in its own thread, for every XID error.

    `watch` says which GPUs; until it is called, and while the driver is away, nothing is watched.
    """

    def __init__(self, on_xid: Callable[[str, int], None]) -> None:
        self.meter = CallMeter()
        self._on_xid = on_xid
        self._changed = threading.Event()
        self._closed = threading.Event()
        self._library: NvmlLibrary | None = None
        self._uuids: Mapping[int, str] = {}
        self._last_failure = 0
        self._thread = threading.Thread(target=self._run, name="nvml-events", daemon=True)
        self._thread.start()

    def watch(self, library: NvmlLibrary, uuids: Mapping[int, str]) -> None:
        """Watch the GPUs with these handles from now on, instead of those before."""
        self._library, self._uuids = library, dict(uuids)
        self._changed.set()

    def close(self) -> None:
        """Let the thread end, once the driver returns."""
        self._closed.set()
        self._changed.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            self._changed.wait()
            self._changed.clear()
            library, uuids = self._library, self._uuids
            if library is None or self._closed.is_set():
                continue
            try:
                self._watch_set(library, uuids)
            except NvmlFailed as failed:
                if failed.code != self._last_failure:
                    log.warning("nvml_events_unavailable", code=failed.code)
                self._last_failure = failed.code
                # The driver may come back without anybody saying so.
                if not self._closed.wait(_RETRY_SECONDS):
                    self._changed.set()

    def _watch_set(self, library: NvmlLibrary, uuids: Mapping[int, str]) -> None:
        event_set = ctypes.c_void_p()
        library.call(self.meter, "nvmlEventSetCreate", ctypes.byref(event_set))
        try:
            registered = [self._register(library, handle, event_set) for handle in uuids]
            if any(registered):
                self._wait(library, event_set, uuids)
        finally:
            self.meter.run(library.prepare("nvmlEventSetFree", event_set))

    def _register(self, library: NvmlLibrary, handle: int, event_set: Any) -> bool:
        code = self.meter.run(
            library.prepare(
                "nvmlDeviceRegisterEvents",
                ctypes.c_void_p(handle),
                ctypes.c_ulonglong(pynvml.nvmlEventTypeXidCriticalError),
                event_set,
            )
        )
        return bool(code == pynvml.NVML_SUCCESS)

    def _wait(self, library: NvmlLibrary, event_set: Any, uuids: Mapping[int, str]) -> None:
        data = pynvml.c_nvmlEventData_t()
        wait = library.prepare(
            "nvmlEventSetWait_v2", event_set, ctypes.byref(data), ctypes.c_uint(_WAIT_MILLISECONDS)
        )
        while not self._changed.is_set():
            # Waiting for an event is not work of the driver, so its time is not counted.
            code = wait()
            self.meter.calls += 1
            if code == pynvml.NVML_SUCCESS:
                if data.eventType == pynvml.nvmlEventTypeXidCriticalError:
                    handle = ctypes.cast(data.device, ctypes.c_void_p).value or 0
                    self._on_xid(uuids.get(handle, ""), int(data.eventData))
            elif code == pynvml.NVML_ERROR_GPU_IS_LOST:
                # The set goes on for the GPUs that are left.
                self._closed.wait(_WAIT_MILLISECONDS / 1000)
            elif code != pynvml.NVML_ERROR_TIMEOUT:
                raise NvmlFailed("nvmlEventSetWait_v2", code)
