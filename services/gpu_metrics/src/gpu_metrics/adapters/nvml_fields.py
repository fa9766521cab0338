"""About a dozen values of a GPU in one call of the driver, into a buffer that is used again."""

import ctypes
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import pynvml

from gpu_metrics.adapters.nvml_library import CallMeter, NvmlLibrary, reason_of
from gpu_metrics.domain.readings import CountReading, MissingReason

__all__ = [
    "FAST_FIELDS",
    "FIELD_VALUE_BYTES",
    "SLOW_FIELDS",
    "FieldBatch",
    "FieldValue",
    "decode",
]

FAST_FIELDS: dict[str, int] = {
    "power_milliwatts": pynvml.NVML_FI_DEV_POWER_INSTANT,
    "power_limit_milliwatts": pynvml.NVML_FI_DEV_POWER_CURRENT_LIMIT,
    "energy_millijoules": pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION,
    "memory_temperature_celsius": pynvml.NVML_FI_DEV_MEMORY_TEMP,
    "pcie_replays_total": pynvml.NVML_FI_DEV_PCIE_REPLAY_COUNTER,
    "pcie_transmit_bytes": pynvml.NVML_FI_DEV_PCIE_COUNT_TX_BYTES,
    "pcie_receive_bytes": pynvml.NVML_FI_DEV_PCIE_COUNT_RX_BYTES,
    # Nanoseconds for which clocks were held back, by cause: these tell what ended between readings.
    "held_by_power_cap": pynvml.NVML_FI_DEV_PERF_POLICY_POWER,
    "held_by_sync_boost": pynvml.NVML_FI_DEV_PERF_POLICY_SYNC_BOOST,
    "held_by_thermal_slowdown": pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN,
    "held_by_hardware_thermal_slowdown": pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN,
    "held_by_power_brake": pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN,
}
"""Read every time."""

SLOW_FIELDS: dict[str, int] = {
    "ecc_corrected_total": pynvml.NVML_FI_DEV_ECC_SBE_VOL_TOTAL,
    "ecc_uncorrected_total": pynvml.NVML_FI_DEV_ECC_DBE_VOL_TOTAL,
}
"""Read with the fast ones now and then, as the driver has to ask the device for them."""

# nvmlFieldValue_t: field, scope, timestamp, latency, value type, status, value.
_FIELD_VALUE = struct.Struct("<IIqqIiQ")
FIELD_VALUE_BYTES = _FIELD_VALUE.size
_AS_UNSIGNED = {
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: lambda raw: raw & 0xFFFF_FFFF,
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: lambda raw: raw,
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: lambda raw: raw,
}


class FieldValue(NamedTuple):
    """A value or why it is missing, and the driver's time of it in microseconds since 1970."""

    value: CountReading
    timestamp_microseconds: int


def decode(value_type: int, raw: int) -> CountReading:
    """Return the number in the eight bytes of a value of this NVML type."""
    if (decode := _AS_UNSIGNED.get(value_type)) is not None:
        return int(decode(raw))
    packed = struct.pack("<Q", raw)
    if value_type == pynvml.NVML_VALUE_TYPE_DOUBLE:
        number = struct.unpack("<d", packed)[0]
    elif value_type == pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG:
        number = struct.unpack("<q", packed)[0]
    elif value_type == pynvml.NVML_VALUE_TYPE_SIGNED_INT:
        number = struct.unpack("<i4x", packed)[0]
    else:
        return MissingReason.MALFORMED
    # None of the fields read here can be negative, and a comparison with NaN is false.
    return int(number) if 0 <= number < 2**64 else MissingReason.MALFORMED


class FieldBatch:
    """Some fields of one device, read together; `failed` is why the last call gave none at all."""

    def __init__(self, library: NvmlLibrary, handle: Any, fields: dict[str, int]) -> None:
        self.failed: MissingReason | None = None
        self._names: Sequence[str] = tuple(fields)
        self._values = (pynvml.c_nvmlFieldValue_t * len(fields))()
        for value, field in zip(self._values, fields.values(), strict=True):
            value.fieldId = field
        self._raw = memoryview(self._values).cast("B")
        self._call = library.prepare(
            "nvmlDeviceGetFieldValues", handle, ctypes.c_int(len(fields)), self._values
        )

    def read(self, meter: CallMeter) -> dict[str, FieldValue]:
        """Return each field, a value or the reason it is missing."""
        code = meter.run(self._call)
        self.failed = None if code == pynvml.NVML_SUCCESS else reason_of(code)
        if self.failed is not None:
            return dict.fromkeys(self._names, FieldValue(self.failed, 0))
        return {
            name: FieldValue(_read(value_type, status, raw), timestamp)
            for name, (_, _, timestamp, _, value_type, status, raw) in zip(
                self._names, _FIELD_VALUE.iter_unpack(self._raw), strict=True
            )
        }

    def statuses(self) -> dict[str, int]:
        """Return what the driver said of each field in the last call that succeeded."""
        return {
            name: status
            for name, (*_, status, _) in zip(
                self._names, _FIELD_VALUE.iter_unpack(self._raw), strict=True
            )
        }


def _read(value_type: int, status: int, raw: int) -> CountReading:
    if status == pynvml.NVML_SUCCESS:
        return decode(value_type, raw)
    # A driver that is older than a field takes its number for a mistake.
    if status == pynvml.NVML_ERROR_INVALID_ARGUMENT:
        return MissingReason.UNSUPPORTED
    return reason_of(status)
