"""What dcgm-exporter says of a host's GPUs on its metrics page.

Names are those of NVIDIA's DCGM field identifiers (`dcgm_fields.h`), as dcgm-exporter prints them.
DCGM has no missing values: `dcgm_structs.h` sets numbers aside that stand for blank (the base), not
found (+1), not supported (+2) and not permitted (+3). Bases are 0x7ffffff0 for 32-bit fields,
0x7ffffffffffffff0 for 64-bit ones and 2^47 for floats, and which of them a field has depends on the
exporter's version, so all three are rejected everywhere.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gpu_metrics.domain.plain_text import plain_text
from gpu_metrics.domain.readings import CountReading, GpuReading, MissingReason

__all__ = ["DcgmGpu", "parse_dcgm_page"]

_LINE = re.compile(
    r"\n(DCGM_FI_[A-Z0-9_]{1,64})"
    # Possessive, and never past the end of a line: a hostile page costs no more than its length.
    r'\{((?:[^"}\n]++|"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+")*+)\}[ \t]+([^ \t\n]{1,40}+)'
)
_LABEL = re.compile(r'([A-Za-z_]+)="((?:[^"\\]|\\.)*)"')
_MAXIMUM_GPUS = 64
_LARGEST_COUNT = 2**63 - 1

_INT32_BLANK = 0x7FFFFFF0
_INT64_BLANK = 0x7FFFFFFFFFFFFFF0
_FP64_BLANK = 2**47
_BLANK_BASES = (_INT32_BLANK, _INT64_BLANK, _FP64_BLANK)
# How far above a base the header's own numbers lie.
_BLANK_SPAN = 16
_BLANK_REASONS = {3: MissingReason.PERMISSION}


@dataclass(frozen=True, slots=True)
class DcgmGpu:
    """One GPU of a page; `last_xid` is 0 when it had none, None when the page does not tell."""

    reading: GpuReading
    last_xid: int | None


def _times(factor: int) -> Callable[[float], int]:
    return lambda value: round(value * factor)


_MEBIBYTE = 1 << 20
# Our field, the factor from DCGM's unit to ours, the largest value that makes sense in ours.
_FIELDS: Mapping[str, tuple[str, Callable[[float], int], int]] = {
    "DCGM_FI_DEV_GPU_UTIL": ("utilization_permille", _times(10), 1000),
    "DCGM_FI_DEV_MEM_COPY_UTIL": ("memory_utilization_permille", _times(10), 1000),
    "DCGM_FI_DEV_FB_USED": ("memory_used_bytes", _times(_MEBIBYTE), 2**47),
    "DCGM_FI_DEV_FB_TOTAL": ("memory_total_bytes", _times(_MEBIBYTE), 2**47),
    "DCGM_FI_DEV_POWER_USAGE": ("power_milliwatts", _times(1000), 2**31),
    "DCGM_FI_DEV_POWER_MGMT_LIMIT": ("power_limit_milliwatts", _times(1000), 2**31),
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": ("energy_millijoules", _times(1), _LARGEST_COUNT),
    "DCGM_FI_DEV_GPU_TEMP": ("temperature_celsius", _times(1), 1000),
    "DCGM_FI_DEV_MEMORY_TEMP": ("memory_temperature_celsius", _times(1), 1000),
    "DCGM_FI_DEV_SM_CLOCK": ("sm_clock_megahertz", _times(1), 1_000_000),
    "DCGM_FI_DEV_MEM_CLOCK": ("memory_clock_megahertz", _times(1), 1_000_000),
    "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS": ("clock_event_reasons", _times(1), _LARGEST_COUNT),
    "DCGM_FI_DEV_CLOCKS_EVENT_REASONS": ("clock_event_reasons", _times(1), _LARGEST_COUNT),
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": ("pcie_replays_total", _times(1), _LARGEST_COUNT),
    "DCGM_FI_PROF_PCIE_TX_BYTES": ("pcie_transmit_bytes_per_second", _times(1), _LARGEST_COUNT),
    "DCGM_FI_PROF_PCIE_RX_BYTES": ("pcie_receive_bytes_per_second", _times(1), _LARGEST_COUNT),
    "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL": ("ecc_corrected_total", _times(1), _LARGEST_COUNT),
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": ("ecc_uncorrected_total", _times(1), _LARGEST_COUNT),
}
_XID = "DCGM_FI_DEV_XID_ERRORS"
_FREE, _RESERVED = "DCGM_FI_DEV_FB_FREE", "DCGM_FI_DEV_FB_RESERVED"


def parse_dcgm_page(page: str) -> tuple[DcgmGpu, ...]:
    """Return the GPUs of a page in Prometheus' text format, at most 64, by their index.

    A figure that is not on the page is `UNSUPPORTED`, as is a blank; one whose value makes no sense
    is `MALFORMED`. Lines of MIG instances and lines without a UUID are passed over.
    """
    labels_of: dict[str, dict[str, str]] = {}
    values: dict[str, dict[str, CountReading | float]] = {}
    for name, label_text, text in _LINE.findall("\n" + page):
        if name not in _FIELDS and name not in (_XID, _FREE, _RESERVED):
            continue
        labels = dict(_LABEL.findall(label_text))
        uuid = labels.get("UUID", "")
        if not 0 < len(uuid) <= 80 or not uuid.isprintable() or labels.get("GPU_I_ID"):
            continue
        if uuid not in values and len(values) == _MAXIMUM_GPUS:
            continue
        labels_of.setdefault(uuid, labels)
        values.setdefault(uuid, {})[name] = _value(text)
    gpus = [_gpu(uuid, labels_of[uuid], found) for uuid, found in values.items()]
    return tuple(sorted(gpus, key=lambda gpu: gpu.reading.index))


def _value(text: str) -> float | MissingReason:
    """Return a number of the page, or what it stands for."""
    try:
        # As an integer where it is one: a float cannot tell the 64-bit blanks apart.
        number: float = int(text) if text.isascii() and text.isdigit() else float(text)
    except ValueError:
        return MissingReason.MALFORMED
    for base in _BLANK_BASES:
        if base <= number < base + _BLANK_SPAN:
            return _BLANK_REASONS.get(int(number - base), MissingReason.UNSUPPORTED)
    # Printed as floats all 64-bit blanks are 2^63.
    if number >= _INT64_BLANK and math.isfinite(number):
        return MissingReason.UNSUPPORTED
    return number if math.isfinite(number) and number >= 0 else MissingReason.MALFORMED


def _gpu(
    uuid: str, labels: Mapping[str, str], found: Mapping[str, CountReading | float]
) -> DcgmGpu:
    figures: dict[str, Any] = {field: MissingReason.UNSUPPORTED for field, _, _ in _FIELDS.values()}
    for name, (field, convert, largest) in _FIELDS.items():
        value = found.get(name)
        if isinstance(value, MissingReason):
            figures[field] = value
        elif value is not None:
            converted = convert(value)
            figures[field] = converted if converted <= largest else MissingReason.MALFORMED
    if "DCGM_FI_DEV_FB_TOTAL" not in found:
        figures["memory_total_bytes"] = _total_memory(found)
    index = labels.get("gpu", "")
    xid = found.get(_XID, MissingReason.UNSUPPORTED)
    return DcgmGpu(
        GpuReading(
            gpu_uuid=uuid,
            index=min(int(index), 63) if index.isascii() and index.isdigit() else 0,
            product_name=plain_text(labels.get("modelName", ""), 96),
            pci_bus_id=plain_text(labels.get("pci_bus_id", ""), 32),
            **figures,
        ),
        last_xid=None if isinstance(xid, MissingReason) or xid >= 2**32 else round(xid),
    )


def _total_memory(found: Mapping[str, CountReading | float]) -> CountReading:
    """Return the sum of used, free and, where it is told, reserved memory."""
    parts = [found.get("DCGM_FI_DEV_FB_USED"), found.get(_FREE)]
    reserved = found.get(_RESERVED)
    if reserved is not None and not isinstance(reserved, MissingReason):
        parts.append(reserved)
    total = 0.0
    for part in parts:
        if part is None:
            return MissingReason.UNSUPPORTED
        if isinstance(part, MissingReason):
            return part
        total += part
    return round(total * _MEBIBYTE) if total < 2**27 else MissingReason.MALFORMED
