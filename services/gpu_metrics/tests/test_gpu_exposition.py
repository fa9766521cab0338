"""The pages for Prometheus, as one reads them line by line."""

import re
from dataclasses import replace
from typing import Any

import pytest

from gpu_metrics.domain.fleet import FleetPolicy, FleetView
from gpu_metrics.domain.gpu_events import GpuEvent, GpuEventKind
from gpu_metrics.domain.gpu_exposition import dcgm_page, hardware_page
from gpu_metrics.domain.host_state import HostState
from gpu_metrics.domain.last_xids import LastXids
from gpu_metrics.domain.readings import GpuReading, MissingReason
from gpu_metrics.domain.samples import AgentCost

from .builders import NOON, make_report

GPU = GpuReading(
    gpu_uuid="GPU-1",
    index=0,
    product_name='A "quoted" \\ name\n',
    utilization_permille=375,
    memory_used_bytes=6 * 2**30,
    memory_total_bytes=24 * 2**30,
    power_milliwatts=150_500,
    energy_millijoules=9_007_199_254_740,
    temperature_celsius=MissingReason.HUNG,
    ecc_corrected_total=0,
)


def hosts(*gpus: GpuReading, now: float = 0.0) -> tuple[HostState, ...]:
    view = FleetView(FleetPolicy())
    view.apply(make_report("i-1", 1, gpus=gpus), 0.0, NOON)
    return view.hosts(now)


def samples(page: str) -> dict[str, float]:
    """Series and value of every line that is no comment."""
    lines = [line for line in page.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def values(page: str, name: str) -> list[float]:
    return [value for series, value in samples(page).items() if re.match(rf"{name}(\{{|$)", series)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hw_gpu_utilization_ratio", 0.375),
        ("hw_gpu_memory_usage_bytes", 6 * 2**30),
        ("hw_gpu_memory_utilization_ratio", 0.25),
        ("hw_power_watts", 150.5),
        ("hw_energy_joules_total", 9_007_199_254.74),
        ("hw_errors_total", 0.0),
        ("hw_gpu_fresh", 1.0),
    ],
)
def test_figures_are_in_base_units_under_the_conventions_names(name: str, value: float) -> None:
    assert values(hardware_page(hosts(GPU), 0.0, openmetrics=True), name) == [value]


def test_a_missing_figure_is_absent_and_its_reason_is_counted() -> None:
    page = hardware_page(hosts(GPU), 0.0, openmetrics=True)
    assert values(page, "hw_temperature_celsius") == []
    assert 'reason="hung"} 1' in page


def test_a_stale_host_shows_no_figure_but_that_it_is_stale_and_how_long() -> None:
    page = hardware_page(hosts(GPU, now=7.5), 7.5, openmetrics=True)
    assert values(page, "hw_gpu_utilization_ratio") == []
    assert values(page, "hw_gpu_fresh") == [0.0]
    assert values(page, "hw_gpu_reading_age_seconds") == [7.5]
    assert samples(dcgm_page(hosts(GPU, now=7.5), lambda *_: 0)) == {}


def test_dcgm_names_come_in_dcgms_units_and_labels() -> None:
    gpu = replace(GPU, product_name="NVIDIA A10G", pci_bus_id="00000000:00:1E.0")
    page = dcgm_page(hosts(gpu), lambda *_: 0)
    labels = (
        '{gpu="0",UUID="GPU-1",pci_bus_id="00000000:00:1E.0",device="nvidia0",'
        'modelName="NVIDIA A10G",Hostname="i-1",'
        'DCGM_FI_DRIVER_VERSION=""}'
    )
    shown = samples(page)
    assert shown[f"DCGM_FI_DEV_GPU_UTIL{labels}"] == 37.5
    assert shown[f"DCGM_FI_DEV_FB_USED{labels}"] == 6144
    assert shown[f"DCGM_FI_DEV_FB_FREE{labels}"] == 18432
    assert shown[f"DCGM_FI_DEV_POWER_USAGE{labels}"] == 150.5
    assert f"DCGM_FI_DEV_GPU_TEMP{labels}" not in shown


def test_the_last_xid_of_a_gpu_is_a_gauge_as_dashboards_for_dcgm_expect_it() -> None:
    xids = LastXids()
    (state,) = hosts(GPU)

    def told(**fields: Any) -> list[float]:
        report = state.report._replace(journal_id="j")
        if fields:
            xids.take("i-1", [GpuEvent(sequence=1, time=NOON, gpu_uuid="GPU-1", **fields)])
        page = dcgm_page([state._replace(report=report)], xids.of)
        return values(page, "DCGM_FI_DEV_XID_ERRORS")

    assert told() == [0]
    assert told(kind=GpuEventKind.XID, xid=48) == [48]
    assert told(kind=GpuEventKind.XID, xid=79) == [79]
    assert told(kind=GpuEventKind.GPU_LOST) == [79]
    assert told(kind=GpuEventKind.DRIVER_RELOADED) == [0]
    # Without a journal nobody watches for them.
    assert values(dcgm_page([state], xids.of), "DCGM_FI_DEV_XID_ERRORS") == []


def test_the_last_xid_says_what_it_is_about() -> None:
    (state,) = hosts(GPU)
    page = dcgm_page([state._replace(report=state.report._replace(journal_id="j"))], lambda *_: 79)
    assert 'err_code="79",err_msg="' in page
    assert 'err_msg=""' not in page


def test_codes_of_a_bounded_number_of_hosts_are_remembered() -> None:
    xids = LastXids()
    for number in range(5000):
        event = GpuEvent(sequence=1, kind=GpuEventKind.XID, time=NOON, gpu_uuid="G", xid=48)
        xids.take(f"i-{number}", [event])
    assert (xids.of("i-0", "G"), xids.of("i-4999", "G")) == (0, 48)


def test_an_empty_fleet_is_a_valid_page() -> None:
    assert hardware_page((), 0.0, openmetrics=True).endswith("# EOF\n")
    assert samples(dcgm_page((), lambda *_: 0)) == {}


COST = AgentCost(
    driver_calls=9000,
    driver_seconds=2.5,
    cpu_seconds=12.25,
    resident_bytes=63_000_000,
    replaced_reports=3,
    lost_events=1,
)
AGENT_FIGURES = {
    "gpu_agent_cpu_seconds_total": 12.25,
    "gpu_agent_driver_seconds_total": 2.5,
    "gpu_agent_driver_calls_total": 9000,
    "gpu_agent_memory_bytes": 63_000_000,
    "gpu_agent_lost_events_total": 1,
    "gpu_agent_replaced_reports_total": 3,
}


def shown_of_agents(page: str) -> dict[str, float]:
    return {series: value for series, value in samples(page).items() if "gpu_agent" in series}


@pytest.mark.parametrize("openmetrics", [True, False])
def test_what_an_agent_costs_its_host_is_shown_in_base_units(*, openmetrics: bool) -> None:
    (state,) = hosts(GPU)
    page = hardware_page([state._replace(cost=COST)], 0.0, openmetrics=openmetrics)
    assert shown_of_agents(page) == {
        f'{name}{{host_id="i-1"}}': value for name, value in AGENT_FIGURES.items()
    }
    family = "gpu_agent_cpu_seconds" if openmetrics else "gpu_agent_cpu_seconds_total"
    assert f"# TYPE {family} counter" in page.splitlines()


def test_of_an_agent_that_is_silent_or_tells_no_cost_there_is_none() -> None:
    assert shown_of_agents(hardware_page(hosts(GPU), 0.0, openmetrics=True)) == {}
    (stale,) = hosts(GPU, now=7.5)
    page = hardware_page([stale._replace(cost=COST)], 7.5, openmetrics=True)
    assert shown_of_agents(page) == {}
