import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from gpu_metrics.adapters.cloudwatch import metric_data
from gpu_metrics.domain.aggregate import TierAggregate
from gpu_metrics.domain.fleet import FleetPolicy, FleetView
from gpu_metrics.domain.histogram import Histogram
from gpu_metrics.domain.readings import GpuReading, MissingReason, Tier
from gpu_metrics.domain.tier_samples import GpuFigure, TierDistribution
from gpu_metrics.ports import MetricBatch, Publication, PublishFailed, PublishOutcome
from gpu_metrics.publisher import AggregatePublisher
from servicekit.telemetry import Telemetry
from servicekit.testing import FakeClock

from .builders import NOON, make_histogram, make_report, make_server


def make_aggregate() -> TierAggregate:
    view = FleetView(FleetPolicy())
    silent = make_server("a", running_requests=MissingReason.TIMEOUT)
    clock = FakeClock()
    view.apply(make_report("i-1", 1, silent), 0.0, clock.now())
    return view.aggregates(0.0)[0]


def data_of(aggregate: TierAggregate, *distributions: TierDistribution) -> list[dict[str, Any]]:
    return metric_data(Publication(NOON, [aggregate], distributions))


def test_every_datum_carries_its_tier_and_absent_figures_give_none() -> None:
    data = data_of(make_aggregate())
    by_name = {datum["MetricName"]: datum for datum in data}
    assert all(d["Dimensions"] == [{"Name": "Tier", "Value": "gold"}] for d in data)
    assert all(d["Timestamp"] == NOON for d in data)
    assert by_name["ReadyServers"]["Value"] == 1
    assert by_name["WaitingRequests"]["Value"] == 0
    assert by_name["KvCacheUsage"] == {**by_name["KvCacheUsage"], "Value": 25.0, "Unit": "Percent"}
    assert "RunningRequests" not in by_name
    assert "GpuUtilization" not in by_name
    assert "TimeToFirstToken" not in by_name


def test_a_histogram_gives_a_value_with_its_count_per_filled_bucket() -> None:
    aggregate = replace(make_aggregate(), time_to_first_token=make_histogram(3, 0, 5, 2))
    (datum,) = [d for d in data_of(aggregate) if d["MetricName"] == "TimeToFirstToken"]
    # The two beyond the last bound are told as that bound.
    assert (datum["Values"], datum["Counts"]) == ([0.1, 0.5], [3, 7])
    assert datum["Unit"] == "Seconds"


def test_no_datum_holds_more_values_than_the_service_takes() -> None:
    bounds = tuple(float(n) for n in range(1, 321))
    aggregate = replace(make_aggregate(), inter_token_latency=Histogram(bounds, (1,) * 321, 1000.0))
    parts = [d for d in data_of(aggregate) if d["MetricName"] == "InterTokenLatency"]
    assert [len(part["Values"]) for part in parts] == [150, 150, 20]
    assert sum(sum(part["Counts"]) for part in parts) == 321


def test_a_gpu_figure_keeps_its_distribution() -> None:
    utilization = TierDistribution(Tier.GOLD, GpuFigure.UTILIZATION_PERCENT, {0: 90, 97: 10})
    (datum,) = [
        d for d in data_of(make_aggregate(), utilization) if d["MetricName"] == "GpuUtilization"
    ]
    assert (datum["Values"], datum["Counts"], datum["Unit"]) == ([0, 97], [90, 10], "Percent")


class RecordingSink:
    """Takes publications whole, one batch each, in the order sent."""

    def __init__(self) -> None:
        self.sent: list[Publication] = []
        self.attempts = 0
        self.fails: PublishOutcome | None = None
        self._publications: dict[int, Publication] = {}

    def batches(self, publication: Publication) -> Sequence[MetricBatch]:
        self._publications[len(self._publications)] = publication
        return [[{"number": len(self._publications) - 1}]]

    async def send(self, batch: MetricBatch) -> None:
        self.attempts += 1
        if self.fails is not None:
            raise PublishFailed("THROTTLED", self.fails)
        self.sent.append(self._publications[batch[0]["number"]])


@pytest.fixture
def sink() -> RecordingSink:
    return RecordingSink()


@asynccontextmanager
async def publishing(
    view: FleetView, sink: RecordingSink, **options: Any
) -> AsyncIterator[FakeClock]:
    clock = FakeClock()
    publisher = AggregatePublisher(view, sink, clock=clock, telemetry=Telemetry("test"), **options)
    tasks = [asyncio.ensure_future(publisher.observe()), asyncio.ensure_future(publisher.run())]
    try:
        yield clock
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_every_latency_is_published_once_however_intervals_fall(
    sink: RecordingSink,
) -> None:
    view = FleetView(FleetPolicy(slot_seconds=5.0))
    async with publishing(view, sink, interval_seconds=17.0) as clock:
        for second in range(100):
            server = make_server("a", time_to_first_token=make_histogram(second, 0, 0, 0))
            view.apply(make_report("i-1", second + 1, server), clock.monotonic(), clock.now())
            await clock.advance(1.0)
    counts = [
        histogram.count
        for publication in sink.sent
        if (histogram := publication.aggregates[0].time_to_first_token) is not None
    ]
    # Published last at 85 s, up to the slot that began at 80 s and was complete.
    assert len(counts) == 5
    assert sum(counts) == 84


async def test_every_report_of_a_gpu_is_counted_once(sink: RecordingSink) -> None:
    view = FleetView(FleetPolicy())
    async with publishing(view, sink, interval_seconds=10.0) as clock:
        for sequence in range(1, 21):
            gpu = GpuReading(gpu_uuid="GPU-1", index=0, utilization_permille=50 * sequence)
            report = make_report("i-1", sequence, gpus=(gpu,))
            view.apply(report, clock.monotonic(), clock.now())
            await clock.advance(1.0)
        await clock.advance(10.0)
    (first, second) = [p.distributions for p in sink.sent if p.distributions]
    counts = [dict(d.counts) for (d,) in (first, second)]
    assert {**counts[0], **counts[1]} == {5 * number: 1 for number in range(1, 21)}


@pytest.mark.parametrize("outcome", [PublishOutcome.UNKNOWN, PublishOutcome.REFUSED])
async def test_what_may_have_counted_or_never_will_is_not_sent_again(
    sink: RecordingSink, outcome: PublishOutcome
) -> None:
    async with publishing(FleetView(FleetPolicy()), sink, interval_seconds=10.0) as clock:
        sink.fails = outcome
        await clock.advance(10.0)
        sink.fails = None
        await clock.advance(10.0)
    assert (sink.attempts, len(sink.sent)) == (2, 1)


async def test_what_certainly_was_not_taken_is_sent_again_in_order_with_its_own_time(
    sink: RecordingSink,
) -> None:
    async with publishing(FleetView(FleetPolicy()), sink, interval_seconds=10.0) as clock:
        sink.fails = PublishOutcome.NOT_TAKEN
        await clock.advance(10.0)
        await clock.advance(10.0)
        sink.fails = None
        await clock.advance(10.0)
    gaps = [(b.time - a.time).total_seconds() for a, b in pairwise(sink.sent)]
    assert gaps == [10.0, 10.0]


async def test_what_waits_is_bounded_and_the_oldest_gives_way(sink: RecordingSink) -> None:
    options = {"interval_seconds": 10.0, "buffer_batches": 3}
    async with publishing(FleetView(FleetPolicy()), sink, **options) as clock:
        sink.fails = PublishOutcome.NOT_TAKEN
        for _ in range(8):
            await clock.advance(10.0)
        last = clock.now()
        sink.fails = None
        await clock.advance(10.0)
    # The one that is new takes the place of one that waited.
    assert len(sink.sent) == 3
    assert [(last - p.time).total_seconds() for p in sink.sent] == [10.0, 0.0, -10.0]
