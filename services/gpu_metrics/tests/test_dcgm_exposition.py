import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_metrics.domain.dcgm_exposition import parse_dcgm_page
from gpu_metrics.domain.readings import GPU_FIGURES, MissingReason

UUID = "GPU-6d1f0a52-3c1b-4f3e-9f0e-000000000001"
LABELS = (
    f'gpu="0",UUID="{UUID}",pci_bus_id="00000000:00:1E.0",device="nvidia0",'
    'modelName="NVIDIA A10G",Hostname="ip-10-0-3-7"'
)
PAGE = f"""\
# HELP DCGM_FI_DEV_SM_CLOCK SM clock frequency (in MHz).
# TYPE DCGM_FI_DEV_SM_CLOCK gauge
DCGM_FI_DEV_SM_CLOCK{{{LABELS}}} 1710
DCGM_FI_DEV_MEM_CLOCK{{{LABELS}}} 6250
DCGM_FI_DEV_GPU_TEMP{{{LABELS}}} 54
DCGM_FI_DEV_MEMORY_TEMP{{{LABELS}}} 0
DCGM_FI_DEV_POWER_USAGE{{{LABELS}}} 98.765000
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{LABELS}}} 2147483700
DCGM_FI_DEV_PCIE_REPLAY_COUNTER{{{LABELS}}} 3
DCGM_FI_DEV_GPU_UTIL{{{LABELS}}} 42
DCGM_FI_DEV_MEM_COPY_UTIL{{{LABELS}}} 17
DCGM_FI_DEV_XID_ERRORS{{{LABELS},err_code="31",err_msg="GPU memory page fault"}} 31
DCGM_FI_DEV_FB_FREE{{{LABELS}}} 2000
DCGM_FI_DEV_FB_USED{{{LABELS}}} 20000
DCGM_FI_DEV_FB_RESERVED{{{LABELS}}} 500
DCGM_FI_PROF_PCIE_TX_BYTES{{{LABELS}}} 1000000
DCGM_FI_DEV_VGPU_LICENSE_STATUS{{{LABELS}}} 0
"""


def line(name: str, value: str, *, uuid: str = UUID, gpu: str = "0", more: str = "") -> str:
    return f'DCGM_FI_DEV_{name}{{gpu="{gpu}",UUID="{uuid}"{more}}} {value}\n'


def test_a_page_is_read_in_our_units() -> None:
    (gpu,) = parse_dcgm_page(PAGE)
    reading = gpu.reading
    assert (reading.gpu_uuid, reading.index, reading.product_name) == (UUID, 0, "NVIDIA A10G")
    assert reading.sm_clock_megahertz == 1710
    assert reading.memory_clock_megahertz == 6250
    assert reading.temperature_celsius == 54
    assert reading.memory_temperature_celsius == 0
    assert reading.power_milliwatts == 98_765
    assert reading.energy_millijoules == 2_147_483_700
    assert reading.pcie_replays_total == 3
    assert reading.utilization_permille == 420
    assert reading.memory_utilization_permille == 170
    assert reading.memory_used_bytes == 20_000 * 2**20
    assert reading.memory_total_bytes == 22_500 * 2**20
    assert reading.pcie_transmit_bytes_per_second == 1_000_000
    assert reading.ecc_uncorrected_total is MissingReason.UNSUPPORTED
    assert gpu.last_xid == 31


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("2147483632", MissingReason.UNSUPPORTED),
        ("2147483634", MissingReason.UNSUPPORTED),
        ("2147483635", MissingReason.PERMISSION),
        ("9223372036854775792", MissingReason.UNSUPPORTED),
        ("9223372036854775795", MissingReason.PERMISSION),
        ("9223372036854775807", MissingReason.UNSUPPORTED),
        ("9.223372036854776e+18", MissingReason.UNSUPPORTED),
        ("140737488355328.000000", MissingReason.UNSUPPORTED),
        ("140737488355331", MissingReason.PERMISSION),
        ("NaN", MissingReason.MALFORMED),
        ("+Inf", MissingReason.MALFORMED),
        ("-1", MissingReason.MALFORMED),
        ("banana", MissingReason.MALFORMED),
    ],
)
@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("GPU_UTIL", "utilization_permille"),
        ("TOTAL_ENERGY_CONSUMPTION", "energy_millijoules"),
        ("POWER_USAGE", "power_milliwatts"),
        ("FB_USED", "memory_used_bytes"),
    ],
)
def test_a_number_that_stands_for_none_is_no_reading(
    name: str, field: str, value: str, reason: MissingReason
) -> None:
    (gpu,) = parse_dcgm_page(line(name, value))
    assert getattr(gpu.reading, field) is reason


@pytest.mark.parametrize("value", ["2147483632", "9223372036854775794", "140737488355328", "nan"])
def test_a_blank_xid_is_none(value: str) -> None:
    (gpu,) = parse_dcgm_page(line("XID_ERRORS", value))
    assert gpu.last_xid is None


def test_a_blank_part_of_the_memory_makes_no_total() -> None:
    page = line("FB_USED", "100") + line("FB_FREE", "2147483632")
    (gpu,) = parse_dcgm_page(page)
    assert gpu.reading.memory_total_bytes is MissingReason.UNSUPPORTED
    assert gpu.reading.memory_used_bytes == 100 * 2**20


def test_a_share_above_the_whole_is_malformed() -> None:
    (gpu,) = parse_dcgm_page(line("GPU_UTIL", "101"))
    assert gpu.reading.utilization_permille is MissingReason.MALFORMED


def test_slices_of_a_gpu_are_not_taken_for_it() -> None:
    page = line("GPU_UTIL", "10") + line("FB_USED", "5", more=',GPU_I_ID="1",GPU_I_PROFILE="1g"')
    (gpu,) = parse_dcgm_page(page)
    assert gpu.reading.memory_used_bytes is MissingReason.UNSUPPORTED


def test_gpus_are_in_order_of_their_index_and_bounded() -> None:
    page = "".join(
        line("GPU_TEMP", str(number), uuid=f"GPU-{number}", gpu=str(number))
        for number in range(100, -1, -1)
    )
    gpus = parse_dcgm_page(page)
    assert len(gpus) == 64
    indexes = [gpu.reading.index for gpu in gpus]
    assert indexes == sorted(indexes)


@given(st.text(alphabet='DCGM_FI{}",=\\\n 0129UuID', max_size=400))
def test_any_text_gives_figures_that_the_protocol_takes(text: str) -> None:
    for gpu in parse_dcgm_page(text + "\n" + text.replace("U", line("GPU_UTIL", text[:9]))):
        assert gpu.reading.gpu_uuid
        for name in GPU_FIGURES:
            reading = getattr(gpu.reading, name)
            assert isinstance(reading, MissingReason) or 0 <= reading < 2**63


@pytest.mark.parametrize(
    "page", ["DCGM_FI_DEV_GPU_UTIL{" * 100_000, "\nDCGM_FI_" + 'a="' * 700_000, "x" * 4_000_000]
)
def test_a_hostile_page_costs_no_more_than_its_length(page: str) -> None:
    began = time.process_time()
    assert parse_dcgm_page(page) == ()
    assert time.process_time() - began < 20
