"""A fleet filter over gRPC: in what GetFleet returns, and in a watch from its start and after."""

from datetime import UTC, datetime

import grpc.aio
import pytest

from gaming.gpu_metrics.v1 import gpu_metrics_pb2
from gpu_metrics.domain.readings import GpuReading, Host, HostReport, ModelServerReading, Tier
from gpu_metrics.testing import CollectorForTest, collector_for_test
from servicekit.clock import SystemClock
from servicekit.testing import reason_of

CLOCK = SystemClock()
BY_KIND = {
    "host": gpu_metrics_pb2.FleetFilter(host_ids=["i-1"]),
    "server": gpu_metrics_pb2.FleetFilter(server_ids=["server-1"]),
    "model": gpu_metrics_pb2.FleetFilter(models=["model-1"]),
    "gpu": gpu_metrics_pb2.FleetFilter(gpu_uuids=["GPU-1"]),
}


def put(collector: CollectorForTest, host: int, sequence: int, number: int) -> None:
    report = HostReport(
        host=Host(host_id=f"i-{host}"),
        boot_id="boot",
        sequence=sequence,
        sample_time=datetime.now(UTC),
        gpus=(GpuReading(gpu_uuid=f"GPU-{number}", index=0),),
        servers=(
            ModelServerReading(
                server_id=f"server-{number}",
                endpoint_url="http://h",
                tier=Tier.GOLD,
                model=f"model-{number}",
            ),
        ),
    )
    collector.view.apply(report, CLOCK.monotonic(), CLOCK.now())


@pytest.mark.parametrize("wanted", BY_KIND.values(), ids=BY_KIND)
async def test_only_what_is_wanted_is_told_at_first_and_after(
    wanted: gpu_metrics_pb2.FleetFilter,
) -> None:
    async with collector_for_test(heartbeat_seconds=0.1) as collector:
        put(collector, 1, 1, 1)
        put(collector, 2, 1, 2)
        request = gpu_metrics_pb2.GetFleetRequest(filter=wanted)
        fleet = (await collector.fleet.GetFleet(request, timeout=30)).fleet
        assert [view.host.host_id for view in fleet.hosts] == ["i-1"]

        watch = gpu_metrics_pb2.WatchFleetRequest(filter=wanted)
        watch.minimum_interval.FromMilliseconds(100)
        call = collector.fleet.WatchFleet(watch, timeout=60)
        first = await call.read()
        assert isinstance(first, gpu_metrics_pb2.WatchFleetResponse)
        assert [view.host.host_id for view in first.snapshot.hosts] == ["i-1"]
        put(collector, 2, 2, 2)
        # Of the other host not a word: there is a heartbeat.
        second = await call.read()
        assert isinstance(second, gpu_metrics_pb2.WatchFleetResponse)
        assert second.HasField("heartbeat")
        put(collector, 1, 2, 1)
        third = await call.read()
        while isinstance(third, gpu_metrics_pb2.WatchFleetResponse) and third.HasField("heartbeat"):
            third = await call.read()
        assert isinstance(third, gpu_metrics_pb2.WatchFleetResponse)
        assert [view.host.host_id for view in third.delta.changed_hosts] == ["i-1"]
        call.cancel()

        # It goes on from there with the same filter, and with no other.
        watch.resume_token = third.resume_token
        again = await collector.fleet.WatchFleet(watch, timeout=30).read()
        assert isinstance(again, gpu_metrics_pb2.WatchFleetResponse)
        assert not again.HasField("snapshot")
        watch.ClearField("filter")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await collector.fleet.WatchFleet(watch, timeout=30).read()
        assert reason_of(refused.value) == "RESUME_TOKEN_UNKNOWN"
