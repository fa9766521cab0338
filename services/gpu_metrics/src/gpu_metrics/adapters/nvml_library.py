"""The driver's management library as prepared calls.

nvidia-ml-py gives names and structures; the calls are made through ctypes directly, with function,
handle and buffer bound once, since its wrappers allocate and convert anew at every call.
"""

import ctypes
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import pynvml

from gpu_metrics.domain.readings import MissingReason

__all__ = ["CallMeter", "NvmlFailed", "NvmlLibrary", "PreparedCall", "reason_of"]

PreparedCall = Callable[[], int]
"""A call with all arguments bound; returns NVML's return code."""

_REASONS = {
    pynvml.NVML_ERROR_NOT_SUPPORTED: MissingReason.UNSUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: MissingReason.UNSUPPORTED,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH: MissingReason.UNSUPPORTED,
    pynvml.NVML_ERROR_NO_DATA: MissingReason.UNSUPPORTED,
    pynvml.NVML_ERROR_NOT_FOUND: MissingReason.STALE,
    pynvml.NVML_ERROR_GPU_IS_LOST: MissingReason.LOST,
    pynvml.NVML_ERROR_GPU_NOT_FOUND: MissingReason.LOST,
    pynvml.NVML_ERROR_RESET_REQUIRED: MissingReason.LOST,
    pynvml.NVML_ERROR_TIMEOUT: MissingReason.TIMEOUT,
    pynvml.NVML_ERROR_NOT_READY: MissingReason.TIMEOUT,
    pynvml.NVML_ERROR_NO_PERMISSION: MissingReason.PERMISSION,
    pynvml.NVML_ERROR_CORRUPTED_INFOROM: MissingReason.MALFORMED,
}

_DETACHED = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    }
)


def reason_of(code: int) -> MissingReason:
    """Return why a figure is missing when its call returned `code`, which is not success."""
    return _REASONS.get(code, MissingReason.UNREACHABLE)


class NvmlFailed(Exception):
    """A call of the library returned an error; `code` is NVML's number for it."""

    def __init__(self, function: str, code: int) -> None:
        super().__init__(f"{function} returned {code}")
        self.code = code


class CallMeter:
    """Calls into the driver and the time they took; each thread has its own.

    `detached` tells that a call found no driver, or another one than the library is attached to.
    """

    __slots__ = ("calls", "detached", "observe", "seconds")

    def __init__(self) -> None:
        self.calls = 0
        self.seconds = 0.0
        self.detached = False
        self.observe: Callable[[PreparedCall, int, float], None] | None = None

    def run(self, call: PreparedCall) -> int:
        """Make the call and return its code."""
        began = perf_counter()
        code = call()
        took = perf_counter() - began
        self.calls += 1
        self.seconds += took
        if code in _DETACHED:
            self.detached = True
        if self.observe is not None:
            self.observe(call, code, took)
        return code


def _not_offered() -> int:
    return int(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)


class NvmlLibrary:
    """The loaded library. Raises `NvmlFailed` when there is none on this machine."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            code = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
            raise NvmlFailed("libnvidia-ml.so.1", code) from None

    def prepare(self, names: str | tuple[str, ...], *arguments: Any) -> PreparedCall:
        """Return the call of the first of these functions that this driver has.

        Without any, the call answers that the function was not found.
        """
        for name in (names,) if isinstance(names, str) else names:
            try:
                function = getattr(self._library, name)
            except AttributeError:
                continue
            return partial(function, *arguments)
        return _not_offered

    def call(self, meter: CallMeter, name: str, *arguments: Any) -> None:
        """Call once; raises `NvmlFailed` unless it succeeds."""
        code = meter.run(self.prepare(name, *arguments))
        if code != pynvml.NVML_SUCCESS:
            raise NvmlFailed(name, code)

    def text(self, meter: CallMeter, name: str, *arguments: Any, room: int = 96) -> str:
        """Return the text that a function writes into its last buffer."""
        buffer = ctypes.create_string_buffer(room)
        self.call(meter, name, *arguments, buffer, ctypes.c_uint(room))
        return buffer.value.decode(errors="replace")
