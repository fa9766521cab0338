from datetime import timedelta

import pytest

from gpu_metrics.domain.distributions import DistributionRun, PartOfFleet, ScopedDistribution
from gpu_metrics.domain.fleet import FleetPolicy, FleetView
from gpu_metrics.domain.history import History
from gpu_metrics.domain.history_ring import HistoryLengths
from gpu_metrics.domain.readings import GpuReading, MissingReason, Tier
from gpu_metrics.domain.samples import FleetMetric

from .builders import NOON, make_report, make_server

NOON_SECOND = round(NOON.timestamp())
UTILIZATION = FleetMetric.GPU_UTILIZATION_PERMILLE


class Fleet:
    """A view with a history, told one reading of each GPU at a time."""

    def __init__(self, *, with_history: bool = True) -> None:
        self.history = (
            History(HistoryLengths(), maximum_bytes=10**9, started=NOON_SECOND)
            if with_history
            else None
        )
        self.view = FleetView(FleetPolicy(stale_after_seconds=5.0), self.history)

    def tell(
        self, at: int, host: str, *values: int | MissingReason, tier: Tier = Tier.GOLD
    ) -> None:
        gpus = tuple(
            GpuReading(gpu_uuid=f"GPU-{host}-{index}", index=index, utilization_permille=value)
            for index, value in enumerate(values)
        )
        report = make_report(host, at + 1, make_server(f"server-{host}", tier), gpus=gpus)
        time = NOON + timedelta(seconds=at)
        self.view.apply(report._replace(sample_time=time), float(at), time)

    def of(
        self, at: int, metric: FleetMetric = UTILIZATION
    ) -> dict[PartOfFleet, ScopedDistribution]:
        run = DistributionRun(self.history, now=float(at), second=NOON_SECOND + at)
        for state in self.view.hosts(float(at)):
            run.take(state)
        return {each.part: each for each in run.distributions() if each.metric is metric}


def test_every_part_of_the_fleet_has_its_distribution() -> None:
    fleet = Fleet()
    fleet.tell(0, "i-1", 100, 200)
    fleet.tell(0, "i-2", 900, tier=Tier.SILVER)
    found = fleet.of(0)
    counts = {part: each.histogram.count for part, each in found.items()}
    assert counts == {
        PartOfFleet(): 3,
        PartOfFleet(host_id="i-1"): 2,
        PartOfFleet(host_id="i-2"): 1,
        PartOfFleet(server_id="server-i-1"): 2,
        PartOfFleet(server_id="server-i-2"): 1,
        PartOfFleet(tier=Tier.GOLD): 2,
        PartOfFleet(tier=Tier.SILVER): 1,
    }
    assert found[PartOfFleet(host_id="i-2")].histogram.quantile(0.5) == 900


def test_all_samples_of_the_last_minute_count_and_none_from_before() -> None:
    fleet = Fleet()
    for second in range(100):
        fleet.tell(second, "i-1", second * 10)
    histogram = fleet.of(99)[PartOfFleet()].histogram
    assert histogram.count == 60
    assert (histogram.minimum, histogram.maximum) == (400, 990)


def test_what_is_stale_or_missing_is_expected_and_lowers_nothing() -> None:
    fleet = Fleet()
    fleet.tell(0, "i-silent", 10)
    fleet.tell(8, "i-1", 800, MissingReason.TIMEOUT, MissingReason.UNSUPPORTED)
    fleet_wide = fleet.of(9)[PartOfFleet()]
    assert (fleet_wide.expected, fleet_wide.observed) == (3, 1)
    assert fleet_wide.histogram.quantile(0.05) == 800
    assert fleet_wide.oldest_age_seconds == pytest.approx(1.0)


def test_nothing_fresh_is_no_distribution_rather_than_zeros() -> None:
    fleet = Fleet()
    fleet.tell(0, "i-1", 700)
    found = fleet.of(20)[PartOfFleet()]
    assert (found.expected, found.observed, found.histogram.count) == (1, 0, 0)
    assert found.oldest_age_seconds is None


def test_without_a_history_the_newest_readings_count() -> None:
    fleet = Fleet(with_history=False)
    fleet.tell(0, "i-1", 100, 300)
    fleet.tell(1, "i-1", 500, 700)
    histogram = fleet.of(1)[PartOfFleet()].histogram
    assert (histogram.count, histogram.minimum) == (2, 500)


def test_figures_of_servers_have_distributions_too() -> None:
    fleet = Fleet()
    fleet.tell(0, "i-1", 0)
    running = fleet.of(0, FleetMetric.RUNNING_REQUESTS)[PartOfFleet(tier=Tier.GOLD)]
    assert (running.expected, running.histogram.quantile(1.0)) == (1, 2)
