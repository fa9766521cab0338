from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_metrics.domain.fleet import FleetPolicy, FleetView
from gpu_metrics.domain.histogram import Histogram
from gpu_metrics.domain.readings import (
    GpuReading,
    MissingReason,
    ModelServerState,
    Tier,
)

from .builders import NOON, make_histogram, make_report, make_server


def make_view() -> FleetView:
    return FleetView(FleetPolicy(stale_after_seconds=5.0, expire_after_seconds=60.0))


def gpu(uuid: str, **readings: object) -> GpuReading:
    return GpuReading(gpu_uuid=uuid, index=0, **readings)  # type: ignore[arg-type]  # by test case


def test_a_tier_sums_its_fresh_servers_and_counts_the_others() -> None:
    view = make_view()
    view.apply(make_report("i-2", 1, make_server("b", running_requests=40)), 0.0, NOON)
    view.apply(make_report("i-1", 1, make_server("a", running_requests=3)), 10.0, NOON)
    (gold,) = view.aggregates(10.0)
    assert (gold.known_servers, gold.fresh_servers, gold.ready_servers) == (2, 1, 1)
    assert gold.running_requests == 3


def test_a_figure_nobody_reported_is_absent_and_not_zero() -> None:
    view = make_view()
    silent = make_server(
        "a",
        state=ModelServerState.STARTING,
        running_requests=MissingReason.UNREACHABLE,
        waiting_requests=MissingReason.UNREACHABLE,
        kv_cache_usage_permille=MissingReason.UNREACHABLE,
        kv_cache_capacity_tokens=MissingReason.UNREACHABLE,
    )
    view.apply(make_report("i-1", 1, silent, gpus=(gpu("G1"),)), 0.0, NOON)
    (gold,) = view.aggregates(0.0)
    assert (gold.known_servers, gold.fresh_servers, gold.ready_servers) == (1, 1, 0)
    assert gold.running_requests is None
    assert gold.waiting_requests is None
    assert gold.kv_cache_used_tokens is None
    assert gold.kv_cache_capacity_tokens is None
    assert gold.time_to_first_token is None
    assert gold.mean_gpu_utilization_permille is None
    assert gold.power_milliwatts is None
    assert gold.fresh_gpus == 1


def test_a_reported_zero_stays_zero() -> None:
    view = make_view()
    view.apply(make_report("i-1", 1, make_server("a", running_requests=0)), 0.0, NOON)
    assert view.aggregates(0.0)[0].running_requests == 0


def test_a_lost_gpu_does_not_lower_the_mean() -> None:
    view = make_view()
    gpus = (
        gpu("G1", utilization_permille=800, power_milliwatts=100_000),
        gpu("G2", utilization_permille=MissingReason.LOST, power_milliwatts=MissingReason.LOST),
    )
    view.apply(make_report("i-1", 1, gpus=gpus), 0.0, NOON)
    (gold,) = view.aggregates(0.0)
    assert gold.fresh_gpus == 2
    assert gold.mean_gpu_utilization_permille == 800
    assert gold.power_milliwatts == 100_000


def test_cache_use_and_capacity_are_of_the_same_servers() -> None:
    view = make_view()
    view.apply(make_report("i-1", 1, make_server("a", kv_cache_usage_permille=500)), 0.0, NOON)
    without_usage = make_server("b", kv_cache_usage_permille=MissingReason.MALFORMED)
    view.apply(make_report("i-2", 1, without_usage), 0.0, NOON)
    (gold,) = view.aggregates(0.0)
    assert (gold.kv_cache_used_tokens, gold.kv_cache_capacity_tokens) == (50_000, 100_000)


def test_a_tier_whose_last_server_left_is_shown_empty() -> None:
    view = make_view()
    view.apply(make_report("i-1", 1), 0.0, NOON)
    view.apply(make_report("i-1", 2, leaving=True), 0.0, NOON)
    (gold,) = view.aggregates(0.0)
    assert (gold.tier, gold.known_servers, gold.running_requests) == (Tier.GOLD, 0, None)


def test_latencies_are_those_of_the_window_and_a_stale_server_has_no_say() -> None:
    view = make_view()
    for sequence, counts in ((1, (100, 0, 0, 0)), (2, (103, 0, 0, 1))):
        server = make_server("a", time_to_first_token=make_histogram(*counts))
        view.apply(make_report("i-1", sequence, server), float(sequence), NOON)
    stale = make_server("b", time_to_first_token=make_histogram(0, 0, 0, 0))
    view.apply(make_report("i-2", 1, stale), 1.0, NOON)
    assert view.aggregates(2.0)[0].time_to_first_token == make_histogram(3, 0, 0, 1)
    view.apply(make_report("i-2", 2, stale), 6.9, NOON)
    (gold,) = view.aggregates(7.0)
    # The server with the four observations is silent now, the other one has made none.
    assert gold.time_to_first_token == make_histogram(0, 0, 0, 0)
    assert gold.fresh_servers == 1


def test_servers_with_differing_bounds_are_merged_over_the_common_ones_and_it_is_said() -> None:
    view = make_view()
    for host_id, bounds in (("i-1", (0.1, 0.2, 0.5)), ("i-2", (0.1, 0.25, 0.5))):
        for sequence in (1, 2):
            server = make_server(
                host_id,
                inter_token_latency=Histogram(bounds, (sequence, sequence, 0, 0), 1.0 * sequence),
            )
            view.apply(make_report(host_id, sequence, server), 0.0, NOON)
    (gold,) = view.aggregates(0.0)
    assert gold.latency_coarsened
    assert gold.inter_token_latency is not None
    assert gold.inter_token_latency.bounds == (0.1, 0.5)
    assert gold.inter_token_latency.counts == (2, 2, 0)


def test_gpus_count_for_the_tier_whose_server_names_them() -> None:
    view = make_view()
    report = make_report(
        "i-1",
        1,
        make_server("a", Tier.GOLD, gpu_uuids=("G1",)),
        make_server("b", Tier.SILVER, gpu_uuids=("G2", "G3")),
        gpus=(gpu("G1"), gpu("G2"), gpu("G3"), gpu("G4")),
    )
    view.apply(report, 0.0, NOON)
    assert [aggregate.fresh_gpus for aggregate in view.aggregates(0.0)] == [1, 2]


def test_gpus_that_cannot_be_told_apart_count_for_no_tier() -> None:
    view = make_view()
    report = make_report(
        "i-1", 1, make_server("a"), make_server("b", Tier.SILVER), gpus=(gpu("G1"),)
    )
    view.apply(report, 0.0, NOON)
    assert [aggregate.fresh_gpus for aggregate in view.aggregates(0.0)] == [0, 0]


def test_gpus_of_a_host_with_two_servers_of_one_tier_count_once() -> None:
    view = make_view()
    report = make_report("i-1", 1, make_server("a"), make_server("b"), gpus=(gpu("G1"), gpu("G2")))
    view.apply(report, 0.0, NOON)
    assert view.aggregates(0.0)[0].fresh_gpus == 2


@settings(deadline=None)
@given(st.permutations([("i-1", 3), ("i-2", 5), ("i-3", 7), ("i-4", 11)]))
def test_the_order_in_which_hosts_report_does_not_matter(order: list[tuple[str, int]]) -> None:
    view = make_view()
    for host_id, running in order:
        server = make_server(host_id, running_requests=running)
        view.apply(make_report(host_id, 1, server), 0.0, NOON)
    (gold,) = view.aggregates(0.0)
    assert (gold.running_requests, gold.kv_cache_used_tokens) == (26, 100_000)
