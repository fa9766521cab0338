import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from gpu_metrics.adapters.cloudwatch import metric_data
from gpu_metrics.domain.aggregate import TierAggregate
from gpu_metrics.domain.fleet import FleetPolicy, FleetView
from gpu_metrics.domain.histogram import Histogram
from gpu_metrics.domain.readings import MissingReason
from gpu_metrics.ports import PublishFailed
from gpu_metrics.publisher import AggregatePublisher
from servicekit.telemetry import Telemetry
from servicekit.testing import FakeClock

from .builders import make_histogram, make_report, make_server


def make_aggregate() -> TierAggregate:
    view = FleetView(FleetPolicy())
    silent = make_server("a", running_requests=MissingReason.TIMEOUT)
    clock = FakeClock()
    view.apply(make_report("i-1", 1, silent), 0.0, clock.now())
    return view.aggregates(0.0)[0]


def test_every_datum_carries_its_tier_and_absent_figures_give_none() -> None:
    data = metric_data([make_aggregate()])
    by_name = {datum["MetricName"]: datum for datum in data}
    assert all(d["Dimensions"] == [{"Name": "Tier", "Value": "gold"}] for d in data)
    assert by_name["ReadyServers"]["Value"] == 1
    assert by_name["WaitingRequests"]["Value"] == 0
    assert by_name["KvCacheUsage"] == {**by_name["KvCacheUsage"], "Value": 25.0, "Unit": "Percent"}
    assert "RunningRequests" not in by_name
    assert "GpuUtilization" not in by_name
    assert "TimeToFirstToken" not in by_name


def test_a_histogram_gives_a_value_with_its_count_per_filled_bucket() -> None:
    aggregate = replace(make_aggregate(), time_to_first_token=make_histogram(3, 0, 5, 2))
    (datum,) = [d for d in metric_data([aggregate]) if d["MetricName"] == "TimeToFirstToken"]
    # The two beyond the last bound are told as that bound.
    assert (datum["Values"], datum["Counts"]) == ([0.1, 0.5], [3, 7])
    assert datum["Unit"] == "Seconds"


def test_no_datum_holds_more_values_than_the_service_takes() -> None:
    bounds = tuple(float(n) for n in range(1, 321))
    aggregate = replace(make_aggregate(), inter_token_latency=Histogram(bounds, (1,) * 321, 1000.0))
    parts = [d for d in metric_data([aggregate]) if d["MetricName"] == "InterTokenLatency"]
    assert [len(part["Values"]) for part in parts] == [150, 150, 20]
    assert sum(sum(part["Counts"]) for part in parts) == 321


class RecordingSink:
    def __init__(self) -> None:
        self.published: list[Sequence[TierAggregate]] = []
        self.fails = False

    async def publish(self, aggregates: Sequence[TierAggregate]) -> None:
        if self.fails:
            raise PublishFailed("THROTTLED")
        self.published.append(aggregates)


@pytest.fixture
def sink() -> RecordingSink:
    return RecordingSink()


async def test_every_observation_is_published_once_however_intervals_fall(
    sink: RecordingSink,
) -> None:
    clock, view = FakeClock(), FleetView(FleetPolicy(slot_seconds=5.0))
    publisher = AggregatePublisher(
        view, sink, clock=clock, telemetry=Telemetry("test"), interval_seconds=17.0
    )
    running = asyncio.ensure_future(publisher.run())
    for second in range(100):
        server = make_server("a", time_to_first_token=make_histogram(second, 0, 0, 0))
        view.apply(make_report("i-1", second + 1, server), clock.monotonic(), clock.now())
        await clock.advance(1.0)
    running.cancel()
    counts = [
        published[0].time_to_first_token.count
        for published in sink.published
        if published[0].time_to_first_token is not None
    ]
    # Published last at 85 s, up to the slot that began at 80 s and was complete.
    assert len(counts) == 5
    assert sum(counts) == 84


async def test_a_failed_publication_does_not_stop_the_next(sink: RecordingSink) -> None:
    clock, view = FakeClock(), FleetView(FleetPolicy())
    publisher = AggregatePublisher(
        view, sink, clock=clock, telemetry=Telemetry("test"), interval_seconds=10.0
    )
    running = asyncio.ensure_future(publisher.run())
    sink.fails = True
    await clock.advance(10.0)
    sink.fails = False
    await clock.advance(10.0)
    assert len(sink.published) == 1
    running.cancel()
