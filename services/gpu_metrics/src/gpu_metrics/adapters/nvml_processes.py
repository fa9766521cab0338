"""The processes that compute on a GPU.

The list costs the driver milliseconds under a lock that holds all other calls up, so it is read
seldom; what was read last stays until then.
"""

import ctypes
import struct
from typing import Any, TypeAlias

import pynvml

from gpu_metrics.adapters.nvml_library import CallMeter, NvmlLibrary, reason_of
from gpu_metrics.domain.readings import MissingReason

__all__ = ["PROCESS_BYTES", "ProcessList", "ProcessMemory"]

ProcessMemory: TypeAlias = tuple[int, int | None]
"""A process id and the bytes of device memory it holds, None when the driver does not tell."""

_MOST_PROCESSES = 1024
_NOT_AVAILABLE = 2**64 - 1
# nvmlProcessInfo_v2_t: process, memory, two instances that do not matter here.
_PROCESS = struct.Struct("<I4xQ8x")
PROCESS_BYTES = _PROCESS.size


class ProcessList:
    """The processes of one device as last read: a tuple, or why they could not be read."""

    def __init__(self, library: NvmlLibrary, handle: Any) -> None:
        self.last: tuple[ProcessMemory, ...] | MissingReason = MissingReason.NOT_TOLD
        self._library = library
        self._handle = handle
        self._count = ctypes.c_uint()
        self._make_room(16)

    def _make_room(self, room: int) -> None:
        self._room = room
        self._buffer = ctypes.create_string_buffer(room * _PROCESS.size)
        self._call = self._library.prepare(
            # Both versions fill in the same structure; drivers before 510 lack the later one.
            (
                "nvmlDeviceGetComputeRunningProcesses_v3",
                "nvmlDeviceGetComputeRunningProcesses_v2",
            ),
            self._handle,
            ctypes.byref(self._count),
            self._buffer,
        )

    def read(self, meter: CallMeter) -> None:
        """Ask the driver; a longer list than there is room for is asked for once more."""
        for _ in range(2):
            self._count.value = self._room
            code = meter.run(self._call)
            if code != pynvml.NVML_ERROR_INSUFFICIENT_SIZE:
                break
            # Processes may have started since the driver counted them.
            self._make_room(min(self._count.value + 16, _MOST_PROCESSES))
        if code != pynvml.NVML_SUCCESS:
            self.last = reason_of(code)
            return
        used = memoryview(self._buffer)[: self._count.value * _PROCESS.size]
        self.last = tuple(
            (process_id, None if memory == _NOT_AVAILABLE else memory)
            for process_id, memory in _PROCESS.iter_unpack(used)
        )
