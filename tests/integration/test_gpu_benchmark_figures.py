"""What the benchmarks of GPU metrics keep of reports, and when they fail."""

from datetime import UTC, datetime, timedelta

import pytest
from kept_limits import Limit, at_least, at_most, exit_status
from report_recorder import Recorder, recorder

from gaming.gpu_metrics.v1 import gpu_metrics_pb2_grpc
from gpu_metrics import wire
from gpu_metrics.domain.readings import GpuReading, Host, HostReport, MissingReason
from gpu_metrics.domain.samples import FleetMetric, SampleSeries
from servicekit.channels import open_channel

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def report_of(
    *gpus: GpuReading, sequence: int = 1, series: tuple[SampleSeries, ...] = ()
) -> HostReport:
    return HostReport(
        host=Host(host_id="i-1"),
        boot_id="boot",
        sequence=sequence,
        sample_time=NOON + timedelta(seconds=sequence),
        gpus=gpus,
        series=series,
    )


def series_of(
    metric: FleetMetric, *values: int, gpu: int = 0, offset: int = 500_000
) -> SampleSeries:
    return SampleSeries(gpu, metric, (offset, *[100_000] * (len(values) - 1)), values)


async def recorded(*reports: HostReport) -> Recorder:
    async with recorder() as receiver, open_channel(receiver.address) as channel:
        call = gpu_metrics_pb2_grpc.GpuReportServiceStub(channel).StreamReports(timeout=30)
        for report in reports:
            await call.write(wire.report_message(report))
            await call.read()
        call.cancel()
        return receiver.kept


async def test_samples_are_kept_whether_they_come_in_blocks_or_alone() -> None:
    together = [
        series_of(FleetMetric.GPU_UTILIZATION_PERMILLE, 1000, 250, gpu=3),
        series_of(FleetMetric.GPU_POWER_MILLIWATTS, 1, 2, gpu=3),
    ]
    alone = series_of(FleetMetric.GPU_UTILIZATION_PERMILLE, 500, gpu=1, offset=200_000)
    report = report_of(series=(*together, alone))
    message = wire.report_message(report)
    assert (len(message.sample_blocks), len(message.series)) == (1, 1)
    kept = await recorded(report)
    assert kept.samples == 5
    taken = NOON.timestamp() + 1
    shown = sorted((gpu, round(at - taken, 3), share) for gpu, at, share in kept.utilization)
    assert shown == [(1, -0.2, 0.5), (3, -0.5, 1.0), (3, -0.4, 0.25)]


async def test_only_a_gpu_that_is_said_to_hang_counts_as_told() -> None:
    late = GpuReading(gpu_uuid="GPU-a", index=0, power_milliwatts=MissingReason.TIMEOUT)
    hung = GpuReading(gpu_uuid="GPU-b", index=1, power_milliwatts=MissingReason.HUNG)
    kept = await recorded(report_of(late, hung))
    assert [(each.index, each.hung) for each in kept.readings] == [(0, False), (1, True)]


def test_a_limit_that_is_missed_fails_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    kept, missed = at_most("age", 2.0, 3.0, ".1f"), at_least("share", 0.5, 0.99, ".0%")
    assert exit_status([kept]) == 0
    assert exit_status([kept, missed]) == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        "kept   age: 2.0, wanted at most 3.0",
        "MISSED share: 50%, wanted at least 99%",
    ]


def test_what_was_never_measured_is_missed() -> None:
    assert at_most("told after", None, 3.0, ".1f") == Limit(
        "told after: never, wanted at most 3.0", kept=False
    )
    assert not at_least("samples", None, 1, ".0f").kept
    assert exit_status([]) == 1
