"""What is counted of the GPUs of a tier, and what is not."""

from typing import Any

import pytest

from gpu_metrics.domain.fleet import FleetPolicy, FleetView
from gpu_metrics.domain.readings import GpuReading, HostReport, MissingReason, Tier
from gpu_metrics.domain.samples import FleetMetric, SampleSeries
from gpu_metrics.domain.tier_samples import GpuFigure, TierSamples

from .builders import NOON, make_report, make_server


def a_report(sequence: int = 1, **readings: Any) -> HostReport:
    gpu = GpuReading(gpu_uuid="GPU-1", index=3, **readings)
    return make_report("i-1", sequence, gpus=(gpu,))


def counted(report: HostReport, now: float = 0.0) -> dict[GpuFigure, dict[int, int]]:
    view, samples = FleetView(FleetPolicy()), TierSamples()
    view.apply(report, 0.0, NOON)
    samples.observe(view.hosts(now))
    return {each.figure: dict(each.counts) for each in samples.take()}


@pytest.mark.parametrize(
    ("readings", "figure", "value"),
    [
        ({"utilization_permille": 374}, GpuFigure.UTILIZATION_PERCENT, 37),
        ({"utilization_permille": 0}, GpuFigure.UTILIZATION_PERCENT, 0),
        ({"power_milliwatts": 150_500}, GpuFigure.POWER_WATTS, 151),
        ({"temperature_celsius": 61}, GpuFigure.TEMPERATURE_CELSIUS, 61),
        (
            {"memory_used_bytes": 6 * 2**30, "memory_total_bytes": 24 * 2**30},
            GpuFigure.MEMORY_USED_PERCENT,
            25,
        ),
    ],
)
def test_a_figure_is_rounded_as_people_read_it(
    readings: dict[str, int], figure: GpuFigure, value: int
) -> None:
    assert counted(a_report(**readings)) == {figure: {value: 1}}


def test_a_missing_figure_counts_for_nothing() -> None:
    report = a_report(utilization_permille=MissingReason.HUNG, memory_used_bytes=2**30)
    assert counted(report) == {}


def test_a_stale_host_counts_for_nothing() -> None:
    assert counted(a_report(utilization_permille=500), now=10.0) == {}


def test_packed_samples_take_the_place_of_the_reading() -> None:
    series = SampleSeries(
        gpu_index=3,
        metric=FleetMetric.GPU_UTILIZATION_PERMILLE,
        offset_microseconds=(900_000, 300_000, 300_000),
        values=(0, 1000, 1000),
    )
    report = a_report(utilization_permille=500)._replace(series=(series,))
    assert counted(report) == {GpuFigure.UTILIZATION_PERCENT: {0: 1, 100: 2}}


def test_a_report_that_is_seen_twice_counts_once() -> None:
    view, samples = FleetView(FleetPolicy()), TierSamples()
    view.apply(a_report(utilization_permille=500), 0.0, NOON)
    for _ in range(3):
        samples.observe(view.hosts(0.0))
    (distribution,) = samples.take()
    assert distribution.counts == {50: 1}
    samples.observe(view.hosts(0.0))
    assert samples.take() == ()


def test_gpus_count_for_the_tier_of_the_server_that_names_them() -> None:
    gpus = tuple(
        GpuReading(gpu_uuid=f"GPU-{index}", index=index, utilization_permille=100 * index)
        for index in range(3)
    )
    servers = (
        make_server("a", Tier.GOLD, gpu_uuids=("GPU-2",)),
        make_server("b", Tier.SILVER, gpu_uuids=("GPU-0", "GPU-1")),
    )
    view, samples = FleetView(FleetPolicy()), TierSamples()
    view.apply(make_report("i-1", 1, *servers, gpus=gpus), 0.0, NOON)
    samples.observe(view.hosts(0.0))
    assert {each.tier: dict(each.counts) for each in samples.take()} == {
        Tier.GOLD: {20: 1},
        Tier.SILVER: {0: 1, 10: 1},
    }


def test_memory_that_was_not_told_at_first_counts_once_it_is() -> None:
    view, samples = FleetView(FleetPolicy()), TierSamples()
    view.apply(a_report(memory_used_bytes=2**30), 0.0, NOON)
    samples.observe(view.hosts(0.0))
    assert samples.take() == ()
    told = a_report(2, memory_used_bytes=2**30, memory_total_bytes=2**32)
    view.apply(told, 1.0, NOON)
    samples.observe(view.hosts(1.0))
    assert [dict(each.counts) for each in samples.take()] == [{25: 1}]


def test_a_server_that_moves_to_another_gpu_takes_its_tier_along() -> None:
    gpus = tuple(
        GpuReading(gpu_uuid=f"GPU-{index}", index=index, utilization_permille=100 * index)
        for index in range(2)
    )
    view, samples = FleetView(FleetPolicy()), TierSamples()
    for sequence, uuid in ((1, "GPU-0"), (2, "GPU-1")):
        server = make_server("a", Tier.GOLD, gpu_uuids=(uuid,))
        view.apply(make_report("i-1", sequence, server, gpus=gpus), 0.0, NOON)
        samples.observe(view.hosts(0.0))
    assert [dict(each.counts) for each in samples.take()] == [{0: 1, 10: 1}]


def test_what_counts_at_another_collector_is_left_to_it() -> None:
    view, samples = FleetView(FleetPolicy()), TierSamples()
    for host, before, tier in (
        ("i-1", 0, Tier.GOLD),
        ("i-2", 1, Tier.GOLD),
        ("i-3", 1, Tier.SILVER),
    ):
        gpu = GpuReading(gpu_uuid=host, index=0, utilization_permille=500)
        report = make_report(host, 1, make_server(f"server-{host}", tier), gpus=(gpu,))
        view.apply(report._replace(collectors_before=before), 0.0, NOON)
    samples.observe(view.hosts(0.0))
    assert [(each.tier, dict(each.counts)) for each in samples.take()] == [(Tier.GOLD, {50: 1})]
    counted = view.aggregates(0.0, counted_here=True)
    assert [(each.tier, each.known_servers) for each in counted] == [(Tier.GOLD, 1)]
    shown = view.aggregates(0.0)
    assert [(each.tier, each.known_servers) for each in shown] == [(Tier.GOLD, 2), (Tier.SILVER, 1)]


def test_a_collector_whose_hosts_all_count_elsewhere_publishes_nothing() -> None:
    view = FleetView(FleetPolicy())
    view.apply(make_report("i-1", 1)._replace(collectors_before=1), 0.0, NOON)
    assert view.aggregates(0.0, counted_here=True) == ()
    # The other one is gone, and the host says so with its next report.
    view.apply(make_report("i-1", 2), 1.0, NOON)
    assert [each.known_servers for each in view.aggregates(1.0, counted_here=True)] == [1]
