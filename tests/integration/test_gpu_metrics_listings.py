"""GPUs, their processes and their history, asked of a collector over gRPC."""

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import grpc
import grpc.aio
import pytest

from gaming.gpu_metrics.v1 import gpu_metrics_pb2, history_pb2, processes_pb2, samples_pb2
from gpu_metrics import wire
from gpu_metrics.domain.processes import GpuProcess, ProcessReading
from gpu_metrics.domain.readings import (
    GpuReading,
    Host,
    HostReport,
    MissingReason,
    ModelServerReading,
    Tier,
)
from gpu_metrics.servicers import fleet as fleet_methods
from gpu_metrics.testing import CollectorForTest, collector_for_test
from servicekit.testing import reason_of


@pytest.fixture
async def collector() -> AsyncIterator[CollectorForTest]:
    async with collector_for_test() as serving:
        yield serving


def report_of(
    host_id: str, sequence: int = 1, processes: ProcessReading | None = None
) -> HostReport:
    return HostReport(
        host=Host(host_id=host_id),
        boot_id="boot",
        sequence=sequence,
        sample_time=datetime.now(UTC),
        monotonic_microseconds=time.monotonic_ns() // 1000,
        gpus=tuple(
            GpuReading(
                gpu_uuid=f"GPU-{host_id}-{index}",
                index=index,
                utilization_permille=500,
                temperature_celsius=MissingReason.UNSUPPORTED,
            )
            for index in range(2)
        ),
        servers=(
            ModelServerReading(
                server_id=f"server-{host_id}", endpoint_url="http://10.0.0.1:1", tier=Tier.GOLD
            ),
        ),
        processes=processes,
    )


async def report(collector: CollectorForTest, *reports: HostReport) -> None:
    stream = collector.reports.StreamReports(timeout=60)
    for each in reports:
        await stream.write(wire.report_message(each))
        assert await stream.read() is not grpc.aio.EOF
    await stream.done_writing()


async def test_gpus_are_listed_page_by_page_with_host_and_server(
    collector: CollectorForTest,
) -> None:
    for host_id in ("i-1", "i-2"):
        await report(collector, report_of(host_id))
    first = await collector.fleet.ListGpus(gpu_metrics_pb2.ListGpusRequest(page_size=3), timeout=30)
    second = await collector.fleet.ListGpus(
        gpu_metrics_pb2.ListGpusRequest(page_size=3, page_token=first.next_page_token), timeout=30
    )
    listed = [*first.gpus, *second.gpus]
    assert [(each.host.host_id, each.gpu.index) for each in listed] == [
        ("i-1", 0),
        ("i-1", 1),
        ("i-2", 0),
        ("i-2", 1),
    ]
    assert listed[0].servers[0].server_id == "server-i-1"
    assert not listed[0].gpu.HasField("temperature_celsius")
    assert [entry.field for entry in listed[0].gpu.missing] == ["temperature_celsius"]
    assert second.next_page_token == ""


async def test_processes_stand_until_the_agent_reads_them_again(
    collector: CollectorForTest,
) -> None:
    reading = ProcessReading(
        read_time=datetime.now(UTC),
        processes=(
            GpuProcess(process_id=7, gpu_uuid="GPU-i-1-0", name="vllm", model="llama"),
            GpuProcess(process_id=8, gpu_uuid="GPU-i-1-1", unknown_because="no cgroup"),
        ),
    )
    await report(collector, report_of("i-1", 1, reading), report_of("i-1", 2))
    answer = await collector.fleet.GetGpuProcesses(
        processes_pb2.GetGpuProcessesRequest(host_id="i-1", gpu_uuid="GPU-i-1-1"), timeout=30
    )
    assert [process.process_id for process in answer.reading.processes] == [8]
    assert answer.reading.processes[0].unknown_because == "no cgroup"
    assert answer.HasField("age")


async def test_processes_that_were_never_read_are_unset(collector: CollectorForTest) -> None:
    await report(collector, report_of("i-1"))
    answer = await collector.fleet.GetGpuProcesses(
        processes_pb2.GetGpuProcessesRequest(host_id="i-1"), timeout=30
    )
    assert not answer.HasField("reading")


async def test_processes_of_an_unknown_host_are_not_found(collector: CollectorForTest) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await collector.fleet.GetGpuProcesses(
            processes_pb2.GetGpuProcessesRequest(host_id="nowhere"), timeout=30
        )
    assert reason_of(refused.value) == "HOST_UNKNOWN"


async def test_history_tells_what_was_and_leaves_unset_what_was_not(
    collector: CollectorForTest,
) -> None:
    await report(collector, report_of("i-1"))
    answer = await collector.fleet.QueryHistory(
        history_pb2.QueryHistoryRequest(
            metric=samples_pb2.FLEET_METRIC_GPU_UTILIZATION_PERMILLE,
            host_id="i-1",
            aggregation=history_pb2.AGGREGATION_P95,
        ),
        timeout=30,
    )
    assert answer.step.seconds == 2
    told = [point for point in answer.points if point.HasField("value")]
    assert [(point.value, point.samples, point.observed, point.expected) for point in told] == [
        (500, 2, 2, 2)
    ]
    assert len(answer.points) >= 300
    assert answer.points[0].expected == 0
    assert answer.HasField("oldest_time")


async def test_history_of_an_unknown_gpu_is_not_found(collector: CollectorForTest) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await collector.fleet.QueryHistory(
            history_pb2.QueryHistoryRequest(
                metric=samples_pb2.FLEET_METRIC_GPU_POWER_MILLIWATTS, gpu_uuid="GPU-nowhere"
            ),
            timeout=30,
        )
    assert reason_of(refused.value) == "HISTORY_UNKNOWN"


async def test_distributions_come_of_the_parts_that_were_asked_for(
    collector: CollectorForTest,
) -> None:
    await report(collector, report_of("i-1"))
    scopes = [
        gpu_metrics_pb2.DISTRIBUTION_SCOPE_FLEET,
        gpu_metrics_pb2.DISTRIBUTION_SCOPE_HOST,
    ]
    request = gpu_metrics_pb2.GetFleetRequest(
        include_distributions=True, distribution_scopes=scopes
    )
    answer = await collector.fleet.GetFleet(request, timeout=30)
    assert {each.WhichOneof("scope") for each in answer.distributions} == {None, "host_id"}
    request.distribution_scopes.append(gpu_metrics_pb2.DISTRIBUTION_SCOPE_UNSPECIFIED)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await collector.fleet.GetFleet(request, timeout=30)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_distributions_that_a_client_could_not_read_are_refused_with_what_to_do(
    collector: CollectorForTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    await report(collector, report_of("i-1"))
    request = gpu_metrics_pb2.GetFleetRequest(include_distributions=True)
    answer = await collector.fleet.GetFleet(request, timeout=30)
    # A fleet of thousands of hosts takes long to make up.
    monkeypatch.setattr(fleet_methods, "_MAXIMUM_ANSWER_BYTES", answer.ByteSize() - 200)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await collector.fleet.GetFleet(request, timeout=30)
    assert reason_of(refused.value) == "FLEET_TOO_LARGE"
    assert "distribution_scopes" in str(refused.value.details())
    request.distribution_scopes.append(gpu_metrics_pb2.DISTRIBUTION_SCOPE_FLEET)
    assert (await collector.fleet.GetFleet(request, timeout=30)).distributions


async def test_the_fleet_comes_with_distributions_when_asked(collector: CollectorForTest) -> None:
    await report(collector, report_of("i-1"))
    plain = await collector.fleet.GetFleet(gpu_metrics_pb2.GetFleetRequest(), timeout=30)
    assert not plain.distributions
    answer = await collector.fleet.GetFleet(
        gpu_metrics_pb2.GetFleetRequest(include_distributions=True), timeout=30
    )
    (of_fleet,) = [
        each
        for each in answer.distributions
        if each.metric == samples_pb2.FLEET_METRIC_GPU_UTILIZATION_PERMILLE
        and each.WhichOneof("scope") is None
    ]
    assert (of_fleet.expected, of_fleet.observed) == (2, 2)
    assert list(of_fleet.histogram.bucket_counts) == [2]
    assert of_fleet.histogram.minimum == 500
    assert not [
        each
        for each in answer.distributions
        if each.metric == samples_pb2.FLEET_METRIC_GPU_TEMPERATURE_CELSIUS
    ]
