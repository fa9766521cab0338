"""What is unpacked from the driver's buffers is laid out as the binding's structures are."""

import ctypes

import pynvml
import pytest

from gpu_metrics.adapters import nvml_fields, nvml_processes, nvml_rings
from gpu_metrics.domain.readings import MissingReason


@pytest.mark.parametrize(
    ("size", "structure"),
    [
        (nvml_fields.FIELD_VALUE_BYTES, pynvml.c_nvmlFieldValue_t),
        (nvml_processes.PROCESS_BYTES, pynvml.c_nvmlProcessInfo_v2_t),
        (nvml_rings.SAMPLE_BYTES, pynvml.c_nvmlSample_t),
    ],
)
def test_an_entry_has_the_size_of_the_bindings_structure(
    size: int, structure: type[ctypes.Structure]
) -> None:
    assert size == ctypes.sizeof(structure)


@pytest.mark.parametrize(
    ("value_type", "raw", "value"),
    [
        (pynvml.NVML_VALUE_TYPE_UNSIGNED_INT, 0xFFFF_FFFF_0000_0007, 7),
        (pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, 2**63, 2**63),
        (pynvml.NVML_VALUE_TYPE_SIGNED_INT, 41, 41),
        (pynvml.NVML_VALUE_TYPE_DOUBLE, 0x4045_0000_0000_0000, 42),
    ],
)
def test_a_value_is_read_by_its_type(value_type: int, raw: int, value: int) -> None:
    assert nvml_fields.decode(value_type, raw) == value


@pytest.mark.parametrize(
    ("value_type", "raw"),
    [
        (pynvml.NVML_VALUE_TYPE_SIGNED_INT, 0xFFFF_FFFF),
        (pynvml.NVML_VALUE_TYPE_DOUBLE, 0x7FF8_0000_0000_0000),
        (99, 1),
    ],
)
def test_a_negative_value_a_nan_and_an_unknown_type_are_malformed(
    value_type: int, raw: int
) -> None:
    assert nvml_fields.decode(value_type, raw) is MissingReason.MALFORMED
