"""Whether a GPU answers a process that attaches to the driver now; needs no other module of ours.

    python nvml_lookout.py BUS_ID...

ends with 0 when one of these GPUs answers, else with 1. An id that is a number is an index.
"""

import ctypes
import sys
from collections.abc import Sequence

__all__ = ["main"]

_TEMPERATURE_GPU = 0


def main(gpus: Sequence[str]) -> int:
    """Return 0 when one of these GPUs answers, else 1."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return 1
    if library.nvmlInitWithFlags(ctypes.c_uint(0)) != 0:
        return 1
    handle, temperature = ctypes.c_void_p(), ctypes.c_uint()
    for gpu in gpus:
        # By its place on the bus a GPU is opened without the others (NVML's documentation of
        # nvmlDeviceGetHandleByPciBusId_v2).
        if gpu.isdigit():
            code = library.nvmlDeviceGetHandleByIndex_v2(
                ctypes.c_uint(int(gpu)), ctypes.byref(handle)
            )
        else:
            code = library.nvmlDeviceGetHandleByPciBusId_v2(gpu.encode(), ctypes.byref(handle))
        if code == 0:
            code = library.nvmlDeviceGetTemperature(
                handle, ctypes.c_int(_TEMPERATURE_GPU), ctypes.byref(temperature)
            )
        if code == 0:
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
