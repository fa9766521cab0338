"""The driver's own samples between two readings.

The driver keeps samples of a few figures in rings that hold some seconds. Emptying them once a
second shows what no momentary reading does: a burst of a sixth of a second. Utilisation samples are
means over their period, so a shorter burst shows weaker.
"""

import ctypes
import struct
from collections import deque
from typing import Any

import pynvml

from gpu_metrics.adapters.nvml_library import CallMeter, NvmlLibrary, reason_of
from gpu_metrics.domain.readings import CountReading, MissingReason
from gpu_metrics.domain.samples import FleetMetric

__all__ = ["MAXIMUM_SAMPLES", "SAMPLE_BYTES", "SampleRing"]

MAXIMUM_SAMPLES = 512
"""Samples that a series of a report may hold; the oldest are given up beyond."""

_LARGEST_RING = 4096
_SECOND = 1_000_000
# nvmlSample_t with a 32-bit value and with a 64-bit one.
_SHORT_SAMPLE = struct.Struct("<QI4x")
_LONG_SAMPLE = struct.Struct("<QQ")
_REAL_SAMPLE = struct.Struct("<Qd")
SAMPLE_BYTES = _LONG_SAMPLE.size
_LAYOUTS = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: _REAL_SAMPLE,
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: _SHORT_SAMPLE,
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: _LONG_SAMPLE,
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: _LONG_SAMPLE,
}


class SampleRing:
    """One ring of one device, read from where it was left.

    `scale` turns the driver's unit into the metric's. Samples wait in `samples` as pairs of a
    moment (microseconds since 1970) and a value until somebody takes them.
    """

    def __init__(
        self,
        library: NvmlLibrary,
        handle: Any,
        sampling_type: int,
        *,
        metric: FleetMetric,
        scale: int = 1,
    ) -> None:
        self.metric = metric
        self.samples: deque[tuple[int, int]] = deque(maxlen=MAXIMUM_SAMPLES)
        self._scale = scale
        self._library = library
        self._handle = handle
        self._sampling_type = ctypes.c_int(sampling_type)
        self._value_type = ctypes.c_uint()
        self._count = ctypes.c_uint()
        self.last_seen = ctypes.c_ulonglong()
        self._capacity = 0
        self._unsupported = False
        self._raw = memoryview(b"")
        self._call = self._prepare(None)

    def _prepare(self, buffer: Any) -> Any:
        return self._library.prepare(
            "nvmlDeviceGetSamples",
            self._handle,
            self._sampling_type,
            self.last_seen,
            ctypes.byref(self._value_type),
            ctypes.byref(self._count),
            buffer,
        )

    def go_on_from(self, before: "SampleRing") -> None:
        """Begin where a ring of the same GPU was left, and hold what nobody took of it."""
        self.samples = before.samples
        self.last_seen.value = before.last_seen.value

    def _open(self, meter: CallMeter) -> None:
        """Find out how large the ring is."""
        code = meter.run(self._call)
        if code != pynvml.NVML_SUCCESS:
            self._unsupported = reason_of(code) is MissingReason.UNSUPPORTED
            return
        self._capacity = min(max(self._count.value, 1), _LARGEST_RING)
        buffer = (pynvml.c_nvmlSample_t * self._capacity)()
        self._raw = memoryview(buffer).cast("B")
        self._call = self._prepare(buffer)

    def drain(
        self, meter: CallMeter, now_microseconds: int, momentary: CountReading
    ) -> CountReading:
        """Take the samples since the last time; return the highest, or why there is none.

        The reason is STALE when the ring holds nothing newer, as happens on an idle GPU. Without
        samples the momentary value is the only one, and the missing highest tells that it is.
        """
        highest = self._drain(meter, now_microseconds)
        if isinstance(highest, MissingReason) and not isinstance(momentary, MissingReason):
            self.samples.append((now_microseconds, momentary))
        return highest

    def _drain(self, meter: CallMeter, now_microseconds: int) -> CountReading:
        if self._capacity == 0 and not self._unsupported:
            self._open(meter)
        if self._unsupported:
            return MissingReason.UNSUPPORTED
        if self._capacity == 0:
            return MissingReason.STALE
        if self.last_seen.value == 0:
            # What was sampled before anybody asked is of no report.
            self._read(meter)
            self.last_seen.value = self.last_seen.value or 1
            return MissingReason.STALE
        if self.last_seen.value > now_microseconds + _SECOND:
            # The clock was set back; what is newer by it would be taken for old.
            self.last_seen.value = now_microseconds - _SECOND
        found = self._read(meter)
        if isinstance(found, MissingReason):
            return found
        self.samples.extend(found)
        return max(value for _, value in found)

    def _read(self, meter: CallMeter) -> list[tuple[int, int]] | MissingReason:
        self._count.value = self._capacity
        code = meter.run(self._call)
        if code != pynvml.NVML_SUCCESS:
            return reason_of(code)
        layout = _LAYOUTS.get(self._value_type.value)
        if layout is None:
            return MissingReason.MALFORMED
        scale, last_seen = self._scale, self.last_seen.value
        used = self._raw[: min(self._count.value, self._capacity) * layout.size]
        # Entries that were never filled have time 0.
        found = sorted(
            (moment, int(value * scale))
            for moment, value in layout.iter_unpack(used)
            if moment > last_seen
        )
        if not found:
            return MissingReason.STALE
        self.last_seen.value = found[-1][0]
        return found
